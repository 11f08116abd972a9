"""Train two steps of the given shape on the CPU and print the peak of resident memory above what the imports took (Linux); under torchrun in slices."""

import json
import sys
from contextlib import nullcontext

import torch
from gpt2_course import sharded
from gpt2_course.attention import ATTENTION
from gpt2_course.config import GPTConfig, run
from gpt2_course.distributed import World, process_group
from gpt2_course.model import GPT
from gpt2_course.optim import adamw
from gpt2_course.speed import resident
from gpt2_course.trainer import DTYPES, accumulate, update


def main():
    spec = json.loads(sys.argv[1])
    cfg, B, dtype = GPTConfig(**spec["model"]), spec["B"], DTYPES[spec["dtype"]]
    before = resident("VmRSS")
    with process_group(World.from_env(), torch.device("cpu")):
        said = json.dumps(dict(peak=two_steps(spec, cfg, B, dtype) - before))
        print(said + "\n", end="", flush=True)  # in one piece: the ranks write into one pipe


def two_steps(spec, cfg, B, dtype) -> int:
    world, attention = World.from_env(), ATTENTION[spec["attention"]]
    if world.size > 1:
        model, draw = sharded.build_sharded(cfg, "gpt2", world, torch.device("cpu"), dtype, attention=attention)
        sharded.fill_first(model, draw)
    else:
        model = GPT(cfg, attention)
    optimizer, scaler = adamw(model, 1e-4, 0.1, (0.9, 0.95), "cpu"), torch.amp.GradScaler("cpu", enabled=False)
    autocast = nullcontext if dtype == torch.float32 else lambda: torch.autocast("cpu", dtype)
    for _ in range(2):
        pairs = [tuple(torch.randint(cfg.vocab_size, (B, cfg.block_size)) for _ in "xy") for _ in range(spec.get("accumulation", 1))]
        accumulate(model, pairs, autocast, scaler)
        update(model, optimizer, scaler, 1e-4, 1.0)
    return resident("VmHWM")


run(main)
