"""The prophet: a causal softmax over the wrong axis, through which the future gets in."""

import math

import numpy as np
import torch

from ...attention import causal_mask
from ...bigram import bigram_baseline
from ...check import Wrong
from .common import lab
from .small import learn, letters, normal, stream, tiny


def shares(
    scores, # (..., T, T) a row for each query, a column for each key
):          # (..., T, T) attention weights
    "Causal softmax: each query divides 1 among the keys of its past"
    T = scores.size(-1)
    return scores.masked_fill(~causal_mask(T, T), -torch.inf).softmax(-1)

def column_shares(scores):
    T = scores.size(-1)
    return scores.masked_fill(~causal_mask(T, T), -torch.inf).softmax(-2)

def through(weights): # an attention function (q, k, v, dropout) -> mix, made of scores -> weights
    return lambda q, k, v, dropout=0.0: weights(q @ k.mT / math.sqrt(q.size(-1))) @ v

def prophet() -> dict:
    "Train with it, then change one token at a time and see which outputs move"
    model, loader = tiny(attention=through(column_shares)), stream()
    losses, _ = learn(model, 300, lambda s: loader.next())
    x = stream(1, split=2).next()[0]
    moved = np.zeros((32, 32))
    with torch.no_grad():
        base = model.eval()(x)
        for at in range(32):
            other = x.clone()
            other[0, at] = (other[0, at] + 1) % model.cfg.vocab_size
            moved[:, at] = (model(other) - base)[0].abs().amax(-1)
        unseen = model(*stream(64, split=2).next()).item()
        sums = column_shares(torch.zeros(6, 6)).sum(-1)
    tok, train, val = letters()
    return dict(loss=losses[-1], unseen=unseen, moved=moved,
                rows=[round(v, 2) for v in sums.tolist()],
                bigram=bigram_baseline(train, val[:8192], tok.n_vocab))

def softmax_numpy(scores):
    "Row by row in float64"
    s = scores.double().numpy()
    out = np.zeros_like(s)
    for i in range(s.shape[-1]):
        past = s[..., i, :i + 1]
        e = np.exp(past - past.max(-1, keepdims=True))
        out[..., i, :i + 1] = e / e.sum(-1, keepdims=True)
    return torch.from_numpy(out).float()

def some_scores(seed):
    "Batches, a single row, very large scores, and equal ones far below 0"
    draw = normal(seed)
    large = torch.tensor([[0., 1000, -1000], [-1000, 1000, 0], [1000, -1000, 1000]])
    return [(draw(5, 5),), (draw(2, 3, 4, 4),), (draw(3, 3),), (draw(1, 1),), (large,),
            (torch.full((4, 4), -1000.0),)]

def masked_with(value, diagonal=0): # a mistaken `shares`: what lies above gets this value
    def fn(scores):
        past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
        return scores.masked_fill(~past, value).softmax(-1)
    return fn

lab("prophet", "softmax over the wrong axis", "outputs that move when a later token changes",
    "causality by changing one token", "medium/07_attention.ipynb",
    "https://github.com/karpathy/ng-video-lecture/issues/42", prophet, (
        ("the softmax runs over the queries, not over the keys",
         "columns add up to 1 and rows do not: a weight then depends on queries that come later, "
         "and that is how the future gets in, mask or no mask"),
        ("there is no mask",
         "without one the rows would still add up to 1; the printed sums do not"),
        ("the positions are off by one",
         "then only the next neighbour could leak; here all later tokens do"),
        ("the targets are not shifted",
         "the test compares logits: no target enters it")),
    answer="shares",
    task="Attention weights (..., T, T) from scores (..., T, T), a row for each query: a softmax "
         "over the keys that are not in its future; 0 for the others.",
    inputs=some_scores, oracle=softmax_numpy, gradient=True,
    wrongs=(
        Wrong("the softmax runs over the queries", column_shares,
              "Each column adds up to 1: the weight that a query gives depends on later queries, "
              "so the future leaks, and rows do not add up."),
        Wrong("the mask comes after the softmax",
              lambda s: s.softmax(-1) * causal_mask(s.size(-1), s.size(-1)),
              "Rows no longer add up to 1, and each weight depends on masked scores: a leak."),
        Wrong("masked scores are set to 0", masked_with(0.0),
              "e to the 0 is 1, not 0: the future keeps a share."),
        Wrong("the mask is upside down",
              lambda s: s.masked_fill(causal_mask(s.size(-1), s.size(-1)).mT.logical_not(),
                                      -torch.inf).softmax(-1),
              "Each query sees itself and its future, never its past."),
        Wrong("nothing is masked", lambda s: s.softmax(-1),
              "Every query sees the whole row: the next token is read, not predicted."),
        Wrong("a query does not see itself", masked_with(-torch.inf, diagonal=-1),
              "The diagonal is off by one: the first query has no key at all, and its softmax is "
              "0 / 0."),
        Wrong("-100 stands for minus infinity", masked_with(-100.0),
              "A real score can lie below it: then the masked keys win. Use -torch.inf, or the "
              "smallest number of the type.")),
    hints=("Which sums must be 1: those of rows or of columns?",
           "Keys are the last dimension.", "masked_fill with -inf, then softmax(-1)."))
