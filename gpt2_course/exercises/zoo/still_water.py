"""Still water: a warm-up counted from 0, whose first step has learning rate 0."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import digest, learn, stream, tiny


def warm_up(
    step:int,     # 0, 1, 2 …
    warmup:int,   # steps of the rise
    max_lr:float, # reached at step warmup - 1
) -> float:       # the learning rate of this step
    "A linear rise whose first step already moves"
    return max_lr * min(1.0, (step + 1) / warmup)

def steps_of_a_rise(seed):
    "Steps before, at and behind both ends of the rise"
    r = np.random.default_rng(seed)
    return [(s, w, float(r.uniform(1e-4, 1e-2))) for s, w in
            ((0, 10), (4, 10), (8, 10), (9, 10), (10, 10), (25, 10), (0, 1), (1, 1), (2, 4))]

def late_warm_up(step, warmup, max_lr): return max_lr * min(1.0, step / warmup)

def still_water() -> str:
    "Six steps on one batch, with a digest of the weights after each"
    model, (x, y) = tiny(), stream().next()
    opt = torch.optim.AdamW(model.parameters(), lr=0.0)
    told = [f"before   weights {digest(*model.parameters())}"]
    for s in range(5):
        opt.param_groups[0]["lr"] = late_warm_up(s, 4, 3e-3)
        losses, norms = learn(model, 1, lambda s: (x, y), opt)
        told.append(f"step {s}   weights {digest(*model.parameters())}   loss {losses[0]:.6f}   "
                    f"gradient norm {norms[0]:.4f}")
    return "\n".join(told)

lab("still_water", "learning rate 0 at step 0", "weights equal before and after the first step",
    "digests of the weights", "medium/12_optim.ipynb",
    "https://github.com/karpathy/nanoGPT/pull/578", still_water, (
        ("the learning rate of the first step is 0",
         "the gradient is there, the weights stay, and from step 1 on they move: the warm-up "
         "counts from 0, and 0 / warmup is 0"),
        ("the gradient is zero at initialisation",
         "its norm is in the log, and it is not 0"),
        ("the optimiser was given other parameters than the model's",
         "then no later step could move them either"),
        ("the digest is taken before the update",
         "then every line would lag by one, and the loss of step 1, on the same batch, would "
         "differ from that of step 0: it is equal")),
    answer="warm_up",
    task="The learning rate of a step (0, 1, 2 …): before step 0 it is 0, each step raises it by "
         "the same amount, step warmup - 1 is the first at max_lr, and there it stays.",
    inputs=steps_of_a_rise,
    oracle=lambda step, warmup, max_lr: float(np.interp(step + 1, [0, warmup], [0, max_lr])),
    wrongs=(
        Wrong("the rise is counted from 0", late_warm_up,
              "The first step has learning rate 0 and moves nothing: a whole batch is read for "
              "no update, and the maximum comes a step late."),
        Wrong("it is divided by warmup + 1",
              lambda s, w, m: m * min(1.0, (s + 1) / (w + 1)),
              "The first step moves, but the maximum is reached a step later than asked."),
        Wrong("the rise never ends", lambda s, w, m: m * (s + 1) / w,
              "After the warm-up the rate keeps growing, and soon the loss does, too."),
        Wrong("the division drops the fraction", lambda s, w, m: m * min(1, (s + 1) // w),
              "// gives 0 at every step before the last of the warm-up: nothing moves, and then "
              "the full rate comes without any warm-up at all."),
        Wrong("every step of the warm-up has the same rate",
              lambda s, w, m: m if s + 1 >= w else m / w,
              "max_lr / warmup is the amount by which each step raises the rate, not the rate "
              "itself: it then jumps to the maximum at once.")),
    hints=("How many steps have begun by the time step 0 runs? One.",
           "max_lr times (step + 1) / warmup, but never more than max_lr."), atol=1e-9)
