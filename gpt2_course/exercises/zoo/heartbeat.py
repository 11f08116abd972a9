"""The heartbeat: leftover micro-batches that join the next epoch's first step."""

import torch

from ...check import Wrong
from .common import lab
from .small import length, stream, tiny


def plan(
    n:int,      # micro-batches of an epoch
    k:int,      # micro-batches of a step
    epochs:int,
) -> list:      # for each step, the (epoch, micro-batch) pairs whose gradients it uses
    "Steps end where their epoch ends; the last of an epoch may be small"
    return [[(e, i) for i in range(first, min(first + k, n))]
            for e in range(epochs) for first in range(0, n, k)]

def spilt(n, k, epochs):
    steps, held = [], []
    for e in range(epochs):
        for i in range(n):
            held.append((e, i))
            if (i + 1) % k == 0: steps, held = steps + [held], []
    return steps

def heartbeat() -> list:
    "Gradient norms of five epochs of ten micro-batches, four a step; each loss is divided by four"
    x, y = (t.chunk(10) for t in stream(160).next())
    model, norms = tiny(), []
    for step in spilt(10, 4, 5):
        model.zero_grad()
        for _, i in step: (model(x[i], y[i]) / 4).backward()
        norms.append(length([p.grad for p in model.parameters()]))
        with torch.no_grad():
            for p in model.parameters(): p -= 1e-3 * p.grad
    return norms

def plan_by_counting(n, k, epochs):
    "One micro-batch at a time"
    steps = []
    for e in range(epochs):
        for i in range(n):
            if i % k == 0: steps.append([])
            steps[-1].append((e, i))
    return steps

def merged(n, k, epochs):
    "Mistaken: what is left joins the last full step of its epoch"
    steps = []
    for e in range(epochs):
        for i in range(n):
            if i == 0 or i % k == 0 and i + k <= n: steps.append([])
            steps[-1].append((e, i))
    return steps

lab("heartbeat", "leftover micro-batches spill into the next epoch's first step",
    "a gradient norm that is half as long again at one step of each epoch",
    "gradient norm by step", "medium/13_training.ipynb",
    "https://github.com/WalkingMeatAxolotl/AnimaLoraStudio/pull/305", heartbeat, (
        ("what is left of an epoch stays in .grad and joins the next epoch's first step",
         "ten micro-batches make two steps of four and leave two: the first step of each later "
         "epoch has six, half as many again"),
        ("one batch of the data is odd", "then the peak would be there in the first epoch too, and "
         "it is missing"),
        ("the learning rate is warmed up anew each epoch", "the norm is taken before the update: "
         "the rate does not enter"),
        ("the gradients are never cleared", "then the norm would grow from step to step")),
    answer="plan",
    task="For each step, the (epoch, micro-batch) pairs whose gradients it uses: k in a row of one "
         "epoch's n, and what is left of an epoch makes a smaller step of its own.",
    inputs=lambda seed: [(7 + seed % 2 * 3, 3, 2), (10, 4, 3), (5, 2, 2), (6, 3, 2), (2, 5, 2),
                         (3, 1, 2), (4, 4, 1)],
    oracle=plan_by_counting,
    wrongs=(
        Wrong("what is left joins the next epoch's first step", spilt,
              "The counter starts anew, .grad does not: one step of each epoch has too long a "
              "gradient, and the last leftovers are lost."),
        Wrong("what is left is thrown away",
              lambda n, k, E: [s for s in plan(n, k, E) if len(s) == k],
              "Up to k - 1 micro-batches of each epoch are computed and never used; with a short "
              "epoch nothing is trained at all."),
        Wrong("the count runs on across epochs",
              lambda n, k, E: [[(j // n, j % n) for j in range(f, min(f + k, n * E))]
                               for f in range(0, n * E, k)],
              "Steps of equal size, but one of them mixes two epochs, and a schedule in steps per "
              "epoch no longer fits."),
        Wrong("what is left joins its epoch's last full step", merged,
              "That step has up to twice as many micro-batches as the others, and its gradient is "
              "as much longer."),
        Wrong("the last step runs beyond the epoch",
              lambda n, k, E: [[(e, i) for i in range(f, f + k)]
                               for e in range(E) for f in range(0, n, k)],
              "Its pairs name micro-batches that do not exist: the range has to end at n.")),
    hints=("range(0, n, k) gives the first micro-batch of each step of an epoch.",
           "The last step ends at n at the latest: min(first + k, n). Its losses are divided by "
           "its own size."))
