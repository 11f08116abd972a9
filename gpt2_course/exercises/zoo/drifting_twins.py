"""Drifting twins: DDP told to average gradients when the forward pass is over."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .processes import case, rows_of
from .small import digest, length, stream, tiny


def micro_batches(
    ddp,     # a DistributedDataParallel: called with a batch it returns a loss
    batches, # micro-batches of one step
) -> list:   # ddp.log of the stand-in that the check uses
    "Average the gradients in the last micro-batch only; the wish is read by the forward pass"
    for i, batch in enumerate(batches):
        ddp.require_backward_grad_sync = i == len(batches) - 1
        ddp(batch).backward()
    return ddp.log

def wish_too_late(ddp, batches):
    for i, batch in enumerate(batches):
        loss = ddp(batch)
        ddp.require_backward_grad_sync = i == len(batches) - 1
        loss.backward()
    return getattr(ddp, "log", None)

class Recorder:
    "Stands in for DistributedDataParallel: notes which backward passes would average"
    def __init__(self, log=()): self.require_backward_grad_sync, self.log = True, list(log)
    def __repr__(self): return f"Recorder({self.log})"
    def __call__(self, batch): return Pass(self, batch, self.require_backward_grad_sync)

class Pass:
    "A forward pass: it has read the wish, as the real one does"
    def __init__(self, ddp, batch, wish): self.ddp, self.row = ddp, (batch, wish)
    def backward(self): self.ddp.log.append(self.row)

@case
def drifting_twins(rank, world, say, group):
    from torch.nn.parallel import DistributedDataParallel
    model = tiny()
    ddp = DistributedDataParallel(model)
    opt, loader = torch.optim.AdamW(model.parameters(), lr=3e-3), stream(4, rank=rank, world=world)
    for s in range(1, 9):
        opt.zero_grad()
        wish_too_late(lambda_ddp(ddp), [loader.next() for _ in range(4)])
        opt.step()
        say(step=s, weights=digest(*model.parameters()),
            norm=round(length(model.parameters()), 4))

def lambda_ddp(ddp): # a DDP that takes a micro-batch as one argument
    class One:
        def __call__(self, batch): return ddp(*batch) / 4
        def __setattr__(self, name, value): setattr(ddp, name, value)
    return One()

def always(ddp, batches):
    for batch in batches: ddp(batch).backward()
    return ddp.log

def never(ddp, batches):
    ddp.require_backward_grad_sync = False
    return always(ddp, batches)

def upside_down(ddp, batches):
    for i, batch in enumerate(batches):
        ddp.require_backward_grad_sync = i < len(batches) - 1
        ddp(batch).backward()
    return ddp.log

def last_only(ddp, batches): return micro_batches(ddp, batches[-1:])

def steps_of_a_run(seed):
    "A first step, and steps of a model that has a past"
    first = int(np.random.default_rng(seed).integers(0, 90))
    past = [(first, False), (first + 1, True)]
    return [(Recorder(log), list(range(first + 2, first + 2 + n)))
            for n, log in ((4, ()), (2, past), (3, past), (1, past[1:]))]

lab("drifting_twins", "require_backward_grad_sync set after the forward pass",
    "ranks whose weights differ, a little more at every step", "digests of the weights by rank",
    "tough/18_distributed.ipynb", "https://github.com/karpathy/build-nanogpt/pull/30",
    lambda: rows_of("drifting_twins"), (
        ("the last micro-batch's gradients are not averaged: the wish came after its forward pass",
         "DDP reads it when the forward pass begins; each rank then follows gradients of its own"),
        ("the ranks started from different weights", "DDP sends rank 0's weights to all when it "
         "wraps the model; they would be equal before the first step"),
        ("each rank has data of its own, so its weights differ", "that is how it should be: the "
         "gradients are averaged, and the weights stay equal to the last bit"),
        ("rounding: sums are taken in another order on each rank",
         "the average is computed once and sent to all: not a bit may differ")),
    answer="micro_batches",
    task="Run forward and backward for each micro-batch so that gradients are averaged in the last "
         "one only (ddp.require_backward_grad_sync is read when ddp(batch) is called), then "
         "return ddp.log.",
    inputs=steps_of_a_run,
    oracle=lambda ddp, batches: ddp.log + [(b, b == batches[-1]) for b in batches],
    wrongs=(
        Wrong("the wish is set after the forward pass", wish_too_late,
              "The forward pass has read the old wish: the first micro-batch is averaged and the "
              "last is not. The replicas drift apart, and no error is raised."),
        Wrong("every micro-batch is averaged", always,
              "Right numbers, paid for as many times as there are micro-batches. no_sync around "
              "backward alone has this effect too."),
        Wrong("no micro-batch is averaged", never,
              "Each rank trains a model of its own; rank 0's is saved."),
        Wrong("the condition is upside down", upside_down,
              "All are averaged but the last, whose gradients stay with their rank: the replicas "
              "drift apart, and the traffic that was to be saved is paid for."),
        Wrong("only the last micro-batch is run", last_only,
              "The others have to run forward and backward as well, to add their gradients; what "
              "they do without is the averaging.")),
    hints=("Which of the two passes reads the wish?",
           "Set ddp.require_backward_grad_sync, then call ddp(batch), then backward."))
