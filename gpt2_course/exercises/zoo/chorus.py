"""The chorus: ranks that all read the same data."""

import numpy as np
import torch

from ...check import Wrong
from ...data import share # the answer
from .common import lab
from .processes import case, rows_of
from .small import digest, length, stream, tiny


@case
def chorus(rank, world, say, group):
    import torch.distributed as dist
    model, loader = tiny(), stream(8) # every rank takes the same windows
    for s in range(1, 5):
        model.zero_grad()
        x, y = loader.next()
        loss = model(x, y)
        loss.backward()
        own = length([p.grad for p in model.parameters()])
        for p in model.parameters(): dist.all_reduce(p.grad); p.grad /= world
        with torch.no_grad():
            for p in model.parameters(): p -= 0.1 * p.grad
        averaged = length([p.grad for p in model.parameters()])
        say(step=s, weights=digest(*model.parameters()), loss=loss.item(),
            own_norm=round(own, 8), averaged_norm=round(averaged, 8))

def share_numpy(position, B, rank, world):
    "Rows of a table"
    table = np.arange(position, position + B * world).reshape(world, B)
    return table[rank], position + B * world

lab("chorus", "the same data on every rank", "equal losses on all ranks, to the last digit",
    "losses and gradient norms by rank", "easy/02_data.ipynb",
    "https://github.com/Shark-NLP/DiffuSeq/issues/37", lambda: rows_of("chorus"), (
        ("all ranks read the same batch",
         "their losses agree to the last digit, and averaging changes nothing: the second process "
         "only warms the room"),
        ("the losses were averaged over the ranks before they were printed",
         "then the norms before and after averaging would differ; they are equal"),
        ("the weights are equal, so the losses must be",
         "equal weights are right; on other text they still give another loss"),
        ("the gradients are not averaged",
         "with different batches the weights would then differ after one step")),
    answer="share",
    task="Which B windows of the stream rank `rank` of `world` takes next (an array), when all "
         "ranks together have consumed `position`; and the position after it.",
    inputs=lambda seed: [(0, 4, 1, 2), (16, 2, seed % 4, 4), (8, 3, 0, 2), (24, 2, 3, 4)],
    oracle=share_numpy,
    wrongs=(
        Wrong("the rank plays no part", lambda p, B, r, w: (p + np.arange(B), p + B),
              "All ranks read the same windows: as many processes, one process's gradient."),
        Wrong("the position moves by one rank's share only",
              lambda p, B, r, w: (p + r * B + np.arange(B), p + B),
              "Rank 1's windows of this step are rank 0's of the next: everything is read as many "
              "times as there are ranks."),
        Wrong("the share of rank 0 is taken by all, the rest is skipped",
              lambda p, B, r, w: (p + np.arange(B), p + w * B),
              "The epoch seems to have the right length, but most of the data is never read.")),
    hints=("Of the next world * B windows, rank 0 takes the first B, rank 1 the next B, …",
           "(position + rank * B + np.arange(B), position + world * B)"))
