"""The catalogue of chapter 09: what to write, oracles in NumPy and plain Python, and the classic
mistakes with their names."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register
from ..config import GPTConfig


def all_shapes(V, T, L, C):
    "Every table of a GPT-2 file, one by one"
    norm = [(C,), (C,)]
    attention = [(C, 3 * C), (3 * C,), (C, C), (C,)]
    mlp = [(C, 4 * C), (4 * C,), (4 * C, C), (C,)]
    block = norm + attention + norm + mlp
    return [(V, C), (T, C), *(block * L), *norm]

def right_count(V, T, L, C): return V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C


register(Exercise(
    "model.params_by_formula", "09", "The number of parameters of a GPT-2 with vocabulary V, block "
    "size T, L layers and width C.",
    inputs=lambda seed: [(50257, 1024, 12, 768), (101, 32 + seed % 9, 2, 48),
                         (65, 64, 1 + seed % 5, 32), (1000, 128, 3, 96)],
    oracle=lambda V, T, L, C: sum(math.prod(s) for s in all_shapes(V, T, L, C)),
    package="gpt2_course.model:params_by_formula",
    wrongs=(
        Wrong("the head is counted beside the embedding",
              lambda V, T, L, C: right_count(V, T, L, C) + V * C,
              "They are one tied table: for the small model that would be 163 million, as some "
              "tools report."),
        Wrong("the biases are forgotten", lambda V, T, L, C: right_count(V, T, L, C) - 9 * L * C,
              "Every linear layer of GPT-2 has one: 3C + C in attention, 4C + C in the MLP."),
        Wrong("the padding rows are counted",
              lambda V, T, L, C: right_count(-(-V // 128) * 128, T, L, C),
              "They live on the GPU only: no file holds them."),
        Wrong("the last norm is forgotten", lambda V, T, L, C: right_count(V, T, L, C) - 2 * C,
              "ln_f stands outside the blocks: 1,536 parameters of the small model."),
        Wrong("the positions are forgotten", lambda V, T, L, C: right_count(V, T, L, C) - T * C,
              "GPT-2 learns its positions: wpe is a table of T rows.")),
    hints=("Two tables at the bottom, L equal blocks, a norm at the top; the head costs nothing.",
           "A block: 4 C^2 in attention's matrices, 8 C^2 in the MLP's, then biases and two norms.",
           "V*C + T*C + L*(12*C*C + 13*C) + 2*C.")))


def some_names(seed):
    "Matrices and tables of a model of 12 (or another number of) layers"
    L, i = 12 + seed % 5, seed % 12
    inside = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return [("transformer.wte.weight", L), *((f"transformer.h.{i}.{n}.weight", L) for n in inside)]

def writes(name): return name.split(".")[-2] == "c_proj"

register(Exercise(
    "model.init_std", "09", "The standard deviation with which GPT-2 draws a matrix of this name.",
    inputs=some_names,
    oracle=lambda name, L: 0.02 * float(np.power(2.0 * L, -0.5)) if writes(name) else 0.02,
    package="gpt2_course.model:init_std",
    wrongs=(
        Wrong("c_proj is scaled by 1/sqrt(L), not by 1/sqrt(2L)",
              lambda n, L: 0.02 / math.sqrt(L) if writes(n) else 0.02,
              "A block writes twice into the stream, so its variance grows by twice as much as it "
              "should."),
        Wrong("all matrices are scaled", lambda n, L: 0.02 / math.sqrt(2 * L),
              "Only what is added up needs the scale: embeddings this small vanish under the "
              "first norm, and the loss at the start is too close to ln V."),
        Wrong("attention's c_proj alone is scaled",
              lambda n, L: 0.02 / math.sqrt(2 * L) if "attn.c_proj" in n else 0.02,
              "The MLP writes into the stream as well: its projection has the same name."),
        Wrong("the root is forgotten", lambda n, L: 0.02 / (2 * L) if writes(n) else 0.02,
              "Variances add, so the standard deviation falls with the root of their number; "
              "without it deep models begin almost as an identity and learn slowly.")),
    hints=("Which two matrices of a block add their result to the residual stream?",
           "2L independent terms of variance s^2 / (2L) add up to s^2.",
           'std / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else std.')))


def batches(seed):
    "Logits and targets: all counted, some ignored, a row with nothing but its first target"
    g = torch.Generator().manual_seed(seed)
    out = []
    for B, T, V, ignored in ((2, 5, 7, 0), (3, 6, 11, 3), (2, 4, 5, 0)):
        logits = torch.randn(B, T, V, generator=g) * 2
        targets = torch.randint(V, (B, T), generator=g)
        if ignored: targets[0, -ignored:] = -1
        out.append((logits, targets))
    out[2][1][1, 1:] = -1
    return out

def mean_numpy(logits, targets):
    "float64, one position at a time"
    z, t = logits.double().numpy(), targets.numpy()
    losses = []
    for b, i in np.ndindex(t.shape):
        if t[b, i] < 0: continue
        top = z[b, i].max()
        losses.append(top + np.log(np.exp(z[b, i] - top).sum()) - z[b, i, t[b, i]])
    return torch.tensor(np.mean(losses)).float()

def each_loss(logits, targets): # (B, T), zero where ignored
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")


register(Exercise(
    "model.mean_loss", "09", "Mean cross-entropy of logits (B, T, V) and targets (B, T); a target "
    "of -1 does not count.",
    inputs=batches, oracle=mean_numpy, package="gpt2_course.model:mean_loss",
    wrongs=(
        Wrong("the targets are shifted a second time",
              lambda z, t: (each_loss(z[:, :-1], t[:, 1:]).sum()
                            / (t[:, 1:] >= 0).sum().clamp(min=1)),
              "The data loader has shifted them: now the model learns the token after the next "
              "one, and its loss stays well above what it should reach."),
        Wrong("ignored positions count in the mean", lambda z, t: each_loss(z, t).mean(),
              "They add nothing above the fraction line but one below: the loss looks better, the "
              "more padding there is."),
        Wrong("-1 is read as the last token of the vocabulary",
              lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten() % z.size(-1)),
              "An index of -1 counts from the end in Python: the model learns to answer padding "
              "with a token."),
        Wrong("each row is averaged first",
              lambda z, t: (each_loss(z, t).sum(1) / (t >= 0).sum(1).clamp(min=1)).mean(),
              "A row with a single target weighs as much as a full one; accumulated steps then "
              "differ from one large step."),
        Wrong("the losses are summed, not averaged", lambda z, t: each_loss(z, t).sum(),
              "The gradient grows with the batch, and the learning rate would have to change with "
              "it.")),
    hints=("One distribution for each of the B*T positions, one target for each.",
           "F.cross_entropy wants (N, V) and (N,): flatten(0, 1) and flatten().",
           "It has an argument ignore_index, and then divides by what is left.")))


def by_quadrature(V, C, std):
    "ln V + ln E[exp(z)] for z of variance C std^2, by Gauss-Hermite quadrature in float64"
    x, w = np.polynomial.hermite_e.hermegauss(40)
    return float(np.log(V) + np.log((w * np.exp(x * std * np.sqrt(C))).sum() / w.sum()))

register(Exercise(
    "model.loss_at_init", "09", "The loss of an untrained GPT-2: vocabulary V, width C, standard "
    "deviation std of its embedding.",
    inputs=lambda seed: [(50257, 768, 0.02), (50257, 1600, 0.02), (65, 64 + 32 * (seed % 5), 0.05),
                         (1000, 256, 0.03)],
    oracle=by_quadrature, package="gpt2_course.model:loss_at_init",
    wrongs=(
        Wrong("it is ln V alone", lambda V, C, std: math.log(V),
              "That is a model that gives every token the same logit. GPT-2's vary, and confident "
              "ignorance costs 0.15 more."),
        Wrong("the half is forgotten", lambda V, C, std: math.log(V) + C * std**2,
              "The mean of exp(z) is exp of half the variance."),
        Wrong("the variance is taken from one entry, not from C of them",
              lambda V, C, std: math.log(V) + std**2 / 2,
              "A logit is a sum of C products: its variance is C times as large."),
        Wrong("the logarithm has base 2", lambda V, C, std: math.log2(V) + C * std**2 / 2,
              "Losses here are in nats: cross_entropy uses the natural logarithm.")),
    hints=("If all logits were equal the loss would be ln V. They are not: what is their variance?",
           "The last norm makes vectors of length sqrt(C); times a row of std 0.02: variance "
           "C*std^2.",
           "ln of the mean of exp(z) is half the variance of z.")))


def small_models(seed):
    "Models on which every part shows: an odd vocabulary, long blocks"
    from gpt2_course.model import GPT
    with torch.random.fork_rng():
        shapes = ((101, 64, 2, 16), (130, 40 + seed % 9, 1, 24), (65, 128, 3, 8))
        return [(GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=2, n_embd=C)), T // 2)
                for V, T, L, C in shapes]

def parts(model):
    "N as PaLM counts it, and the rest of what one might count: from the sizes alone"
    c = model.cfg
    C, L = c.n_embd, c.n_layer
    N = sum(math.prod(s) for s in all_shapes(c.vocab_size, 0, L, C))
    return N, c.vocab_size * C, c.block_size * C, (c.padded_vocab_size - c.vocab_size) * C, L * C


def flops(times=6, part=12, head=0, positions=0, padding=0):
    "6 N + 12 L T C with some numbers exchanged"
    def fn(model, T):
        N, table, pos, pad, LC = parts(model)
        return times * (N + head * table + positions * pos + padding * pad) + part * T * LC
    return fn

register(Exercise(
    "model.flops_per_token", "09", "FLOPs of a forward and backward pass for one token in rows of "
    "T: 6N + 12LTC.",
    inputs=small_models, oracle=flops(), package="gpt2_course.model:flops_per_token",
    wrongs=(
        Wrong("the tied head is left out", flops(head=-1),
              "The table is stored once and used twice: looking up is free, the product with it "
              "is not. Your MFU would come out too low."),
        Wrong("the tied table is counted twice", flops(head=1),
              "Looking up a row is no product: the embedding counts as the head only."),
        Wrong("the positions are counted", flops(positions=1),
              "wpe is added, never multiplied."),
        Wrong("the padding rows are counted", flops(padding=1),
              "They are real work on the GPU, but not useful work: MFU counts what the model "
              "needs."),
        Wrong("it is the forward pass alone", flops(times=2, part=4),
              "The backward pass costs twice as much again: 2 + 4 = 6."),
        Wrong("attention's own products are left out", flops(part=0),
              "q·k and shares·v hold no weights, so N does not know them: 12 L T C.")),
    hints=("Every weight in a product costs a multiplication and an addition; backward twice that.",
           "N: all parameters without the positions; the tied table stays, as the head.",
           "6*N + 12 * n_layer * T * n_embd.")))
