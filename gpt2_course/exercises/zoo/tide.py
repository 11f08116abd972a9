"""The tide: unlike shards, read in the same order epoch after epoch."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .parrot import windows
from .small import learn, letters, tiny


def order(
    n:int,     # windows of the training set
    seed:int,
    epoch:int, # 0, 1, 2 …
):             # (n,) int64: the windows in the order of this epoch
    "Every epoch another order, and always the same one for the same seed and epoch"
    return np.random.default_rng([seed, epoch]).permutation(n)

def in_order(n, seed, epoch): return np.arange(n)

def tide() -> list:
    "Rows of metrics of eight epochs over a corpus of three unlike shards"
    tok, train, _ = letters()
    text = tok.decode(train[5000:10_121])
    odd = "".join(sorted(text[:5120])) # a shard of tables, say
    ids = [torch.tensor(tok.encode(t)) for t in (text, text.upper(), odd + " ")]
    x, y = (torch.cat(t) for t in zip(*(windows(i, 32) for i in ids)))
    model, n = tiny(), len(x)
    def batch(s):
        at = in_order(n, 0, 16 * s // n)[np.arange(16 * s, 16 * s + 16) % n]
        return x[at], y[at]
    losses, norms = learn(model, 8 * n // 16, batch)
    return [dict(step=s, split="train", loss=l, grad_norm=g)
            for s, (l, g) in enumerate(zip(losses, norms), 1)]

def epochs(seed):
    "Two seeds and several epochs"
    other = int(np.random.default_rng(seed).integers(1, 1000))
    return [(20, seed, 0), (20, seed, 1), (33, other, 2), (20, other, 0), (1, 3, 4), (16, 7, 7)]

lab("tide", "shards read in their own order, epoch after epoch", "a loss that rises and falls with "
    "a fixed period", "doctor: the period of the loss", "easy/02_data.ipynb",
    "https://github.com/karpathy/build-nanogpt/pull/52", tide, (
        ("unlike shards are read one after the other, in the same order each epoch",
         "the period is the length of an epoch in steps, and each stretch of it has a level of "
         "its own"),
        ("the learning rate is too high", "noise of too large steps has no period"),
        ("the schedule of the learning rate restarts", "this run has a constant one; a restart "
         "would also lift all of an epoch, not a third of it"),
        ("the model overfits", "that bends validation upwards; the training loss would fall")),
    answer="order",
    task="The order in which an epoch reads n windows: np.random.default_rng([seed, epoch])'s "
         "permutation, another one each epoch.",
    inputs=epochs,
    oracle=lambda n, s, e: np.random.Generator(np.random.PCG64([s, e])).permutation(np.arange(n)),
    wrongs=(
        Wrong("the windows come as they lie", in_order,
              "Neighbours are alike: the loss follows the shards, and steps follow one shard for "
              "long."),
        Wrong("every epoch has the same order",
              lambda n, s, e: np.random.default_rng(s).permutation(n),
              "Shuffled once, so the tide is gone; but each epoch repeats the same batches, with "
              "the same unlucky neighbours."),
        Wrong("the seed plays no part", lambda n, s, e: np.random.default_rng(e).permutation(n),
              "Two seeds then read the same data in the same order: they are not two experiments."),
        Wrong("windows are drawn with repeats",
              lambda n, s, e: np.random.default_rng([s, e]).integers(0, n, n),
              "A third of the windows is missed in an epoch and others come twice. A fair choice, "
              "but not an epoch."),
        Wrong("seed and epoch are added",
              lambda n, s, e: np.random.default_rng(s + e).permutation(n),
              "Epoch 1 of seed 0 is then epoch 0 of seed 1: neighbouring seeds read the same "
              "orders, one epoch apart."),
        Wrong("epoch and seed are exchanged",
              lambda n, s, e: np.random.default_rng([e, s]).permutation(n),
              "A good order, but another one: whoever resumes with the agreed [seed, epoch] reads "
              "other windows.")),
    hints=("A generator made of both numbers: default_rng([seed, epoch]).", ".permutation(n)"))
