"""Silence: a rank that leaves the loop alone, while the others wait for it."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .processes import case, rows_of


def last_steps(
    wishes, # for each rank, for each step: whether it would like to stop after this step
) -> list:  # for each rank, how many steps it takes
    "A wish of anyone, agreed on in the step in which it is had, stops all; nobody's: all steps"
    for step, now in enumerate(zip(*wishes), 1):
        if any(now): return [step] * len(wishes)
    return [len(wishes[0])] * len(wishes)

def each_for_itself(wishes):
    return [row.index(True) + 1 if True in row else len(row) for row in wishes]

@case
def silence(rank, world, say, group):
    import torch.distributed as dist
    wishes = [[s == 4 and r == 0 for s in range(8)] for r in range(world)]
    for s in range(1, each_for_itself(wishes)[rank] + 1):
        say(step=s, at="averages gradients")
        dist.all_reduce(torch.ones(1000), group=group)
    say(step=s, at="is done, waits for the others")
    dist.barrier(group=group)
    say(step=s, at="goes home")

def wishes_of(seed):
    "Wishes of 2 to 4 ranks: one rank's, several ranks', nobody's"
    r = np.random.default_rng(seed)
    late = [[False] * 8 for _ in range(3)]
    late[1][1] = late[0][2] = late[0][4] = late[1][4] = late[2][4] = True
    one = [[False] * 6 for _ in range(2)]
    one[1][int(r.integers(1, 5))] = True
    return [(late,), (one,), ([[False] * 4] * 4,)]

lab("silence", "one rank leaves the loop alone", "a run that stands still without a word",
    "the last thing each rank said", "tough/18_distributed.ipynb",
    "https://github.com/huggingface/accelerate/issues/3861", lambda: rows_of("silence"), (
        ("rank 0 left the loop by itself, and rank 1 waits for it to average gradients",
         "the last words of both: each waits for the other, in different places"),
        ("the network is broken", "five averages went through on the same connection"),
        ("rank 1 is slow", "it has asked for the sixth average; it is waiting, not computing"),
        ("rank 0 has crashed", "it says that it is done, and waits")),
    answer="last_steps",
    task="From each rank's wishes to stop after each step, how many steps each rank takes if all "
         "leave together, in the step in which the first wish of anyone is had.",
    inputs=wishes_of,
    oracle=lambda wishes: [int(np.r_[np.array(wishes).any(0), True].argmax() + 1
                               if np.array(wishes).any() else len(wishes[0]))] * len(wishes),
    wrongs=(
        Wrong("each rank leaves when it likes", each_for_itself,
              "Whoever stays waits for ever in the next collective; after ten minutes a timeout "
              "blames the network."),
        Wrong("only rank 0 is asked",
              lambda w: [(w[0].index(True) + 1) if True in w[0] else len(w[0])] * len(w),
              "A signal reaches one rank, often not rank 0: it goes unheard."),
        Wrong("all have to wish it at once",
              lambda w: next(([s] * len(w) for s, now in enumerate(zip(*w), 1) if all(now)),
                             [len(w[0])] * len(w)),
              "MIN where MAX is meant: the run never stops early.")),
    hints=("Reduce the wishes of a step with MAX: any.",
           "for step, now in enumerate(zip(*wishes), 1): if any(now): …"))
