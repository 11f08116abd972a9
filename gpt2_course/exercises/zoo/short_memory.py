"""Short memory: a mask and is_causal given together, where the past is in a cache."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ...attention import KVCache, causal_mask
from ...check import Wrong
from .common import lab
from .small import normal, stream, trained


def mixed(
    q,   # (B, nh, T, hs) queries of the newest T positions
    k,   # (B, nh, S, hs) keys of all S positions, S >= T
    v,   # (B, nh, S, hs) their values
):       # (B, nh, T, hs)
    "Causal attention where the past is in a cache"
    mask = causal_mask(q.size(-2), k.size(-2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

def told_twice(q, k, v, dropout=0.0):
    mask = causal_mask(q.size(-2), k.size(-2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=True)

def short_memory() -> str:
    "A prompt of 12 letters read at once and in two helpings"
    x, told = stream(1, split=2).next()[0][:, :12], []
    model = trained()
    whole = model(x).detach()
    for cut in (12, 6, 11):
        cache, kept = KVCache(model.cfg, 1), [b.attn.attention for b in model.transformer.h]
        for b in model.transformer.h: b.attn.attention = told_twice
        try:
            with torch.no_grad():
                parts = [model(p, cache=cache) for p in (x[:, :cut], x[:, cut:]) if p.numel()]
            off = (torch.cat(parts, 1) - whole).abs()[0].amax(-1)
            said = " ".join(f"{v:.2f}" for v in off)
        except RuntimeError as e: said = f"{type(e).__name__}: {str(e)[:80]}"
        finally:
            for b, a in zip(model.transformer.h, kept): b.attn.attention = a
        told.append(f"read as {cut} + {12 - cut}: logits off by, at each position:\n   {said}")
    return "\n".join(told)

def attention_numpy(q, k, v):
    "Query by query in float64: query t of T sees keys 0 … S - T + t"
    q, k, v = (t.double().numpy() for t in (q, k, v))
    T, S = q.shape[-2], k.shape[-2]
    out = np.zeros(q.shape)
    for t in range(T):
        s = np.einsum("bhc,bhsc->bhs", q[:, :, t], k[:, :, :S - T + t + 1]) / math.sqrt(q.shape[-1])
        w = np.exp(s - s.max(-1, keepdims=True))
        w /= w.sum(-1, keepdims=True)
        out[:, :, t] = np.einsum("bhs,bhsc->bhc", w, v[:, :, :S - T + t + 1])
    return torch.from_numpy(out).float()

def with_mask(mask): # a mistaken `mixed`: mask(T, S) says what a query may see
    return lambda q, k, v: attend_by(q, k, v, mask(q.size(-2), k.size(-2)))

def attend_by(q, k, v, mask):
    scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v

def only_the_new(q, k, v):
    "Mistaken: the cache is not read"
    T = q.size(-2)
    return attend_by(q, k[..., -T:, :], v[..., -T:, :], causal_mask(T, T))

def cached_rows(seed):
    "A prompt in the cache, none, a single query, equal keys with high scores, large values"
    draw = normal(seed)
    out = [tuple(draw(2, 2, n, 4) for n in (T, S, S)) for T, S in ((3, 6), (4, 4), (1, 5), (2, 3))]
    equal = torch.full((1, 2, 2, 4), 1000.0), torch.full((1, 2, 5, 4), 0.25), draw(1, 2, 5, 4)
    return [*out, equal, (draw(1, 1, 3, 4), draw(1, 1, 4, 4), 1000 * draw(1, 1, 4, 4))]

lab("short_memory", "a mask and is_causal given together",
    "a cached prompt, read in two helpings, gives other logits (older kernels refuse the call)",
    "cache against no cache", "medium/07_attention.ipynb",
    "https://github.com/huggingface/nanoVLM/issues/80", short_memory, (
        ("is_causal is given where queries and keys differ in number: its triangle starts at the "
         "first key",
         "the new queries are treated as the first positions and lose most of their past; with "
         "equally many of both nothing shows"),
        ("the cache stores keys of the wrong layer",
         "12 + 0 writes and reads the same cache, and is right everywhere"),
        ("the cache is full and loses its oldest keys",
         "it has room for 32 positions, and only 12 are ever in it"),
        ("rounding: the sums are taken in another order",
         "rounding is a millionth; these are tenths")),
    answer="mixed",
    task="Causal attention of the newest T queries over all S >= T keys (shapes (B, nh, T, hs) and "
         "(B, nh, S, hs)): query t sees keys 0 to S - T + t.",
    inputs=cached_rows, oracle=attention_numpy, gradient=True,
    wrongs=(
        Wrong("the triangle starts at the first key", with_mask(lambda T, S: causal_mask(S, S)[:T]),
              "is_causal counts from the upper left: with a cache the new queries see the oldest "
              "keys only. Some versions refuse is_causal beside a mask, others apply both."),
        Wrong("nothing is masked", with_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool)),
              "One query may see all; several at once then see each other's future."),
        Wrong("the mask is inverted", with_mask(lambda T, S: ~causal_mask(T, S)),
              "For this kernel True means: may look. In other libraries it means the opposite."),
        Wrong("a query does not see itself",
              with_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)),
              "The diagonal is off by one: the newest token is read, but never used."),
        Wrong("the cache is not read", only_the_new,
              "The queries see the newest T keys and nothing before: with one token at a time, "
              "each sees only itself."),
        Wrong("the scores are not scaled",
              lambda q, k, v: mixed(q * math.sqrt(q.size(-1)), k, v),
              "Without the division by sqrt(hs) the softmax is sharper than the one that the "
              "weights were trained with.")),
    hints=("The last query is the newest position: it sees all S keys.",
           "A boolean mask (T, S): ones, lower triangle, moved by S - T.",
           "torch.ones(T, S, dtype=torch.bool).tril(S - T), and no is_causal."))
