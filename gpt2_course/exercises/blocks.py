"""The catalogue of chapter 08: what to write, oracles in NumPy and in torch.nn, and the classic
mistakes with their names."""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..check import Exercise, Wrong, register


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
    "Far from zero; faint, so that eps shows; with a row whose numbers are all equal"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    flat = new(2, 3, 8)
    flat[0, 1] = 3.0
    return [(x, 1 + new(8) / 4, new(8)) for x in (new(2, 5, 8) * 3 + 7, new(2, 4, 8) * 4e-3, flat)]

def norm_numpy(x, weight, bias):
    "One vector at a time in float64"
    z, w, b = (t.double().numpy() for t in (x, weight, bias))
    out = np.zeros_like(z)
    for i in np.ndindex(z.shape[:-1]):
        m = z[i].sum() / len(z[i])
        s2 = ((z[i] - m)**2).sum() / len(z[i])
        out[i] = (z[i] - m) / math.sqrt(s2 + 1e-5) * w + b
    return torch.from_numpy(out).float()

def norm_variant(dims=-1, unbiased=False, eps=1e-5, outside=0.0, center=True):
    "A mistaken LayerNorm: one part of the right one is exchanged"
    def fn(x, weight, bias):
        mean = x.mean(dims, keepdim=True)
        std = torch.sqrt(x.var(dims, keepdim=True, unbiased=unbiased) + eps) + outside
        return (x - mean if center else x) / std * weight + bias
    return fn


register(Exercise(
    "blocks.layer_norm", "08", "Each vector of x shifted to mean 0 and scaled to variance 1 over "
    "its C entries (eps = 1e-5), then times weight, plus bias.",
    inputs=norm_inputs, oracle=norm_numpy, package="gpt2_course.exercises.blocks:layer_norm",
    wrongs=(
        Wrong("the variance divides by C - 1", norm_variant(unbiased=True),
              "x.var() is unbiased unless told otherwise. At C = 768 the error is below a "
              "thousandth: training never shows it, a comparison with GPT-2's logits does."),
        Wrong("it normalises over time, not over channels", norm_variant(dims=-2),
              "A position then sees its future through mean and variance: causality is broken, and "
              "a single token has variance 0."),
        Wrong("it normalises over time and channels together", norm_variant(dims=(-2, -1)),
              "Positions share one mean: the future leaks, and the same token gives other numbers "
              "in a longer row."),
        Wrong("there is no eps", norm_variant(eps=0.0),
              "A vector of equal entries has variance 0, and 0/0 is NaN; from there NaN spreads to "
              "every weight."),
        Wrong("x.std() is taken as it is: C - 1, and no eps", norm_variant(unbiased=True, eps=0.0),
              "Two slips in one short call: numbers a little too small, and NaN for a vector of "
              "equal entries."),
        Wrong("eps is added to the standard deviation, not to the variance",
              norm_variant(eps=0.0, outside=1e-5),
              "sqrt(1e-5) is 0.003: faint vectors come out too large, all others look right.")),
    hints=("One mean and one variance for each vector: over the last dimension, kept for "
           "broadcasting.",
           "x.mean(-1, keepdim=True); and x.var has an argument that is True by default.",
           "(x - mean) / torch.sqrt(var + 1e-5) * weight + bias, with unbiased=False.")))


def gelu_inputs(
    seed:int,
) -> list: # of (x,)
    "A ruler over the bend, random numbers, and large ones"
    g = torch.Generator().manual_seed(seed)
    return [(torch.linspace(-4, 4, 33),), (torch.randn(2, 5, 6, generator=g) * 2,),
            (torch.tensor([-30.0, -2.0, 0.0, 2.0, 30.0]),)]

def gelu_numpy(x):
    "The formula of OpenAI's gpt-2/src/model.py in float64"
    z = x.double().numpy()
    y = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * np.power(z, 3))))
    return torch.from_numpy(y).float()


register(Exercise(
    "blocks.gelu", "08", "GPT-2's GELU: the tanh approximation of x times the normal "
    "distribution's Phi(x).",
    inputs=gelu_inputs, oracle=gelu_numpy, package="gpt2_course.blocks:gelu",
    wrongs=(
        Wrong("it is the exact form with erf", lambda x: F.gelu(x),
              "The mathematics is better and the model is another one: GPT-2 was trained with "
              "tanh. Its logits come out slightly wrong, and no error says so."),
        Wrong("it is the sigmoid approximation x * sigmoid(1.702 x)",
              lambda x: x * torch.sigmoid(1.702 * x),
              "The same paper offers it, CLIP uses it (quick_gelu), GPT-2 does not: up to 0.02 "
              "off."),
        Wrong("it is SiLU, x * sigmoid(x)", F.silu,
              "The gate of Llama's family: it opens more slowly, and its dip is deeper."),
        Wrong("sqrt(2 / pi) is forgotten",
              lambda x: 0.5 * x * (1 + torch.tanh(x + 0.044715 * x**3)),
              "The gate closes too fast; a model trained with it learns all the same, so only an "
              "oracle notices."),
        Wrong("the cube is forgotten",
              lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x)),
              "Right near zero, too soft further out: the cubic term makes tanh follow Phi.")),
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
    "Several shares, also none"
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 25, generator=g), torch.rand(4, 25, generator=g), p)
            for p in (0.1, 0.5, 0.0, 0.3)]

def dropout_numpy(x, u, p):
    z, r = x.double().numpy(), u.double().numpy()
    return torch.from_numpy(np.where(r < p, 0.0, z / (1 - p))).float()

register(Exercise(
    "blocks.dropout", "08", "Dropout in training: entries where u < p become 0, and the others are "
    "scaled so that the mean over many draws of u stays that of x.",
    inputs=dropout_inputs, oracle=dropout_numpy,
    package="gpt2_course.exercises.blocks:dropout",
    wrongs=(
        Wrong("the kept entries are not rescaled", lambda x, u, p: x * (u >= p),
              "All sums shrink by 1 - p in training and are too large in evaluation, when nothing "
              "is dropped: the validation loss is worse than it should be."),
        Wrong("the kept entries are multiplied by 1 - p, not divided",
              lambda x, u, p: x * (u >= p) * (1 - p),
              "The paper of 2014 multiplies, but the weights, and after training. In training the "
              "factor is 1 / (1 - p); this shrinks the signal twice."),
        Wrong("p is taken for the share that is kept",
              lambda x, u, p: x * (u < p) / max(p, 1e-9),
              "With dropout 0.1 nine tenths are lost, and with dropout 0 everything: the model is "
              "silent."),
        Wrong("it is scaled by 1 / p",
              lambda x, u, p: x * (u >= p) / max(p, 1e-9),
              "At 0.5 no difference shows; at 0.1 the mean of every answer grows ninefold, in "
              "training only.")),
    hints=("u >= p is True with probability 1 - p.",
           "On average a share of 1 - p is left: what factor makes up for it?",
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
        for T, C in ((5, 8), (1, 4), (4, 12)):
            layer = nn.TransformerEncoderLayer(C, 2, 2 * C, dropout=0.0, activation="gelu",
                                               batch_first=True, norm_first=True)
            for p in layer.parameters(): nn.init.normal_(p, std=0.7)
            fns = dict(ln_1=lambda l, x: l.norm1(x), attn=attention_of,
                       ln_2=lambda l, x: l.norm2(x), mlp=mlp_of)
            x = torch.randn(2, T, C) * 2 + 1
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


register(Exercise(
    "blocks.pre_norm", "08", "GPT-2's block from its four parts: the stream x after attention and "
    "MLP have each added their answer.",
    inputs=parts_of, oracle=torch_block, package="gpt2_course.exercises.blocks:pre_norm",
    wrongs=(
        Wrong("the norm stands after the addition (post-norm)", post_norm,
              "The order of 2017: every block rescales the road. A deep stack then needs a careful "
              "warm-up, or the gradient of its lower blocks dies within a few bold steps."),
        Wrong("the norm stands on the road, before the branch leaves it", norm_on_road,
              "The copy is normalised and so is the stream: what earlier blocks wrote is rescaled "
              "by each later one."),
        Wrong("the answer is normalised, not the question", norm_of_answer,
              "Each half then reads the raw stream, which grows with depth, and writes with a "
              "fixed volume."),
        Wrong("there is no residual connection",
              lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(attn(ln_1(x)))),
              "Nothing passes but what each half lets through: a deep stack stays at the "
              "frequencies of letters."),
        Wrong("both halves read the old stream", side_by_side,
              "GPT-J and PaLM do so on purpose. In GPT-2 the MLP reads what attention has just "
              "written; weights trained for one order do not fit the other.")),
    hints=("Two halves, each of the form x = x + something of x.",
           "What a half reads is normalised; what it adds to is not.",
           "x = x + attn(ln_1(x)), then the same with ln_2 and mlp, on the new x.")))
