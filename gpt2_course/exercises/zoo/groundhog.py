"""The groundhog: a resume that forgets its place in the data."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import learn, letters, stream, tiny


def where(
    step:int,  # updates done
    B:int,     # windows of a batch, in each rank
    world:int, # ranks
    W:int,     # windows of an epoch
) -> tuple:    # epoch, and windows of it consumed by all ranks
    "The place in the data is a consequence of the step"
    return divmod(step * B * world, W)

def at_the_start(step, B, world, W): return 0, 0

def groundhog() -> str:
    "Forty steps, a checkpoint at 24, a resume; each line shows how its batch begins"
    tok, told = letters()[0], []
    model, loader = tiny(), stream(8)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for s in range(40):
        if s == 24: # the process is killed; model and optimiser come back from the checkpoint
            loader = stream(8, position=at_the_start(s, 8, 1, loader.W)[1])
            told.append("--- killed and resumed: weights and optimiser restored ---")
        x, y = loader.next()
        losses, _ = learn(model, 1, lambda s: (x, y), opt)
        if s in (0, 1, 2, 22, 23, 24, 25, 26):
            told.append(f"step {s:2}   loss {losses[0]:.3f}   {tok.decode(x[0].tolist())!r}")
    return "\n".join(told)

def places(seed):
    "Steps in the first epoch and in later ones, and one that ends an epoch exactly"
    r = np.random.default_rng(seed)
    return [(24 + int(r.integers(0, 7)), 8, 2, 500), (100, 8, 4, 1000), (63, 4, 2, 100),
            (25, 8, 2, 100), (0, 8, 2, 100), (int(r.integers(150, 190)), 3, 1, 200)]

lab("groundhog", "a resume that forgets its place in the data",
    "after a resume the run sees what it saw on its first day", "the batches themselves",
    "tough/19_checkpoint.ipynb",
    "https://github.com/KempnerInstitute/KempnerForge/issues/51", groundhog, (
        ("the loader starts again at the beginning",
         "the batches after the resume are those of steps 0, 1, 2, letter by letter"),
        ("the optimiser was not restored", "the log says that it was; and no optimiser chooses the "
         "text"),
        ("the weights were not restored", "then the loss would be that of step 0"),
        ("the epoch is over, and a new one has begun in the same order",
         "24 steps of 8 windows are a small part of the text")),
    answer="where",
    task="After `step` updates of `world` ranks with B windows each: (epoch, windows consumed in "
         "it), both counted from 0, with W windows in an epoch.",
    inputs=places,
    oracle=lambda step, B, world, W: ((n := step * B * world) // W, n - n // W * W),
    wrongs=(
        Wrong("it starts from the beginning", at_the_start,
              "The first shards are read again, the last never; the loss looks better than it is, "
              "until new text comes."),
        Wrong("only this rank's windows are counted", lambda s, B, w, W: divmod(s * B, W),
              "The run goes back by a factor of the world's size, and resumes on other hardware "
              "disagree."),
        Wrong("the epoch is forgotten", lambda s, B, w, W: (0, s * B * w % W),
              "Right in the first epoch; later the order is that of epoch 0 again."),
        Wrong("the start of the epoch is taken", lambda s, B, w, W: (s * B * w // W, 0),
              "Right epoch, wrong place: a part of it is read twice."),
        Wrong("epochs are counted from 1",
              lambda s, B, w, W: (s * B * w // W + 1, s * B * w % W),
              "Nothing is consumed at step 0, and the epoch is 0: with 1 the order is that of the "
              "epoch after this one."),
        Wrong("the windows are never taken off at the end of an epoch",
              lambda s, B, w, W: (s * B * w // W, s * B * w),
              "From the second epoch on the place lies behind the end of the data: consumed in "
              "this epoch is what is left over, % W.")),
    hints=("How many windows have all ranks read?", "divmod of that by W."))
