"""The foreign tongue: ids of a padded vocabulary that no tokenizer can decode."""

import math

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import learn, letters, normal, stream, tiny


def next_shares(
    logits, # (..., padded V)
    V:int,  # tokens of the tokenizer
):          # (..., V) probabilities
    "Ids that no token has take no part"
    return logits[..., :V].softmax(-1)

def padded_shares(logits, V): return logits.softmax(-1)

def foreign_tongue() -> str:
    "A vocabulary padded to 128: the first loss, and 2000 samples after some training"
    tok, model, loader = letters()[0], tiny(V=128), stream()
    with torch.no_grad(): told = [f"loss before training {model(*loader.next()).item():.3f}, "
                                  f"ln {tok.n_vocab} = {math.log(tok.n_vocab):.3f}"]
    for steps in (0, 20, 60):
        learn(model, steps, lambda s: loader.next())
        with torch.no_grad(): logits = model(stream(1, split=2).next()[0])[0, -1]
        g = torch.Generator().manual_seed(0)
        ids = torch.multinomial(padded_shares(logits, tok.n_vocab), 2000, True, generator=g)
        try: said = repr(tok.decode(ids.tolist()))[:30]
        except IndexError as e: said = f"decode: {type(e).__name__}: {e}"
        told.append(f"after {steps:2} more steps: ids from {int(ids.min())} to "
                    f"{int(ids.max())}; {said}")
    return "\n".join(told)

def shares_of_real_ids(logits, V):
    "In float64, over the first V"
    z = logits.double().numpy()[..., :V]
    e = np.exp(z - z.max(-1, keepdims=True))
    return torch.from_numpy(e / e.sum(-1, keepdims=True)).float()

def padded_logits(seed):
    "Rows and batches of several paddings, equal logits, large ones, no padding at all"
    draw = normal(seed)
    large = torch.tensor([[1000.0, -1000, 0, 999, -5], [0, 1000, 0, -5, -1000]])
    return [(draw(2, 12), 9), (draw(8), 5), (draw(3, 6), 4), (draw(2, 3, 7), 5), (large, 3),
            (torch.full((2, 6), 0.5), 4), (draw(2, 4), 4)]

def zeroed(logits, V):
    z = logits.clone()
    z[..., V:] = 0
    return z.softmax(-1)[..., :V]

lab("foreign_tongue", "ids of the padded vocabulary are sampled",
    "a sample that cannot be decoded, now and then", "loss at initialisation; the largest id",
    "medium/09_model.ipynb",
    "https://github.com/karpathy/build-nanogpt/issues/81", foreign_tongue, (
        ("the model has more rows than the tokenizer has tokens, and all of them can be drawn",
         "the first loss is the logarithm of the padded size, and training makes the strangers "
         "rare, never impossible"),
        ("the tokenizer's file is damaged", "the ids that it cannot decode lie beyond its size: "
         "it never had them"),
        ("the training text holds wrong ids", "it was written by this tokenizer; and untrained, "
         "the model says them most of all"),
        ("the temperature is too high", "heat makes rare tokens more frequent; an id that is no "
         "token must have probability 0 at any temperature")),
    answer="next_shares",
    task="Probabilities (..., V) of the next token from logits over a padded vocabulary, whose "
         "first V ids are real.",
    inputs=padded_logits,
    oracle=shares_of_real_ids,
    wrongs=(
        Wrong("the padding takes part", padded_shares,
              "Its ids are drawn now and then, and decoding fails; in the loss they cost a little "
              "probability at every token."),
        Wrong("the padding is cut off after the softmax",
              lambda z, V: z.softmax(-1)[..., :V],
              "The rest no longer adds up to 1: whoever samples by a running sum draws the last "
              "token too often."),
        Wrong("the padding's share goes to the last real token",
              lambda z, V: torch.cat([z.softmax(-1)[..., :V - 1],
                                      z.softmax(-1)[..., V - 1:].sum(-1, keepdim=True)], -1),
              "That is what clamping the drawn ids to V - 1 does: no error, and one token too "
              "often."),
        Wrong("the padding's logits are set to 0", zeroed,
              "e to the 0 is 1: the padding still takes its part, often more than before. Minus "
              "infinity would be right."),
        Wrong("the padding is still there, with probability 0",
              lambda z, V: torch.cat([z[..., :V], torch.full_like(z[..., V:], -torch.inf)],
                                     -1).softmax(-1),
              "Nothing wrong is drawn any more; but the shape is that of the padded vocabulary, "
              "where (..., V) is asked for.")),
    hints=("Cut before the softmax or after it?", "logits[..., :V].softmax(-1)"),
    excused={"gradient": "it is drawn from: nothing is differentiated through a sample"})
