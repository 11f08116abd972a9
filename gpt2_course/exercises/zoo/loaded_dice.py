"""Loaded dice: ranks that draw their dropout from one seed."""

import torch

from ...check import Wrong
from .common import lab
from .processes import case, rows_of
from .small import digest, stream, tiny


def seeds(
    seed:int, # of the run
    rank:int,
) -> tuple:   # of the weights: seed itself; of the noise (dropout): seed + 1 + rank
    "The same weights everywhere, other noise on each rank"
    return seed, seed + 1 + rank

def one_seed(seed, rank): return seed, seed

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
    task="Two seeds for rank `rank`: of the weights (seed, on every rank) and of the noise "
         "(seed + 1 + rank).",
    inputs=lambda seed: [(1337, 0), (1337 + seed, 1), (7, 3 + seed)],
    oracle=lambda seed, rank: (seed, sum([seed, 1, rank])),
    wrongs=(
        Wrong("one seed for everything", one_seed,
              "Equal masks on all ranks: the noise of a large batch is that of a small one, and "
              "runs on eight GPUs do worse than on one."),
        Wrong("the weights' seed depends on the rank", lambda s, r: (s + r, s + 1 + r),
              "Without a broadcast every rank starts from other weights, and equal gradients keep "
              "them apart for ever."),
        Wrong("the rank multiplies the seed", lambda s, r: (s, s * r),
              "Rank 0 always gets 0, and rank 1 the seed of the weights: no two runs differ on "
              "rank 0.")),
    hints=("One of the two must be equal on all ranks.", "(seed, seed + 1 + rank)"))
