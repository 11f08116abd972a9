"""Short rations: a last shard that has no whole batch for the high ranks."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .processes import case, rows_of
from .small import letters


def steps_in(
    n:int,        # tokens of a shard
    B:int, T:int, # rows and tokens of a batch, in each rank
    world:int,
) -> int:         # steps for which every rank finds a whole batch, its last target included
    "A step takes world * B * T tokens; the last target is one token more"
    return max(0, n - 1) // (B * T * world)

def as_rank_0_sees_it(n, B, T, world): return max(0, (n - 1 - B * T) // (B * T * world) + 1)

@case
def short_rations(rank, world, say, group):
    import torch.distributed as dist
    ids, B, T = letters()[1][:1200], 4, 32
    for s in range(as_rank_0_sees_it(len(ids), B, T, world)):
        first = (s * world + rank) * B * T
        row = torch.from_numpy(ids[first:first + B * T + 1].astype(np.int64))
        say(step=s + 1, at=f"read {len(row)} tokens, from {first} on")
        row[:-1].view(B, T)
        dist.all_reduce(torch.ones(1000), group=group)

def shards(seed):
    "Shards that end just after a step, a little later, inside rank 0's batch and inside rank 1's"
    steps = 3 + int(np.random.default_rng(seed).integers(0, 4))
    return [(B * T * w * k + extra, B, T, w) for B, T, w, k, extra in
            ((4, 8, 2, steps, 0), (2, 4, 4, 5, 9), (4, 8, 2, 3, 33), (1, 8, 1, 2, 1),
             (4, 8, 2, steps, 5), (2, 4, 3, 0, 7), (2, 4, 2, 1, 1), (2, 4, 2, 0, 1))]

lab("short_rations", "the last, short shard has no whole batch for the high ranks",
    "one rank dies of a shape, another of waiting", "the last thing each rank said",
    "easy/02_data.ipynb", "https://github.com/karpathy/build-nanogpt/issues/105",
    lambda: rows_of("short_rations"), (
        ("the shard ends inside the step: rank 0 still finds a batch, rank 1 does not",
         "rank 1 read fewer tokens than a batch has and could not reshape them into rows; rank 0 "
         "waits for a partner that is gone"),
        ("rank 1 has another batch size", "four steps went well with the same one"),
        ("rank 0 is too slow and rank 1 gave up", "rank 1's last message is about a shape"),
        ("the shard is damaged", "everything in it was read; there is just not enough of it")),
    answer="steps_in",
    task="For how many steps a shard of n tokens gives each of `world` ranks a whole batch of B "
         "rows of T tokens, the target of the last token included.",
    inputs=shards,
    oracle=lambda n, B, T, w: sum(1 for s in range(n) if (s + 1) * B * T * w + 1 <= n),
    wrongs=(
        Wrong("the steps are counted from rank 0's point of view", as_rank_0_sees_it,
              "The first rank's batch fits, the others' does not: they crash on a shape, or wrap "
              "around, and rank 0 waits."),
        Wrong("the last target is forgotten", lambda n, B, T, w: n // (B * T * w),
              "Where the shard ends exactly with a batch, the last rank is one token short."),
        Wrong("the other ranks are forgotten", lambda n, B, T, w: max(0, n - 1) // (B * T),
              "Each rank expects the whole shard for itself."),
        Wrong("one step too many is held back",
              lambda n, B, T, w: max(0, (n - 1) // (B * T * w) - 1),
              "The check looks one step too far ahead: the end of every shard is never read."),
        Wrong("an incomplete step is counted", lambda n, B, T, w: -(-(n - 1) // (B * T * w)),
              "The division is rounded up: in the last step even rank 0 may find too few tokens "
              "for a batch."),
        Wrong("every row reserves a token for its target",
              lambda n, B, T, w: n // (B * (T + 1) * w),
              "The last target of a row is the first token of the next: only the very last row "
              "needs one token more.")),
    hints=("How many tokens does a step take, over all ranks "
           "together?", "The last target needs one token more, so only n - 1 tokens can be "
           "inputs."))
