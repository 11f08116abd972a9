"""The catalogue of chapter 07: what to write, an oracle in NumPy, and the classic mistakes with
their names."""

import math

import numpy as np
import torch

from ..check import Exercise, Wrong, register


def qkv(
    seed:int,
) -> list: # of (q, k, v): (B, nh, T, hs) and twice (B, nh, S, hs)
    "Random queries, keys and values, with and without a cached past"
    g = torch.Generator().manual_seed(seed)
    new = lambda T: torch.randn(2, 3, T, 4, generator=g) * 2
    return [(new(T), new(S), new(S)) for T, S in ((5, 5), (3, 6), (6, 6))]


register(Exercise(
    "attention.causal_mask", "07", "A (T, S) boolean tensor, True where query t may look at key s; "
    "the T queries are the last T of S positions.",
    inputs=lambda seed: [(4, 4), (2, 5), (1, 3), (3 + seed % 3, 9)],
    oracle=lambda T, S: torch.tensor([[s <= t + S - T for s in range(S)] for t in range(T)]),
    package="gpt2_course.attention:causal_mask",
    wrongs=(
        Wrong("the mask is upside down", lambda T, S: torch.ones(T, S).bool().triu(S - T),
              "Each position sees its future and not its past: training is easy and useless."),
        Wrong("queries are aligned with the first keys",
              lambda T, S: torch.ones(T, S).bool().tril(),
              "Without a cache you see no difference; with one, new tokens look at the oldest "
              "keys only."),
        Wrong("a position may not see itself", lambda T, S: torch.ones(T, S).bool().tril(S - T - 1),
              "The first row has nothing to look at: its softmax is 0/0, the loss becomes NaN."),
        Wrong("it is made of numbers, not of booleans", lambda T, S: torch.ones(T, S).tril(S - T),
              "scaled_dot_product_attention adds a numeric mask to the scores instead of hiding "
              "keys: the future stays visible.")),
    hints=("Which keys may the last query see? All S. And the one before it?",
           "torch.tril keeps a lower triangle; its second argument shifts the diagonal.",
           "With S - T positions in the past, the diagonal moves S - T to the right.")))


def attend_numpy(q, k, v):
    "Attention in float64, one query at a time"
    q, k, v = (t.double().numpy() for t in (q, k, v))
    T, S = q.shape[2], k.shape[2]
    out = np.zeros(q.shape[:3] + v.shape[3:])
    for b, h, t in np.ndindex(q.shape[:3]):
        seen = S - T + t + 1
        s = k[b, h, :seen] @ q[b, h, t] / math.sqrt(q.shape[3])
        p = np.exp(s - s.max())
        out[b, h, t] = p / p.sum() @ v[b, h, :seen]
    return torch.from_numpy(out).float()

def variant(scale=lambda q: q.size(-1)**-0.5, fill=-torch.inf, dim=-1, mask=True,
            aligned=True, late=False):
    "A mistaken attention: one part of the right one is exchanged"
    def fn(q, k, v):
        T, S = q.size(-2), k.size(-2)
        s = q @ k.transpose(-2, -1) * scale(q)
        if mask: s = s.masked_fill(~torch.ones(T, S).bool().tril(S - T if aligned else 0), fill)
        p = s.softmax(dim).nan_to_num()
        return (p * torch.ones(T, S).tril(S - T) if late else p) @ v
    return fn


register(Exercise(
    "attention.attend", "07", "Causal scaled dot-product attention: each query's mix of the values "
    "it may see.", inputs=qkv, oracle=attend_numpy, package="gpt2_course.attention:attend",
    wrongs=(
        Wrong("the scores are not scaled", variant(scale=lambda q: 1.0),
              "They grow with the head size; the softmax picks one key and its gradient dies."),
        Wrong("the scores are divided by sqrt(C), not by sqrt(hs)",
              variant(scale=lambda q: (q.size(1) * q.size(-1))**-0.5),
              "A dot product has hs terms, not C: attention is too soft by sqrt(nh)."),
        Wrong("the mask is a small finite number", variant(fill=-5.0),
              "The future keeps a share, so the model trains on its answers and writes badly."),
        Wrong("the softmax runs over the queries", variant(dim=-2),
              "Each column sums to one instead of each row: a position's shares depend on its "
              "future."),
        Wrong("there is no mask", variant(mask=False),
              "Every token sees its answer: the training loss falls towards zero, the text is "
              "noise."),
        Wrong("the mask comes after the softmax", variant(mask=False, late=True),
              "The future is hidden, but it took its part of each sum: rows sum to less than one, "
              "the first to the least, and what the past says depends on the future."),
        Wrong("queries are aligned with the first keys", variant(aligned=False),
              "Without a cache you see no difference; with one, a new token looks at the oldest "
              "keys only. PyTorch's is_causal=True does this too.")),
    hints=("Scores first: every query with every key, a (T, S) table for each head.",
           "Hide with masked_fill and minus infinity before the softmax, never after it.",
           "(q @ k.transpose(-2, -1) / sqrt(hs)), masked, softmax over the last dimension, @ v.")))


def heads_numpy(x, nh):
    "(B, T, C) -> (B, nh, T, hs): head h has channels h*hs to (h+1)*hs"
    B, T, C = x.shape
    hs = C // nh
    return torch.stack([x[:, :, h * hs:(h + 1) * hs] for h in range(nh)], dim=1)

register(Exercise(
    "attention.split_heads", "07", "Cut the channels into nh heads: (B, T, C) to (B, nh, T, hs).",
    inputs=lambda seed: [(torch.randn(2, T, 12, generator=torch.Generator().manual_seed(seed)), nh)
                         for T, nh in ((4, 3), (3, 3), (6, 2))],
    oracle=heads_numpy, package="gpt2_course.attention:split_heads",
    wrongs=(
        Wrong("view without transpose", lambda x, nh: x.reshape(x.size(0), nh, x.size(1), -1),
              "The shape is right and the numbers are not: heads get pieces of different tokens, "
              "and causality breaks."),
        Wrong("hs and nh are exchanged",
              lambda x, nh: x.view(x.size(0), x.size(1), -1, nh).permute(0, 3, 1, 2),
              "A head gets every nh-th channel: GPT-2's weights would be read in the wrong "
              "order."),
        Wrong("time and heads are not exchanged",
              lambda x, nh: x.view(x.size(0), x.size(1), nh, -1),
              "Attention would then run over heads within a token, not over time.")),
    hints=("First give the channels two dimensions, nh and hs, in this order.",
           "x.view(B, T, nh, hs) keeps the memory; then move nh in front of T.",
           "transpose(1, 2) exchanges T and nh; a view alone cannot.")))
