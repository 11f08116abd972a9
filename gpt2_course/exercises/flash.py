"""The catalogue of chapter 17: what to write, an oracle that sees the whole row at once in float64,
and the classic mistakes with their names."""

import numpy as np
import torch

from ..check import Exercise, Wrong, register


def state_numpy(s, v):
    "Maximum, sum and mix of whole rows, in float64; a row without keys has -inf, 0, 0"
    s, v = s.double().numpy(), v.double().numpy()
    m = s.max(-1, initial=-np.inf)
    p = np.where(np.isinf(s), 0.0, np.exp(s - np.where(np.isinf(m), 0, m)[:, None]))
    return tuple(torch.from_numpy(np.asarray(x)) for x in (m, p.sum(-1), p @ v))

def halves(
    seed:int,
) -> list: # of (scores, values, where they are cut)
    "Rows of scores, cut in two: in the middle, before the first, after the last"
    g = torch.Generator().manual_seed(seed)
    new = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    rows = [(new(4, 10) * 3, new(10, 3), 6), (new(3, 5) * 3, new(5, 2), 2),
            (new(2, 6), new(6, 2), 6)]
    for s, _, _ in rows:
        s[0, -1] += 9.0 # the highest score of this row comes last,
        s[1, 0] += 9.0  # of this one first
    return rows


def merge_oracle(one, two):
    "Levels in float64 by logaddexp: an independent road to the same state"
    m = np.maximum(one[0].numpy(), two[0].numpy())
    with np.errstate(divide="ignore"):
        logs = [np.log(x[1].numpy()) + x[0].numpy() - m if x[1].any() else
                np.full(m.shape, -np.inf) for x in (one, two)]
    mix = sum(np.exp(x[0].numpy() - m)[:, None] * x[2].numpy() for x in (one, two))
    return tuple(map(torch.from_numpy, (m, np.exp(np.logaddexp(*logs)), mix)))

def merged(c1=lambda a, b, m: (a - m).exp(), c2=lambda a, b, m: (b - m).exp(), level=torch.maximum):
    "A mistaken merge: one part of the right one is exchanged"
    def fn(one, two):
        m = level(one[0], two[0])
        x, y = c1(one[0], two[0], m), c2(one[0], two[0], m)
        return m, x * one[1] + y * two[1], x[..., None] * one[2] + y[..., None] * two[2]
    return fn

one = lambda a, b, m: torch.ones_like(m)
register(Exercise(
    "flash.merge", "17", "Join two states (m, l, a) of the same rows over different keys.",
    inputs=lambda seed: [(state_numpy(s[:, :c], v[:c]), state_numpy(s[:, c:], v[c:]))
                         for s, v, c in halves(seed)],
    oracle=merge_oracle, package="gpt2_course.flash:merge",
    wrongs=(
        Wrong("nothing is rescaled", merged(one, one),
              "Sums at different levels are added: right only where both maxima are equal, so "
              "small scores hide it."),
        Wrong("only the first half is rescaled", merged(c2=one),
              "Right as long as the maximum lies in the second half; otherwise it counts too "
              "much."),
        Wrong("the factor is upside down",
              merged(lambda a, b, m: (m - a).exp(), lambda a, b, m: (m - b).exp()),
              "exp(m' - m) is above 1: the half with the lower scores gets the larger share, and "
              "long rows overflow."),
        Wrong("the mix is not rescaled, only the sum",
              lambda p, q: (*merged()(p, q)[:2], p[2] + q[2]),
              "The output is no mean of the values any more: it leaves their range.")),
    hints=("At which level, that is, with which maximum subtracted, should both sums be?",
           "Multiply each half by exp(its m - the common m).",
           "m = maximum(m1, m2); l and a are each exp(m1 - m) * first + exp(m2 - m) * second."),
    rtol=1e-6, atol=1e-9))


def tile_inputs(seed):
    "A state that has seen keys, and a tile, of which a row may be hidden altogether"
    rows = []
    for s, v, c in halves(seed)[:2]:
        later = s[:, c:].clone()
        later[0] = -torch.inf
        later[-1, 0] = 20.0 # here the maximum lies in the tile
        rows.append((*state_numpy(s[:, :c], v[:c]), later, v[c:]))
    return rows

def absorb_oracle(m, l, a, s, v):
    "The tile as a state of its own, joined in float64"
    return merge_oracle((m, l, a), state_numpy(s, v))

def absorbed(shrink=lambda m, new: (m - new).exp(), level=lambda m, new: new, dim=-1):
    "A mistaken step: one part of the right one is exchanged"
    def fn(m, l, a, s, v):
        new = torch.maximum(m, s.amax(-1))
        p, c = (s - level(m, new)[:, None]).exp(), shrink(m, new)
        return new, c * l + p.sum(-1), c[:, None] * a + p @ v
    return fn

register(Exercise(
    "flash.absorb", "17", "Take the next keys' scores and values into the state (m, l, a).",
    inputs=tile_inputs,
    oracle=absorb_oracle, package="gpt2_course.flash:absorb",
    wrongs=(
        Wrong("what was seen before is not rescaled",
              absorbed(shrink=lambda m, new: torch.ones_like(m)),
              "Old sums stand at the old level: early keys weigh too much as soon as a later one "
              "has a higher score."),
        Wrong("the tile is taken at the old maximum", absorbed(level=lambda m, new: m),
              "A high score in the tile overflows, and old and new stand at different levels."),
        Wrong("the tile's own maximum is used, not the running one",
              lambda m, l, a, s, v: state_numpy(s, v)[:1] + absorbed()(m, l, a, s, v)[1:],
              "The maximum may go down: a tile that is hidden altogether has -inf, and the next "
              "step is NaN."),
        Wrong("the sum is forgotten when rescaling",
              lambda m, l, a, s, v: (absorbed()(m, l, a, s, v)[0],
                                     l + absorbed()(m, 0 * l, a, s, v)[1],
                                     absorbed()(m, l, a, s, v)[2]),
              "The mix is right and its divisor is not: outputs are too small.")),
    hints=("The new maximum comes first: of the old one and the tile's.",
           "Shares of the tile are exp(s - new); old sums shrink by exp(m - new).",
           "new, shrink * l + p.sum(-1), shrink[..., None] * a + p @ v."), rtol=1e-6, atol=1e-9))


def mask_inputs(seed):
    "Tiles on the border, ragged, with and without a past"
    return [(4, 8, 4, 8, 0), (2, 5, 6, 11, 5), (0, 3, 3, 7, 4 + seed % 3), (8, 10, 8, 12, 1)]

register(Exercise(
    "flash.tile_mask", "17", "The causal mask of queries a to b and keys c to d, with `past` keys "
    "before query 0.", inputs=mask_inputs,
    oracle=lambda a, b, c, d, past: torch.tensor(
        [[s <= past + t for s in range(c, d)] for t in range(a, b)]),
    package="gpt2_course.flash:tile_mask",
    wrongs=(
        Wrong("the past is forgotten",
              lambda a, b, c, d, past: torch.arange(c, d) <= torch.arange(a, b)[:, None],
              "Right in training; with a cache, new tokens cannot see the latest keys."),
        Wrong("every tile gets the same triangle",
              lambda a, b, c, d, past: torch.ones(b - a, d - c).bool().tril(),
              "Tiles beside the diagonal are cut as if they stood on it."),
        Wrong("a position may not see itself",
              lambda a, b, c, d, past: torch.arange(c, d) < past + torch.arange(a, b)[:, None],
              "The first row of all has nothing to look at, and its softmax is 0/0."),
        Wrong("queries and keys are exchanged",
              lambda a, b, c, d, past: torch.arange(c, d) >= past + torch.arange(a, b)[:, None],
              "Each query sees its future and not its past.")),
    hints=("Which positions do the tile's rows and columns have?",
           "Query t may look at key s if s <= past + t.",
           "torch.arange(c, d)[None, :] <= past + torch.arange(a, b)[:, None]")))


def gradient_inputs(seed):
    "Shares that sum to one, values, the mix, and a gradient for it"
    g = torch.Generator().manual_seed(seed)
    new = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    rows = [(new(T, S).softmax(-1), new(S, hs), new(T, hs))
            for T, S, hs in ((4, 6, 3), (3, 3, 2), (1, 5, 4))]
    return [(P, v, P @ v, dO) for P, v, dO in rows]

def gradient_oracle(P, v, O, dO):
    "The softmax's whole Jacobian, diag(p) - p p^T, row by row in NumPy"
    P, v, dO = P.numpy(), v.numpy(), dO.numpy()
    return torch.from_numpy(np.stack([(np.diag(p) - np.outer(p, p)) @ (v @ d)
                                      for p, d in zip(P, dO)]))

register(Exercise(
    "flash.score_gradient", "17", "The gradient of the scores from shares P (T, S), values, "
    "output O = P v and its gradient dO.", inputs=gradient_inputs, oracle=gradient_oracle,
    package="gpt2_course.flash:score_gradient",
    wrongs=(
        Wrong("D is left out", lambda P, v, O, dO: P * (dO @ v.T),
              "Raising all scores of a row changes nothing, so its gradients must sum to zero: "
              "these do not."),
        Wrong("D is summed over the queries",
              lambda P, v, O, dO: P * (dO @ v.T - ((dO * O).sum(-1)).sum()),
              "Each row has its own D; a sum over rows mixes positions, and future with past."),
        Wrong("D is a mean over the head, not a sum",
              lambda P, v, O, dO: P * (dO @ v.T - (dO * O).mean(-1, keepdim=True)),
              "Too small by the head size: the rows no longer sum to zero."),
        Wrong("the share is forgotten",
              lambda P, v, O, dO: dO @ v.T - (dO * O).sum(-1, keepdim=True),
              "A key without a share gets a gradient all the same; hidden ones too.")),
    hints=("dP = dO v^T. What does a softmax do to it?",
           "ds = P * (dP - D), with D the row sum of P * dP.",
           "That row sum is (dO * O).sum(-1, keepdim=True)."), rtol=1e-6, atol=1e-9))
