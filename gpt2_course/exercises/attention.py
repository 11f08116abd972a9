"""The catalogue of chapter 07: what to write, an oracle in NumPy, the classic mistakes with their
names, and the open challenge."""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ..attention import CausalSelfAttention, attend
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from .plays import letter_tensors


def mask_sizes(
    seed:int,
) -> list: # of (T, S)
    "A single position, no past, one new token, several"
    return [(4, 4), (2, 5), (1, 1), (1, 3), (3 + seed % 3, 9), (5, 6)]


register(Exercise(
    "attention.causal_mask", "07", "A (T, S) boolean tensor, True where query t may look at key s; "
    "the T queries are the last T of S positions.",
    inputs=mask_sizes,
    oracle=lambda T, S: torch.tensor([[s <= t + S - T for s in range(S)] for t in range(T)]),
    package="gpt2_course.attention:causal_mask",
    wrongs=(
        Wrong("the mask is upside down", lambda T, S: torch.ones(T, S).bool().triu(S - T),
              "Each position sees its future and not its past: training is easy and useless."),
        Wrong("True marks what is hidden, not what may be seen",
              lambda T, S: torch.ones(T, S).bool().triu(S - T + 1),
              "This is the convention of nn.MultiheadAttention. Here, as in "
              "scaled_dot_product_attention, True means that the query may look."),
        Wrong("queries are aligned with the first keys",
              lambda T, S: torch.ones(T, S).bool().tril(),
              "Without a cache you see no difference; with one, new tokens look at the oldest "
              "keys only."),
        Wrong("a position may not see itself", lambda T, S: torch.ones(T, S).bool().tril(S - T - 1),
              "Without a past, the first row has nothing to look at: its softmax is 0/0, and the "
              "loss becomes NaN."),
        Wrong("a position also sees the one after it",
              lambda T, S: torch.ones(T, S).bool().tril(S - T + 1),
              "The next token is the answer that the model is trained to predict: the training "
              "loss falls almost to zero, and the generated text is noise."),
        Wrong("the diagonal is shifted to the left, by T - S",
              lambda T, S: torch.ones(T, S).bool().tril(T - S),
              "Without a cache you see no difference; with one, the first new tokens may see no "
              "key at all, and their softmax is NaN."),
        Wrong("keys and queries are swapped",
              lambda T, S: torch.ones(T, S).bool().tril(S - T).t(),
              "Rows belong to queries and columns to keys. A square mask that is transposed shows "
              "every position its future."),
        Wrong("nothing is hidden", lambda T, S: torch.ones(T, S).bool(),
              "Every query sees the tokens after it, among them the one it has to predict."),
        Wrong("it is made of floating-point numbers, not of booleans",
              lambda T, S: torch.ones(T, S).tril(S - T),
              "scaled_dot_product_attention adds a numeric mask to the scores instead of hiding "
              "keys: the future stays visible."),
        Wrong("it is made of integers, not of booleans",
              lambda T, S: torch.ones(T, S).tril(S - T).long(),
              "~mask then turns 1 into -2 instead of False, and masked_fill raises an error."),
        Wrong("it holds 0 and minus infinity, to be added to the scores",
              lambda T, S: torch.zeros(T, S).masked_fill(
                  ~torch.ones(T, S).bool().tril(S - T), -torch.inf),
              "An additive mask works too, but the task asks for booleans: the code that uses this "
              "mask inverts it with ~ and passes it to masked_fill.")),
    hints=("Which keys may the last query see? All S. And the one before it?",
           "torch.tril keeps a lower triangle; its second argument shifts the diagonal.",
           "With S - T positions in the past, the diagonal moves S - T to the right.")))


def far_away(
    g:torch.Generator,
    level:float, # of the scores, far below or above zero
) -> tuple:      # (q, k, v): (1, 2, 4, 4) each
    "Equal scores of `level` for all keys but the last one, whose score is zero"
    side = math.sqrt(2.0 * abs(level))
    q, k, v = torch.zeros(3, 1, 2, 4, 4)
    q[..., 0] = side
    k[..., 1:] = torch.randn(1, 2, 4, 3, generator=g) * side # q has zeros here: no score changes
    k[..., :3, 0] = math.copysign(side, level)
    return q, k, v + torch.randn(1, 2, 4, 4, generator=g)

def below_everything(
    g:torch.Generator,
) -> tuple: # (q, k, v): (1, 2, 4, 4) each
    "Scores of -1e30, -2e30, -3e30 and 0: one key has all the weight, so every road is exact"
    q, k, v = torch.zeros(3, 1, 2, 4, 4)
    q[..., 0] = 2e15
    k[..., 0] = torch.tensor([-1e15, -2e15, -3e15, 0.0])
    v[..., 0] = 1 + torch.rand(1, 2, 4, generator=g)
    return q, k, v

def qkv(
    seed:int,
) -> list: # of (q, k, v): (B, nh, T, hs) and twice (B, nh, S, hs)
    "With and without a cached past; equal scores; large values; scores below any finite mask"
    g = torch.Generator().manual_seed(seed)
    new = lambda T, size=2.0: torch.randn(2, 3, T, 4, generator=g) * size
    cases = [(new(T), new(S), new(S)) for T, S in ((5, 5), (3, 6), (6, 6), (1, 4))]
    equal = torch.full((2, 3, 5, 4), 0.5)
    loud = torch.tensor([1e3, -1e3, 1e3, -1e3]) * (0.5 + torch.rand(2, 3, 5, 4, generator=g))
    cases += [(new(5), equal, new(5)), (new(5), new(5), loud)]
    return cases + [*(far_away(g, level) for level in (-6, -450, 120)), below_everything(g)]

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

def tril(s, shift=None): # (T, S) booleans, True where a query may look
    T, S = s.shape[-2:]
    return torch.ones(T, S).bool().tril(S - T if shift is None else shift)

def hide(s, fill=-torch.inf): return s.masked_fill(~tril(s), fill)

def variant(scale=lambda q: q.size(-1)**-0.5, hide=hide, share=lambda s: s.softmax(-1),
            after=lambda p: p):
    "A mistaken attention: one part of the right one is exchanged"
    def fn(q, k, v):
        s = q @ k.transpose(-2, -1) * scale(q)
        return after(share(hide(s))) @ v
    return fn

def naive(s): # softmax without the largest score
    e = s.exp()
    return e / e.sum(-1, keepdim=True)

def turned_mask(q, k, v): # as PyTorch's own call does it: a query that sees nothing gives zeros
    seen = tril(q @ k.transpose(-2, -1))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~seen)

def only_shares(q, k, v):
    return hide(q @ k.transpose(-2, -1) * q.size(-1)**-0.5).softmax(-1)


register(Exercise(
    "attention.attend", "07", "Causal scaled dot-product attention: each query's mix of the values "
    "it may see.", inputs=qkv, oracle=attend_numpy, package="gpt2_course.attention:attend",
    gradient=True, rtol=5e-4, atol=5e-4,
    wrongs=(
        Wrong("the scores are not scaled", variant(scale=lambda q: 1.0),
              "They grow with the head size; the softmax then picks a single key, and its gradient "
              "vanishes."),
        Wrong("the scores are divided by sqrt(C), not by sqrt(hs)",
              variant(scale=lambda q: (q.size(1) * q.size(-1))**-0.5),
              "A dot product has hs terms, not C: attention is too soft, since its scores are too "
              "small by a factor of sqrt(nh)."),
        Wrong("the scores are divided by hs, not by its root",
              variant(scale=lambda q: 1 / q.size(-1)),
              "The variance of a dot product is hs, so its standard deviation is sqrt(hs). Divided "
              "by hs, the scores are nearly equal, and every key gets almost the same weight."),
        Wrong("the scores are multiplied by sqrt(hs)", variant(scale=lambda q: q.size(-1)**0.5),
              "The scale has to undo the growth of a dot product with the head size; this doubles "
              "it, and the softmax picks a single key."),
        Wrong("the scores are divided by sqrt(T), the wrong dimension",
              variant(scale=lambda q: q.size(-2)**-0.5),
              "A dot product has hs terms, however many queries there are. With this scale, the "
              "same text gets different weights when it is processed in different pieces."),
        Wrong("hidden scores become 0, not minus infinity", variant(hide=lambda s: hide(s, 0.0)),
              "Multiplying the scores by the mask does the same. exp(0) is 1, so a hidden key "
              "keeps a weight, which is larger than that of a visible key with a negative score."),
        Wrong("the mask is a moderate number such as -10", variant(hide=lambda s: hide(s, -10.0)),
              "The future keeps a little weight, so the model sees the answers in training and "
              "writes badly without them. Where the visible scores are below -10, the future gets "
              "nearly all of it."),
        Wrong("the mask is a finite number such as -100", variant(hide=lambda s: hide(s, -100.0)),
              "Scores are not bounded: where all visible ones are far below -100, the weight goes "
              "to the future. Minus infinity is below everything."),
        Wrong("the mask is a large but finite number, such as -1e9",
              variant(hide=lambda s: hide(s, -1e9)),
              "This is nearly always harmless, but in float16 it overflows, and a model whose "
              "scores explode sees the future. Minus infinity costs nothing and is right for all "
              "scores."),
        Wrong("a finite number is added to the hidden scores, such as -1e9",
              variant(hide=lambda s: s - 1e9 * ~tril(s)),
              "Added to a huge score it is lost in rounding, so the future becomes visible. Minus "
              "infinity remains minus infinity, whatever is added to it."),
        Wrong("True and False are swapped in the mask",
              variant(hide=lambda s: s.masked_fill(tril(s), -torch.inf)),
              "masked_fill fills where the mask is True. Here the past and the present are hidden "
              "and the future is seen; the last query sees nothing, and its softmax is NaN."),
        Wrong("scaled_dot_product_attention gets a mask whose True means hidden", turned_mask,
              "Its True means that the query may look; nn.MultiheadAttention's True means hidden. "
              "Here every query sees its future only."),
        Wrong("the mask is added to the scores as a number", variant(hide=lambda s: s + tril(s)),
              "True counts as 1, so visible keys get a small advantage and nothing is hidden."),
        Wrong("the softmax runs over the queries", variant(share=lambda s: s.softmax(-2)),
              "Each column sums to one instead of each row: a position's weights then depend on "
              "later queries."),
        Wrong("there is no softmax",
              variant(hide=lambda s: hide(s, 0.0), share=lambda s: s),
              "The scores themselves become the weights: they may be negative, and they do not sum "
              "to one."),
        Wrong("the softmax is computed without subtracting the largest score",
              variant(share=naive),
              "exp(89) is too large for float32: infinity divided by infinity is NaN. And where "
              "all scores are far below zero, it is 0/0."),
        Wrong("there is no mask", variant(hide=lambda s: s),
              "Every position sees the token it has to predict: the training loss falls towards "
              "zero, and the generated text is noise."),
        Wrong("the mask comes after the softmax",
              variant(hide=lambda s: s, after=lambda p: p * tril(p)),
              "The future is hidden, but it took part in each sum: rows sum to less than one, the "
              "first to the least, and the weights of the past depend on the future."),
        Wrong("the mask comes after the softmax, and the rows are divided by their sums",
              variant(hide=lambda s: s,
                      after=lambda p: p * tril(p) / (p * tril(p)).sum(-1, keepdim=True)),
              "In exact arithmetic this is right. But where a hidden score is far above the "
              "visible ones, all visible weights round to 0, and 0/0 is NaN."),
        Wrong("queries are aligned with the first keys",
              variant(hide=lambda s: s.masked_fill(~tril(s, 0), -torch.inf)),
              "Without a cache you see no difference; with one, a new token looks at the oldest "
              "keys only. PyTorch's is_causal=True does this too."),
        Wrong("the weights are returned, not the mix of the values", only_shares,
              "The table of weights says how much each value counts; multiply it by the values.")),
    hints=("Scores first: every query with every key, a (T, S) table for each head.",
           "Hide with masked_fill and minus infinity before the softmax, never after it.",
           "(q @ k.transpose(-2, -1) / sqrt(hs)), masked, softmax over the last dimension, @ v.")))


def streams(
    seed:int,
) -> list: # of (x, nh)
    "Several sizes, one position, as many heads as channels, one head, equal entries, large ones"
    g = torch.Generator().manual_seed(seed)
    new = lambda B, T, C: torch.randn(B, T, C, generator=g)
    flat = new(2, 3, 8)
    flat[0, 1] = 3.0
    return [(new(2, 4, 12), 3), (new(2, 3, 12), 3), (new(2, 6, 12), 2), (new(3, 1, 6), 3),
            (new(1, 4, 6), 6), (new(2, 3, 4), 1), (flat, 2), (1000 * new(2, 5, 12), 4)]

def heads_numpy(x, nh):
    "(B, T, C) -> (B, nh, T, hs): head h has channels h*hs to (h+1)*hs"
    B, T, C = x.shape
    hs = C // nh
    return torch.stack([x[:, :, h * hs:(h + 1) * hs] for h in range(nh)], dim=1)

def cut(x, nh): return x.view(x.size(0), x.size(1), nh, -1) # (B, T, nh, hs)


register(Exercise(
    "attention.split_heads", "07", "Cut the channels into nh heads: (B, T, C) to (B, nh, T, hs).",
    inputs=streams, oracle=heads_numpy, package="gpt2_course.attention:split_heads",
    gradient=True,
    wrongs=(
        Wrong("there is a view without a transpose",
              lambda x, nh: x.reshape(x.size(0), nh, x.size(1), -1),
              "The shape is right, but the values are not: heads get pieces of different tokens, "
              "and causality breaks."),
        Wrong("hs and nh are swapped",
              lambda x, nh: x.view(x.size(0), x.size(1), -1, nh).permute(0, 3, 1, 2),
              "A head gets every nh-th channel: GPT-2's weights would be read in the wrong "
              "order."),
        Wrong("the channels are cut into heads of size nh",
              lambda x, nh: x.view(x.size(0), x.size(1), -1, nh).transpose(1, 2),
              "nh is the number of heads, and each has C/nh channels. x.split(nh) makes this "
              "mistake as well: its argument is the size of a piece, not the number of pieces."),
        Wrong("time and heads are not swapped", cut,
              "Attention would then run over heads within a token, not over time."),
        Wrong("the heads come first, before the batch",
              lambda x, nh: cut(x, nh).permute(2, 0, 1, 3),
              "Stacking the pieces of x.chunk(nh, -1) without dim=1 does this. Rows of the batch "
              "and heads are then swapped, and merging the heads again mixes the rows."),
        Wrong("time is the last dimension, after hs", lambda x, nh: cut(x, nh).permute(0, 2, 3, 1),
              "That is the shape of the transposed keys: q @ k.transpose(-2, -1) would compare "
              "channels, not positions."),
        Wrong("batch and heads are one dimension",
              lambda x, nh: cut(x, nh).transpose(1, 2).flatten(0, 1),
              "Some libraries do so for a faster product, but then the shape no longer tells rows "
              "from heads; the task asks for four dimensions.")),
    hints=("First give the channels two dimensions, nh and hs, in this order.",
           "x.view(B, T, nh, hs) leaves the memory as it is; then move nh in front of T.",
           "transpose(1, 2) swaps T and nh; a view alone cannot.")))


class Reader(nn.Module):
    "The chapter's reader: letters and positions, one attention layer added, a hidden layer"
    def __init__(self, V, mix, T=32, C=64, nh=8):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.attn = CausalSelfAttention(GPTConfig(block_size=T, n_layer=1, n_head=nh, n_embd=C),
                                        lambda q, k, v, p: mix(q, k, v))
        self.c_fc, self.lm_head = nn.Linear(C, 4 * C), nn.Linear(4 * C, V)

    def forward(self, idx): # (B, T) -> (B, T, V)
        x = self.wte(idx) + self.wpe.weight[:idx.size(1)]
        return self.lm_head(torch.tanh(self.c_fc(x + self.attn(x))))

    def loss(self, rows): # (B, T + 1)
        return F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def must_be_attention(mix):
    "The contract: the shape of v, no look at the future, none at other rows"
    g = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 2, 8, 32, 8, generator=g)
    def out(q, k, v):
        torch.manual_seed(0)
        y = mix(q.clone(), k.clone(), v.clone())
        if not isinstance(y, torch.Tensor) or y.shape != v.shape:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError("return a tensor of shape (B, nh, T, hs), here "
                             f"{tuple(v.shape)}: this is {got}")
        return y
    before = out(q, k, v)
    for t in (1, 8, 20, 31):
        other = [x.clone() for x in (q, k, v)]
        for x in other: x[:, :, t:] += 1000 * torch.randn(2, 8, 32 - t, 8, generator=g)
        if not torch.allclose(out(*other)[:, :, :t], before[:, :, :t], atol=1e-3):
            raise ValueError(f"positions before {t} change when position {t} and what follows "
                             "it do: a mix may use the past and the present only")
    for x in other: x[0] = 0.0
    mine = [torch.cat([x[:1], y[1:]]) for x, y in zip((q, k, v), other)]
    if not torch.allclose(out(*mine)[0], before[0], atol=1e-3):
        raise ValueError("row 0 changes when row 1 does: rows of a batch are separate texts")


def loss_of_reader(
    mix,          # function (q, k, v) -> (B, nh, T, hs)
    seconds=None, # the budget is a number of steps
    steps=400, lr=1e-2,
) -> float:       # nats per letter on Macbeth
    "Train the chapter's reader on Hamlet with this mix, and let it read Macbeth"
    must_be_attention(mix)
    tok, train, val = letter_tensors()
    torch.manual_seed(0)
    net, g = Reader(tok.n_vocab, mix), torch.Generator().manual_seed(0)
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 - step / steps)
        starts = torch.randint(len(train) - 32, (32, 1), generator=g)
        loss = net.loss(train[starts + torch.arange(33)])
        opt.zero_grad()
        loss.backward()
        opt.step()
    net.eval()
    with torch.no_grad(): return float(net.loss(val[:len(val) // 33 * 33].view(-1, 33)[::4]))


def plain_mix(q, k, v):
    "The chapter's attention"
    return attend(q, k, v)


set_challenge(Challenge(
    "attention.mix", "07", "A function (q, k, v) -> (B, nh, T, hs) that mixes each position's past "
    "in a better way than softmax attention. It takes the place of `attend` in the chapter's "
    "reader, which then learns for 400 steps on Hamlet and is tested on Macbeth.",
    score=loss_of_reader, plain=plain_mix, to_beat=2.434, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30, fixed=True))
