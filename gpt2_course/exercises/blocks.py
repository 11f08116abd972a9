"""The catalogue of chapter 08: what to write, oracles in NumPy and in torch.nn, the classic
mistakes with their names, and the open challenge."""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..attention import CausalSelfAttention
from ..blocks import MLP, LayerNorm
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from .plays import letter_tensors


def layer_norm(
    x:Tensor,      # (..., C)
    weight:Tensor, # (C,) scale
    bias:Tensor,   # (C,) shift
) -> Tensor:       # (..., C)
    "Mean 0 and variance 1 over the last dimension, then scale and shift (Ba et al. 2016)"
    mean = x.mean(-1, keepdim=True)
    var = x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def norm_inputs(
    seed:int,
) -> list: # of (x, weight, bias)
    "Far from zero; faint, so that eps shows; equal entries; a table; one vector; large numbers"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    flat = new(2, 3, 8)
    flat[0, 1] = 3.0
    xs = (new(2, 5, 8) * 3 + 7, new(2, 4, 8) * 4e-3, flat, new(3, 8) * 2 + 1, new(1, 1, 8),
          new(2, 2, 3, 8) * 1000)
    return [(x, 1 + new(8) / 4, new(8)) for x in xs]

def norm_numpy(x, weight, bias):
    "One vector at a time in float64"
    z, w, b = (t.double().numpy() for t in (x, weight, bias))
    out = np.zeros_like(z)
    for i in np.ndindex(z.shape[:-1]):
        m = z[i].sum() / len(z[i])
        s2 = ((z[i] - m)**2).sum() / len(z[i])
        out[i] = (z[i] - m) / math.sqrt(s2 + 1e-5) * w + b
    return torch.from_numpy(out).float()

def norm_variant(dims=-1, unbiased=False, eps=1e-5, outside=0.0, center=True, power=0.5):
    "A mistaken LayerNorm: one part of the right one is exchanged"
    def fn(x, weight, bias):
        over = tuple(range(x.dim())) if dims is None else dims
        mean = x.mean(over, keepdim=True)
        std = (x.var(over, keepdim=True, unbiased=unbiased) + eps)**power + outside
        return (x - mean if center else x) / std * weight + bias
    return fn

def unit(x): # mean 0 and variance 1 over the last dimension
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)

def rms_norm(x, weight, bias):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight + bias

def norm_in_place(x, weight, bias):
    x -= x.mean(-1, keepdim=True)
    x /= torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
    return x * weight + bias


register(Exercise(
    "blocks.layer_norm", "08", "Each vector of x shifted to mean 0 and scaled to variance 1 over "
    "its C entries (eps = 1e-5), then times weight, plus bias.",
    inputs=norm_inputs, oracle=norm_numpy, package="gpt2_course.exercises.blocks:layer_norm",
    gradient=True, atol=1e-4,
    wrongs=(
        Wrong("the variance divides by C - 1", norm_variant(unbiased=True),
              "x.var() is unbiased unless told otherwise. At C = 768 the error is below a "
              "thousandth: training never shows it, but a comparison with GPT-2's logits does."),
        Wrong("it normalises over time, not over channels", norm_variant(dims=-2),
              "A position then sees its future through mean and variance: causality is broken, and "
              "a single token has variance 0."),
        Wrong("it normalises over time and channels together", norm_variant(dims=(-2, -1)),
              "Positions share one mean: the future leaks, and the same token gives other values "
              "in a longer row."),
        Wrong("it normalises over dimension 0, the batch", norm_variant(dims=0),
              "That is batch normalisation: rows depend on each other, and a batch of one has "
              "variance 0."),
        Wrong("it normalises over dimension 1, whatever the shape", norm_variant(dims=1),
              "Of a (B, T, C) tensor that is time, so a position sees its future; only for a "
              "table of vectors is it the last dimension. Write -1."),
        Wrong("there is one mean and one variance for the whole tensor", norm_variant(dims=None),
              "x.mean() without a dimension runs over all entries: positions and rows then depend "
              "on each other, and a small vector stays small."),
        Wrong("the mean is not subtracted", norm_variant(center=False),
              "The variance is right, but the vector keeps its mean, which here moves every entry "
              "by several standard deviations."),
        Wrong("it is RMSNorm", rms_norm,
              "Llama's norm divides by the root of the mean square and subtracts no mean. GPT-2's "
              "weights expect vectors of mean 0."),
        Wrong("it divides by the variance, not by its root", norm_variant(power=1.0),
              "A vector that is twice as large comes out half as large, where it should come out "
              "the same."),
        Wrong("there is no eps", norm_variant(eps=0.0),
              "A vector of equal entries has variance 0, and 0/0 is NaN; from there NaN spreads to "
              "every weight."),
        Wrong("x.std() is taken as it is: C - 1, and no eps", norm_variant(unbiased=True, eps=0.0),
              "This is two slips in one short call: the values are a little too small, and a "
              "vector of equal entries gives NaN."),
        Wrong("eps is added to the standard deviation, not to the variance",
              norm_variant(eps=0.0, outside=1e-5),
              "sqrt(1e-5) is 0.003: vectors of tiny entries come out too large, and all others "
              "look right."),
        Wrong("the divisor is x.std() + eps: C - 1, and eps outside the root",
              norm_variant(unbiased=True, eps=0.0, outside=1e-5),
              "This is two slips in one short line: all values are a little too small, and vectors "
              "of tiny entries come out too large. GPT-2 divides by C and adds eps to the "
              "variance."),
        Wrong("eps is 1e-6, not 1e-5", norm_variant(eps=1e-6),
              "Only vectors of tiny entries show it. GPT-2 was trained with 1e-5, so its logits "
              "would differ slightly."),
        Wrong("weight and bias are not used", lambda x, weight, bias: unit(x),
              "Without them every vector has the same norm, whatever the model needs: both are "
              "learned, one number of each per channel."),
        Wrong("the bias is added before the weight multiplies",
              lambda x, weight, bias: (unit(x) + bias) * weight,
              "The weight then scales the bias as well. GPT-2 scales first and then shifts."),
        Wrong("it writes into x itself", norm_in_place,
              "x -= mean and x /= std change the caller's tensor. In a block x is the residual "
              "stream, which must not change; write x = x - mean.")),
    hints=("One mean and one variance for each vector: over the last dimension, kept for "
           "broadcasting.",
           "x.mean(-1, keepdim=True); and x.var has an argument that is True by default.",
           "(x - mean) / torch.sqrt(var + 1e-5) * weight + bias, with unbiased=False.")))


def gelu_inputs(
    seed:int,
) -> list: # of (x,)
    "Even steps across the bend, random numbers, large ones, equal ones"
    g = torch.Generator().manual_seed(seed)
    return [(torch.linspace(-4, 4, 33),), (torch.randn(2, 5, 6, generator=g) * 2,),
            (torch.tensor([-1000.0, -30.0, -2.0, 0.0, 2.0, 30.0, 1000.0]),),
            (torch.full((1, 3), 0.7),)]

def gelu_numpy(x):
    "The formula of OpenAI's gpt-2/src/model.py in float64"
    z = x.double().numpy()
    y = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * np.power(z, 3))))
    return torch.from_numpy(y).float()


ROOT = math.sqrt(2 / math.pi)

def gate(x): return 0.5 * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))

def with_exponentials(x):
    u = ROOT * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + (u.exp() - (-u).exp()) / (u.exp() + (-u).exp()))


register(Exercise(
    "blocks.gelu", "08", "GPT-2's GELU: the tanh approximation of x times the normal "
    "distribution's Phi(x).",
    inputs=gelu_inputs, oracle=gelu_numpy, package="gpt2_course.blocks:gelu", gradient=True,
    wrongs=(
        Wrong("it is the exact form with erf", lambda x: F.gelu(x),
              "This is mathematically exact, but GPT-2 was trained with the tanh form: its logits "
              "come out slightly wrong, and no error is raised."),
        Wrong("it is the sigmoid approximation x * sigmoid(1.702 x)",
              lambda x: x * torch.sigmoid(1.702 * x),
              "The same paper offers it, and CLIP uses it (quick_gelu), but GPT-2 does not: it is "
              "off by up to 0.02."),
        Wrong("it is SiLU, x * sigmoid(x)", F.silu,
              "This is the activation of the Llama family: it rises more slowly, and its dip is "
              "deeper."),
        Wrong("sqrt(2 / pi) is forgotten",
              lambda x: 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3)),
              "The gate closes too fast. A model trained with it learns all the same, so only a "
              "comparison with the right function shows it."),
        Wrong("the cube is forgotten",
              lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x)),
              "The result is right near zero but the gate is too soft further out: the cubic term "
              "makes tanh follow Phi."),
        Wrong("it is ReLU", F.relu,
              "ReLU cuts at zero and has no slope below it; GELU bends smoothly, and is a little "
              "below zero before it."),
        Wrong("the half is forgotten", lambda x: 2 * F.gelu(x, approximate="tanh"),
              "1 + tanh goes from 0 to 2; halved, it is a probability, and large values pass "
              "unchanged."),
        Wrong("the factor x in front is forgotten", gate,
              "That is the gate, a number from 0 to 1: it has to multiply x."),
        Wrong("sqrt(2 / pi) multiplies x alone, not the cubic term",
              lambda x: 0.5 * x * (1 + torch.tanh(ROOT * x + 0.044715 * x**3)),
              "A pair of parentheses is missing: the gate closes too fast far from zero, where "
              "0.0357 x cubed would be right."),
        Wrong("the root is taken of the 2 alone",
              lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2) / math.pi * (x + 0.044715 * x**3))),
              "sqrt(2 / pi) is 0.798 and sqrt(2) / pi is 0.450: the gate opens too slowly."),
        Wrong("x is squared, not cubed",
              lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**2))),
              "A square is positive on both sides and dominates far below zero: the gate opens for "
              "values that it should stop."),
        Wrong("tanh is written with exponentials that overflow", with_exponentials,
              "(exp(u) - exp(-u)) / (exp(u) + exp(-u)) is infinity divided by infinity for large "
              "u, which is NaN. torch.tanh is safe.")),
    hints=("x times a gate that goes from 0 to 1: half of 1 + tanh of something.",
           "That something is sqrt(2 / pi) * (x + 0.044715 * x**3).",
           'Or let PyTorch do it: F.gelu has an argument called approximate.')))


def dropout(
    x:Tensor, # any shape
    u:Tensor, # the same shape, uniform random numbers from 0 to 1
    p:float,  # share that is dropped, below 1
) -> Tensor:  # the same shape
    "Dropout in training: zero where u < p, the rest scaled up so that the mean stays"
    return x * (u >= p) / (1 - p)


def dropout_inputs(
    seed:int,
) -> list: # of (x, u, p)
    "Several shares, also none; numbers u that are exactly p, and exactly 0"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    rand = lambda *shape: torch.rand(shape, generator=g)
    cases = [(new(4, 25), rand(4, 25), p) for p in (0.1, 0.5, 0.0, 0.3)]
    border = torch.tensor([[0.25, 0.0, 0.75, 0.5, 0.25, 0.125]])
    cases += [(1 + rand(1, 6), border, p) for p in (0.25, 0.5, 0.0)]
    return cases + [(1000 * new(2, 3, 8), rand(2, 3, 8), 0.9), (torch.ones(2, 9), rand(2, 9), 0.2)]

def dropout_numpy(x, u, p):
    z, r = x.double().numpy(), u.double().numpy()
    return torch.from_numpy(np.where(r < p, 0.0, z / (1 - p))).float()

def dropout_in_place(x, u, p):
    x[u < p] = 0.0
    return x / (1 - p)


register(Exercise(
    "blocks.dropout", "08", "Dropout in training: entries where u < p become 0, and the others are "
    "scaled so that the mean over many draws of u stays that of x.",
    inputs=dropout_inputs, oracle=dropout_numpy,
    package="gpt2_course.exercises.blocks:dropout", gradient=True,
    wrongs=(
        Wrong("the kept entries are not rescaled", lambda x, u, p: x * (u >= p),
              "All sums shrink by 1 - p in training and are too large in evaluation, when nothing "
              "is dropped: the validation loss is worse than it should be."),
        Wrong("the kept entries are multiplied by 1 - p, not divided",
              lambda x, u, p: x * (u >= p) * (1 - p),
              "The paper of 2014 does multiply, but the weights, and after training. In training "
              "the factor is 1 / (1 - p); this one shrinks the signal twice."),
        Wrong("p is taken for the fraction that is kept",
              lambda x, u, p: x * (u < p) / p,
              "With dropout 0.1 nine tenths are lost, and with dropout 0 everything is 0/0."),
        Wrong("kept and dropped entries are swapped", lambda x, u, p: x * (u < p) / (1 - p),
              "u < p marks the entries to drop. Here they are the only ones that are kept: at 0.1 "
              "the mean shrinks to a ninth, and at 0 nothing is left."),
        Wrong("kept and dropped entries are swapped, and nothing is rescaled",
              lambda x, u, p: x * (u < p),
              "u < p marks the entries to drop, and the kept ones have to be divided by 1 - p."),
        Wrong("it is scaled by 1 / p", lambda x, u, p: x * (u >= p) / p,
              "At 0.5 no difference shows; at 0.1 the mean grows ninefold, in training only. With "
              "dropout 0 it divides by zero."),
        Wrong("nothing is dropped, only scaled", lambda x, u, p: x / (1 - p),
              "The factor 1 / (1 - p) makes up for dropped entries; if none is dropped, it just "
              "makes the signal larger."),
        Wrong("an entry with u equal to p is dropped as well",
              lambda x, u, p: x * (u > p) / (1 - p),
              "torch.rand can return exactly 0: with dropout 0, an entry is then occasionally "
              "lost. The task drops where u < p."),
        Wrong("it divides by the fraction that happened to be kept",
              lambda x, u, p: x * (u >= p) / (u >= p).float().mean(),
              "The factor then depends on the draw for the whole batch, so rows influence each "
              "other; 1 - p is the same for all draws. If nothing is kept, it is 0/0."),
        Wrong("it draws its own random numbers", lambda x, u, p: F.dropout(x, p),
              "F.dropout does the same job with numbers of its own. Here u is given, so that the "
              "result can be compared."),
        Wrong("it writes into x itself", dropout_in_place,
              "x[u < p] = 0 changes the caller's tensor, and what was dropped is lost for good. "
              "Multiplying by a mask makes a new tensor.")),
    hints=("u >= p is True with probability 1 - p.",
           "On average a fraction of 1 - p is left: what factor makes up for it?",
           "x * (u >= p) / (1 - p).")))


def pre_norm(
    x:Tensor, # (B, T, C) the residual stream
    ln_1,     # function (B, T, C) -> (B, T, C), as the other three
    attn,
    ln_2,
    mlp,
) -> Tensor:  # (B, T, C) the stream after the block
    "Each half reads a normalised copy of the stream and adds to the stream"
    x = x + attn(ln_1(x))
    return x + mlp(ln_2(x))


class Part(nn.Module):
    "One part of PyTorch's encoder layer, called by GPT-2's name"
    def __init__(self, name, layer, fn):
        super().__init__()
        self.name, self.layer, self.fn = name, layer, fn

    def forward(self, x): return self.fn(self.layer, x)
    def __repr__(self): return self.name

def hidden_keys(T): return torch.ones(T, T).triu(1).bool() # torch.nn's way: True is hidden

def attention_of(layer, x):
    return layer.self_attn(x, x, x, attn_mask=hidden_keys(x.size(1)), need_weights=False)[0]

def mlp_of(layer, x): return layer.linear2(layer.activation(layer.linear1(x)))

def parts_of(
    seed:int,
) -> list: # of (x, ln_1, attn, ln_2, mlp)
    "Streams of several sizes, each with the parts of a random layer whose norms do something"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = []
        for B, T, C, size in ((2, 5, 8, 2), (2, 1, 4, 2), (2, 4, 12, 2), (1, 3, 8, 1000)):
            layer = nn.TransformerEncoderLayer(C, 2, 2 * C, dropout=0.0, activation="gelu",
                                               batch_first=True, norm_first=True)
            for p in layer.parameters(): nn.init.normal_(p, std=0.7)
            fns = dict(ln_1=lambda l, x: l.norm1(x), attn=attention_of,
                       ln_2=lambda l, x: l.norm2(x), mlp=mlp_of)
            x = torch.randn(B, T, C) * size + 1
            x[0, 0] = 0.5 # equal entries
            out.append((x, *(Part(n, layer, fn) for n, fn in fns.items())))
    return out

def torch_block(x, ln_1, attn, ln_2, mlp):
    return ln_1.layer(x, src_mask=hidden_keys(x.size(1)))


def post_norm(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x + attn(x))
    return ln_2(x + mlp(x))

def norm_on_road(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x)
    x = x + attn(x)
    x = ln_2(x)
    return x + mlp(x)

def norm_of_answer(x, ln_1, attn, ln_2, mlp):
    x = x + ln_1(attn(x))
    return x + ln_2(mlp(x))

def side_by_side(x, ln_1, attn, ln_2, mlp):
    return x + attn(ln_1(x)) + mlp(ln_2(x))

def mlp_first(x, ln_1, attn, ln_2, mlp):
    x = x + mlp(ln_1(x))
    return x + attn(ln_2(x))

def halves(x, ln_1, attn, ln_2, mlp):
    x = x + mlp(ln_2(x))
    return x + attn(ln_1(x))

def one_norm(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(ln_1(x))

def second_raw(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(x)

def no_norm(x, ln_1, attn, ln_2, mlp):
    x = x + attn(x)
    return x + mlp(x)

def first_not_added(x, ln_1, attn, ln_2, mlp):
    x = attn(ln_1(x))
    return x + mlp(ln_2(x))

def second_not_added(x, ln_1, attn, ln_2, mlp):
    return mlp(ln_2(x + attn(ln_1(x))))

def adds_to_start(x, ln_1, attn, ln_2, mlp):
    return x + mlp(ln_2(x + attn(ln_1(x))))

def in_place(x, ln_1, attn, ln_2, mlp):
    x += attn(ln_1(x))
    return x + mlp(ln_2(x))


register(Exercise(
    "blocks.pre_norm", "08", "GPT-2's block from its four parts: the stream x after attention and "
    "MLP have each added their output.",
    inputs=parts_of, oracle=torch_block, package="gpt2_course.exercises.blocks:pre_norm",
    gradient=True, atol=1e-3,
    wrongs=(
        Wrong("the norm stands after the addition (post-norm)", post_norm,
              "This is the order of 2017: every block rescales the residual stream. A deep stack "
              "then needs a careful warm-up, or the gradient of its lower blocks vanishes within a "
              "few large steps."),
        Wrong("the norm is applied to the stream itself, before the branch leaves it", norm_on_road,
              "Not only the copy is normalised but the stream too: what earlier blocks wrote is "
              "rescaled by each later one."),
        Wrong("the output of each half is normalised, not its input", norm_of_answer,
              "Each half then reads the raw stream, which grows with depth, and always writes "
              "outputs of the same size."),
        Wrong("there is no residual connection",
              lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(attn(ln_1(x)))),
              "Only what each half lets through survives: a deep stack learns no more than the "
              "frequencies of the letters."),
        Wrong("both halves read the old stream", side_by_side,
              "GPT-J and PaLM do so on purpose. In GPT-2 the MLP reads what attention has just "
              "written; weights trained for one order do not fit the other."),
        Wrong("the MLP comes before attention", halves,
              "In GPT-2 attention comes first and the MLP second; weights trained for one order do "
              "not fit the other."),
        Wrong("attention and MLP are swapped, and each has the other's norm", mlp_first,
              "ln_1 belongs to attention and comes first. Each part was trained on the output of "
              "its own norm."),
        Wrong("ln_1 is used for both halves", one_norm,
              "Each norm has a weight and a bias of its own. With ln_1 in both places, ln_2 never "
              "gets a gradient and never learns."),
        Wrong("the MLP reads the stream without a norm", second_raw,
              "The stream grows with depth, and the MLP would get larger and larger inputs. Both "
              "halves read a normalised copy."),
        Wrong("neither half reads a normalised copy", no_norm,
              "The stream grows with depth, and both parts would get larger and larger inputs: "
              "training a deep stack soon fails."),
        Wrong("the first half is not added to the stream", first_not_added,
              "x = attn(ln_1(x)) replaces the stream: what earlier blocks wrote is lost, and so is "
              "the gradient's direct path past attention."),
        Wrong("the second half is not added to the stream", second_not_added,
              "The MLP's output replaces the stream: what attention and earlier blocks wrote is "
              "lost, and so is the gradient's direct path past the MLP."),
        Wrong("the MLP's output is added to the old stream", adds_to_start,
              "The MLP has read what attention wrote, but attention's own output is missing from "
              "the sum: x has to be replaced by x + attn(ln_1(x)) first."),
        Wrong("x += ... writes into the caller's stream", in_place,
              "x += y changes the tensor that the caller still holds, and autograd may need the "
              "old values. x = x + y makes a new one.")),
    hints=("Two halves, each of the form x = x + something of x.",
           "What a half reads is normalised; what it adds to is not.",
           "x = x + attn(ln_1(x)), then the same with ln_2 and mlp, on the new x.")))


class OpenBlock(nn.Module):
    "A block whose four parts are put together by a function"
    def __init__(self, cfg, order):
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(cfg.n_embd), LayerNorm(cfg.n_embd)
        self.attn, self.mlp, self.order = CausalSelfAttention(cfg), MLP(cfg), order

    def forward(self, x): return self.order(x, self.ln_1, self.attn, self.ln_2, self.mlp)


def must_be_block(block, C):
    "The contract: the shape of x, finite numbers, no look at the future"
    torch.manual_seed(1)
    x = torch.randn(2, 32, C)
    other = x.clone()
    other[:, 20:] += 10 * torch.randn(2, 12, C)
    with torch.no_grad(): before, after = block(x.clone()), block(other)
    for y in (before, after):
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(f"return a tensor of the shape of x, {tuple(x.shape)}: this is {got}")
    if not torch.allclose(before[:, :20], after[:, :20], atol=1e-4):
        raise ValueError("positions before 20 change when position 20 and what follows it do: no "
                         "position may use its future")


def loss_of_stack(
    order,        # function (x, ln_1, attn, ln_2, mlp) -> the stream after the block
    seconds=None, # the budget is a number of steps
    depth=12, steps=120, lr=1e-2, C=32,
) -> float:       # nats per character on Macbeth
    "Train twelve blocks, put together by this function, on Hamlet, and let them read Macbeth"
    tok, train, val = letter_tensors()
    cfg = GPTConfig(block_size=32, n_layer=1, n_head=4, n_embd=C)
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    blocks = [OpenBlock(cfg, order) for _ in range(depth)]
    ends = nn.Embedding(tok.n_vocab, C), nn.LayerNorm(C), nn.Linear(C, tok.n_vocab)
    net = nn.Sequential(ends[0], *blocks, *ends[1:])
    must_be_block(OpenBlock(cfg, order), C)
    loss_of = lambda w: F.cross_entropy(net(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten())
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        starts = torch.randint(len(train) - 33, (16, 1), generator=g)
        loss = loss_of(train[starts + torch.arange(33)])
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad(): return float(loss_of(val[:len(val) // 33 * 33].view(-1, 33)[::8]))


def plain_order(x, ln_1, attn, ln_2, mlp):
    "GPT-2's order"
    return pre_norm(x, ln_1, attn, ln_2, mlp)


set_challenge(Challenge(
    "blocks.order", "08", "A function (x, ln_1, attn, ln_2, mlp) -> the stream after the block, "
    "which puts the four parts together in a way that learns faster. Twelve such blocks are "
    "trained for 120 steps on Hamlet at the chapter's high learning rate, then tested on Macbeth.",
    score=loss_of_stack, plain=plain_order, to_beat=2.767, unit="nats per character on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30, fixed=True))
