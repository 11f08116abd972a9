"""The catalogue of chapter 14: attention shares, the logit lens and the induction score, each with
an independent oracle and its classic mistakes."""

import math

import numpy as np
import torch

from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..model import GPT


def shares_numpy(q, k):
    "Attention shares in float64, one query at a time"
    q, k = q.double().numpy(), k.double().numpy()
    out = np.zeros(q.shape[:3] + (k.shape[2],))
    for b, h, t in np.ndindex(q.shape[:3]):
        s = k[b, h, :t + 1] @ q[b, h, t] / math.sqrt(q.shape[3])
        p = np.exp(s - s.max())
        out[b, h, t, :t + 1] = p / p.sum()
    return torch.from_numpy(out).float()

def past(q): return torch.ones(q.size(-2), q.size(-2)).bool().tril()
def scores(q, k): return q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
def hide(s, q): return s.masked_fill(~past(q), -torch.inf)

def pairs_of(seed):
    "Random queries and keys of several lengths"
    g = torch.Generator().manual_seed(seed)
    new = lambda T, hs: torch.randn(2, 3, T, hs, generator=g) * 2
    return [(new(T, hs), new(T, hs)) for T, hs in ((5, 4), (1, 4), (7, 8))]

register(Exercise(
    "viz.attention_shares", "14", "The shares of causal attention: (B, nh, T, hs) queries and keys "
    "to (B, nh, T, T), each row sums to one.",
    inputs=pairs_of, oracle=shares_numpy, package="gpt2_course.viz:attention_shares",
    wrongs=(
        Wrong("the future is set to zero after the softmax",
              lambda q, k: scores(q, k).softmax(-1) * past(q),
              "Rows no longer sum to one: the shares of the future were given away, then lost."),
        Wrong("the scores are not scaled",
              lambda q, k: hide(q @ k.transpose(-2, -1), q).softmax(-1),
              "The map looks sharper than the model is: these are not the shares it used."),
        Wrong("queries and keys are exchanged", lambda q, k: hide(scores(k, q), q).softmax(-1),
              "Row t would ask with its key: the triangle is right and every number is wrong."),
        Wrong("the softmax runs over the queries",
              lambda q, k: hide(scores(q, k), q).softmax(-2),
              "Each column sums to one: bright cells then say who is heard, not who listens.")),
    hints=("It is `attend` of chapter 07 without its last product.",
           "Scores are q @ k.transpose(-2, -1) / sqrt(hs); hide the future with minus infinity.",
           "Then softmax(-1). Or call attend with torch.eye(T) in place of the values.")))


def model_of(seed, L, vocab, C=8):
    "A small GPT in which no parameter is zero or one"
    model = GPT(GPTConfig(block_size=6, vocab_size=vocab, n_layer=L, n_head=2, n_embd=C))
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data = torch.randn(p.shape, generator=g) * 0.5
    return model.eval()

def lens_inputs(seed):
    "Models with one, two and three blocks"
    g = torch.Generator().manual_seed(seed)
    return [(model_of(seed + L, L, 9 + L), torch.randint(9, (B, T), generator=g))
            for L, B, T in ((2, 2, 5), (1, 1, 1), (3, 2, 6))]

def caught(model, idx):
    "(L + 1, B, T, C): what enters the first block and what leaves each, by hooks"
    seen = []
    hooks = [model.transformer.h[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))]
    hooks += [b.register_forward_hook(lambda m, a, out: seen.append(out))
              for b in model.transformer.h]
    with torch.no_grad(): model(idx)
    for h in hooks: h.remove()
    return torch.stack(seen).detach()

def lens_numpy(model, idx):
    "LayerNorm and head in float64"
    t, x = model.transformer, caught(model, idx).double().numpy()
    w, b, head = (p.detach().double().numpy() for p in (t.ln_f.weight, t.ln_f.bias, t.wte.weight))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
    return torch.from_numpy(x @ head[:model.cfg.vocab_size].T).float()

def lens_with(change=lambda x: x, norm=True, pad=False):
    "A mistaken lens: one part of the right one is exchanged"
    @torch.no_grad()
    def fn(model, idx):
        x = change(caught(model, idx))
        logits = model.lm_head(model.transformer.ln_f(x) if norm else x)
        return logits if pad else logits[..., :model.cfg.vocab_size]
    return fn

register(Exercise(
    "viz.logit_lens", "14", "ln_f and the head applied to the residual stream before the first and "
    "after each block: (L + 1, B, T, V).",
    inputs=lens_inputs, oracle=lens_numpy, package="gpt2_course.viz:logit_lens",
    rtol=1e-3, atol=1e-3,
    wrongs=(
        Wrong("ln_f is left out", lens_with(norm=False),
              "The stream's length is not what the head expects: the last row differs from the "
              "model's logits, with no error raised."),
        Wrong("each block's own addition is read, not the stream",
              lens_with(lambda x: torch.cat([x[:1], x[1:] - x[:-1]])),
              "A block writes a correction to what is there; alone it answers another question."),
        Wrong("the embeddings are left out", lens_with(lambda x: x[1:]),
              "The first of the L + 1 rows is missing, and every label in the plot is off by one."),
        Wrong("the padding rows of the vocabulary are kept", lens_with(pad=True),
              "The live table has rows up to a multiple of 128: ids without meaning get a share.")),
    hints=("streams(model, idx) is (L + 1, B, T, C). What does the model do with the last of it?",
           "model.transformer.ln_f, then model.lm_head; both work on any leading dimensions.",
           "model.lm_head(model.transformer.ln_f(x))[..., :model.cfg.vocab_size].")))


def induction_loop(maps, n):
    "One pair after the other"
    L, B, nh = maps.shape[:3]
    out = np.zeros((L, nh))
    for l, b, h in np.ndindex(L, B, nh):
        for t in range(n, 2 * n): out[l, h] += float(maps[l, b, h, t, t - n + 1]) / (B * n)
    return torch.from_numpy(out).float()

def maps_of(seed):
    "Random causal maps on twice n tokens"
    g = torch.Generator().manual_seed(seed)
    new = lambda L, B, nh, T: torch.randn(L, B, nh, T, T, generator=g) * 2
    raw = [(new(2, 3, 2, 2 * n), n) for n in (3, 5, 2)]
    return [(hide(s, s).softmax(-1), n) for s, n in raw]

def at_offset(o):
    "Mean share that t in the second half gives to t - n + o"
    def fn(maps, n):
        t = torch.arange(n, 2 * n)
        return maps[..., t, t - n + o].mean((1, 3))
    return fn

register(Exercise(
    "viz.induction_share", "14", "Mean share that a token of the second half gives to the token "
    "after its earlier occurrence: (L, B, nh, 2n, 2n) to (L, nh).",
    inputs=maps_of, oracle=induction_loop, package="gpt2_course.viz:induction_share",
    wrongs=(
        Wrong("it measures the earlier occurrence itself", at_offset(0),
              "Off by one: a head that finds the same token again is no copier, for the token to "
              "copy stands one place later."),
        Wrong("the last position of the first half is counted too",
              lambda maps, n: maps.diagonal(1 - n, -2, -1).mean((1, 3)),
              "Its token has no earlier occurrence: the score of a perfect head is diluted."),
        Wrong("rows and columns are exchanged",
              lambda maps, n: maps.diagonal(n - 1, -2, -1)[..., 1:].mean((1, 3)),
              "It reads the future, which is empty: every score is zero."),
        Wrong("the mean runs over the heads, not over the rows",
              lambda maps, n: maps.diagonal(1 - n, -2, -1)[..., 1:].mean((2, 3)),
              "One number for each row of the batch: no head can be told from another.")),
    hints=("For n = 10, token 13 stood before at 3. Which position came after it?",
           "The pairs (t, t - n + 1) lie on one diagonal of the (2n, 2n) map, number 1 - n.",
           "maps.diagonal(1 - n, dim1=-2, dim2=-1) starts at t = n - 1: drop its first entry.")))
