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
    "Wishes of 2 to 4 ranks: several ranks', one rank's, nobody's; at the first step, the last"
    def table(ranks, steps, *at): # (rank, step from 0 on) of each wish
        return [[(r, s) in at for s in range(steps)] for r in range(ranks)],
    lone = int(np.random.default_rng(seed).integers(1, 4))
    return [table(3, 8, (1, 1), (0, 3), (2, 4), (0, 5), (1, 5), (2, 5)), table(2, 6, (1, lone)),
            table(4, 4), table(2, 3, (1, 2)), table(2, 4, (1, 0), (0, 1)), table(1, 5, (0, 2))]

def agreed(step_of): # a mistaken `last_steps`: all leave together, in a step that this finds
    return lambda wishes: [step_of(wishes)] * len(wishes)

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
         "leave together, in the step in which anyone has the first wish; without a wish, all "
         "steps.",
    inputs=wishes_of,
    oracle=lambda wishes: [int(np.r_[np.array(wishes).any(0), True].argmax() + 1
                               if np.array(wishes).any() else len(wishes[0]))] * len(wishes),
    wrongs=(
        Wrong("each rank leaves when it likes", each_for_itself,
              "Whoever stays waits for ever in the next collective; after ten minutes a timeout "
              "blames the network."),
        Wrong("only rank 0 is asked", agreed(lambda w: each_for_itself(w)[0]),
              "A signal reaches one rank, often not rank 0: it goes unheard."),
        Wrong("all have to wish it at once",
              agreed(lambda w: next((s for s, now in enumerate(zip(*w), 1) if all(now)),
                                    len(w[0]))),
              "MIN where MAX is meant: the run never stops early."),
        Wrong("all leave one step late",
              agreed(lambda w: min(last_steps(w)[0] + 1, len(w[0]))),
              "The wish is agreed on only at the start of the next step, which is computed in "
              "full: nobody hangs, but the signal's time limit may be over by then."),
        Wrong("all leave one step early",
              agreed(lambda w: last_steps(w)[0] - any(map(any, w))),
              "The index of the step, counted from 0, is taken for the number of steps: the step "
              "in which the wish is had has been taken as well."),
        Wrong("all wait for the last rank's wish", agreed(lambda w: max(each_for_itself(w))),
              "Nobody hangs, but a rank that must stop has to wait for the others to want it, "
              "too."),
        Wrong("one rank's answer is given for all", lambda w: last_steps(w)[0],
              "One number where a list is asked for: how many steps each rank takes, in the "
              "order of the ranks.")),
    hints=("Reduce the wishes of a step with MAX: any.",
           "for step, now in enumerate(zip(*wishes), 1): if any(now): …"))
