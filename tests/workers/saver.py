"""Checkpoints saved back to back by a process that is killed at a random moment, again and again; prints what was lost as JSON.

Arguments: run directory, number of kills, seed, "ours" or "naive" (torch.save over the only file). Children are forked, since imports take longer than saves (Linux, macOS).
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from gpt2_course import checkpoint
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import GPT
from gpt2_course.optim import adamw

CFG = GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=64)


def make():
    "A model, and an optimiser that has its memories"
    model = GPT(CFG)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    ids = torch.zeros(1, 16, dtype=torch.long)
    model(ids, ids).backward()
    optimizer.step()
    return model, optimizer


def fill(model, optimizer, step):
    "The whole content is a function of the step"
    tensors = [*model.parameters(), *(t for s in optimizer.state.values() for t in (s["exp_avg"], s["exp_avg_sq"]))]
    with torch.no_grad():
        for t in tensors:
            t.fill_(step)


def save_for_ever(run, step, acknowledge, naive):
    model, optimizer = make()
    rng, meta = checkpoint.rng_state(torch.device("cpu")), dict(config=dict(model=asdict(CFG)))
    while True:
        step += 1
        fill(model, optimizer, step)
        if naive:
            torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step), run / "ckpt.pt")
        else:
            name = checkpoint.save(run, step, model, optimizer, [rng], dict(meta)).name
            checkpoint.write_text(run / "checkpoints" / "last", name)
            checkpoint.prune(run, 2, "", step=step)
        os.write(acknowledge, b"%d\n" % step)


def content(run, naive):
    "Step of the newest whole checkpoint, its every number compared"
    model, optimizer = make()
    if naive:
        state = torch.load(run / "ckpt.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    else:
        path = checkpoint.newest(run, lambda line: sys.exit(f"a torn checkpoint has a checkpoint's name: {line}"))
        checkpoint.load_weights(path, model)
        meta, _ = checkpoint.load_state(path, optimizer)
        step = meta["step"]
    assert all((p == step).all() for p in model.state_dict().values()), "weights of another step"
    assert all((s["exp_avg"] == step).all() and (s["exp_avg_sq"] == step).all() for s in optimizer.state.values()), "state of another step"
    return step


def main():
    run, kills, seed, naive = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "naive"
    torch.set_num_threads(1)
    run.mkdir(parents=True, exist_ok=True)
    chance, step, saves, lost = random.Random(seed), 0, 0, []
    for kill in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            save_for_ever(run, step, write, naive)
        os.close(write)
        acknowledged = os.read(read, 1 << 16)  # wait for one, then strike
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 1 << 16):
            acknowledged += more
        os.close(read)
        told = [int(line) for line in acknowledged.split(b"\n")[:-1]]
        saves += len(told)
        try:
            found = content(run, naive)
            if found < told[-1]:
                lost.append(f"kill {kill}: step {found} after {told[-1]} had been acknowledged")
            step = found
        except (UserError, AssertionError, RuntimeError, EOFError, OSError, KeyError, ValueError) as e:
            lost.append(f"kill {kill}: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
            step = told[-1]
    print(json.dumps(dict(kills=kills, saves=saves, lost=lost)))


main()
