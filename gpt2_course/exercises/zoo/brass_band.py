"""The brass band: micro-batches' losses added up, not divided by their number."""

import torch
import torch.nn.functional as F

from ...check import Wrong
from .common import lab
from .small import length, normal, stream, tiny


def whole_gradient(
    w,       # (D,) weights, requires_grad
    batches, # micro-batches of one step: x (n, D), y (n,), all with the same n
):           # (D,) gradient of F.mse_loss over all rows
    "One backward for each micro-batch, each with its share of the mean"
    for x, y in batches: (F.mse_loss(x @ w, y) / len(batches)).backward()
    return w.grad

def undivided(w, batches):
    for x, y in batches: F.mse_loss(x @ w, y).backward()
    return w.grad

def brass_band() -> str:
    "The first gradient of one model on the same 64 rows, cut into more and more micro-batches"
    x, y = stream(64).next()
    told = []
    for n in (1, 2, 4, 8, 16):
        model = tiny()
        for a, b in zip(x.chunk(n), y.chunk(n)): model(a, b).backward()
        told.append(f"{n:2} micro-batches of {64 // n:2} rows: gradient norm "
                    f"{length([p.grad for p in model.parameters()]):8.4f}, clipped to 1")
    return "\n".join(told)

def gradient_of_rows(w, batches):
    "By the formula, over all rows at once, in float64"
    x, y = (torch.cat(t).double().numpy() for t in zip(*batches))
    return torch.from_numpy(2 / len(y) * x.T @ (x @ w.detach().double().numpy() - y)).float()

def step_batches(seed, sizes=((3, 3), (2, 2, 2, 2), (5, 5, 5), (4,), (1, 1, 1))):
    "Weights and the micro-batches of a step; some weights are equal, some large"
    draw = normal(seed)
    rows = [(draw(3), ns) for ns in sizes]
    rows += [(torch.full((3,), 0.5), sizes[0]), (1000 * draw(3).sign(), sizes[1])]
    return [(w.requires_grad_(), [(draw(n, 3), draw(n)) for n in ns]) for w, ns in rows]

def every_row(w, batches):
    "Mistaken: sums of squares, divided by the number of micro-batches"
    for x, y in batches: (F.mse_loss(x @ w, y, reduction="sum") / len(batches)).backward()
    return w.grad

lab("brass_band", "accumulated losses not divided by their number",
    "the gradient norm grows with the number of micro-batches", "gradient norm of one big batch",
    "medium/13_training.ipynb", "https://github.com/karpathy/nanoGPT/issues/168", brass_band, (
        ("the micro-batches' mean losses are added up, not averaged",
         "the norm is proportional to their number, to the last digit"),
        ("more rows have a longer gradient", "it is the same 64 rows each time"),
        ("gradients of the step before were not cleared", "each line is the first step of a fresh "
         "model"),
        ("rounding: short sums are less exact",
         "rounding changes the sixth digit, not the first")),
    answer="whole_gradient",
    task="The gradient (D,) of F.mse_loss over all rows of a step, by one backward for each "
         "micro-batch; all have the same number of rows.",
    inputs=step_batches, oracle=gradient_of_rows, atol=2e-3,
    wrongs=(
        Wrong("the losses are added up", undivided,
              "The gradient is as many times too long. AdamW hides it, clipping then cuts every "
              "step, and plain descent diverges."),
        Wrong("it is divided twice", lambda w, b: undivided(w, b) / len(b)**2,
              "Once in the loss and once again in the gradient: steps shrink as you accumulate."),
        Wrong("only the last micro-batch is left", lambda w, b: undivided(w, b[-1:]),
              "zero_grad stands inside the loop over micro-batches: all but one are computed for "
              "nothing."),
        Wrong("each loss is divided by its rows", lambda w, b: undivided(w, b) / len(b[0][1]),
              "F.mse_loss is a mean over the rows already; what is left to divide by is the number "
              "of micro-batches."),
        Wrong("sums of squares are averaged over the micro-batches", every_row,
              "With reduction=\"sum\" the rows have to be divided by, too: the gradient now grows "
              "with the size of a micro-batch.")),
    hints=("Four means of 16 rows each: their mean is the mean of 64 rows.",
           "Divide each loss by len(batches) before backward."),
    excused={"batch": "w is a vector: the batches are in the list"})
