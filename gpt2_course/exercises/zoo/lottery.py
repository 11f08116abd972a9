"""The lottery: top-k after the softmax, without giving the rest its share back."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import normal


def top_k_shares(
    logits, # (V,)
    k:int,
):          # (V,) probabilities: 0 but for the k largest
    "A softmax over the k largest alone"
    kept = logits.topk(k)
    return torch.zeros_like(logits).scatter(0, kept.indices, kept.values.softmax(-1))

def cut_shares(logits, k):
    p = logits.softmax(-1)
    return torch.where(p >= p.topk(k).values[-1], p, 0.0)

def lottery() -> dict:
    "5000 draws by the running sum, and what top-k should give"
    logits = normal(3)(10)
    logits[-1] = -2.0
    bounds = cut_shares(logits, 3).cumsum(-1).numpy()
    drawn = np.searchsorted(bounds, np.random.default_rng(0).random(5000)).clip(max=9)
    return dict(drawn=np.bincount(drawn, minlength=10) / 5000, full=logits.softmax(-1).numpy())

def top_k_numpy(logits, k):
    "In float64"
    z = logits.double().numpy()
    e = np.exp(z - z.max()) * (z >= np.sort(z)[-k])
    return torch.from_numpy(e / e.sum()).float()

def some_logits(seed):
    "Logits and numbers of tokens to keep: one, some, all; large ones and equal ones"
    draw = normal(seed)
    large = torch.tensor([-1000.0, 1000, 998, 0, 997])
    return [(draw(9), 3), (draw(6), 2), (draw(5), 4), (draw(7), 1), (draw(4), 4), (large, 3),
            (torch.full((5,), -3.0), 5)]

lab("lottery", "top-k after the softmax, not renormalised",
    "an unlikely token that is drawn far too often", "counting draws", "medium/11_generation.ipynb",
    "https://github.com/ml-explore/mlx-lm/pull/388", lottery, (
        ("what top-k cut away was not given back to the rest, and falls to the last token",
         "the running sum ends below 1, and every draw above it lands on the last id, which is not "
         "even among the three"),
        ("the temperature is too high", "then all unlikely tokens would gain, not one of them"),
        ("the random numbers are not uniform", "the three likely tokens are drawn in the right "
         "proportion to each other"),
        ("k is one too large", "the fourth likeliest would be drawn about as often as its "
         "probability; the winner here is among the least likely")),
    answer="top_k_shares",
    task="Probabilities (V,) of top-k sampling from logits (V,): 0 but for the k largest, which "
         "add up to 1.",
    inputs=some_logits,
    oracle=top_k_numpy,
    wrongs=(
        Wrong("the rest is not renormalised", cut_shares,
              "torch.multinomial forgives it; a running sum, top-p afterwards or a log-likelihood "
              "do not."),
        Wrong("the probabilities go through a second softmax",
              lambda z, k: top_k_shares(z.softmax(-1), k),
              "Probabilities are not logits: the result is nearly flat."),
        Wrong("the k-th is lost", lambda z, k: top_k_shares(z, k - 1),
              "A strict > where >= is meant."),
        Wrong("the others keep a share", lambda z, k: torch.where(
            z >= z.topk(k).values[-1], z, 0.0).softmax(-1),
              "A logit of 0 is not a probability of 0: masked means -inf."),
        Wrong("the k smallest are kept",
              lambda z, k: top_k_shares(-z, k) if k == len(z) else torch.where(
                  z <= z.sort().values[k - 1], z, -torch.inf).softmax(-1),
              "The sort is ascending: the largest are at its end."),
        Wrong("the k largest are equally likely",
              lambda z, k: (z >= z.topk(k).values[-1]).float() / k,
              "Top-k decides who takes part; the logits still decide how often each is drawn.")),
    hints=("Cut first, softmax afterwards.", "topk, softmax of its values, scattered back."),
    excused={"gradient": "it is drawn from: nothing is differentiated through a sample",
             "batch": "one position at a time: (V,)"})
