"""Under torchrun: gpt2_course.train in processes that may reserve only so many MB beyond what they have once everything is imported (as `ulimit -v` sets it).

Arguments: MB, then flags of gpt2_course.train.
"""

import resource
import sys

import torch._dynamo  # noqa: F401
import torch.distributed.checkpoint  # noqa: F401  imported before the limit is set: it is a limit of the training's own memory
import torch.distributed.fsdp  # noqa: F401
from gpt2_course import config, train, trainer  # noqa: F401
from gpt2_course.speed import glibc, resident

M_ARENA_MAX = -8
glibc().mallopt(M_ARENA_MAX, 1)  # else it reserves 64 MB for each thread that allocates something
limit = resident("VmSize") + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
config.run(train.main)
