"""Under torchrun --max-restarts: train, and in attempt a let one rank kill itself by SIGKILL at a random moment.

The environment variable KILLS is a JSON list with one [rank, steps of this attempt, further seconds] for each attempt that must die. Every rank of the last attempt prints a digest of its own parameters.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time

from gpt2_course import config, trainer
from gpt2_course.distributed import World, process_group
from gpt2_course.train import read_options


def die(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    world, kills, attempt = World.from_env(), json.loads(os.environ["KILLS"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    one_step, done = trainer.one_step, 0
    victim, after, seconds = kills[attempt] if attempt < len(kills) else (None, 0, 0)

    def counted(run):
        nonlocal done
        out, done = one_step(run), done + 1
        if world.rank == victim and done == after:
            threading.Thread(target=die, args=(seconds,), daemon=True).start()
        return out

    trainer.one_step = counted
    silent = lambda *a: None
    plan = trainer.preflight(read_options(sys.argv[1:]), world, silent)
    with process_group(world, plan.device):
        run = trainer.fit(plan, world, silent)
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in run.raw.parameters()]  # inside the group
    if victim == world.rank:
        time.sleep(seconds + 60)  # the end was near: die there
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in whole)).hexdigest()
    print(f"rank {world.rank} {digest} attempt {attempt} from {plan.resume.name if plan.resume else 'the beginning'}\n", end="", flush=True)  # in one piece: the ranks write into one pipe


config.run(main)
