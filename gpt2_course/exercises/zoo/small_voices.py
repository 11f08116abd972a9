"""Small voices: a mean of means, where micro-batches differ in their numbers of tokens."""

import numpy as np
import torch
import torch.nn.functional as F

from ...check import Wrong
from .brass_band import gradient_of_rows, step_batches, undivided, whole_gradient
from .common import lab
from .small import stream, trained


def token_gradient(
    w,       # (D,) weights, requires_grad
    batches, # micro-batches of one step: x (n, D), y (n,), n differs
):           # (D,) gradient of F.mse_loss over all rows
    "Every row counts the same, wherever it stands"
    n = sum(len(y) for _, y in batches)
    for x, y in batches: (F.mse_loss(x @ w, y, reduction="sum") / n).backward()
    return w.grad

@torch.no_grad()
def small_voices() -> str:
    "One model, the same 64 padded passages of unequal length, two groupings"
    x, y = (t.clone() for t in stream(64, split=2).next())
    lengths = torch.from_numpy(np.random.default_rng(0).choice([2, 4, 8, 32], 64))
    y[torch.arange(32) >= lengths[:, None]] = -1
    told = []
    for name, i in (("as they come", torch.arange(64)), ("sorted by length", lengths.argsort())):
        for n in (1, 4, 16):
            parts = zip(x[i].chunk(n), y[i].chunk(n))
            loss = np.mean([trained()(a, b).item() for a, b in parts])
            told.append(f"{name:16} {n:2} micro-batches: loss {loss:.4f}")
    return "\n".join(told)

def counted_on_the_way(w, batches):
    "Mistaken: divided by the rows that were seen so far"
    n = 0
    for x, y in batches:
        n += len(y)
        (F.mse_loss(x @ w, y, reduction="sum") / n).backward()
    return w.grad

lab("small_voices", "a mean of means where micro-batches have unequal numbers of tokens",
    "the loss of the same rows depends on how they are grouped", "one big batch, other groupings",
    "easy/04_loss.ipynb", "https://github.com/huggingface/transformers/pull/34191", small_voices, (
        ("each micro-batch's mean counts the same, however few tokens are in it",
         "tokens of short passages get louder the more passages of their kind are grouped; with "
         "one group nothing shows"),
        ("padding is attended to", "it lies behind the text, and attention looks back only; and "
         "the grouping would not matter"),
        ("dropout", "the model is in eval mode, and one group gives the same number twice"),
        ("the losses are not divided by the number of micro-batches",
         "then 16 would give 16 times the loss of one")),
    answer="token_gradient",
    task="The gradient (D,) of F.mse_loss over all rows of a step, by one backward for each "
         "micro-batch; their numbers of rows differ.",
    inputs=lambda seed: step_batches(seed, ((1, 5), (2, 3, 7), (4, 1, 1, 2), (3,))),
    oracle=gradient_of_rows, atol=2e-3,
    wrongs=(
        Wrong("it is a mean of means", whole_gradient,
              "A row in a small micro-batch weighs more than one in a large: training follows the "
              "short documents, and two groupings of one batch disagree."),
        Wrong("each micro-batch is divided by the largest one's rows",
              lambda w, b: token_sum(w, b) / (len(b) * max(len(y) for _, y in b)),
              "Padding is counted as if it were text: the gradient is too short."),
        Wrong("the sum is divided by the number of micro-batches",
              lambda w, b: token_sum(w, b) / len(b),
              "The gradient grows with the tokens: longer documents, larger steps."),
        Wrong("the rows are counted on the way", counted_on_the_way,
              "The first micro-batch is divided by its own rows only and weighs too much: count "
              "all rows of the step before the first backward."),
        Wrong("means are added up", undivided,
              "Each mean counts as much as all rows together should: the gradient is too long, and "
              "it still favours the small micro-batches.")),
    hints=("Which number of rows belongs under the sum of all squares?",
           "reduction=\"sum\", and divide by the rows of the whole step: count them first."),
    excused={"batch": "w is a vector: the batches are in the list"})

def token_sum(w, batches): # gradient of the sum over all rows
    for x, y in batches: F.mse_loss(x @ w, y, reduction="sum").backward()
    return w.grad
