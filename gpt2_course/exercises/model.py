"""The catalogue of chapter 09: what to write, oracles in NumPy and plain Python, the classic
mistakes with their names, and the open challenge."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..model import GPT
from .plays import letter_tensors


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
        Wrong("the head is counted in addition to the embedding",
              lambda V, T, L, C: right_count(V, T, L, C) + V * C,
              "They are one tied table: for the small model that would be 163 million, as some "
              "tools report."),
        Wrong("the biases are forgotten", lambda V, T, L, C: right_count(V, T, L, C) - 9 * L * C,
              "Every linear layer of GPT-2 has one: 3C + C in attention, 4C + C in the MLP."),
        Wrong("the padding rows are counted",
              lambda V, T, L, C: right_count(-(-V // 128) * 128, T, L, C),
              "They exist only in memory, for speed: no file holds them."),
        Wrong("the last norm is forgotten", lambda V, T, L, C: right_count(V, T, L, C) - 2 * C,
              "ln_f stands outside the blocks: 1,536 parameters of the small model."),
        Wrong("the positions are forgotten", lambda V, T, L, C: right_count(V, T, L, C) - T * C,
              "GPT-2 learns its positions: wpe is a table of T rows."),
        Wrong("c_attn is counted as one C x C matrix",
              lambda V, T, L, C: right_count(V, T, L, C) - 2 * L * C * C,
              "It makes q, k and v in one product, so it has 3C columns: attention has 4C² weights "
              "in all, with c_proj."),
        Wrong("the MLP's second matrix is forgotten",
              lambda V, T, L, C: right_count(V, T, L, C) - 4 * L * C * C,
              "The MLP widens to 4C and narrows back to C: two matrices of 4C² weights each."),
        Wrong("a block has one norm, not two",
              lambda V, T, L, C: right_count(V, T, L, C) - 2 * L * C,
              "ln_1 stands before attention and ln_2 before the MLP."),
        Wrong("the norms have no bias",
              lambda V, T, L, C: right_count(V, T, L, C) - (2 * L + 1) * C,
              "GPT-2's LayerNorm has a weight and a bias, C numbers each. Later models dropped the "
              "bias."),
        Wrong("wte, wpe and the last norm are counted in every block",
              lambda V, T, L, C: L * right_count(V, T, 1, C),
              "L multiplies the blocks alone: there is one token table, one position table and "
              "one last norm.")),
    hints=("Two tables at the bottom, L equal blocks, a norm at the top; the head costs nothing.",
           "A block: 4 C^2 in attention's matrices, 8 C^2 in the MLP's, then biases and two norms.",
           "V*C + T*C + L*(12*C*C + 13*C) + 2*C.")))


def some_names(
    seed:int,
) -> list: # of (name, L, std), or (name, L) where std keeps its default
    "Matrices and tables of models of several depths"
    inside = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    names = ["transformer.wte.weight", "transformer.wpe.weight",
             *(f"transformer.h.{seed % 4}.{n}.weight" for n in inside)]
    depths = ((12, 0.03), (4 + seed % 5, 0.02), (48, 0.1))
    return [(n, L, std) for L, std in depths for n in names] + [(n, 24) for n in names]

def writes(name): return name.split(".")[-2] == "c_proj"

def std_variant(scaled=writes, by=lambda L: 1 / math.sqrt(2 * L), base=lambda std: std):
    "A mistaken rule: one part of the right one is exchanged"
    return lambda name, L, std=0.02: base(std) * (by(L) if scaled(name) else 1.0)


register(Exercise(
    "model.init_std", "09", "The standard deviation with which GPT-2 draws a matrix of this name, "
    "in a model of n_layer blocks; std is that of every matrix without a scale of its own.",
    inputs=some_names,
    oracle=lambda name, L, std=0.02: std * float(np.power(2.0 * L, -0.5)) if writes(name) else std,
    package="gpt2_course.model:init_std", rtol=1e-5, atol=1e-9,
    wrongs=(
        Wrong("c_proj is scaled by 1/sqrt(L), not by 1/sqrt(2L)",
              std_variant(by=lambda L: 1 / math.sqrt(L)),
              "A block writes into the stream twice, so the variance of the stream grows twice as "
              "much as it should."),
        Wrong("all matrices are scaled", std_variant(scaled=lambda n: True),
              "Only what is added up needs the scale: embeddings this small are damped by the eps "
              "of the first norm, and the loss at the start is too close to ln V."),
        Wrong("all four matrices of a block are scaled", std_variant(scaled=lambda n: ".h." in n),
              "c_attn and c_fc read a normalised copy of the stream and do not write into it: "
              "scaled down, they make attention and MLP weak at the start."),
        Wrong("attention's c_proj alone is scaled",
              std_variant(scaled=lambda n: "attn.c_proj" in n),
              "The MLP writes into the stream as well: its projection has the same name."),
        Wrong("the MLP's c_proj alone is scaled",
              std_variant(scaled=lambda n: "mlp.c_proj" in n),
              "Attention writes into the stream as well: its projection has the same name."),
        Wrong("c_attn and c_fc are scaled, not c_proj",
              std_variant(scaled=lambda n: ".h." in n and not writes(n)),
              "These read the stream; c_proj writes into it, and only what is written adds up."),
        Wrong("no matrix is scaled", std_variant(scaled=lambda n: False),
              'The names end in ".weight": name.endswith("c_proj") is never true. Without the '
              "scale the variance of the stream grows with depth."),
        Wrong("the root is forgotten", std_variant(by=lambda L: 1 / (2 * L)),
              "Variances add, so the standard deviation falls with the root of their number; "
              "without the root, deep models begin almost as the identity and learn slowly."),
        Wrong("it is multiplied by the root, not divided",
              std_variant(by=lambda L: math.sqrt(2 * L)),
              "The deeper the model, the more outputs are added, so the smaller each of them has "
              "to be."),
        Wrong("std is ignored: it is always 0.02", std_variant(base=lambda std: 0.02),
              "init_weights passes on the standard deviation that it was given; with a fixed "
              "number in its place, every model starts with the same one."),
        Wrong("std is ignored in c_proj only",
              lambda n, L, std=0.02: 0.02 / math.sqrt(2 * L) if writes(n) else std,
              "The projections are scaled relative to the other matrices: std / sqrt(2L)."),
        Wrong("it is the variance, not the standard deviation",
              lambda n, L, std=0.02: std**2 / (2 * L) if writes(n) else std**2,
              "torch.nn.init.normal_ takes the standard deviation; its square is fifty times "
              "smaller here.")),
    hints=("Which two matrices of a block add their result to the residual stream?",
           "2L independent terms of variance s^2 / (2L) add up to s^2.",
           'std / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else std.')))


def batches(
    seed:int,
) -> list: # of (logits, targets)
    "All counted; some ignored; a row with one target; one position; equal logits; large ones"
    g = torch.Generator().manual_seed(seed)
    out = []
    for B, T, V, ignored in ((2, 5, 7, 0), (3, 6, 11, 3), (2, 4, 5, 0), (1, 1, 3, 0)):
        logits = torch.randn(B, T, V, generator=g) * 2
        targets = torch.randint(V, (B, T), generator=g)
        if ignored: targets[0, -ignored:] = -1
        out.append((logits, targets))
    out[2][1][1, 1:] = -1
    out.append((torch.full((2, 3, 4), 0.5), torch.tensor([[0, 3, -1], [3, 0, 1]])))
    large = torch.randn(2, 3, 6, generator=g)
    large[..., 0], large[..., 5] = -1000.0, 1000.0
    return out + [(large, torch.tensor([[0, 5, 2], [4, 3, 0]]))]

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

def over(losses, counted): return (losses * counted).sum() / counted.sum()


register(Exercise(
    "model.mean_loss", "09", "Mean cross-entropy of logits (B, T, V) and targets (B, T); a target "
    "of -1 does not count.",
    inputs=batches, oracle=mean_numpy, package="gpt2_course.model:mean_loss", gradient=True,
    wrongs=(
        Wrong("the targets are shifted a second time",
              lambda z, t: each_loss(z[:, :-1], t[:, 1:]).sum() / (t[:, 1:] >= 0).sum(),
              "The data loader has shifted them: with a second shift the model learns the token "
              "after the next one, and its loss stays well above what it should reach."),
        Wrong("ignored positions count in the mean", lambda z, t: each_loss(z, t).mean(),
              "They add nothing to the numerator but one each to the denominator: the more padding "
              "there is, the better the loss looks."),
        Wrong("-1 is read as the last token of the vocabulary",
              lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten() % z.size(-1)),
              "An index of -1 counts from the end in Python: the model learns to predict that "
              "token for padding."),
        Wrong("each row is averaged first",
              lambda z, t: (each_loss(z, t).sum(1) / (t >= 0).sum(1).clamp(min=1)).mean(),
              "A row with a single target weighs as much as a full one; accumulated steps then "
              "differ from one large step."),
        Wrong("the losses are summed, not averaged", lambda z, t: each_loss(z, t).sum(),
              "The gradient grows with the batch, and the learning rate would have to change with "
              "it."),
        Wrong("the result has one loss for each position", each_loss,
              "Training needs a single number: the mean over the positions that count."),
        Wrong("cross_entropy is not told that -1 is ignored",
              lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten()),
              "By default it ignores -100, and -1 is an index out of range: pass ignore_index=-1."),
        Wrong("target 0 is ignored, not -1",
              lambda z, t: over(each_loss(z, t), t > 0),
              "0 is a token like any other: the model would never learn to predict it. Only "
              "targets below 0 are ignored."),
        Wrong("the logits are reshaped to (B, V, T), not transposed",
              lambda z, t: F.cross_entropy(z.reshape(z.size(0), z.size(2), z.size(1)), t,
                                           ignore_index=-1),
              "cross_entropy wants the classes second, and reshape gives that shape with the "
              "values in the wrong places. Use transpose(1, 2), or flatten both."),
        Wrong("a softmax comes before cross_entropy",
              lambda z, t: over(each_loss(z.softmax(-1), t), t >= 0),
              "cross_entropy takes logits and has its own softmax. With two of them the loss can "
              "hardly fall below ln V - 1, and the gradient is weak."),
        Wrong("the logarithm is taken of a softmax that has rounded to 0",
              lambda z, t: over(F.nll_loss(z.softmax(-1).log().transpose(1, 2), t, ignore_index=-1,
                                           reduction="none"), t >= 0),
              "A probability below 1e-45 is 0 in float32, and its logarithm is minus infinity. "
              "log_softmax and cross_entropy never form it."),
        Wrong("the softmax is computed without subtracting the largest logit",
              lambda z, t: over(F.nll_loss((z.exp() / z.exp().sum(-1, keepdim=True)).log()
                                           .transpose(1, 2), t, ignore_index=-1,
                                           reduction="none"), t >= 0),
              "exp(89) is too large for float32: infinity divided by infinity is NaN."),
        Wrong("the loss is in bits, not in nats",
              lambda z, t: over(each_loss(z, t), t >= 0) / math.log(2),
              "All losses of this course use the natural logarithm, as cross_entropy does."),
        Wrong("only the last position counts", lambda z, t: F.cross_entropy(
                  z[:, -1], t[:, -1], ignore_index=-1),
              "That is all a sampler needs, but training learns from every position of a row: "
              "this throws most of the gradient away.")),
    hints=("There is one distribution for each of the B*T positions, and one target for each.",
           "F.cross_entropy wants (N, V) and (N,): flatten(0, 1) and flatten().",
           "It has an argument ignore_index, and then divides by what is left.")))


def by_quadrature(V, C, std=0.02):
    "ln V + ln E[exp(z)] for z of variance C std^2, by Gauss-Hermite quadrature in float64"
    x, w = np.polynomial.hermite_e.hermegauss(40)
    return float(np.log(V) + np.log((w * np.exp(x * std * np.sqrt(C))).sum() / w.sum()))

register(Exercise(
    "model.loss_at_init", "09", "The loss of an untrained GPT-2: vocabulary V, width C, standard "
    "deviation std of its embedding.",
    inputs=lambda seed: [(50257, 768, 0.02), (50257, 1600, 0.02), (65, 64 + 32 * (seed % 5), 0.05),
                         (1000, 256, 0.03), (101, 48)],
    oracle=by_quadrature, package="gpt2_course.model:loss_at_init", rtol=1e-5, atol=1e-6,
    wrongs=(
        Wrong("it is ln V alone", lambda V, C, std=0.02: math.log(V),
              "That is the loss of a model that gives every token the same logit. GPT-2's logits "
              "vary without knowing anything, which costs 0.15 more."),
        Wrong("the half is forgotten", lambda V, C, std=0.02: math.log(V) + C * std**2,
              "The mean of exp(z) is exp of half the variance."),
        Wrong("the variance is taken from one entry, not from C of them",
              lambda V, C, std=0.02: math.log(V) + std**2 / 2,
              "A logit is a sum of C products: its variance is C times as large."),
        Wrong("the logarithm has base 2", lambda V, C, std=0.02: math.log2(V) + C * std**2 / 2,
              "Losses here are in nats: cross_entropy uses the natural logarithm."),
        Wrong("the standard deviation is not squared",
              lambda V, C, std=0.02: math.log(V) + C * std / 2,
              "The variance of a logit is C std^2. With std itself, GPT-2 would begin at 18.5."),
        Wrong("it adds the standard deviation of a logit, not half its variance",
              lambda V, C, std=0.02: math.log(V) + math.sqrt(C) * std,
              "For a normal z the mean of exp(z) is exp(variance / 2), so its logarithm adds half "
              "the variance."),
        Wrong("the term is subtracted", lambda V, C, std=0.02: math.log(V) - C * std**2 / 2,
              "Logits that vary without knowing anything are worse than equal ones: the loss is "
              "above ln V."),
        Wrong("std is ignored: it is always 0.02", lambda V, C, std=0.02: math.log(V) + C * 2e-4,
              "The law holds for any standard deviation of wte, and the chapter tests it for three "
              "of them."),
        Wrong("the padded vocabulary is used",
              lambda V, C, std=0.02: math.log(-(-V // 128) * 128) + C * std**2 / 2,
              "The padding rows of the head are cut off before the softmax: only V tokens take "
              "part in it.")),
    hints=("If all logits were equal the loss would be ln V. They are not: what is their variance?",
           "The last norm makes vectors of length sqrt(C); their product with a row of std 0.02 "
           "has variance C*std^2.",
           "For a normal z of mean 0, ln of the mean of exp(z) is half the variance of z.")))


def small_models(seed):
    "Models on which every part shows: an odd vocabulary, long blocks"
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

def with_block_size(model, T): return flops()(model, model.cfg.block_size)

def matrices_only(model, T):
    V, L, C = model.cfg.vocab_size, model.cfg.n_layer, model.cfg.n_embd
    return 6 * (V * C + 12 * L * C**2) + 12 * L * T * C


register(Exercise(
    "model.flops_per_token", "09", "FLOPs of a forward and backward pass for one token in rows of "
    "T tokens: 6 N + 12 L T C, where N counts all parameters except the position table.",
    inputs=small_models, oracle=flops(), package="gpt2_course.model:flops_per_token", rtol=1e-6,
    wrongs=(
        Wrong("the tied head is left out", flops(head=-1),
              "The table is stored once and used twice: a lookup is free, but the product with it "
              "is not. Your MFU would come out too low."),
        Wrong("the tied table is counted twice", flops(head=1),
              "Looking up a row is not a product: the table counts only once, as the head."),
        Wrong("the positions are counted", flops(positions=1),
              "wpe is only added, so it takes part in no product."),
        Wrong("the padding rows are counted", flops(padding=1),
              "They are real work on the GPU, but not useful work: MFU counts what the model "
              "needs."),
        Wrong("only the forward pass is counted", flops(times=2, part=4),
              "The backward pass costs twice as much again: 2 + 4 = 6."),
        Wrong("only the backward pass is counted", flops(times=4, part=8),
              "The forward pass costs half as much again: 4 + 2 = 6."),
        Wrong("a multiplication and an addition are counted as one", flops(times=3, part=6),
              "FLOPs count both: two for each weight in a product. The data sheet of a GPU counts "
              "this way too, so your MFU would come out half as high as it is."),
        Wrong("attention's own products are left out", flops(part=0),
              "The products of queries and keys, and of weights and values, hold no parameters, so "
              "N does not include them: add 12 L T C."),
        Wrong("attention's own products are halved, since the mask hides half", flops(part=6),
              "Some papers count it so. PaLM's convention counts the whole table, and a number can "
              "only be compared with others of the same convention."),
        Wrong("the block size is taken in place of T", with_block_size,
              "The table of attention is as large as the rows that are trained on, and these may "
              "be shorter than the block."),
        Wrong("biases and norms are left out of N", matrices_only,
              "They take part in no product, so this is more exact. But the convention of 6 N "
              "counts all parameters except the position table, and the difference is below a "
              "thousandth in large models.")),
    hints=("Every weight in a product costs a multiplication and an addition; the backward pass "
           "costs twice that.",
           "N: all parameters without the positions; the tied table stays, as the head.",
           "6*N + 12 * n_layer * T * n_embd.")))


FLOPS = 2e11 # to be spent on training

def must_be_shape(answer, V):
    "The contract: a GPTConfig of this vocabulary and a learning rate"
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], GPTConfig):
        raise ValueError("return a GPTConfig and a learning rate: GPTConfig(...), 3e-3")
    cfg, lr = answer
    if cfg.vocab_size != V: raise ValueError(f"vocab_size is {cfg.vocab_size}: it has to be {V}")
    if not 0 < float(lr) < 1: raise ValueError(f"the learning rate is {lr}: give one from 0 to 1")
    if cfg.block_size > 1024: raise ValueError("the longest block of this challenge is 1,024")
    return cfg, float(lr)


def loss_for_flops(
    shape,        # function of the size of the vocabulary -> GPTConfig, learning rate
    seconds=None, # the budget is a number of FLOPs
) -> float:       # nats per character on Macbeth
    "Train a model of this shape on Hamlet until the FLOPs are spent, and let it read Macbeth"
    tok, train, val = letter_tensors()
    cfg, lr = must_be_shape(shape(tok.n_vocab), tok.n_vocab)
    T = cfg.block_size
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = GPT(cfg)
    rows = max(1, 1024 // T) # about 1,024 tokens in each step
    steps = int(FLOPS / (flops()(model, T) * rows * T))
    if steps < 1: raise ValueError("one step of this model costs more than the whole budget")
    opt = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 - step / steps)
        at = torch.randint(len(train) - T, (rows, 1), generator=g) + torch.arange(T + 1)
        loss = model(train[at][:, :-1], train[at][:, 1:])
        opt.zero_grad()
        loss.backward()
        opt.step()
    model.eval()
    exam = val[:len(val) // (T + 1) * (T + 1)].view(-1, T + 1)
    exam = exam[::max(1, len(exam) * T // 32768)] # about 32,768 characters
    with torch.no_grad(): return float(model(exam[:, :-1], exam[:, 1:]))


def plain_shape(V):
    "Two blocks of width 64 on rows of 64 characters"
    return GPTConfig(block_size=64, vocab_size=V, n_layer=2, n_head=4, n_embd=64), 3e-3


set_challenge(Challenge(
    "model.shape", "09", "A function of the size of the vocabulary that gives a GPTConfig and a "
    "learning rate. The model is trained on the characters of Hamlet until it has spent 2e11 "
    "FLOPs, by the count of this chapter, then tested on Macbeth.",
    score=loss_for_flops, plain=plain_shape, to_beat=2.789, unit="nats per character on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
