"""Attention by its definition: one query at a time in NumPy; masks, heads and the cache by loops."""

import math

import numpy as np
import pytest
import torch
from gpt2_course.attention import ATTENTION, CausalSelfAttention, KVCache, attend, causal_mask, sdpa, split_heads
from gpt2_course.config import GPTConfig, UserError

CFG = GPTConfig(block_size=12, vocab_size=11, n_layer=3, n_head=2, n_embd=8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def qkv(T, S, B=2, nh=3, hs=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, nh, n, hs, generator=g) for n in (T, S, S)]


def by_loops(q, k, v):
    q, k, v = (t.detach().double().numpy() for t in (q, k, v))
    T, S = q.shape[2], k.shape[2]
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        seen = S - T + t + 1
        scores = np.array([q[b, h, t] @ k[b, h, s] / math.sqrt(q.shape[3]) for s in range(seen)])
        weights = np.exp(scores - scores.max())
        out[b, h, t] = (weights / weights.sum()) @ v[b, h, :seen]
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("T, S", [(1, 1), (2, 2), (4, 4), (1, 2), (1, 5), (2, 5), (3, 5), (4, 5)])
def test_mask_attend_and_sdpa(T, S):
    mask = causal_mask(T, S)
    assert mask.dtype == torch.bool and mask.tolist() == [[s <= t + S - T for s in range(S)] for t in range(T)]
    q, k, v = qkv(T, S)
    torch.testing.assert_close(attend(q, k, v), by_loops(q, k, v))
    torch.testing.assert_close(sdpa(q, k, v), by_loops(q, k, v))


def test_mask_is_made_on_the_device_that_is_asked_for():
    assert causal_mask(2, 3, "meta").device.type == "meta" and causal_mask(2, 3).device.type == "cpu"


@pytest.mark.parametrize("attention", [attend, sdpa])
def test_dropout_is_off_unless_asked_for_and_keeps_the_mean(attention):
    q, k, v = qkv(6, 6)
    v = v.abs() + 1
    assert torch.equal(attention(q, k, v), attention(q, k, v))
    torch.manual_seed(0)
    drawn = torch.stack([attention(q, k, v, 0.5) for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), attention(q, k, v), rtol=0.35, atol=0.0)
    assert drawn.std(0).min() > 0.1  # half of the weights are gone each time


def test_attention_by_name():
    assert ATTENTION["manual"] is attend and ATTENTION["sdpa"] is ATTENTION["auto"] is sdpa


@pytest.mark.parametrize("nh, hs", [(1, 4), (2, 3), (4, 2)])
def test_split_heads(nh, hs):
    x = torch.arange(2 * 5 * nh * hs).view(2, 5, nh * hs)
    y = split_heads(x, nh)
    assert y.shape == (2, nh, 5, hs)
    for b, h, t, c in np.ndindex(*y.shape):
        assert y[b, h, t, c] == x[b, t, h * hs + c]


def test_cache_keeps_what_it_is_given():
    cache = KVCache(CFG, 2)
    assert cache.k.shape == cache.v.shape == (3, 2, 2, 12, 4) and cache.length == 0 and cache.k.dtype == torch.float32
    parts = [[torch.randn(2, 2, T, 4) for _ in range(6)] for T in (4, 1, 2)]
    for part in parts:
        for layer in range(3):
            k, v = cache.update(layer, part[2 * layer], part[2 * layer + 1])
        cache.advance(part[0].size(2))
    assert cache.length == 7 and torch.equal(k, torch.cat([p[4] for p in parts], 2)) and torch.equal(v, torch.cat([p[5] for p in parts], 2))
    assert torch.equal(cache.k[0, :, :, :7], torch.cat([p[0] for p in parts], 2)) and torch.equal(cache.v[1, :, :, :7], torch.cat([p[3] for p in parts], 2))
    full = torch.randn(2, 2, 5, 4)
    assert cache.update(0, full, full)[0].size(2) == 12  # just fits
    with pytest.raises(UserError, match="room for 12 positions, not 13"):
        cache.update(0, torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4))


def test_cache_of_fewer_heads_and_another_type():
    cache = KVCache(CFG, 1, dtype=torch.bfloat16, heads=1)
    assert cache.k.shape == (3, 1, 1, 12, 4) and cache.v.dtype == torch.bfloat16
    assert KVCache(CFG, 1, device="meta").k.device.type == "meta"


def layer(dropout=0.0, bias=True, attention=sdpa):
    torch.manual_seed(0)
    return CausalSelfAttention(GPTConfig(block_size=12, vocab_size=11, n_layer=3, n_head=2, n_embd=8, dropout=dropout, bias=bias), attention)


def test_layer_has_gpt2s_parameters():
    shapes = {n: tuple(p.shape) for n, p in layer().named_parameters()}
    assert shapes == {"c_attn.weight": (24, 8), "c_attn.bias": (24,), "c_proj.weight": (8, 8), "c_proj.bias": (8,)}
    assert {n for n, _ in layer(bias=False).named_parameters()} == {"c_attn.weight", "c_proj.weight"}


@pytest.mark.parametrize("attention", [attend, sdpa])
def test_layer_is_its_definition(attention):
    module, x = layer(attention=attention), torch.randn(2, 5, 8)
    q, k, v = module.c_attn(x).split(8, -1)
    heads = [by_loops(*(t[:, None, :, h * 4 : h * 4 + 4] for t in (q, k, v)))[:, 0] for h in range(2)]
    torch.testing.assert_close(module(x), module.c_proj(torch.cat(heads, -1)))


def test_layer_drops_in_training_only_in_two_places():
    x = torch.ones(4, 6, 8)
    module = layer(dropout=0.5)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    inside = layer(dropout=0.5)
    inside.resid_dropout.p = 0.0  # what is left is the dropout of the weights
    assert not torch.equal(inside(x), inside(x))
    seen = []
    outside = layer(dropout=0.5, attention=lambda q, k, v, dropout: seen.append(dropout) or attend(q, k, v))
    out = outside(x)
    assert seen == [0.5] and (out == 0).float().mean() > 0.2
    outside.eval()(x)
    assert seen == [0.5, 0.0]


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 1, 4), (2, 1, 3)])
def test_layer_with_a_cache_equals_the_layer_without(sizes):
    module, x = layer().eval(), torch.randn(2, 6, 8)
    cache, at, parts = KVCache(CFG, 2), 0, []
    for n in sizes:
        parts.append(module(x[:, at : at + n], cache, 2))
        cache.advance(n)
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), module(x))
    assert cache.k[2].abs().sum() > 0 and cache.k[:2].abs().sum() == 0


def test_without_a_number_the_layer_is_the_first():
    cache = KVCache(CFG, 2)
    layer().eval()(torch.randn(2, 3, 8), cache)
    assert cache.k[0].abs().sum() > 0 and cache.k[1:].abs().sum() == 0
