"""One process that does the work of several: for each virtual rank its own data, its own random state, its own gradient; then their mean, summed in rank order. Prints losses and a digest as JSON.

Arguments: number of virtual ranks, "ranks" (gradients apart, as processes have them) or "naive" (every micro-batch adds to one gradient), then flags of gpt2_course.train.
"""

import hashlib
import json
import sys

import torch
from gpt2_course import config
from gpt2_course.data import TokenLoader, open_split
from gpt2_course.distributed import World
from gpt2_course.optim import cosine_lr
from gpt2_course.train import read_options
from gpt2_course.trainer import accumulate, build, preflight, update


def main():
    n, naive, cfg = int(sys.argv[1]), sys.argv[2] == "naive", read_options(sys.argv[3:])
    torch.set_num_threads(1)
    plan = preflight(cfg, World(0, 0, n), lambda *a: None)
    cfg, o = plan.cfg, plan.cfg.optim
    run = build(plan, World())  # one process: no wrapper, no group
    shards = open_split(cfg.data, "train")
    loaders = [TokenLoader(shards, cfg.micro_batch, cfg.model.block_size, cfg.seed, cfg.order, r, n) for r in range(n)]
    states = []
    for r in range(n):
        torch.manual_seed(cfg.seed + 1 + r)
        states.append(torch.get_rng_state())
    losses = []
    for step in range(cfg.steps):
        grads, total, batches = [], 0.0, []
        for r in range(n):
            mine = [loaders[r].next() for _ in range(plan.accumulation)]
            batches += mine
            if naive:
                continue
            torch.set_rng_state(states[r])
            total = total + accumulate(run.raw, mine, run.autocast, run.scaler)
            states[r] = torch.get_rng_state()
            grads.append([p.grad for p in run.raw.parameters()])
            run.optimizer.zero_grad(set_to_none=True)
        if naive:
            total = accumulate(run.raw, batches, run.autocast, run.scaler) * n
        else:
            for p, *parts in zip(run.raw.parameters(), *grads):
                p.grad = sum(parts[1:], parts[0]) / n
        losses.append(float(total / n))
        lr = cosine_lr(step, max_lr=o.lr, min_lr=o.min_lr, warmup=o.warmup, steps=cfg.steps)
        update(run.raw, run.optimizer, run.scaler, lr, o.grad_clip)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.raw.parameters())).hexdigest()
    print(json.dumps(dict(losses=losses, digest=digest)))


config.run(main)
