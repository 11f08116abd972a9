"""The stammer: positions of cached generation that are off by one."""

import numpy as np
import torch

from ...attention import KVCache
from ...check import Wrong
from .common import lab
from .small import stream, trained


def positions(
    past:int, # tokens in the cache
    T:int,    # tokens given now
):            # (T,) int64
    "Where the given tokens stand in the text"
    return torch.arange(past, past + T)

def one_behind(past, T): return torch.arange(T) + max(past - 1, 0)

def stammer() -> dict:
    "The same text with and without a cache: how far apart the logits are, by step"
    model = trained()
    wpe, x = model.transformer.wpe, stream(1, split=2).next()[0]
    class Shifted(torch.nn.Module):
        def forward(self, pos): return wpe(one_behind(int(pos[0]), len(pos)))
    full, off, cache = model(x).detach(), [], KVCache(model.cfg, 1)
    model.transformer.wpe = Shifted()
    try:
        with torch.no_grad():
            for t in range(32):
                got = model(x[:, t:t + 1], cache=cache)
                off.append(float((got[0, 0] - full[0, t]).abs().max()))
    finally: model.transformer.wpe = wpe
    return dict(off=off)

def helpings(seed):
    "An empty cache, one token after some, several at once"
    r = np.random.default_rng(seed)
    return [(0, 5), (int(r.integers(3, 7)), 1), (7, 2), (1, 3), (int(r.integers(2, 5)), 6)]

lab("stammer", "the cached positions are off by one",
    "logits right at the first tokens, wrong from then on, with a cache only",
    "cache against no cache, token by token", "medium/11_generation.ipynb",
    "https://github.com/ml-explore/mlx-lm/pull/93", stammer, (
        ("with a cache, new tokens get the position of the one before them",
         "the first token stands at 0 either way; every later one is embedded a place too early"),
        ("the cache drops the oldest token",
         "then the difference would begin small and grow as more is lost; it is there in full at "
         "the second token"),
        ("keys and values are exchanged in the cache",
         "then the very first cached token would be wrong too"),
        ("rounding: the cached sums are taken in another order",
         "rounding is a millionth, as at the first token; these are tenths")),
    answer="positions",
    task="The positions of T given tokens, (T,), when `past` tokens are in the cache already.",
    inputs=helpings,
    oracle=lambda past, T: torch.tensor([past + i for i in range(T)]),
    wrongs=(
        Wrong("they lag by one", one_behind,
              "The length of the cache is taken for the last position: all new tokens are embedded "
              "a place too early, and the text stammers."),
        Wrong("they start at 0 again", lambda past, T: torch.arange(T),
              "Right without a cache and for the prompt; each new token then claims to be the "
              "first of the text."),
        Wrong("they are one ahead", lambda past, T: torch.arange(past + 1, past + T + 1),
              "Position 0 is never used, and the last one falls off the table."),
        Wrong("all get the same position", lambda past, T: torch.full((T,), past),
              "Right for one token at a time; a prompt loses its order."),
        Wrong("the cached tokens get positions again", lambda past, T: torch.arange(past + T),
              "Their keys are in the cache, positions included: only the T new tokens are embedded "
              "now."),
        Wrong("T is taken for the end", lambda past, T: torch.arange(past, T),
              "arange wants a start and an end: T is how many there are, the end is past + T.")),
    hints=("The first new token follows `past` others: how many positions are taken?",
           "torch.arange from past, T of them."))
