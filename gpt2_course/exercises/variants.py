"""The catalogue of chapter 23: RMSNorm, the width of a fair SwiGLU, rotary positions and the
balance of experts, with NumPy, complex numbers and brute force as oracles, and the classic
mistakes."""

import math
import numbers

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig, packaged
from ..optim import adamw, cosine_lr
from ..tokenizer import CharTokenizer
from ..variants import make_gpt, rotate


def rms_inputs(seed):
    "A mean far from zero, small x where eps matters, zeros, equal entries, large numbers, one row"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    gain = lambda C: 1 + new(C) / 4
    same = torch.stack([torch.zeros(5), torch.full((5,), -3.0), new(5)])
    return [(new(2, 3, 8) + 2, gain(8), 1e-5), (new(4, 5) * 3 - 1, gain(5), 1e-6),
            (new(3, 6) / 300 + 0.002, gain(6), 1e-5), (same, gain(5), 1e-2),
            (new(2, 1, 4) * 300 + 1000, gain(4), 1e-5), (new(7), gain(7), 0.1)]

def rms_numpy(x, weight, eps):
    "In float64"
    x, w = x.double().numpy(), weight.double().numpy()
    return torch.tensor(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w).float()

def rms(x, weight, eps, mean=lambda s: s.mean(-1, keepdim=True), inside=True):
    "RMSNorm with replaceable parts"
    m = mean(x * x)
    return x * ((m + eps).rsqrt() if inside else 1 / (m.sqrt() + eps)) * weight

register(Exercise(
    "variants.rms_norm", "23", "x divided by the root mean square of its last dimension, with eps "
    "inside the root, times the gain.", inputs=rms_inputs, oracle=rms_numpy,
    package="gpt2_course.variants:rms_norm", rtol=1e-4, atol=1e-5, gradient=True,
    wrongs=(
        Wrong("the mean is subtracted first",
              lambda x, w, e: rms(x - x.mean(-1, keepdim=True), w, e),
              "That is LayerNorm without its shift. RMSNorm leaves the mean where it is, which is "
              "what makes it cheaper."),
        Wrong("the variance is used in place of the mean square",
              lambda x, w, e: x * (x.var(-1, keepdim=True, unbiased=False) + e).rsqrt() * w,
              "A variance subtracts the mean before it squares. Where the mean is far from zero, "
              "the result is far too large."),
        Wrong("squares are summed, not averaged",
              lambda x, w, e: rms(x, w, e, mean=lambda s: s.sum(-1, keepdim=True)),
              "The result is too small by a factor of the square root of C, and so is everything "
              "computed from it: activations vanish in wide models."),
        Wrong("absolute values are averaged, not squares",
              lambda x, w, e: x / (x.abs().mean(-1, keepdim=True) + e) * w,
              "The mean absolute value is smaller than the root mean square, by a factor that "
              "depends on the shape of the distribution: no published checkpoint works with it."),
        Wrong("the root is forgotten",
              lambda x, w, e: x / (x.pow(2).mean(-1, keepdim=True) + e) * w,
              "Dividing by the mean square overcorrects: an input twice as large comes out half as "
              "large. Only the root has the unit of x."),
        Wrong("the gain is forgotten", lambda x, w, e: rms(x, 1.0, e),
              "Every channel keeps the same scale; the model loses C parameters that it could "
              "learn."),
        Wrong("the gain is 1 + weight", lambda x, w, e: rms(x, 1 + w, e),
              "Gemma stores the gain as a difference from one. Here the weight starts at one "
              "itself, so that every activation would be doubled."),
        Wrong("the mean runs over all of x", lambda x, w, e: rms(x, w, e, mean=lambda s: s.mean()),
              "Each token then depends on the size of all others, future ones included: the model "
              "is no longer causal."),
        Wrong("the mean runs over the first dimension",
              lambda x, w, e: rms(x, w, e, mean=lambda s: s.mean(0, keepdim=True)),
              "Each token has to be normalised by its own channels, the last dimension; here its "
              "scale depends on the other rows of the batch."),
        Wrong("eps is outside the root", lambda x, w, e: rms(x, w, e, inside=False),
              "For ordinary x nobody notices; for x near zero the result differs from every "
              "published checkpoint."),
        Wrong("eps is forgotten", lambda x, w, e: rms(x, w, 0.0),
              "A row of zeros becomes 0 / 0, and one NaN spreads through the whole model in a "
              "single step."),
        Wrong("eps is always 1e-5", lambda x, w, e: rms(x, w, 1e-5),
              "eps is an argument: models are published with 1e-5 and with 1e-6, and half "
              "precision needs a larger one."),
    ),
    hints=("Square, mean over the last dimension (keepdim=True), add eps, root.",
           "torch.rsqrt is one over the root.",
           "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight")))


def width_inputs(seed):
    "Widths that leave each remainder modulo 3, with biases and without"
    rng = np.random.default_rng(seed)
    new = lambda rest: 3 * int(rng.integers(20, 300)) + rest
    return [(new(1), True), (new(2), True), (new(0), True), (new(1), False), (new(2), False),
            (768, True), (768, False), (7, True)]

def width_by_trial(C, bias):
    "The hidden width whose count is nearest to GPT-2's, by trying all; there are no ties"
    want = 8 * C * C + 5 * C * bias
    h = np.arange(1, 4 * C + 1)
    return int(h[np.abs(3 * C * h + (2 * h + C) * bias - want).argmin()])

def width_exact(C, bias, ours=2, theirs=4):
    "The width before it is rounded, with `ours` biases per unit and GPT-2's `theirs` times C"
    return (8 * C * C + theirs * C * bias) / (3 * C + ours * bias)

register(Exercise(
    "variants.swiglu_width", "23", "The hidden width of a SwiGLU whose number of parameters is "
    "nearest to that of GPT-2's MLP, for width C, with biases or without.",
    inputs=width_inputs, oracle=width_by_trial, package="gpt2_course.variants:swiglu_width",
    wrongs=(
        Wrong("the width stays 4C", lambda C, bias: 4 * C,
              "Three matrices of that width hold one and a half times as much as GPT-2's two: "
              "SwiGLU would win because it is larger."),
        Wrong("the width is half of 4C", lambda C, bias: 2 * C,
              "That would match if there were four matrices. SwiGLU has three."),
        Wrong("the biases are not counted, or not on both sides", lambda C, bias: round(8 * C / 3),
              "With biases each unit costs 3C + 2, and GPT-2 has 5C of them where SwiGLU has C at "
              "its output. 8C/3 is then off by one at some widths, which is easily avoided."),
        Wrong("each unit has one bias", lambda C, bias: round(width_exact(C, bias, ours=1)),
              "A gated unit takes two products, one for the gate and one for the value, and each "
              "has a bias of its own."),
        Wrong("only GPT-2's biases are counted",
              lambda C, bias: round(width_exact(C, bias, ours=0)),
              "SwiGLU has biases too, two for each unit. Counted on one side only, they make the "
              "new part too large by a unit or two."),
        Wrong("the width is rounded down", lambda C, bias: int(width_exact(C, bias)),
              "The nearest whole number may be above. int and // always round down: use round."),
        Wrong("it is rounded up", lambda C, bias: math.ceil(width_exact(C, bias)),
              "The nearest whole number may be below. A part that is always a little larger than "
              "GPT-2's makes the comparison unfair."),
        Wrong("the width is not a whole number", lambda C, bias: width_exact(C, bias),
              "A layer has a whole number of units; nn.Linear refuses a fraction."),
        Wrong("it is rounded up to a multiple of 64", lambda C, bias: -(-8 * C // 192) * 64,
              "Llama does this, since it suits a GPU's tiles. But the counts no longer match: at "
              "small widths they differ by several per cent."),
    ),
    hints=("Write both counts as a function of C and the width h.",
           "GPT-2: 8CC, and 5C of biases. SwiGLU: 3Ch, and 2h + C of biases.",
           "round((8 * C * C + 4 * C * bias) / (3 * C + 2 * bias))")))


def rotate_inputs(seed):
    "Several lengths and starts; large numbers are at early positions, where angles are exact"
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    start = lambda: int(rng.integers(4, 60))
    return [(new(1, 2, 5, 8), 0), (new(2, 1, 3, 6), start()), (new(1, 1, 1, 16), 37),
            (new(1, 3, 2, 4) * 500 + 1000, 0), (torch.full((1, 1, 4, 6), 1.5), start()),
            (new(2, 3, 1, 2), start())]

def rotate_complex(x, start):
    "Each pair (i, i + hs/2) as a complex number, rotated"
    a, b = np.split(x.double().numpy(), 2, axis=-1)
    T, half = a.shape[-2:]
    angle = np.outer(np.arange(start, start + T), 10000.0 ** (-np.arange(half) / half))
    z = (a + 1j * b) * np.exp(1j * angle)
    return torch.tensor(np.concatenate([z.real, z.imag], -1)).float()

def turned(x, start, power=lambda i, hs: -2 * i / hs, mix=None, each=1):
    "The rotation with replaceable parts"
    T, hs = x.shape[-2:]
    speed = 10000.0 ** power(torch.arange(hs // 2), hs)
    angle = (start + each * torch.arange(T))[:, None].float() * speed
    (a, b), cos, sin = x.chunk(2, dim=-1), angle.cos(), angle.sin()
    halves = (a * cos - b * sin, a * sin + b * cos) if mix is None else mix(a, b, cos, sin)
    return torch.cat(halves, -1)

def gathered(x):
    "Even channels first, then odd ones"
    return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)

def interleaved(x, start):
    "The pairs (2i, 2i + 1), as in the paper"
    a, b = rotate(gathered(x), start).chunk(2, dim=-1)
    return torch.stack([a, b], dim=-1).flatten(-2)

register(Exercise(
    "variants.rotate", "23", "Queries or keys (B, nh, T, hs) of the positions start, start + 1, …, "
    "with the pairs (i, i + hs/2) rotated by the angle position * 10000**(-2i/hs).",
    inputs=rotate_inputs, oracle=rotate_complex, package="gpt2_course.variants:rotate",
    # float32 angles are off by 1e-7 of the position: 1e-5 for these, times 2,000 at position 1
    rtol=1e-4, atol=2e-3, gradient=True,
    wrongs=(
        Wrong("start is ignored", lambda x, start: rotate(x, 0),
              "With a KV cache each new token comes alone: it would always be at position 0. "
              "Training looks right, but cached generation is wrong."),
        Wrong("positions are counted from 1", lambda x, start: rotate(x, start + 1),
              "Within one call nobody notices, since only distances count. But the first token is "
              "at position `start`, and a cache filled by other code agrees with that."),
        Wrong("all tokens of a call get the first position",
              lambda x, start: turned(x, start, each=0),
              "Every row of T has a position of its own: start, start + 1, and so on. If all are "
              "rotated alike, the tokens' order is lost."),
        Wrong("neighbouring channels are paired", interleaved,
              "The paper pairs (2i, 2i + 1); Llama's code, and ours, (i, i + hs/2). Each works if "
              "the model was trained with it; weights of the one are noise to the other."),
        Wrong("neighbouring channels are paired, and written as halves",
              lambda x, start: rotate(gathered(x), start),
              "Channels come out in a different order. Scores do not change, since queries and "
              "keys are permuted alike; but the pairs are not (i, i + hs/2)."),
        Wrong("all pairs turn at the same speed", lambda x, s: turned(x, s, lambda i, hs: 0.0 * i),
              "Positions about 6.28 apart then look alike. Only the slow pairs tell far from "
              "near."),
        Wrong("the exponent is -i / hs", lambda x, s: turned(x, s, lambda i, hs: -i / hs),
              "i counts pairs, of which there are hs/2: the exponent runs from 0 almost to -1 only "
              "with the factor 2. Otherwise the slowest pair is a hundred times too fast."),
        Wrong("the exponent is positive", lambda x, s: turned(x, s, lambda i, hs: 2 * i / hs),
              "The speeds must fall from pair to pair. Here they rise to thousands of radians per "
              "position, which is noise."),
        Wrong("the pairs rotate the other way", lambda x, s: turned(
            x, s, mix=lambda a, b, cos, sin: (a * cos + b * sin, b * cos - a * sin)),
              "Queries and keys rotate alike, so the model is consistent, but it matches no "
              "published checkpoint. The sine is subtracted in the first half."),
        Wrong("sine and cosine are swapped", lambda x, s: turned(
            x, s, mix=lambda a, b, cos, sin: (a * sin - b * cos, a * cos + b * sin)),
              "At position 0 the angle is zero and nothing may change: the cosine, which is 1 "
              "there, belongs to the channel itself."),
        Wrong("both halves subtract", lambda x, s: turned(
            x, s, mix=lambda a, b, cos, sin: (a * cos - b * sin, a * sin - b * cos)),
              "That is a reflection, not a rotation: the score of a query and a key no longer "
              "depends on their distance alone."),
        Wrong("the second half stays as it is", lambda x, s: turned(
            x, s, mix=lambda a, b, cos, sin: (a * cos - b * sin, b)),
              "A rotation changes both channels of a pair; otherwise the vector's norm changes "
              "with the position."),
        Wrong("the second half is computed from the new first half", lambda x, s: turned(
            x, s, mix=lambda a, b, cos, sin: (
                a * cos - b * sin, (a * cos - b * sin) * sin + b * cos)),
              "Both halves need the old x1. If you overwrite it first, the second line reads the "
              "wrong value."),
    ),
    hints=("angle = outer(positions, speeds), of shape (T, hs/2).",
           "x1, x2 = x.chunk(2, dim=-1): the first half and the second.",
           "cat([x1 cos - x2 sin, x1 sin + x2 cos], -1)")))


def balance_inputs(seed):
    "One and two choices, experts never chosen (the last one, too), a single token, equal odds"
    g, out = torch.Generator().manual_seed(seed), []
    for N, E, k, shy in ((12, 4, 2, 1), (7, 3, 1, 2), (20, 8, 2, 3), (1, 5, 2, 4), (9, 6, 3, 0)):
        rare = (torch.arange(E) == shy) * 9.0
        probs = (torch.randn(N, E, generator=g) * 2 - rare).softmax(-1)
        out.append((probs, probs.topk(k, dim=-1).indices))
    even = torch.cat([torch.full((2, 4), 0.25), out[0][0][:3]])
    return [*out, (even, torch.tensor([[0, 1], [2, 3], [3, 1], [0, 2], [2, 1]]))]

def balance_counted(probs, chosen):
    "Counted one choice after the other"
    E, share = probs.shape[1], np.zeros(probs.shape[1])
    for e in chosen.flatten().tolist(): share[e] += 1 / chosen.numel()
    return torch.tensor(E * float((share * probs.double().numpy().mean(0)).sum())).float()

def hits(probs, chosen):
    "(N, E) how often each token chose each expert, 0 or 1"
    return F.one_hot(chosen, probs.size(1)).sum(1).float()

def shares(probs, chosen):
    "(E,) fraction of the choices, sums to one"
    return hits(probs, chosen).sum(0) / chosen.numel()

def balance_read(probs, chosen):
    "The number of experts read from the choices"
    share = F.one_hot(chosen).float().mean((0, 1))
    return len(share) * (share * probs.mean(0)).sum()

register(Exercise(
    "variants.balance_loss", "23", "From probs (N, E) and chosen (N, k), E times the sum over "
    "experts of (fraction of the choices) times (mean probability).",
    inputs=balance_inputs, oracle=balance_counted, package="gpt2_course.variants:balance_loss",
    rtol=1e-4, atol=1e-5, gradient=True,
    excused=dict(wide="probs are probabilities: between 0 and 1",
                 batch="the task has two dimensions, tokens and experts"),
    wrongs=(
        Wrong("the factor E is missing", lambda p, c: (shares(p, c) * p.mean(0)).sum(),
              "The value of perfect balance is then 1/E: the more experts, the weaker the loss. A "
              "mean over the experts in place of the sum loses the factor as well."),
        Wrong("the factor is k in place of E",
              lambda p, c: c.size(1) * (shares(p, c) * p.mean(0)).sum(),
              "E is the number of experts, the last dimension of probs; chosen has k columns, one "
              "for each choice."),
        Wrong("choices are counted, but not divided by their number",
              lambda p, c: p.size(1) * (hits(p, c).sum(0) * p.mean(0)).sum(),
              "The loss grows with the number of tokens: its weight has to be tuned again for "
              "every batch size."),
        Wrong("counts are divided by the tokens, not by the choices",
              lambda p, c: p.size(1) * (hits(p, c).mean(0) * p.mean(0)).sum(),
              "N tokens make N times k choices. Divided by N, the fractions sum to k, and perfect "
              "balance costs k where it should cost 1."),
        Wrong("probabilities are added up, not averaged",
              lambda p, c: p.size(1) * (shares(p, c) * p.sum(0)).sum(),
              "The loss grows with the number of tokens: its weight has to be tuned again for "
              "every batch size."),
        Wrong("only the first choice of each token is counted",
              lambda p, c: p.size(1) * (shares(p, c[:, :1]) * p.mean(0)).sum(),
              "With k = 2 each token uses two experts, and the second choices can be crowded while "
              "the first ones look even."),
        Wrong("only probabilities of chosen experts are averaged",
              lambda p, c: p.size(1) * (shares(p, c) * (p * hits(p, c)).mean(0)).sum(),
              "The mean probability is over all tokens, whatever they chose. An expert that is "
              "nearly chosen needs a gradient as well."),
        Wrong("the fractions are multiplied by themselves",
              lambda p, c: p.size(1) * shares(p, c).pow(2).sum(),
              "A count has no gradient: nothing would be learned. The probabilities carry it."),
        Wrong("only the mean probabilities count",
              lambda p, c: p.size(1) * p.mean(0).pow(2).sum(),
              "A router may be undecided on average and still send every token to one expert."),
        Wrong("the number of experts is read from the choices", balance_read,
              "This loss exists for experts that are never chosen, and here they would not be "
              "counted. Take E from probs, as in one_hot(chosen, E)."),
    ),
    hints=("share = one_hot(chosen, E).float().mean((0, 1)): it sums to one.",
           "probs.mean(0) is the router's mean probability of each expert.",
           "E * (share * probs.mean(0)).sum()")))


PLAYS, STEPS, ROWS, T = ("hamlet", "julius_caesar", "king_lear", "othello"), 300, 16, 64

def play(name):
    "One of Shakespeare's plays"
    return packaged(f"shakespeare/{name}.txt").read_text(encoding="utf-8")

def spelled():
    "Letters of four tragedies and of Macbeth as ids, and how many letters there are"
    text = "\n".join(map(play, PLAYS))
    tok, known = CharTokenizer(text), set(text)
    held = "".join(c for c in play("macbeth") if c in known)
    return torch.tensor(tok.encode(text)), torch.tensor(tok.encode(held)), tok.n_vocab

def within_budget(given, cfg):
    "The model and its rate, if they keep to the rules"
    if not (isinstance(given, tuple) and len(given) == 2):
        raise ValueError("Return a pair: the model and its highest learning rate.")
    model, lr = given
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"The first of the pair is a {type(model).__name__}, not an nn.Module.")
    if not isinstance(lr, numbers.Real) or not 0 < lr < 1:
        raise ValueError(f"The learning rate is {lr!r}: give a number between 0 and 1.")
    count = lambda m: sum(p.numel() for p in m.parameters())
    mine, most = count(model), count(make_gpt(cfg))
    if mine > most: raise ValueError(f"{mine:,} parameters: use no more than GPT-2's {most:,}.")
    return model, float(lr)

def logits_of(model, x, V):
    "Checked for shape"
    out = model(x)
    if not isinstance(out, torch.Tensor) or out.shape != (*x.shape, V):
        raise ValueError(f"For ids of shape {tuple(x.shape)} the model must give logits of shape "
                         f"{(*x.shape, V)}.")
    return out

def trained_part(fn, seconds):
    "Nats per letter on Macbeth after 300 steps on four other plays; seconds play no role"
    ids, held, V = spelled()
    cfg = GPTConfig(block_size=T, vocab_size=V, n_layer=2, n_head=4, n_embd=64, bias=False)
    torch.manual_seed(0)
    model, lr = within_budget(fn(cfg), cfg)
    opt, g = adamw(model, lr, 0.1, (0.9, 0.95), "cpu"), torch.Generator().manual_seed(0)
    model.train()
    for step in range(STEPS):
        now = cosine_lr(step, max_lr=lr, min_lr=lr / 10, warmup=STEPS // 10, steps=STEPS)
        for group in opt.param_groups: group["lr"] = now
        starts = torch.randint(len(ids) - T - 1, (ROWS,), generator=g)
        rows = torch.stack([ids[a:a + T + 1] for a in starts])
        loss = F.cross_entropy(logits_of(model, rows[:, :-1], V).flatten(0, 1),
                               rows[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    return read_aloud(model.eval(), held, V)

@torch.no_grad()
def read_aloud(model, held, V):
    "The loss, once the model is known not to see the future, nor other rows"
    n = (len(held) - 1) // T
    x, y = held[:n * T].view(n, T), held[1:n * T + 1].view(n, T)
    future = x[:2].clone()
    future[1, T // 2:] = (future[1, T // 2:] + 1) % V
    before, after = logits_of(model, x[:2], V), logits_of(model, future, V)
    past = lambda z: torch.cat([z[0], z[1, :T // 2]])
    if not torch.allclose(past(before), past(after), atol=1e-4):
        raise ValueError("A letter changes the logits of earlier positions, or of another row: the "
                         "model sees what it should predict.")
    losses = [F.cross_entropy(logits_of(model, a, V).flatten(0, 1), b.flatten(), reduction="sum")
              for a, b in zip(x.split(256), y.split(256))]
    return float(sum(losses) / y.numel())

set_challenge(Challenge(
    "variants.part", "23", "Write a function of a GPTConfig that returns (model, learning rate): "
    "an nn.Module that turns ids (B, T) into logits (B, T, V), with no more parameters than GPT-2 "
    "of that shape. It is trained for 300 steps on four tragedies, then evaluated on Macbeth.",
    score=trained_part, plain=lambda cfg: (make_gpt(cfg, "llama"), 3e-3),
    to_beat=2.262, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
