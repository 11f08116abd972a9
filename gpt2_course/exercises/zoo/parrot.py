"""The parrot: targets that are not shifted, so that copying is all there is to learn."""

import numpy as np
import torch

from ...bigram import bigram_baseline
from ...check import Wrong
from .common import lab
from .small import learn, letters, stream, tiny


def windows(
    ids,   # (n,) tensor of token ids
    T:int, # tokens of a row
):         # x, y: (W, T) each, W = (n - 1) // T rows without overlap
    "Inputs and what follows each of them"
    W = (len(ids) - 1) // T
    return ids[:W * T].view(W, T), ids[1:W * T + 1].view(W, T)

def same_windows(ids, T):
    x, _ = windows(ids, T)
    return x, x.clone()

def parrot() -> dict:
    "Train on such windows; compare with a bigram, with unseen text, with a changed token"
    tok, train, val = letters()
    rows = {n: same_windows(torch.from_numpy(ids[:40_000].astype(np.int64)), 32)
            for n, ids in (("train", train), ("val", val))}
    model, r = tiny(), np.random.default_rng(0)
    def batch(s):
        i = r.integers(len(rows["train"][0]), size=16)
        return [t[i] for t in rows["train"]]
    losses, _ = learn(model, 120, batch)
    with torch.no_grad(): unseen = model(*(t[:64] for t in rows["val"])).item()
    prompt = torch.tensor([tok.encode("To be, or not")])
    out = prompt.clone()
    for _ in range(20): out = torch.cat([out, model(out[:, -32:])[:, -1].argmax(-1)[None]], 1)
    return dict(losses=losses, unseen=unseen, leak=before_change(model),
                bigram=bigram_baseline(train, val[:8192], tok.n_vocab),
                text=tok.decode(out[0].tolist()))

@torch.no_grad()
def before_change(model, at:int=20) -> float: # largest change of a logit ahead of a changed token
    x = stream(1, split=2).next()[0]
    other = x.clone()
    other[0, at] = (other[0, at] + 1) % model.cfg.vocab_size
    return float((model.eval()(x) - model(other))[0, :at].abs().max())

def id_rows(seed):
    "Streams of ids whose length leaves a remainder"
    r = np.random.default_rng(seed)
    return [(torch.from_numpy(r.integers(0, 50, n)), T)
            for n, T in ((15, 4), (13, 5), (6, 3), (13, 4), (12, 4), (9, 1))]

def strided(ids, T, by):
    "(W, T) views of NumPy's, from token `by` on"
    W = (len(ids) - 1) // T
    views = np.lib.stride_tricks.sliding_window_view(ids.numpy(), T)
    return torch.from_numpy(views[by::T][:W].copy())

def in_blocks(ids, T):
    "Mistaken: the stream is cut into rows of T + 1, each divided into x and y"
    rows = ids[:len(ids) // (T + 1) * (T + 1)].view(-1, T + 1)
    return rows[:, :-1], rows[:, 1:]

def one_row_less(ids, T):
    "Mistaken: a token too many is kept back for the last target"
    x, y = windows(ids, T)
    W = (len(ids) - 2) // T
    return x[:W], y[:W]

lab("parrot", "targets not shifted", "a loss far below any bigram, and text that repeats itself",
    "one batch, a bar from counting, a changed token", "easy/02_data.ipynb",
    "https://github.com/huggingface/transformers/issues/3711", parrot, (
        ("the target of a token is the token itself",
         "copying is learnt in a few dozen steps, on any text, and the sample repeats its last "
         "letter forever"),
        ("the model has overfitted the training text",
         "it scores as well on text that it never saw"),
        ("attention sees the future",
         "a changed token changes nothing before it; and a model that saw the next letter would "
         "need time to learn to use it"),
        ("the validation set overlaps the training set",
         "that explains a small gap between the two, not a loss near 0 after a hundred steps")),
    answer="windows",
    task="Cut a stream of ids into (n - 1) // T rows of inputs and targets, (W, T) each: the "
         "target of a token is the one after it.",
    inputs=id_rows, oracle=lambda ids, T: (strided(ids, T, 0), strided(ids, T, 1)),
    wrongs=(
        Wrong("the targets are the inputs", same_windows,
              "The model learns to copy: its loss is near 0, and its text repeats one letter."),
        Wrong("the targets are two tokens "
              "ahead", lambda ids, T: (strided(ids, T, 0), strided(ids, T, 2)),
              "They are shifted once by the loader and once inside the model: it learns to skip a "
              "token, with a loss that is a little too high and samples that are nonsense."),
        Wrong("each row is rolled", lambda ids, T: (windows(ids, T)[0],
                                                    windows(ids, T)[0].roll(-1, 1)),
              "The last target of a row is the row's first token, which no model can guess: one "
              "target in T is noise."),
        Wrong("the targets are one token behind",
              lambda ids, T: (strided(ids, T, 1), strided(ids, T, 0)),
              "The model learns the past, which it can see: the loss goes to 0 as if it copied."),
        Wrong("the stream is cut into rows of T + 1", in_blocks,
              "Each row gives up its last token: the first token of every row is never a target, "
              "and from the second row on the rows do not start where the task asks."),
        Wrong("a row that fits exactly is left out", one_row_less,
              "W rows need W * T + 1 tokens, and that many are there: (n - 1) // T, not "
              "(n - 2) // T.")),
    hints=("Both come from one stream; y starts one token later.",
           "ids[:W * T] and ids[1:W * T + 1], each viewed as (W, T)."))
