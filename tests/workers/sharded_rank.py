"""Under torchrun: one of the functions below in every rank of a sharded run, what it returns as a line of JSON.

Arguments: the function's name, processes on a "machine" (0: all), then flags of gpt2_course.train.
"""

import gc
import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from gpt2_course import checkpoint, config, evals, sharded, trainer
from gpt2_course.config import GPTConfig
from gpt2_course.distributed import World, process_group
from gpt2_course.generation import continue_text
from gpt2_course.slices import fill_rows, local, rows_of
from gpt2_course.train import read_options
from gpt2_course.variants import VARIANTS, make_gpt
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


class Collectives(TorchDispatchMode):
    "Counts what processes exchange"

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func._opname] = self.counts.get(func._opname, 0) + 1
        return func(*args, **(kwargs or {}))


def made(world):
    "A run, built"
    plan = trainer.preflight(read_options(sys.argv[3:]), world, lambda *a: None)
    return trainer.build(plan, world)


def begun(world):
    "A run with its directory"
    return trainer.start_run(trainer.preflight(read_options(sys.argv[3:]), world, lambda *a: None), world)


def storages():
    "Bytes of every tensor that lives in this process, shared memory counted once; a file that is only mapped is none of it"
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and not t.is_meta]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]  # Python may never have seen it
    tensors = map(local, tensors)
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors) if s.nbytes()}


def held(world):
    "What this rank holds after a backward pass, when AdamW has its state: from the live objects; then after a validation, a sample and a save"
    before = storages()
    run = made(world)
    new = lambda: {k: v for k, v in storages().items() if k not in before}
    built = new()
    trainer.one_step(run)
    batches = trainer.next_batches(run)[:1]
    trainer.accumulate(run.model, batches, run.autocast, run.scaler)
    params = list(run.raw.parameters())
    states = [v for p in params for v in run.optimizer.state[p].values() if v.dim()]
    count = lambda ts: sum(local(t).nbytes for t in ts)
    out = dict(parameters=sum(p.numel() for p in params), rows=sum(len(p) for p in params), largest=max(p.numel() for p in params) * 4)
    out |= dict(weights=count(params), gradients=count(p.grad for p in params), moments=count(states), kinds={str(local(t).dtype) for t in params})
    out |= dict(row_bytes=4 * sum(p[0].numel() for p in params), built=sum(built.values()), alive=sum(new().values()), biggest=max(new().values()))
    run.optimizer.zero_grad()
    trainer.validation_loss(run), trainer.samples(run), trainer.save_run(run, True)
    out |= dict(kinds=sorted(out["kinds"]), after=sum(new().values()), biggest_after=max(new().values()))
    run.model.set_requires_gradient_sync(False)  # as between two micro-batches of a step
    run.model(*batches[0]).backward()
    return out | dict(between=sum(new().values()))


def first(world):
    "Every variant's slices against an unsharded build, and the next number of the generator"
    found = {}
    cfg = GPTConfig(block_size=7, vocab_size=85, n_layer=2, n_head=2, n_embd=20)
    for variant in VARIANTS:
        torch.manual_seed(3)
        whole, after = make_gpt(cfg, variant), torch.rand(1)
        torch.manual_seed(3)
        model, draw = sharded.build_sharded(cfg, variant, world, CPU)
        same = torch.equal(torch.rand(1), after)
        sharded.fill_first(model, draw)
        for (name, p), (theirs, q) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
            a, b = rows_of(p)
            same &= name == theirs and torch.equal(local(p), q[a:b]) and torch.equal(p.full_tensor(), q)
        same &= model.lm_head.weight is model.transformer.wte.weight
        found[variant] = same
    return found


def traffic(world):
    "Types inside a block, and how many collectives a step takes"
    run = made(world)
    seen = []
    block = run.raw.transformer.h[0]
    block.mlp.register_forward_hook(lambda m, x, y: seen.append([str(m.c_fc.weight.dtype), str(y.dtype)]))
    block.register_forward_hook(lambda m, x, y: seen.append([str(x[0].dtype), str(y.dtype)]))
    counts = []
    for _ in range(2):
        with Collectives() as mode:
            batches = trainer.next_batches(run)
            trainer.accumulate(run.model, batches, run.autocast, run.scaler, reshard=run.cfg.reshard_after_forward)
        grads = {str(p.grad.dtype) for p in run.raw.parameters()}
        run.optimizer.step(), run.optimizer.zero_grad()
        counts.append(mode.counts)
    return dict(batches=len(batches), blocks=len(run.raw.transformer.h), counts=counts, seen=seen[:2], gradients=sorted(grads))


def looks(world):
    "Validation, a test with endings, last words and a sample: in slices, and by one whole model"
    run = made(world)
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 60, n).tolist()
    choices = [evals.Choice(ids(3 + 5 * (i % 4)), [ids(2) for _ in range(4)], [2] * 4, i % 4) for i in range(7)]
    words = [(ids(4 + i), ids(1 + i % 3)) for i in range(5)]
    torch.manual_seed(run.cfg.seed)
    whole = make_gpt(run.cfg.model, run.cfg.variant)
    sums = {}
    for name, share in (
        ("validation", lambda m, r, n, step: evals.validation_sum(m, run.val, 3, 700, r, n, lockstep=step)),
        ("choices", lambda m, r, n, step: evals.choice_sum(m, choices, 64, r, n, lockstep=step)),
        ("one choice", lambda m, r, n, step: evals.choice_sum(m, choices[:1], 64, r, n, lockstep=step)),
        ("last words", lambda m, r, n, step: evals.last_word_sum(m, words, 16, r, n, lockstep=step)),
    ):
        total = share(run.raw, world.rank, world.size, True)
        dist.all_reduce(total)
        sums[name] = [total.tolist(), sum(share(whole, r, world.size, False) for r in range(world.size)).tolist()]
    theirs = continue_text(whole, run.tok, run.cfg.sample_prompt, 2, run.cfg.sample_tokens, run.cfg.seed, temperature=0.8, top_k=200)
    sums["sample"] = [trainer.samples(run, 2), theirs]
    return sums | dict(training=run.raw.training)


def killed(world):
    "Save, then save again while the last rank dies"
    run = begun(world)
    trainer.one_step(run)
    trainer.save_run(run, True)
    run.saver.wait()
    trainer.one_step(run)
    if world.rank == world.size - 1:
        checkpoint.fsync = sharded.checkpoint.fsync = lambda path: os._exit(9)
    trainer.save_run(run, True)


def full(world):
    "Save, then find no room in one rank only; then save again"
    run = begun(world)
    trainer.one_step(run)
    trainer.save_run(run, True)
    run.saver.wait()
    trainer.one_step(run)
    fsync = checkpoint.fsync
    if world.rank == world.size - 1:

        def no_room(path):
            raise OSError(28, "No space left on device")

        checkpoint.fsync = no_room
    try:
        trainer.save_run(run, True)
        run.saver.wait()
        said = ""
    except config.UserError as e:
        said = str(e)
    checkpoint.fsync = fsync
    left = sorted(os.listdir(os.path.join(run.cfg.out, "checkpoints")))
    dist.barrier()
    trainer.save_run(run, True)
    run.saver.wait()
    dist.barrier()
    return dict(said=said, left=left, then=sorted(os.listdir(os.path.join(run.cfg.out, "checkpoints"))))


def misfit(world):
    "Rows of another shape are refused, not stretched"
    run = made(world)
    p = run.raw.transformer.h[0].mlp.c_fc.weight
    try:
        fill_rows(p, lambda a, b: torch.zeros(b - a, 1))
    except config.UserError as e:
        return dict(said=str(e))


def main():
    if int(sys.argv[2]):
        os.environ["LOCAL_WORLD_SIZE"] = sys.argv[2]
    world = World.from_env()
    with process_group(world, CPU):
        out = globals()[sys.argv[1]](world)
        dist.barrier()
    print(json.dumps(out) + "\n", end="", flush=True)  # in one piece: the ranks write into one pipe


config.run(main)
