"""The catalogue of chapter 23: RMSNorm, the width of a fair SwiGLU, rotary positions and the
balance of experts, with NumPy, complex numbers and brute force as oracles, and the classic
mistakes."""

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register
from ..variants import rotate


def rms_inputs(seed):
    "x with a mean far from zero, a gain, an epsilon that matters for small x"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    return [(new(2, 3, 8) + 2, 1 + new(8) / 4), (new(4, 5) * 3 - 1, 1 + new(5) / 4),
            (new(3, 6) / 300 + 0.002, 1 + new(6) / 4)]

def rms_numpy(x, weight, eps=1e-5):
    "In float64"
    x, w = x.double().numpy(), weight.double().numpy()
    return torch.tensor(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w).float()

def rms(x, weight, eps=1e-5, mean=lambda s: s.mean(-1, keepdim=True), inside=True):
    "RMSNorm with exchangeable mistakes"
    m = mean(x * x)
    return x * ((m + eps).rsqrt() if inside else 1 / (m.sqrt() + eps)) * weight

register(Exercise(
    "variants.rms_norm", "23", "x divided by the root of its mean square over the last dimension, "
    "with eps inside the root, times the gain.", inputs=rms_inputs, oracle=rms_numpy,
    package="gpt2_course.variants:rms_norm", rtol=1e-4, atol=1e-5,
    wrongs=(
        Wrong("the mean is taken away first", lambda x, w: rms(x - x.mean(-1, keepdim=True), w),
              "That is LayerNorm without its shift. RMSNorm leaves the mean where it is: this is "
              "what makes it cheaper."),
        Wrong("squares are summed, not averaged",
              lambda x, w: rms(x, w, mean=lambda s: s.sum(-1, keepdim=True)),
              "The result is shorter by the square root of C, and all that follows with it: "
              "activations vanish in wide models."),
        Wrong("the gain is forgotten", lambda x, w: rms(x, 1.0),
              "Every channel keeps the same scale; the model loses C numbers that it could learn."),
        Wrong("the mean runs over all of x", lambda x, w: rms(x, w, mean=lambda s: s.mean()),
              "Tokens then see each other's lengths, those of the future too: the model is no "
              "longer causal."),
        Wrong("eps is outside the root", lambda x, w: rms(x, w, inside=False),
              "For ordinary x nobody notices; for x near zero the result differs from every "
              "published checkpoint."),
    ),
    hints=("Square, mean over the last dimension (keepdim=True), add eps, root.",
           "torch.rsqrt is one over the root.",
           "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight")))


def width_by_trial(C, bias):
    "The hidden width whose count is nearest to GPT-2's, by trying all"
    want = 8 * C * C + 5 * C * bias
    h = np.arange(1, 4 * C + 1)
    return int(h[np.abs(3 * C * h + (2 * h + C) * bias - want).argmin()])

register(Exercise(
    "variants.swiglu_width", "23", "The hidden width of a SwiGLU with as many parameters as "
    "GPT-2's MLP, for width C, with biases or without.",
    inputs=lambda seed: [(96 + 16 * seed, True), (100 + seed, False), (768, True), (7, True)],
    oracle=width_by_trial, package="gpt2_course.variants:swiglu_width",
    wrongs=(
        Wrong("the width stays 4C", lambda C, bias: 4 * C,
              "Three matrices of that width hold half as much again as GPT-2's two: the part wins "
              "because it is larger."),
        Wrong("it is half of 4C", lambda C, bias: 2 * C,
              "That would match if there were four matrices. SwiGLU has three."),
        Wrong("biases are not counted", lambda C, bias: round(8 * C / 3),
              "Without biases that is right. With them each unit costs 3C + 2 and the target has "
              "5C more: the count is off by a little, which is too much for a fair test."),
        Wrong("it is rounded up to a multiple of 64", lambda C, bias: -(-8 * C // 192) * 64,
              "Good for a GPU's tiles, and the habit of Llama; but the count no longer matches, "
              "at small widths by several per cent."),
    ),
    hints=("Write both counts as a function of C and the width h.",
           "GPT-2: 8CC, and 5C of biases. SwiGLU: 3Ch, and 2h + C of biases.",
           "round((8 * C * C + 4 * C * bias) / (3 * C + 2 * bias))")))


def rotate_inputs(seed):
    "Queries of several lengths and starts"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    return [(new(1, 2, 5, 8), 0), (new(2, 1, 3, 6), 4 + seed), (new(1, 1, 1, 16), 37)]

def rotate_complex(x, start):
    "Each pair (i, i + hs/2) as a complex number, turned"
    a, b = np.split(x.double().numpy(), 2, axis=-1)
    T, half = a.shape[-2:]
    angle = np.outer(np.arange(start, start + T), 10000.0 ** (-np.arange(half) / half))
    z = (a + 1j * b) * np.exp(1j * angle)
    return torch.tensor(np.concatenate([z.real, z.imag], -1)).float()

def interleaved(x, start):
    "The pairs (2i, 2i + 1), as in the paper"
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    a, b = rotate(halves, start).chunk(2, dim=-1)
    return torch.stack([a, b], dim=-1).flatten(-2)

def one_speed(x, start):
    "Every pair turned at the same speed"
    a, b = x.chunk(2, dim=-1)
    angle = torch.arange(start, start + x.size(-2)).float()[:, None]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

def backwards(x, start):
    "Turned the other way"
    a, b = x.chunk(2, dim=-1)
    c, d = rotate(torch.cat([a, -b], dim=-1), start).chunk(2, dim=-1)
    return torch.cat([c, -d], dim=-1)

register(Exercise(
    "variants.rotate", "23", "Queries or keys (B, nh, T, hs) of the positions start, start + 1, …, "
    "with the pairs (i, i + hs/2) turned by position * 10000**(-2i/hs).",
    inputs=rotate_inputs, oracle=rotate_complex, package="gpt2_course.variants:rotate",
    rtol=1e-4, atol=1e-4,
    wrongs=(
        Wrong("start is ignored", lambda x, start: rotate(x, 0),
              "With a KV cache each new token comes alone: it would always stand at position 0. "
              "Training looks right, cached generation does not."),
        Wrong("neighbouring channels are paired", interleaved,
              "The paper pairs (2i, 2i + 1); Llama's code, and ours, (i, i + hs/2). Each works if "
              "trained so; weights of the one are noise to the other."),
        Wrong("all pairs turn at the same speed", one_speed,
              "Positions 6.28 apart then look alike. Slow pairs are what tells far from near."),
        Wrong("it turns the other way", backwards,
              "Queries and keys turn alike, so the scores agree; but not with any published "
              "checkpoint. The sine is subtracted in the first half."),
    ),
    hints=("angle = outer(positions, speeds), of (T, hs/2).",
           "x1, x2 = x.chunk(2, dim=-1): the first half and the second.",
           "cat([x1 cos - x2 sin, x1 sin + x2 cos], -1)")))


def balance_inputs(seed):
    "Router probabilities and the experts chosen: one and two choices, one expert never chosen"
    g = torch.Generator().manual_seed(seed)
    out = []
    for N, E, k in ((12, 4, 2), (7, 3, 1), (20, 8, 2)):
        probs = (torch.randn(N, E, generator=g) * 2 - 3 * (torch.arange(E) == 1)).softmax(-1)
        out.append((probs, probs.topk(k, dim=-1).indices))
    return out

def balance_counted(probs, chosen):
    "Counted one choice after the other"
    E, share = probs.shape[1], np.zeros(probs.shape[1])
    for e in chosen.flatten().tolist(): share[e] += 1 / chosen.numel()
    return torch.tensor(E * float((share * probs.double().numpy().mean(0)).sum())).float()

register(Exercise(
    "variants.balance_loss", "23", "E times the sum over experts of (share of the choices) times "
    "(mean probability): from probs (N, E) and chosen (N, k).",
    inputs=balance_inputs, oracle=balance_counted, package="gpt2_course.variants:balance_loss",
    rtol=1e-4, atol=1e-5,
    wrongs=(
        Wrong("the factor E is missing",
              lambda p, c: (F.one_hot(c, p.size(1)).float().mean((0, 1)) * p.mean(0)).sum(),
              "The value of perfect balance is then 1/E: the more experts, the weaker the pull."),
        Wrong("choices are counted, not their share",
              lambda p, c: p.size(1) * (F.one_hot(c, p.size(1)).float().sum((0, 1))
                                        * p.mean(0)).sum(),
              "The loss grows with the number of tokens: its weight has to be found anew for every "
              "batch size."),
        Wrong("shares are multiplied by themselves",
              lambda p, c: p.size(1) * F.one_hot(c, p.size(1)).float().mean((0, 1)).pow(2).sum(),
              "A count has no gradient: nothing would be learned. The probabilities carry it."),
        Wrong("only the mean probabilities count",
              lambda p, c: p.size(1) * p.mean(0).pow(2).sum(),
              "A router may be undecided on average and still send every token to one expert."),
    ),
    hints=("share = one_hot(chosen, E).float().mean((0, 1)): sums to one.",
           "probs.mean(0) is the router's mean opinion.", "E * (share * probs.mean(0)).sum()")))
