"""The catalogue of chapter 17: what to write, an oracle that sees the whole row at once in float64,
and the classic mistakes with their names."""

import numpy as np
import torch

from ..attention import attend
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..flash import PeakBytes, flash

NOT_DIFFERENTIATED = {"gradient": "it runs inside a torch.autograd.Function with a backward pass "
                                  "of its own: nothing is differentiated through it"}


# --- merge ---

def state_numpy(s, v):
    "Maximum, sum and mix of whole rows, in float64; a row without keys has -inf, 0, 0"
    s, v = s.double().numpy(), v.double().numpy()
    m = s.max(-1, initial=-np.inf)
    p = np.where(np.isinf(s), 0.0, np.exp(s - np.where(np.isinf(m), 0, m)[..., None]))
    return tuple(torch.from_numpy(np.asarray(x)) for x in (m, p.sum(-1), p @ v))

def halves(
    seed:int,
) -> list: # of (scores, values, where they are cut)
    "Rows of scores, cut in two; scores of a thousand, a single row, equal scores, a batch of rows"
    g = torch.Generator().manual_seed(seed)
    new = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    rows = [(new(4, 10) * 3, new(10, 3), 6), (new(3, 5) * 3, new(5, 2), 2)]
    for s, _, _ in rows:
        s[0, -1] += 9.0 # the highest score of this row comes last,
        s[1, 0] += 9.0  # of this one first
    levels = torch.tensor([1000.0, -1000.0, 0.0]).double()[:, None]
    return [*rows, (levels + 3 * new(3, 6), new(6, 4), 4), (1000 * new(1, 8), new(8, 3), 3),
            (torch.full((2, 6), 7.0).double(), new(6, 2), 4), (3 * new(2, 3, 9), new(2, 9, 5), 5)]

def two_states(seed):
    "Both halves of rows; a half that has seen nothing, in some rows or in all"
    cut = [(state_numpy(s[..., :c], v[..., :c, :]), state_numpy(s[..., c:], v[..., c:, :]))
           for s, v, c in halves(seed)]
    s, v, c = halves(seed)[0]
    hidden = s[:, c:].clone()
    hidden[2:] = -torch.inf
    nothing = state_numpy(s[:, :0], v[:0])
    return [*cut, (state_numpy(s[:, :c], v[:c]), state_numpy(hidden, v[c:])),
            (nothing, state_numpy(s, v)), (state_numpy(s, v), nothing)]

def merge_oracle(one, two):
    "Levels in float64 by logaddexp: an independent route to the same state"
    m = np.maximum(one[0].numpy(), two[0].numpy())
    with np.errstate(divide="ignore"):
        logs = [np.log(x[1].numpy()) + x[0].numpy() - m for x in (one, two)]
    mix = sum(np.exp(x[0].numpy() - m)[..., None] * x[2].numpy() for x in (one, two))
    return tuple(map(torch.from_numpy, (m, np.exp(np.logaddexp(*logs)), mix)))

def merged(c1=lambda a, b, m: (a - m).exp(), c2=lambda a, b, m: (b - m).exp(), level=torch.maximum,
           spread=lambda c: c[..., None]):
    "A mistaken merge: one part of the right one is replaced"
    def fn(one, two):
        m = level(one[0], two[0])
        x, y = c1(one[0], two[0], m), c2(one[0], two[0], m)
        return m, x * one[1] + y * two[1], spread(x) * one[2] + spread(y) * two[2]
    return fn

def divided(one, two): # mistaken: already an output
    m, l, a = merged()(one, two)
    return m, l, a / l[..., None]

ones = lambda a, b, m: torch.ones_like(m)
register(Exercise(
    "flash.merge", "17", "Join two states (m, l, a) of the same rows over different keys: m and l "
    "of shape (…, T), a of shape (…, T, hs).",
    inputs=two_states, oracle=merge_oracle, package="gpt2_course.flash:merge",
    wrongs=(
        Wrong("nothing is rescaled", merged(ones, ones),
              "Sums at different levels are added. That is right only where both maxima are equal, "
              "so small scores hide the mistake."),
        Wrong("only the first half is rescaled", merged(c2=ones),
              "This is right as long as the maximum lies in the second half; otherwise the second "
              "half counts too much."),
        Wrong("only the second half is rescaled", merged(c1=ones),
              "This is right as long as the maximum lies in the first half; otherwise the first "
              "half counts too much."),
        Wrong("the factor is inverted",
              merged(lambda a, b, m: (m - a).exp(), lambda a, b, m: (m - b).exp()),
              "exp(m' - m) is above 1: the half with the lower scores gets the larger weight, and "
              "high scores overflow."),
        Wrong("the mix is not rescaled, only the sum",
              lambda p, q: (*merged()(p, q)[:2], p[2] + q[2]),
              "The output is no longer a mean of the values: it leaves their range."),
        Wrong("the sum is not rescaled, only the mix",
              lambda p, q: (merged()(p, q)[0], p[1] + q[1], merged()(p, q)[2]),
              "Numerator and denominator are at different levels: the outputs are too small."),
        Wrong("the common level is the lower maximum", merged(level=torch.minimum),
              "The factors are then above 1 and overflow when the maxima are far apart. If one "
              "half has seen nothing, the level is -inf and the result is NaN."),
        Wrong("the level stays that of the first half", merged(level=lambda a, b: a),
              "Where the second half has much higher scores, exp(m2 - m1) overflows: the maximum "
              "is there to prevent this. If the first half has seen nothing, everything is NaN."),
        Wrong("the mix is divided by the sum already", divided,
              "A state holds unfinished sums, so that it can be merged again. Divide once, when "
              "all keys have been seen."),
        Wrong("the factors are broadcast with [:, None]", merged(spread=lambda c: c[:, None]),
              "That puts the new dimension in the second place, which is the last one only without "
              "batch and heads. [..., None] always adds it at the end.")),
    hints=("At which level, that is, with which maximum subtracted, should both sums be?",
           "Multiply each half by exp(its m - the common m).",
           "m = maximum(m1, m2); l and a are each exp(m1 - m) * first + exp(m2 - m) * second."),
    rtol=1e-3, atol=1e-3, excused=NOT_DIFFERENTIATED))


# --- absorb ---

def tile_inputs(seed):
    "A state that has seen keys, and a tile: hidden in a row, higher or lower than what was seen"
    rows = []
    for s, v, c in halves(seed):
        later, values = s[..., c:].contiguous().clone(), v[..., c:, :].contiguous()
        rows.append((*state_numpy(s[..., :c], v[..., :c, :]), later, values))
    for i in (0, 1):
        later = rows[i][3]
        later[0] = -torch.inf
        later[-1, 0] = 20.0 # here the maximum lies in the tile
    return rows

def absorb_oracle(m, l, a, s, v):
    "The tile as a state of its own, joined in float64"
    return merge_oracle((m, l, a), state_numpy(s, v))

def absorbed(shrink=lambda m, new: (m - new).exp(), level=lambda m, new: new,
             top=lambda m, s: torch.maximum(m, s.amax(-1)), spread=lambda c: c[..., None]):
    "A mistaken step: one part of the right one is replaced"
    def fn(m, l, a, s, v):
        new = top(m, s)
        p, c = (s - spread(level(m, new))).exp(), shrink(m, new)
        return new, c * l + p.sum(-1), spread(c) * a + p @ v
    return fn

def own_softmax(m, l, a, s, v): # mistaken: each tile has the same weight
    new = torch.maximum(m, s.amax(-1))
    p, c = s.softmax(-1), (m - new).exp()
    return new, c * l + p.sum(-1), c[..., None] * a + p @ v

def old_mix_lost(m, l, a, s, v): # mistaken: the tile alone
    new, total, _ = absorbed()(m, l, a, s, v)
    return new, total, (s - new[..., None]).exp() @ v

register(Exercise(
    "flash.absorb", "17", "The state (m, l, a), updated with the scores s (…, T, n) and values v "
    "(…, n, hs) of the next keys.",
    inputs=tile_inputs,
    oracle=absorb_oracle, package="gpt2_course.flash:absorb",
    wrongs=(
        Wrong("what was seen before is not rescaled",
              absorbed(shrink=lambda m, new: torch.ones_like(m)),
              "The old sums stay at the old level: early keys get too much weight as soon as a "
              "later one has a higher score."),
        Wrong("the tile's terms use the old maximum", absorbed(level=lambda m, new: m),
              "A high score in the tile overflows, and the old and new sums are at different "
              "levels."),
        Wrong("the tile's own maximum is used, not the running one",
              absorbed(top=lambda m, s: s.amax(-1)),
              "The maximum may then go down, and exp(m - new) overflows. In a row that is entirely "
              "hidden it is -inf, and the result is NaN."),
        Wrong("the sum is forgotten when rescaling",
              lambda m, l, a, s, v: (absorbed()(m, l, a, s, v)[0],
                                     l + absorbed()(m, 0 * l, a, s, v)[1],
                                     absorbed()(m, l, a, s, v)[2]),
              "The mix is right and its divisor is not: the outputs are too small."),
        Wrong("the mix is forgotten when rescaling",
              lambda m, l, a, s, v: (*absorbed()(m, l, a, s, v)[:2],
                                     a + absorbed()(m, l, 0 * a, s, v)[2]),
              "The sum is right and the mix is not: early values get too much weight, and the "
              "outputs leave the range of the values."),
        Wrong("the tile gets a softmax of its own", own_softmax,
              "A softmax divides by the tile's own sum, so every tile would count the same, "
              "however high its scores are; a hidden row becomes NaN."),
        Wrong("one maximum is taken for all rows",
              absorbed(top=lambda m, s: torch.maximum(m, s.amax())),
              "Each row has its own level. At the level of another row, low scores all become "
              "exp(-1000) = 0, and the output is 0 / 0."),
        Wrong("the old mix is thrown away", old_mix_lost,
              "The output would be made of the last tile's values alone."),
        Wrong("the maximum is not subtracted from the scores",
              absorbed(level=lambda m, new: torch.zeros_like(new)),
              "exp(s) overflows for scores above 709 (above 88 in float32), and the new terms are "
              "not at the level of the old ones."),
        Wrong("the maximum is broadcast with [:, None]", absorbed(spread=lambda c: c[:, None]),
              "That puts the new dimension in the second place, which is the last one only without "
              "batch and heads. [..., None] always adds it at the end.")),
    hints=("The new maximum comes first: the larger of the old one and the tile's.",
           "The tile's terms are p = exp(s - new); the old sums shrink by exp(m - new).",
           "new, shrink * l + p.sum(-1), shrink[..., None] * a + p @ v"), rtol=1e-3, atol=1e-3,
    excused=NOT_DIFFERENTIATED))


# --- tile_mask ---

def mask_inputs(seed):
    "Tiles on the border, ragged, entirely visible or hidden, with and without a past; one query"
    r = np.random.default_rng(seed)
    return [(4, 8, 4, 8, 0), (2, 5, 6, 11, 5), (0, 3, 3, 7, int(r.integers(4, 7))),
            (8, 10, 8, 12, 1), (0, 2, 5, 8, 2), (6, 9, 0, 4, 0),
            (0, 1, 3, 9, int(r.integers(4, 8)))]

register(Exercise(
    "flash.tile_mask", "17", "The causal mask of queries a to b and keys c to d, with `past` keys "
    "before query 0: (b - a, d - c) bools, True where the query may look at the key.",
    inputs=mask_inputs,
    oracle=lambda a, b, c, d, past: torch.tensor(
        [[s <= past + t for s in range(c, d)] for t in range(a, b)]),
    package="gpt2_course.flash:tile_mask",
    wrongs=(
        Wrong("the past is forgotten",
              lambda a, b, c, d, past: torch.arange(c, d) <= torch.arange(a, b)[:, None],
              "This is right in training; with a cache, new tokens cannot see the latest keys."),
        Wrong("every tile gets the same triangle",
              lambda a, b, c, d, past: torch.ones(b - a, d - c).bool().tril(),
              "Tiles off the diagonal are masked as if they were on it."),
        Wrong("every tile gets the same triangle, shifted by the past",
              lambda a, b, c, d, past: torch.ones(b - a, d - c).bool().tril(past),
              "The tile's position matters too: with tril, the diagonal is past + a - c."),
        Wrong("a position may not see itself",
              lambda a, b, c, d, past: torch.arange(c, d) < past + torch.arange(a, b)[:, None],
              "The very first row has nothing to look at, and its softmax is 0 / 0."),
        Wrong("a query sees one key too many",
              lambda a, b, c, d, past: torch.arange(c, d) <= past + 1 + torch.arange(a, b)[:, None],
              "Query t is at position past + t and may look at keys up to this one. One more is "
              "the token that it has to predict."),
        Wrong("the comparison is the wrong way round",
              lambda a, b, c, d, past: torch.arange(c, d) >= past + torch.arange(a, b)[:, None],
              "Each query sees its future and not its past."),
        Wrong("True means hidden",
              lambda a, b, c, d, past: torch.arange(c, d) > past + torch.arange(a, b)[:, None],
              "Some functions want a mask of what to hide (masked_fill does). Here, as in chapter "
              "07, True means that the query may look."),
        Wrong("the past is subtracted",
              lambda a, b, c, d, past: torch.arange(c, d) <= torch.arange(a, b)[:, None] - past,
              "The past lies before query 0, so query t is further to the right: at past + t."),
        Wrong("rows and columns are swapped",
              lambda a, b, c, d, past: torch.arange(c, d)[:, None] <= past + torch.arange(a, b),
              "Rows are queries and columns are keys: the shape is (b - a, d - c).")),
    hints=("Which positions do the tile's rows and columns have?",
           "Query t may look at key s if s <= past + t.",
           "torch.arange(c, d)[None, :] <= past + torch.arange(a, b)[:, None]")))


# --- score_gradient ---

def gradient_inputs(seed):
    "Weights that sum to one, values, the mix, and a gradient for it; hidden keys, large values"
    g = torch.Generator().manual_seed(seed)
    new = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    causal = new(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    rows = [(new(4, 6), new(6, 3), new(4, 3)), (causal, new(4, 2), new(4, 2)),
            (new(1, 5), new(5, 4), new(1, 4)), (new(3, 5), 1000 * new(5, 2), new(3, 2)),
            (torch.zeros(2, 4).double(), new(4, 3), new(2, 3)),
            (new(2, 3, 4), new(2, 4, 5), new(2, 3, 5))]
    return [(P, v, P @ v, dO) for P, v, dO in ((s.softmax(-1), v, dO) for s, v, dO in rows)]

def gradient_oracle(P, v, O, dO):
    "The softmax's whole Jacobian, diag(p) - p p^T, row by row in NumPy"
    P, v, dO = P.numpy(), v.numpy(), dO.numpy()
    if P.ndim == 3: return torch.stack([gradient_oracle(*map(torch.from_numpy, (p, x, p @ x, d)))
                                        for p, x, d in zip(P, v, dO)])
    return torch.from_numpy(np.stack([(np.diag(p) - np.outer(p, p)) @ (v @ d)
                                      for p, d in zip(P, dO)]))

def scored(ds):
    "A mistaken gradient: a function of P, dP, and the sums of dO * O"
    return lambda P, v, O, dO: ds(P, dO @ v.mT, (dO * O).sum(-1, keepdim=True))

register(Exercise(
    "flash.score_gradient", "17", "The gradient of the scores, (…, T, S), from the attention "
    "weights P (…, T, S), the values v (…, S, hs), the output O = P v and its gradient dO.",
    inputs=gradient_inputs, oracle=gradient_oracle,
    package="gpt2_course.flash:score_gradient",
    wrongs=(
        Wrong("D is left out", scored(lambda P, dP, D: P * dP),
              "Raising all scores of a row changes nothing, so a row of the gradient must sum to "
              "zero. These rows do not."),
        Wrong("D is summed over the queries", scored(lambda P, dP, D: P * (dP - D.sum(-2, True))),
              "Each row has its own D. A sum over rows mixes positions, so the future leaks into "
              "the past."),
        Wrong("D is a mean over the head, not a sum",
              lambda P, v, O, dO: P * (dO @ v.mT - (dO * O).mean(-1, keepdim=True)),
              "D is too small by a factor of the head size: the rows no longer sum to zero."),
        Wrong("the attention weights are forgotten", scored(lambda P, dP, D: dP - D),
              "A key with a weight of 0, even a hidden one, gets a gradient all the same."),
        Wrong("only dP is multiplied by P, D is not", scored(lambda P, dP, D: P * dP - D),
              "The parentheses are missing: ds = P * (dP - D). Otherwise D reaches keys with a "
              "weight of 0, even hidden ones."),
        Wrong("D is added", scored(lambda P, dP, D: P * (dP + D)),
              "D must be subtracted: that is what makes each row of the gradient sum to zero."),
        Wrong("D is the sum of dP without the weights",
              scored(lambda P, dP, D: P * (dP - dP.sum(-1, keepdim=True))),
              "The row sum is over P * dP, which equals the row sum of dO * O."),
        Wrong("the sign is reversed", scored(lambda P, dP, D: P * (D - dP)),
              "Every step would move the scores in the wrong direction."),
        Wrong("v.T is used, which reverses all dimensions",
              lambda P, v, O, dO: P * (dO @ v.permute(*reversed(range(v.ndim)))
                                       - (dO * O).sum(-1, keepdim=True)),
              "With a batch and heads in front, v.T moves them to the end. v.transpose(-2, -1), or "
              "v.mT, swaps the last two dimensions.")),
    hints=("dP = dO v^T. What does a softmax do to it?",
           "ds = P * (dP - D), with D the row sum of P * dP.",
           "That row sum is (dO * O).sum(-1, keepdim=True)."), rtol=1e-3, atol=2e-3,
    excused={"gradient": "it is the backward pass itself: a second derivative is an error there "
                         "(once_differentiable)"}))


# --- the open challenge: least memory ---

OPERATIONS = 600 # of one forward and backward pass

class Watched(PeakBytes):
    "Counts operations as well, and refuses kernels whose memory it cannot see"
    def __init__(self):
        super().__init__()
        self.calls, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if "attention" in name:
            raise ValueError(f"{name} is a fused kernel, and what it holds is not seen: write "
                             "attention with products")
        self.calls += not func.is_view
        self.products += name in ("mm", "bmm", "addmm", "baddbmm")
        return super().__torch_dispatch__(func, types, args, kwargs)

def watched(fn, shape, g):
    "One forward and backward pass: its counter; raises where the result is not that of attend"
    x = [torch.randn(shape, generator=g, requires_grad=True) for _ in range(3)]
    before, dO = [t.detach().clone() for t in x], torch.randn(shape, generator=g)
    with Watched() as counter:
        out = fn(*x)
        if not isinstance(out, torch.Tensor) or out.shape != dO.shape or not out.requires_grad:
            raise ValueError(f"for q, k and v of shape {shape}, fn must return a tensor of "
                             "that shape with a gradient")
        got = [out.detach(), *torch.autograd.grad(out, x, dO, allow_unused=True)]
    if not all(map(torch.equal, before, x)): raise ValueError("q, k or v has been changed")
    want = attend(*x)
    want = [want.detach(), *torch.autograd.grad(want, x, dO)]
    for name, a, b in zip(("result", "gradient of q", "gradient of k", "gradient of v"), got, want):
        if a is None or not (a - b).abs().max() <= 1e-4 * (1 + b.abs().max()):
            raise ValueError(f"the {name} is not that of attend, for shape {shape}")
    return counter

def working_memory(
    fn,            # function (q, k, v), each (B, nh, T, hs) -> (B, nh, T, hs)
    seconds:float, # not needed: the number of operations is limited
) -> float:        # KiB
    "The peak memory beyond the result and the three gradients"
    g = torch.Generator().manual_seed(0)
    watched(fn, (2, 3, 77, 16), g) # T is no multiple of a tile
    shape = 1, 8, 256, 16
    counter = watched(fn, shape, g)
    if counter.calls > OPERATIONS:
        raise ValueError(f"it takes {counter.calls} operations, and {OPERATIONS} are allowed: use "
                         "larger tiles")
    if not counter.products:
        raise ValueError("no product was seen: work in PyTorch, where memory is counted")
    return (counter.most - 4 * 4 * torch.Size(shape).numel()) / 1024

set_challenge(Challenge(
    "flash.memory", "17", "Causal attention with the least working memory: fn(q, k, v) must equal "
    "attend, gradients included. What counts is the peak memory at (1, 8, 256, 16) in float32, "
    "forward and backward, beyond the result and the three gradients; 600 PyTorch operations are "
    "allowed, fused attention is not.",
    score=working_memory, plain=flash, to_beat=652, unit="KiB of working memory",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=10))
