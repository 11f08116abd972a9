"""The black hole: a batch of padding only, and the mean of nothing."""

import numpy as np
import torch
import torch.nn.functional as F

from ...check import Wrong
from .common import lab
from .small import learn, normal, stream, tiny


def safe_mean(
    logits,  # (n, V)
    targets, # (n,); -1 is ignored
) -> float:  # nats per token; 0 where no target is left
    "The sum over the targets there are, divided by their number or by 1"
    total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return total.item() / max(1, int((targets != -1).sum()))

def plain_mean(logits, targets):
    return F.cross_entropy(logits, targets, ignore_index=-1).item()

def black_hole() -> list:
    "Rows of metrics; each counts the targets of its batch"
    model, loader, rows = tiny(), stream(4), []
    def batch(s):
        x, y = loader.next()
        y = y.clone()
        y[:, 32 - s % 7:] = -1
        if s == 40: y[:] = -1 # four passages that are padding from end to end
        rows.append(int((y != -1).sum()))
        return x, y
    losses, norms = learn(model, 48, batch)
    return [dict(step=s, split="train", loss=l, grad_norm=g, targets=n)
            for s, (l, g, n) in enumerate(zip(losses, norms, rows), 1)]

def some_targets(seed):
    "Logits and targets: some ignored, all, none; a single row; large logits and equal ones"
    draw, r = normal(seed), np.random.default_rng(seed)
    y = [torch.from_numpy(r.integers(0, 4, 5)) for _ in range(3)]
    y[0][1], y[0][3], y[1][:] = -1, -1, -1
    large = torch.tensor([[1000.0, 0, -1000], [-1000, 1000, 0], [7, 7, 7]])
    return [*((draw(5, 4), t) for t in y), (draw(1, 3), torch.tensor([2])),
            (draw(1, 3), torch.tensor([-1])), (large, torch.tensor([1, 1, -1])),
            (large, torch.tensor([-1, 2, 0]))]

def surprise(logits, targets):
    "Token by token, in float64"
    z = logits.double().numpy()
    s = [np.log(np.exp(r - r.max()).sum()) + r.max() - r[t]
         for r, t in zip(z, targets.tolist()) if t >= 0]
    return float(np.mean(s)) if s else 0.0

lab("black_hole", "a batch of padding only: 0 / 0", "one NaN, with a quiet gradient before it and "
    "after", "doctor, and the rows before the first NaN", "easy/04_loss.ipynb",
    "https://github.com/pytorch/pytorch/issues/70348", black_hole, (
        ("a batch has no target at all, and the mean of nothing is 0 / 0",
         "the row counts 0 targets; before and after it all is calm"),
        ("the learning rate is too high", "then loss and gradient norm would climb for some steps "
         "before, and nothing would be well afterwards"),
        ("float16 overflows", "this run is in float32; and an overflow shows in the norm first"),
        ("a token id is outside the vocabulary", "that raises an error and makes no NaN")),
    answer="safe_mean",
    task="The mean cross-entropy, as a float, over the targets that are not -1; 0.0 if there is "
         "none.",
    inputs=some_targets, oracle=surprise,
    wrongs=(
        Wrong("nothing is divided by nothing", plain_mean,
              "0 / 0 is NaN. No gradient comes of it here, but every average that meets it is NaN, "
              "and a trainer that stops at NaN stops."),
        Wrong("it is divided by all positions",
              lambda z, y: F.cross_entropy(z, y, ignore_index=-1, reduction="sum").item() / len(y),
              "No NaN any more, but padding dilutes the loss: the fix breaks what was right."),
        Wrong("padding is scored as token 0",
              lambda z, y: F.cross_entropy(z, y.clamp_min(0)).item(),
              "No NaN, and the model learns to predict padding."),
        Wrong("one is added to the number of targets",
              lambda z, y: F.cross_entropy(z, y, ignore_index=-1, reduction="sum").item()
              / (int((y != -1).sum()) + 1),
              "No NaN, but every mean is too small, and most of all that of a short batch: divide "
              "by max(1, number)."),
        Wrong("the sum is returned",
              lambda z, y: F.cross_entropy(z, y, ignore_index=-1, reduction="sum").item(),
              "No NaN, but the loss and its gradient grow with the number of tokens in a batch.")),
    hints=("reduction=\"sum\" of no target is 0, a good number.",
           "Divide by the number of targets, but at least by 1."),
    excused={"batch": "a batch is flattened before its loss is computed: (n, V)"})
