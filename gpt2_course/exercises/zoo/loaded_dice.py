"""Loaded dice: ranks that draw their dropout from one seed."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .processes import case, rows_of
from .small import digest, stream, tiny


def seeds(
    base:int, # seed of the run
    rank:int,
) -> tuple:   # of the weights: base itself; of the noise (dropout): base + 1 + rank
    "The same weights everywhere, other noise on each rank"
    return base, base + 1 + rank

def one_seed(base, rank): return base, base

def runs_and_ranks(seed):
    "Seeds of runs; the first ranks and a high one"
    r = np.random.default_rng(seed)
    base = [int(b) for b in r.integers(1, 10_000, 3)]
    return [(base[0], 0), (base[1], 1), (base[2], int(r.integers(2, 64))), (0, 3), (1337, 0)]

@case
def loaded_dice(rank, world, say, group):
    weights, noise = one_seed(1337, rank)
    model, (x, _) = tiny(weights, dropout=0.5), stream(2, rank=rank, world=world).next()
    torch.manual_seed(noise)
    for s in range(1, 4):
        kept = model.transformer.drop(torch.ones(48)) > 0
        say(step=s, weights=digest(*model.parameters()), batch=digest(x),
            kept="".join(".#"[int(k)] for k in kept))

lab("loaded_dice", "the same dropout seed on every rank",
    "the same numbers dropped on all ranks, on different data", "dropout masks by rank",
    "tough/18_distributed.ipynb", "https://github.com/huggingface/transformers/issues/31412",
    lambda: rows_of("loaded_dice"), (
        ("all ranks draw their noise from the same seed",
         "the batches differ and the masks do not: eight ranks then try one way of dropping out, "
         "not eight"),
        ("all ranks read the same data", "the digests of their batches differ"),
        ("dropout is off", "half of the numbers are gone"),
        ("the masks are sent from rank 0 with the weights", "DDP sends parameters and buffers; a "
         "mask is neither")),
    answer="seeds",
    task="Two seeds for rank `rank` of a run with the seed `base`: that of the weights (base, on "
         "every rank) and that of the noise (base + 1 + rank).",
    inputs=runs_and_ranks,
    oracle=lambda base, rank: (base, sum([base, 1, rank])),
    wrongs=(
        Wrong("one seed for everything", one_seed,
              "Equal masks on all ranks: the noise of a large batch is that of a small one, and "
              "runs on eight GPUs do worse than on one."),
        Wrong("the weights' seed depends on the rank", lambda s, r: (s + r, s + 1 + r),
              "Without a broadcast every rank starts from other weights, and equal gradients keep "
              "them apart for ever."),
        Wrong("the rank multiplies the seed", lambda s, r: (s, s * r),
              "Rank 0 always gets 0, and rank 1 the seed of the weights: no two runs differ on "
              "rank 0."),
        Wrong("rank 0 draws its noise from the seed of the weights", lambda s, r: (s, s + r),
              "The ranks differ, but on rank 0 the first dropout masks come from the very numbers "
              "that made the weights: hence the 1."),
        Wrong("the noise's seed is the rank alone", lambda s, r: (s, r),
              "Every run drops the same numbers, whatever its seed: repeating a run with another "
              "seed does not show how much the noise matters."),
        Wrong("the noise is the same on every rank", lambda s, r: (s, s + 1),
              "It has a seed of its own, but one for all ranks: their masks are still equal.")),
    hints=("One of the two must be equal on all ranks.", "(base, base + 1 + rank)"))
