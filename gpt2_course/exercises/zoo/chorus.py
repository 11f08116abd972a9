"""The chorus: ranks that all read the same data."""

import numpy as np
import torch

from ...check import Wrong
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
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= world
        with torch.no_grad():
            for p in model.parameters(): p -= 0.1 * p.grad
        averaged = length([p.grad for p in model.parameters()])
        say(step=s, weights=digest(*model.parameters()), loss=loss.item(),
            own_norm=round(own, 8), averaged_norm=round(averaged, 8))

def dealt(
    position:int, # windows consumed so far, by all ranks
    B:int,        # windows that each rank takes
    world:int,    # ranks
) -> tuple: # (world, B) indices of the windows, a row for each rank; the position after them
    "Of the next world x B windows, rank r takes the r-th B"
    return position + np.arange(world * B).reshape(world, B), position + world * B

def dealt_like_cards(position, B, world):
    "The oracle: one window to each rank in turn"
    rows = [[position + i * world + r for i in range(B)] for r in range(world)]
    return [sorted(row) for row in rows], position + B * world

def whoever_has_what(result, position, B, world):
    "Any division counts in which each of the next windows is in exactly one of the shares"
    try:
        rows, after = result
        table = np.array([np.asarray(row).ravel() for row in rows])
    except (TypeError, ValueError): return result
    next_ones = position + np.arange(world * B)
    whole = table.shape == (world, B) and table.dtype.kind in "iu"
    if not whole or not np.array_equal(np.sort(table, None), next_ones): return result
    return next_ones.reshape(world, B), after

lab("chorus", "the same data on every rank", "equal losses on all ranks, to the last digit",
    "losses and gradient norms by rank", "easy/02_data.ipynb",
    "https://github.com/Shark-NLP/DiffuSeq/issues/37", lambda: rows_of("chorus"), (
        ("all ranks read the same batch",
         "their losses agree to the last digit, and averaging changes nothing: the second process "
         "does no useful work"),
        ("the losses were averaged over the ranks before they were printed",
         "then the norms before and after averaging would differ; they are equal"),
        ("the weights are equal, so the losses must be",
         "equal weights are right, but on different text they still give a different loss"),
        ("the gradients are not averaged",
         "with different batches the weights would then differ after one step")),
    answer="dealt",
    task="All ranks together have consumed `position` windows. Which B windows does each of "
         "`world` ranks take next (a list or an array with a row for each rank), and what is the "
         "position after that? Each of the next world * B windows goes to exactly one rank, "
         "divided in any way.",
    inputs=lambda seed: [(0, 4, 2), (16, 2, 4), (8 + seed % 7, 3, 2), (5, 3, 1), (24, 1, 3)],
    oracle=dealt_like_cards, read=whoever_has_what,
    wrongs=(
        Wrong("the rank is ignored",
              lambda p, B, w: (np.tile(p + np.arange(B), (w, 1)), p + B),
              "All ranks read the same windows: many processes compute the gradient of one."),
        Wrong("the position advances by the windows of one rank only",
              lambda p, B, w: (dealt(p, B, w)[0], p + B),
              "Rank 1's windows of this step are rank 0's of the next: everything is read as many "
              "times as there are ranks."),
        Wrong("all ranks take rank 0's windows, and the others are skipped",
              lambda p, B, w: (np.tile(p + np.arange(B), (w, 1)), p + w * B),
              "The epoch seems to have the right length, but most of the data is never read."),
        Wrong("each rank begins one window after its neighbour",
              lambda p, B, w: (p + np.arange(w)[:, None] + np.arange(B), p + w * B),
              "The ranks' windows overlap in all but one: rank r has to begin r * B further on, or "
              "take every world-th window."),
        Wrong("every step begins at window 0",
              lambda p, B, w: (dealt(0, B, w)[0], p + w * B),
              "The ranks read different windows, but the same ones at every step: `position` says "
              "where the step begins."),
        Wrong("the position does not advance", lambda p, B, w: (dealt(p, B, w)[0], p),
              "The next step reads the same windows again, and so does every step after it."),
        Wrong("the ranks' windows leave gaps",
              lambda p, B, w: (p + w * B * np.arange(w)[:, None] + np.arange(B), p + w * B),
              "Rank r begins r * world * B windows further on: the windows in between are not read "
              "in this step, and some further on are read again in the next.")),
    hints=("Of the next world * B windows, rank 0 may take the first B, rank 1 the next B, …",
           "np.arange(world * B).reshape(world, B) is such a table, except that it begins at 0.",
           "(position + np.arange(world * B).reshape(world, B), position + world * B)"))
