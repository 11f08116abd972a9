"""The catalogue of chapter 06 and its four answers, oracles in plain Python and NumPy, the classic
mistakes with their names, and an open challenge: the best mix of the past."""

import math
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..mlp import hidden_logits
from ..tokenizer import CharTokenizer


def past_mean(
    x:Tensor, # (T, C) a vector for every position
) -> Tensor:  # (T, C) row t is the mean of rows 0 … t
    "Average every position with its past, by a running sum"
    seen = torch.arange(1, len(x) + 1)[:, None]                            # (T, 1) rows seen so far
    return x.cumsum(0) / seen


def rows(
    seed:int,
) -> list: # of (x,)
    """Random (T, C) vectors, also square ones and a single position; then rows in the thousands, of
    which one has equal entries"""
    g = torch.Generator().manual_seed(seed)
    cases = [torch.randn(T, C, generator=g) + 1 for T, C in ((5, 3), (8, 2), (4, 4), (1, 3))]
    large = (torch.rand(8, 2, generator=g) + 1) * torch.tensor([1000.0, 2000.0])
    large[3] = 1500.0
    return [(x,) for x in (*cases, large)]

def past_mean_numpy(x):
    "Two loops in float64"
    x, out = x.double().numpy(), np.zeros(x.shape)
    for t in range(len(x)):
        for s in range(t + 1): out[t] += x[s] / (t + 1)
    return torch.from_numpy(out).float()

def seen(x): return torch.arange(1, len(x) + 1)[:, None]

def halved(x):
    "A mean of the last mean and the new row"
    out = [x[0]]
    for row in x[1:]: out.append((out[-1] + row) / 2)
    return torch.stack(out)

register(Exercise(
    "averaging.past_mean", "06", "The running means of (T, C) rows, (T, C): row t is the mean of "
    "rows 0 to t.",
    inputs=rows, oracle=past_mean_numpy, package="gpt2_course.exercises.averaging:past_mean",
    gradient=True, excused={"batch": "The task is one text, (T, C); batches come with one_head."},
    wrongs=(
        Wrong("a position is left out of its own mean: x[:t] stands in place of x[:t + 1]",
              lambda x: torch.stack([x[:t].mean(0) for t in range(len(x))]),
              "x[:t] stops before t: the newest letter, which says most, is not in its own mean, "
              "and the first row is the mean of nothing, which is NaN."),
        Wrong("a position is left out of its own mean, and the first row is zero",
              lambda x: (x.cumsum(0) - x) / torch.arange(len(x)).clamp(min=1)[:, None],
              "The newest letter, which says most, is not in its own mean. Row t is the mean of "
              "rows 0 to t, t included."),
        Wrong("every row is the mean of all rows", lambda x: x.mean(0).expand(len(x), -1).clone(),
              "Either the future is averaged too, so the input contains the answer; or a running "
              "mean is changed in place (m += ...) and appended, so that the list holds one tensor "
              "T times: append m.clone()."),
        Wrong("the next row is averaged too: x[:t + 2] stands in place of x[:t + 1]",
              lambda x: torch.stack([x[:t + 2].mean(0) for t in range(len(x))]),
              "A slice stops before its end, so x[:t + 1] holds row t already. The row after it is "
              "the one that a model has to predict."),
        Wrong("one running sum is appended T times", lambda x: x.sum(0) / seen(x),
              "s += x[t] changes the tensor that is already in the list, so all entries are the "
              "final sum. s = s + x[t] makes a new tensor."),
        Wrong("it is a sum, not a mean", lambda x: x.cumsum(0),
              "The rows grow with t: the length of the past then drowns its content."),
        Wrong("it is divided by T, not by the number of rows seen", lambda x: x.cumsum(0) / len(x),
              "Only the last row is a mean; early rows are too small, and the same beginning gives "
              "other values in a longer text."),
        Wrong("it is divided by t, not by t + 1",
              lambda x: x.cumsum(0) / torch.arange(len(x))[:, None],
              "Row t has t + 1 rows to average, since counting starts at 0; row 0 is divided by "
              "zero."),
        Wrong("the counts lack a dimension (no [:, None])",
              lambda x: x.cumsum(0) / torch.arange(1, len(x) + 1),
              "Counts of shape (T,) are aligned with the columns: a square x is divided by the "
              "wrong counts without an error, and any other shape raises one. (T, 1) divides row "
              "by row."),
        Wrong("the mean runs over the components, not over the positions",
              lambda x: x.cumsum(1) / torch.arange(1, x.size(1) + 1),
              "Dimension 0 is time, dimension 1 holds the components of one vector: averaging over "
              "it mixes the components and looks at no other position."),
        Wrong("each row is the mean of the previous mean and the new row", halved,
              "The newest row then counts one half, the one before it a quarter, and so on. In a "
              "plain mean all rows count equally: mean_t = mean_(t-1) + (x_t - mean_(t-1)) / (t + "
              "1)."),
        Wrong("the means run backwards, from t to the end",
              lambda x: (x.flip(0).cumsum(0) / seen(x)).flip(0),
              "Row t then averages its future, and the last row sees itself alone.")),
    hints=("Row 0 is x[0] itself. Row 1 is the mean of two rows. How many rows go into row t?",
           "x[:t + 1] holds row t and its past; its mean over dimension 0 is row t of the answer.",
           "torch.stack([x[:t + 1].mean(0) for t in range(len(x))])")))


def mean_weights(
    T:int, # positions
) -> Tensor: # (T, T) row t has 1 / (t + 1) at columns 0 … t, then zeros
    "The matrix that averages the past: mean_weights(T) @ x is past_mean(x)"
    ones = torch.ones(T, T).tril()
    return ones / ones.sum(1, keepdim=True)


def lower(T, diagonal=0): return torch.ones(T, T).tril(diagonal)
def by_rows(W): return W / W.sum(1, keepdim=True)

register(Exercise(
    "averaging.mean_weights", "06", "The (T, T) matrix W for which row t of W @ x is the mean of "
    "rows 0 to t of x.", inputs=lambda seed: [(4,), (1,), (3 + seed % 5,), (9,)],
    oracle=lambda T: torch.tensor([[1 / (t + 1) if s <= t else 0.0 for s in range(T)]
                                   for t in range(T)]),
    package="gpt2_course.exercises.averaging:mean_weights",
    wrongs=(
        Wrong("the triangle is upside down", lambda T: by_rows(torch.ones(T, T).triu()),
              "Every position averages its future: training is easy, and there is nothing to "
              "average when a text is generated."),
        Wrong("the matrix is transposed", lambda T: by_rows(lower(T)).T,
              "Row t then holds weights for t and every later position, and the rows do not sum to "
              "one. W[t, s] is the weight that position t gives to s."),
        Wrong("the diagonal is missing", lambda T: by_rows(lower(T, -1)),
              "tril(-1) leaves each position out of its own mean, and the first row is 0/0: NaN."),
        Wrong("the triangle reaches one column too far", lambda T: by_rows(lower(T, 1)),
              "tril(1) keeps column t + 1: each position sees the next one, which it has to "
              "predict."),
        Wrong("the rows are not divided", lower,
              "W @ x is then a running sum, which grows with the text."),
        Wrong("the sums lose their dimension (no keepdim)", lambda T: lower(T) / lower(T).sum(1),
              "Sums of shape (T,) divide column by column, not row by row: no error is raised, but "
              "the rows do not sum to one."),
        Wrong("the columns sum to one, not the rows",
              lambda T: lower(T) / lower(T).sum(0, keepdim=True),
              "Row t of W @ x uses row t of W, so each row has to sum to one: sum over dimension "
              "1."),
        Wrong("every row is divided by T", lambda T: lower(T) / T,
              "Only the last row sums to one; the early positions come out too small."),
        Wrong("every entry is 1 / T", lambda T: torch.ones(T, T) / T,
              "There is no triangle: each position averages the whole text, its future too."),
        Wrong("row t is divided by t, not by t + 1",
              lambda T: lower(T) / torch.arange(T)[:, None],
              "Counting starts at 0, so row t has t + 1 entries; row 0 is divided by zero."),
        Wrong("a softmax is taken of the ones and zeros", lambda T: lower(T).softmax(-1),
              "exp(0) is 1, so a zero keeps a weight, and the future is averaged too. Only minus "
              "infinity gives a weight of zero.")),
    hints=("Row t of W @ x is the sum over s of W[t, s] * x[s]. Which W[t, s] make it a mean?",
           "torch.ones(T, T).tril() says which rows are in the mean; then each row must sum to "
           "one.",
           "Divide by the row sums as a column: .sum(1, keepdim=True).")))


def masked_softmax(
    scores:Tensor, # (..., T, T) any numbers: row t scores what t sees
) -> Tensor:       # (..., T, T) weights: zero for the future, each row sums to one
    "Softmax over the past only"
    T = scores.size(-1)
    future = torch.ones(T, T).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1)


LOWEST = torch.finfo(torch.float32).min

def score_tables(
    seed:int,
) -> list: # of (scores,)
    """Random scores: one table, a batch of them, large ones, a single position; then pasts far
    below their futures, by thousands, by nearly all that a float32 can hold, and the lowest number
    of all. Only equal scores share a weight there: the sum of a softmax is then exact"""
    g = torch.Generator().manual_seed(seed)
    cases = [torch.randn(shape, generator=g) * s
             for shape, s in (((3, 3), 2), ((2, 4, 4), 1), ((6, 6), 8), ((1, 1), 1))]
    past, noise = lower(4) == 1, (torch.randn(3, 4, 4, generator=g) * 64).round() / 64
    thousands = noise + torch.where(past, -1500.0, 1500.0)
    thousands[1, 2], thousands[2] = 1200.0, -thousands[2]
    extreme = LOWEST / 8 * torch.tensor([7, 5, 6, 4])                      # down to -3e38
    lowest = torch.randn(4, 4, generator=g)
    lowest[0, 0] = LOWEST
    return [(x,) for x in (*cases, thousands, torch.where(past, extreme, -extreme), lowest)]

def masked_softmax_numpy(scores):
    "Row by row in float64: a softmax of the first t + 1 scores, then zeros"
    z, out = scores.double().numpy(), np.zeros(scores.shape)
    for *i, t in np.ndindex(z.shape[:-1]):
        row = (*i, t)
        e = np.exp(z[row][:t + 1] - z[row][:t + 1].max())
        out[row][:t + 1] = e / e.sum()
    return torch.from_numpy(out).float()

def filled(value, dim=-1, diagonal=1):
    "A mistaken masked softmax: another number, another dimension, another triangle"
    return lambda s: s.masked_fill(lower(s.size(-1), diagonal - 1) == 0, value).softmax(dim)

def added(value):
    "A mistaken masked softmax: a number is added to the future's scores"
    return lambda s: (s + (lower(s.size(-1)) == 0) * value).softmax(-1)

def hidden_where(keep):
    "A mistaken masked softmax: minus infinity where keep(T) is zero"
    return lambda s: s.masked_fill(keep(s.size(-1)) == 0, -torch.inf).softmax(-1)

def renormalised(s):
    p = s.softmax(-1) * lower(s.size(-1))
    return p / p.sum(-1, keepdim=True)

def plain_exp(s):
    e = s.masked_fill(lower(s.size(-1)) == 0, -torch.inf).exp()
    return e / e.sum(-1, keepdim=True)

def exp_times_mask(s):
    e = s.exp() * lower(s.size(-1))
    return e / e.sum(-1, keepdim=True)

FINITE = ("The future keeps a weight wherever the scores of the past are as low as the mask, and "
          "scores grow in training. Only minus infinity is below every score: exp(-inf) is 0.")

register(Exercise(
    "averaging.masked_softmax", "06", "The (..., T, T) weights of (..., T, T) scores: row t is a "
    "softmax over columns 0 to t, and zero after them.",
    inputs=score_tables, oracle=masked_softmax_numpy,
    package="gpt2_course.exercises.averaging:masked_softmax", gradient=True,
    wrongs=(
        Wrong("the mask is 0, so hidden positions still get a weight", filled(0.0),
              "exp(0) is 1: a score of 0, as from scores * tril(), is an ordinary score and hides "
              "nothing."),
        *(Wrong(f"the mask is {value:g}", filled(value), FINITE) for value in (-1.0, -5.0, -10.0)),
        Wrong("the mask is a finite number such as -100", filled(-100.0), FINITE),
        Wrong("the mask is a large finite number such as -1e9", filled(-1e9),
              FINITE + " And fp16 cannot hold it: its lowest number is -65504."),
        Wrong("the mask is the lowest number of float32, not minus infinity", filled(LOWEST),
              "A row whose past scores are just as low gives part of its weight to the future. "
              "Minus infinity is below every number, and right in every format."),
        *(Wrong(f"{value} is added to the scores of the future", added(float(value)),
                "A future score that is far above those of the past keeps its weight, and scores "
                "grow in training. Only minus infinity plus any score is minus infinity.")
          for value in ("-100", "-1e4", "-1e9")),
        Wrong("the lowest number of float32 is added to the scores of the future", added(LOWEST),
              "Where the past has very low scores and the future high ones, the sum is not lower "
              "than the past. Only minus infinity plus any score is minus infinity."),
        Wrong("there is no mask", lambda s: s.softmax(-1),
              "Every position sees its future, and with it the token that it has to predict."),
        Wrong("the mask is inverted: the past and the position itself are hidden",
              hidden_where(lambda T: torch.ones(T, T).triu(1)),
              "In masked_fill True means hide, so it wants the future, triu(1); a mask that says "
              "what may be seen, tril(), has to be inverted. Here the last row sees nothing and "
              "becomes NaN."),
        Wrong("the triangle is upside down: row t sees t and what comes after it",
              hidden_where(lambda T: torch.ones(T, T).triu()),
              "In masked_fill True means hide. The past is hidden, and the future is what gets the "
              "weight."),
        Wrong("a position is hidden from itself", filled(-torch.inf, diagonal=0),
              "triu() holds the diagonal, triu(1) begins above it. Here row 0 has nothing to see "
              "and becomes NaN."),
        Wrong("the next position is not hidden", filled(-torch.inf, diagonal=2),
              "triu(2) begins two columns after the diagonal, so each position sees the next one, "
              "the very token it has to predict."),
        Wrong("the mask comes after the softmax",
              lambda s: s.softmax(-1) * lower(s.size(-1)),
              "The future's weight is thrown away and not given to the past: rows sum to less than "
              "one, and how much less depends on the future."),
        Wrong("the mask comes after the softmax, and the rows are normalised again", renormalised,
              "Where the future's scores are far higher, the past's weights have underflowed to 0 "
              "already, and 0/0 is NaN. Hide first, then take the softmax."),
        Wrong("the maximum is not subtracted: exp overflows", plain_exp,
              "exp of a score above 88 is infinite in float32, and infinity over infinity is NaN. "
              "softmax subtracts the maximum of the row first."),
        Wrong("exp of all scores is taken, then multiplied by the mask", exp_times_mask,
              "exp of a score above 88 is infinite in float32, and infinity times 0 is NaN. Hide "
              "the future first, and let softmax subtract the maximum."),
        Wrong("the softmax runs over the columns", filled(-torch.inf, -2),
              "Each column sums to one: a position's weight depends on positions after it."),
        Wrong("the softmax runs over dimension 1, not over the last one", filled(-torch.inf, 1),
              "In one table dimension 1 is the last, but in a batch of tables it is the rows: each "
              "column then sums to one, and no error is raised.")),
    hints=("Hide first, take the softmax afterwards: then the weights of the past sum to one.",
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
    """Random vectors and three matrices, hs smaller than, equal to and larger than C; then scores
    of billions, far apart, where a past may be lower than any finite mask, and a row of equal
    entries"""
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    cases = [(new(B, T, C), new(hs, C), new(hs, C), new(hs, C))
             for B, T, C, hs in ((2, 5, 6, 3), (1, 4, 4, 4), (3, 1, 2, 5))]
    order = torch.stack((torch.randperm(3, generator=g), torch.tensor([0, 2, 1])))
    far = torch.tensor([-2000.0, 1.0, 3000.0])[order]                      # (2, 3)
    x = torch.stack((far, torch.ones(2, 3)), -1)                           # (2, 3, 2)
    pick = lambda column: torch.eye(2)[column].repeat(4, 1)                # (4, 2): hs is 4
    return [*cases, (x, pick(1) * 2**20, pick(0), new(4, 2))]

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

def variant(scale=lambda q, x: q.size(-1)**-0.5, weigh=masked_softmax, keys=None, values=None,
            swap=False, after=lambda q: 1.0):
    "A mistaken head: one part of the right one is exchanged"
    def fn(x, Wq, Wk, Wv):
        q, k, v = x @ Wq.T, x @ Wk.T, x @ Wv.T
        if swap: q, k = k, q
        if keys is not None: k = keys(q, x)
        w = weigh(q @ k.transpose(-2, -1) * scale(q, x))
        return w * after(q) @ (v if values is None else values(k, x))
    return fn

def untransposed(x, Wq, Wk, Wv): return one_head(x, Wq.T, Wk.T, Wv.T)

register(Exercise(
    "averaging.one_head", "06", "One causal head: from (B, T, C) vectors and three (hs, C) "
    "matrices, each position's (hs,) mix of its past.", inputs=heads, oracle=one_head_numpy,
    package="gpt2_course.exercises.averaging:one_head", gradient=True,
    wrongs=(
        Wrong("the scores are not scaled", variant(scale=lambda q, x: 1.0),
              "They grow with hs; the softmax picks one position from the first step on, and its "
              "gradient vanishes."),
        Wrong("the scores are divided by the root of C, not of hs",
              variant(scale=lambda q, x: x.size(-1)**-0.5),
              "The dot product of a query and a key has hs terms, so its spread grows with hs. C "
              "is the length of the vectors they are made from."),
        Wrong("the scores are divided by hs, not by its root",
              variant(scale=lambda q, x: 1 / q.size(-1)),
              "A sum of hs random terms grows with the root of hs. Divided by hs the scores are "
              "too close to each other, and the head starts as a plain mean."),
        Wrong("the scores are multiplied by the root of hs",
              variant(scale=lambda q, x: q.size(-1)**0.5),
              "The scores should become smaller, not larger: divide."),
        Wrong("the scale is applied after the softmax",
              variant(scale=lambda q, x: 1.0, after=lambda q: q.size(-1)**-0.5),
              "The weights of a row then sum to 1 / sqrt(hs), and the softmax is as sharp as "
              "without a scale. Scale the scores."),
        Wrong("there is no mask", variant(weigh=lambda s: s.softmax(-1)),
              "Every position sees the token it has to predict: the training loss falls towards "
              "zero, but the generated text is noise."),
        Wrong("the mask is inverted", variant(weigh=hidden_where(
              lambda T: torch.ones(T, T).triu(1))),
              "In masked_fill True means hide. The past is hidden here, and the last row, which "
              "sees nothing, is NaN."),
        Wrong("the mask comes after the softmax",
              variant(weigh=lambda s: s.softmax(-1) * lower(s.size(-1))),
              "The future's weight is thrown away and not given to the past: rows sum to less than "
              "one."),
        Wrong("the mask is -5", variant(weigh=filled(-5.0)), FINITE),
        Wrong("the mask is a finite number such as -1e9", variant(weigh=filled(-1e9)), FINITE),
        Wrong("the softmax runs over the queries",
              variant(weigh=filled(-torch.inf, -2)),
              "Each column of the table then sums to one. A row belongs to a query, and its "
              "weights have to sum to one: dimension -1."),
        Wrong("the maximum is not subtracted: exp overflows", variant(weigh=plain_exp),
              "exp of a score above 88 is infinite in float32, and infinity over infinity is NaN. "
              "softmax subtracts the maximum of the row first."),
        Wrong("queries and keys are swapped", variant(swap=True),
              "The table of scores is transposed: training from scratch hides the mistake, but "
              "weights trained elsewhere give noise."),
        Wrong("the keys are made with Wq as well", variant(keys=lambda q, x: q),
              "A query then matches itself best, and Wk is never used: what a position looks for "
              "and what it offers are not the same."),
        Wrong("the vectors themselves are mixed, not their values",
              variant(values=lambda k, x: x),
              "Wv is never used and never learns, and the result has C components per position "
              "instead of hs."),
        Wrong("the keys are mixed, not the values", variant(values=lambda k, x: k),
              "Wv is never used and never learns: what a position is found by and what it hands "
              "over should be different things."),
        Wrong("the matrices are not transposed", untransposed,
              "They are stored (out, in), so a batch of rows needs x @ W.T. Only square matrices "
              "hide the mistake; the others raise an error.")),
    hints=("Three products first: q, k and v, each (B, T, hs). The matrices are stored (out, in).",
           "scores = q @ k.transpose(-2, -1) / sqrt(hs): row t holds the scores that position t "
           "gives to every position s.",
           "Then the masked softmax of the last exercise, then @ v.")))


# --- open challenge: the best mix of the past ---

T, C, MOST_PARAMETERS = 24, 32, 8192

class Reader(nn.Module):
    "The chapter's model: a letter and a mix of its past, through a hidden layer"
    def __init__(self, V, mix):
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Parameter(torch.randn(V, C) * 0.5)
        self.c_fc, self.lm_head = nn.Linear(2 * C, 128), nn.Linear(128, V)
        nn.init.normal_(self.lm_head.weight, std=0.01)
        nn.init.zeros_(self.lm_head.bias)
        self.mix = mix(T, C)
        if not isinstance(self.mix, nn.Module):
            raise ValueError(f"your function has to return an nn.Module, not {self.mix!r:.60}")

    def forward(self, x): # (B, T) tokens -> (B, T, V) logits
        e = self.wte[x]
        y = torch.cat((e, self.mix(e)), -1)
        c_fc, head = self.c_fc, self.lm_head
        return hidden_logits(y, c_fc.weight, c_fc.bias, head.weight, head.bias)

def require_fair(mix, seed):
    "Parameters, shape, causality; a ValueError says what is wrong"
    size = sum(p.numel() for p in mix.parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"the mix has {size:,} parameters; {MOST_PARAMETERS:,} are allowed")
    g = torch.Generator().manual_seed(seed)
    e, other = torch.randn(2, 3, T, C, generator=g)
    with torch.no_grad():
        out = mix(e)
        if out.shape != e.shape:
            raise ValueError(f"the mix gives the shape {tuple(out.shape)}, not {tuple(e.shape)}")
        for t in (1, T // 2, T - 1):
            changed = torch.cat((e[:, :t], other[:, t:]), 1)
            if not torch.allclose(mix(changed)[:, :t], out[:, :t], atol=1e-5):
                raise ValueError(f"the mix looks ahead: other vectors at positions {t} and later "
                                 "change what comes out before them")
        if not torch.allclose(mix(torch.cat((e[:1], other[1:])))[:1], out[:1], atol=1e-5):
            raise ValueError("the mix of one text depends on the other texts of the batch")

def loss_of_mix(
    mix,           # function (T, C) -> nn.Module from (B, T, C) to (B, T, C)
    seconds:float, # for the whole run
) -> float:        # nats per character on Macbeth
    "Six hundred steps on Hamlet, then Macbeth in windows of 24"
    began = time.perf_counter()
    texts = [packaged(f"shakespeare/{n}.txt").read_text("utf-8") for n in ("hamlet", "macbeth")]
    tok = CharTokenizer("".join(texts))
    train, val = (torch.tensor(tok.encode(text)) for text in texts)
    model, g, steps = Reader(tok.n_vocab, mix), torch.Generator().manual_seed(0), 600
    require_fair(model.eval().mix, 0)
    model.train()
    opt = torch.optim.Adam(model.parameters())
    loss_on = lambda w: F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten())
    for step in range(steps):
        for group in opt.param_groups: group["lr"] = 0.01 * (1 - step / steps)
        w = train[torch.randint(len(train) - T, (32, 1), generator=g) + torch.arange(T + 1)]
        loss = loss_on(w)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if time.perf_counter() - began > seconds:
            raise ValueError(f"only {step + 1} of {steps} steps in {seconds:g} s")
    require_fair(model.eval().mix, 1)
    with torch.no_grad():
        return float(loss_on(val[:len(val) // (T + 1) * (T + 1)].view(-1, T + 1)))

class Head(nn.Module):
    "One head of the chapter, with positions"
    def __init__(self, T, C):
        super().__init__()
        self.wpe = nn.Parameter(torch.randn(T, C) * 0.5)
        self.q, self.k, self.v = (nn.Linear(C, C, bias=False) for _ in range(3))

    def forward(self, e): # (B, T, C) -> (B, T, C)
        e = e + self.wpe[:e.size(1)]
        return one_head(e, self.q.weight, self.k.weight, self.v.weight)

def head_with_positions(T, C): return Head(T, C)

set_challenge(Challenge(
    "averaging.mix", "06", "The best mix of the past in 600 steps of training. Your function gets "
    f"T = {T} and C = {C} and returns an nn.Module from (B, T, C) vectors to (B, T, C): for every "
    f"position a mix of its past, made with at most {MOST_PARAMETERS:,} parameters. The table, the "
    "hidden layer and the training are those of the chapter; the score is the loss on Macbeth.",
    score=loss_of_mix, plain=head_with_positions, to_beat=2.502, unit="nats per character",
    measured="two cores of an AMD EPYC, one thread, November 2026", fixed=True))
