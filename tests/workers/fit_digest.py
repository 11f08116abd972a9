"""Under torchrun: train as gpt2_course.train does, then let every rank print a digest of its own parameters. MACHINE=n: act as if n processes shared a machine."""

import hashlib
import os
import sys

from gpt2_course import config
from gpt2_course.distributed import World, process_group
from gpt2_course.train import read_options
from gpt2_course.trainer import fit, preflight


def main():
    os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("MACHINE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = World.from_env()
    silent = lambda *a: None
    plan = preflight(read_options(sys.argv[1:]), world, silent)
    with process_group(world, plan.device):
        run = fit(plan, world, silent)
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in run.raw.parameters()]  # inside the group
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in whole)).hexdigest()
    print(f"rank {world.rank} {digest}\n", end="", flush=True)  # in one piece: the ranks write into one pipe


config.run(main)
