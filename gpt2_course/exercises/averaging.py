"""The catalogue of chapter 06: the four answers, which are exported here, oracles in plain Python
and NumPy, and the classic mistakes with their names."""

import math

import numpy as np
import torch
from torch import Tensor

from ..check import Exercise, Wrong, register


def past_mean(
    x:Tensor, # (T, C) a vector for every position
) -> Tensor:  # (T, C) row t is the mean of rows 0 … t
    "Average every position with its past, by a running sum"
    seen = torch.arange(1, len(x) + 1)[:, None]                            # (T, 1) rows seen so far
    return x.cumsum(0) / seen


def rows(
    seed:int,
) -> list: # of (x,)
    "Random (T, C) vectors, also of a single position"
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(T, C, generator=g) + 1,) for T, C in ((5, 3), (8, 2), (4, 4), (1, 3))]

def past_mean_numpy(x):
    "Two loops in float64"
    x, out = x.double().numpy(), np.zeros(x.shape)
    for t in range(len(x)):
        for s in range(t + 1): out[t] += x[s] / (t + 1)
    return torch.from_numpy(out).float()

register(Exercise(
    "averaging.past_mean", "06", "From (T, C) rows, (T, C) means: row t is that of rows 0 to t.",
    inputs=rows, oracle=past_mean_numpy, package="gpt2_course.exercises.averaging:past_mean",
    wrongs=(
        Wrong("a position leaves itself out",
              lambda x: (x.cumsum(0) - x) / torch.arange(len(x)).clamp(min=1)[:, None],
              "x[:t] stops before t: the newest letter, which says most, is not in its own "
              "average, and the first row averages nothing."),
        Wrong("the future is averaged too", lambda x: x.mean(0).expand(len(x), -1).clone(),
              "Every row is the mean of all rows, so the answer stands in the question."),
        Wrong("it is a sum, not a mean", lambda x: x.cumsum(0),
              "The rows grow with t: a model then sees how long the past is more loudly than "
              "what was in it."),
        Wrong("it is divided by T, not by the number of rows seen", lambda x: x.cumsum(0) / len(x),
              "Only the last row is a mean; early rows shrink, and the same beginning gives "
              "other numbers in a longer text.")),
    hints=("Row 0 is x[0] itself. Row 1 is the mean of two rows. How many rows has row t?",
           "x[:t + 1] holds row t and its past; its mean over dimension 0 is row t of the answer.",
           "torch.stack([x[:t + 1].mean(0) for t in range(len(x))])")))


def mean_weights(
    T:int, # positions
) -> Tensor: # (T, T) row t has 1 / (t + 1) at columns 0 … t, then zeros
    "The matrix that averages the past: mean_weights(T) @ x is past_mean(x)"
    ones = torch.ones(T, T).tril()
    return ones / ones.sum(1, keepdim=True)


def upside_down(T): return torch.ones(T, T).triu()
def lower(T): return torch.ones(T, T).tril()

register(Exercise(
    "averaging.mean_weights", "06", "The (T, T) matrix W for which W @ x is the mean of the past "
    "of every row.", inputs=lambda seed: [(4,), (1,), (3 + seed % 5,), (9,)],
    oracle=lambda T: torch.tensor([[1 / (t + 1) if s <= t else 0.0 for s in range(T)]
                                   for t in range(T)]),
    package="gpt2_course.exercises.averaging:mean_weights",
    wrongs=(
        Wrong("the triangle is upside down",
              lambda T: upside_down(T) / upside_down(T).sum(1, keepdim=True),
              "Every position averages its future: training is easy, and there is nothing to "
              "average when a text is being written."),
        Wrong("the rows are not divided", lower,
              "W @ x is then a running sum, which grows with the text."),
        Wrong("the sums lost their dimension (no keepdim)", lambda T: lower(T) / lower(T).sum(1),
              "A (T,) divides column by column, not row by row: no error, and rows that do not "
              "sum to one."),
        Wrong("every row is divided by T", lambda T: lower(T) / T,
              "Only the last row sums to one; the early positions whisper.")),
    hints=("Row t of W @ x is the sum over s of W[t, s] * x[s]. Which W[t, s] make it a mean?",
           "torch.ones(T, T).tril() says who is in the mean; then each row must sum to one.",
           "Divide by the row sums as a column: .sum(1, keepdim=True).")))


def masked_softmax(
    scores:Tensor, # (..., T, T) any numbers: row t scores what t sees
) -> Tensor:       # (..., T, T) shares: zero for the future, each row sums to one
    "Softmax over the past only"
    T = scores.size(-1)
    future = torch.ones(T, T).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def score_tables(
    seed:int,
) -> list: # of (scores,)
    "Random scores: one table, a batch of them, large ones, and a single position"
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=g) * s,)
            for shape, s in (((5, 5), 2), ((2, 4, 4), 1), ((6, 6), 8), ((1, 1), 1))]

def masked_softmax_numpy(scores):
    "Row by row in float64: a softmax of the first t + 1 scores, then zeros"
    z, out = scores.double().numpy(), np.zeros(scores.shape)
    for *i, t in np.ndindex(z.shape[:-1]):
        row = (*i, t)
        e = np.exp(z[row][:t + 1] - z[row][:t + 1].max())
        out[row][:t + 1] = e / e.sum()
    return torch.from_numpy(out).float()

def filled(value, dim=-1):
    "A mistaken masked softmax: another number, or another dimension"
    return lambda s: s.masked_fill(lower(s.size(-1)) == 0, value).softmax(dim)

register(Exercise(
    "averaging.masked_softmax", "06", "From (..., T, T) scores, shares: row t is a softmax over "
    "columns 0 to t, and zero after them.", inputs=score_tables, oracle=masked_softmax_numpy,
    package="gpt2_course.exercises.averaging:masked_softmax",
    wrongs=(
        Wrong("the mask is 0, and a softmax gives a zero a share", filled(0.0),
              "exp(0) is 1: the future is not hidden, it has an average score."),
        Wrong("the mask is a small finite number", filled(-5.0),
              "The future keeps a share, most of all where the scores of the past are low: the "
              "model trains on its answers."),
        Wrong("the mask comes after the softmax",
              lambda s: s.softmax(-1) * lower(s.size(-1)),
              "The future's share is thrown away and not given to the past: rows sum to less than "
              "one, and how much less tells of the future."),
        Wrong("the softmax runs over the columns", filled(-torch.inf, -2),
              "Each column sums to one: a position's share depends on positions after it.")),
    hints=("Hide first, share out afterwards: then the shares of the past sum to one.",
           "exp(-inf) is exactly 0. masked_fill(where, -torch.inf) puts it in.",
           "scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)")))


def one_head(
    x:Tensor,  # (B, T, C) a vector for every position
    Wq:Tensor, # (hs, C) makes queries
    Wk:Tensor, # (hs, C) makes keys
    Wv:Tensor, # (hs, C) makes values
) -> Tensor:   # (B, T, hs) each position's mix of its past
    "One head of causal attention (Vaswani et al. 2017, eq. 1)"
    q, k, v = x @ Wq.T, x @ Wk.T, x @ Wv.T                                 # (B, T, hs) each
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))               # (B, T, T)
    return masked_softmax(scores) @ v


def heads(
    seed:int,
) -> list: # of (x, Wq, Wk, Wv)
    "Random vectors and three matrices, hs smaller than, equal to and larger than C"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    return [(new(B, T, C), new(hs, C), new(hs, C), new(hs, C))
            for B, T, C, hs in ((2, 5, 6, 3), (1, 4, 4, 4), (3, 1, 2, 5))]

def one_head_numpy(x, Wq, Wk, Wv):
    "One query at a time in float64, looking only at what it may see"
    x, Wq, Wk, Wv = (t.double().numpy() for t in (x, Wq, Wk, Wv))
    B, T, _ = x.shape
    out = np.zeros((B, T, len(Wv)))
    for b, t in np.ndindex(B, T):
        past = x[b, :t + 1]
        s = (past @ Wk.T) @ (Wq @ x[b, t]) / math.sqrt(len(Wq))
        p = np.exp(s - s.max())
        out[b, t] = p / p.sum() @ (past @ Wv.T)
    return torch.from_numpy(out).float()

def variant(scale=lambda q: q.size(-1)**-0.5, mask=True, swap=False, values=True):
    "A mistaken head: one part of the right one is exchanged"
    def fn(x, Wq, Wk, Wv):
        q, k = (x @ Wk.T, x @ Wq.T) if swap else (x @ Wq.T, x @ Wk.T)
        s = q @ k.transpose(-2, -1) * scale(q)
        return (masked_softmax(s) if mask else s.softmax(-1)) @ (x @ Wv.T if values else x)
    return fn

register(Exercise(
    "averaging.one_head", "06", "One causal head: from (B, T, C) vectors and three (hs, C) "
    "matrices, each position's (hs,) mix of its past.", inputs=heads, oracle=one_head_numpy,
    package="gpt2_course.exercises.averaging:one_head",
    wrongs=(
        Wrong("the scores are not scaled", variant(scale=lambda q: 1.0),
              "They grow with hs; the softmax picks one position from the first step on, and its "
              "gradient dies."),
        Wrong("there is no mask", variant(mask=False),
              "Every position sees its answer: the training loss falls towards zero, the text is "
              "noise."),
        Wrong("queries and keys are exchanged", variant(swap=True),
              "The table is transposed: a training from scratch does not mind, borrowed weights "
              "give noise."),
        Wrong("the vectors themselves are mixed, not their values", variant(values=False),
              "Wv is never used and never learns: a position then says all that it is, in place "
              "of what is asked of it.")),
    hints=("Three products first: q, k and v, each (B, T, hs). The matrices are stored (out, in).",
           "scores = q @ k.transpose(-2, -1) / sqrt(hs): row t holds what t thinks of each s.",
           "Then the masked softmax of the last exercise, then @ v.")))
