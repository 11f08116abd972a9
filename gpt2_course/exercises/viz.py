"""The catalogue of chapter 14: attention weights, the logit lens and the induction score, each with
an independent oracle and its classic mistakes; and a probe for the middle of a trained model."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..compare import kind
from ..config import GPTConfig, packaged
from ..model import GPT
from ..viz import streams
from .generation import subject


def shares_numpy(q, k):
    "Attention weights in float64, one query at a time"
    q, k = q.double().numpy(), k.double().numpy()
    out = np.zeros(q.shape[:3] + (k.shape[2],))
    for b, h, t in np.ndindex(q.shape[:3]):
        s = k[b, h, :t + 1] @ q[b, h, t] / math.sqrt(q.shape[3])
        p = np.exp(s - s.max())
        out[b, h, t, :t + 1] = p / p.sum()
    return torch.from_numpy(out).float()

def past(q): return torch.ones(q.size(-2), q.size(-2)).bool().tril()
def scores(q, k): return q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
def hide(s, q): return s.masked_fill(~past(q), -torch.inf)

def pairs_of(seed):
    "Queries and keys of several lengths: random, a single position, all equal, very long vectors"
    g = torch.Generator().manual_seed(seed)
    new = lambda T, hs: torch.randn(2, 3, T, hs, generator=g) * 2
    whole = lambda low, high: torch.randint(low, high, (1, 2, 5, 16), generator=g).float()
    long_q, k = whole(1, 4) * 1000, whole(-3, 4) # whole numbers: no sum of them is rounded
    k[:, :, -1] = 10.0                           # in the future of all but the last, and far ahead
    return [*((new(T, hs), new(T, hs)) for T, hs in ((5, 4), (1, 4), (7, 8))),
            (torch.ones(1, 1, 4, 2), new(4, 2)[:1, :1]), (long_q, k)]

def mask_after(s, q): return s.softmax(-1) * past(q)
def divided_again(s, q): return mask_after(s, q) / mask_after(s, q).sum(-1, keepdim=True)
def no_itself(s, q): return s.masked_fill(~past(q).tril(-1), -torch.inf).softmax(-1)
def shares_by(fn): return lambda q, k: fn(scores(q, k), q)

register(Exercise(
    "viz.attention_shares", "14", "The (B, nh, T, T) weights of causal attention, from (B, nh, T, "
    "hs) queries and keys; each row sums to one.",
    inputs=pairs_of, oracle=shares_numpy, package="gpt2_course.viz:attention_shares",
    wrongs=(
        Wrong("the future is set to zero after the softmax", shares_by(mask_after),
              "Rows no longer sum to one: a part of the attention went to the future and is lost."),
        Wrong("the future is set to zero after the softmax, then each row is divided by its sum",
              shares_by(divided_again),
              "On paper that is right. But where a score of the future is far above the others, "
              "all of the past underflows to 0 in the softmax, and 0/0 is NaN. Hide before you "
              "divide."),
        Wrong("the future is not hidden", shares_by(lambda s, q: s.softmax(-1)),
              "The map shows attention to letters that the model had not read yet. Its own "
              "attention is causal."),
        Wrong("the past is hidden, not the future",
              shares_by(lambda s, q: s.masked_fill(past(q).tril(-1), -torch.inf).softmax(-1)),
              "Row t may look at columns s <= t: the lower triangle stays, tril, not triu."),
        Wrong("scores of the future are set to 0, not to minus infinity",
              shares_by(lambda s, q: s.masked_fill(~past(q), 0.0).softmax(-1)),
              "exp(0) is 1, so the future still gets attention, and more than a past position with "
              "a negative score."),
        Wrong("a position cannot attend to itself", shares_by(no_itself),
              "The diagonal belongs to the past. Without it the first row has nothing to look at: "
              "a softmax of nothing is NaN."),
        Wrong("the scores are not scaled",
              lambda q, k: hide(q @ k.transpose(-2, -1), q).softmax(-1),
              "The map looks sharper than the model's: these are not the weights it used."),
        Wrong("the scores are divided by hs, not by its root",
              lambda q, k: hide(q @ k.transpose(-2, -1) / q.size(-1), q).softmax(-1),
              "A sum of hs products has a standard deviation of about sqrt(hs). Divided by hs, the "
              "scores are too small, and every row of the map is too uniform."),
        Wrong("the scores are divided by sqrt(T), not by sqrt(hs)",
              lambda q, k: hide(q @ k.transpose(-2, -1) / math.sqrt(q.size(-2)), q).softmax(-1),
              "The last dimension of q is the head size. With T the same letters would get other "
              "weights in a longer text."),
        Wrong("queries and keys are swapped", lambda q, k: hide(scores(k, q), q).softmax(-1),
              "Row t then uses its key as a query: the triangle is right, but every weight is "
              "wrong."),
        Wrong("the softmax runs over the queries",
              lambda q, k: hide(scores(q, k), q).softmax(-2),
              "Each column sums to one. The queries then compete for each key, whereas the keys "
              "should compete for each query."),
        Wrong("the scores are returned, without a softmax", lambda q, k: hide(scores(q, k), q),
              "Scores can be negative and have no fixed sum. The softmax turns each row into "
              "weights.")),
    hints=("It is `attend` of chapter 07 without its last product.",
           "Scores are `q @ k.transpose(-2, -1) / sqrt(hs)`; hide the future with minus infinity.",
           "Then `softmax(-1)`. Or call `attend` with `torch.eye(T)` in place of the values."),
    excused=dict(gradient="The map is only displayed; no gradient flows through it")))


def model_of(seed, L, vocab, C=8):
    "A small GPT in which no parameter is zero or one"
    model = GPT(GPTConfig(block_size=6, vocab_size=vocab, n_layer=L, n_head=2, n_embd=C))
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data = torch.randn(p.shape, generator=g) * 0.5
    return model.eval()

def lens_inputs(seed):
    "Models with one, two and three blocks"
    g = torch.Generator().manual_seed(seed)
    return [(model_of(seed + L, L, 9 + L), torch.randint(9, (B, T), generator=g))
            for L, B, T in ((2, 2, 5), (1, 1, 1), (3, 2, 6))]

def caught(model, idx):
    "(L + 1, B, T, C): what enters the first block and what leaves each, by hooks"
    seen = []
    hooks = [model.transformer.h[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))]
    hooks += [b.register_forward_hook(lambda m, a, out: seen.append(out))
              for b in model.transformer.h]
    with torch.no_grad(): model(idx)
    for h in hooks: h.remove()
    return torch.stack(seen).detach()

def lens_numpy(model, idx):
    "LayerNorm and head in float64"
    t, x = model.transformer, caught(model, idx).double().numpy()
    w, b, head = (p.detach().double().numpy() for p in (t.ln_f.weight, t.ln_f.bias, t.wte.weight))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
    return torch.from_numpy(x @ head[:model.cfg.vocab_size].T).float()

def final_norm(model, x): return model.transformer.ln_f(x)
def bare_norm(model, x): return F.layer_norm(x, x.shape[-1:])
def norm_of_block(model, x): return model.transformer.h[-1].ln_2(x)

def twice(model, x):
    norm = model.transformer.ln_f
    return torch.cat([norm(x[:-1]), norm(norm(x[-1:]))])

def lens_with(change=lambda model, idx, x: x, norm=final_norm, pad=False, end=lambda z: z):
    "A mistaken lens: one part of the right one is exchanged"
    @torch.no_grad()
    def fn(model, idx):
        logits = model.lm_head(norm(model, change(model, idx, caught(model, idx))))
        return end(logits if pad else logits[..., :model.cfg.vocab_size])
    return fn

def without_positions(model, idx, x):
    found = [model.transformer.wte(idx)]
    for block in model.transformer.h: found.append(block(found[-1]))
    return torch.stack(found)

register(Exercise(
    "viz.logit_lens", "14", "ln_f and the head applied to the residual stream before the first and "
    "after each block: (L + 1, B, T, V).",
    inputs=lens_inputs, oracle=lens_numpy, package="gpt2_course.viz:logit_lens",
    rtol=1e-3, atol=1e-3,
    wrongs=(
        Wrong("ln_f is left out", lens_with(norm=lambda model, x: x),
              "The stream is not normalised, as the head expects: the last row differs from the "
              "model's logits, and no error is raised."),
        Wrong("ln_f's weight and bias are left out", lens_with(norm=bare_norm),
              "Each channel is scaled and shifted after the normalisation, and the head was "
              "trained on that."),
        Wrong("a block's own norm is used in place of ln_f", lens_with(norm=norm_of_block),
              "ln_1 and ln_2 prepare the stream for attention and MLP. The head has only ever seen "
              "what comes out of ln_f."),
        Wrong("ln_f is applied twice to the last row", lens_with(norm=twice),
              "model.hidden ends with ln_f already. The stream after the last block is what goes "
              "into it, as for every other row."),
        Wrong("each block's own addition is read, not the stream",
              lens_with(lambda model, idx, x: torch.cat([x[:1], x[1:] - x[:-1]])),
              "A block adds a correction to the stream. Alone, the correction does not show what "
              "the model would predict so far."),
        Wrong("the embeddings are left out", lens_with(lambda model, idx, x: x[1:]),
              "The first of the L + 1 rows is missing, and every label in the plot is off by one."),
        Wrong("the last block is left out", lens_with(lambda model, idx, x: x[:-1]),
              "L blocks have L + 1 places to look at. The last of them must give the model's own "
              "logits: that is the test of the whole lens."),
        Wrong("the positions are left out of the embeddings", lens_with(without_positions),
              "The stream begins as wte + wpe. Without wpe no row shows this model's stream, not "
              "even the last one."),
        Wrong("probabilities are returned, not logits",
              lens_with(end=lambda z: z.softmax(-1)),
              "cross_entropy takes a softmax of its own. Given probabilities it reports losses "
              "near ln V for every layer."),
        Wrong("the padding rows of the vocabulary are kept", lens_with(pad=True),
              "The embedding table is padded to a multiple of 128 rows: ids without meaning get "
              "part of the probability.")),
    hints=("`streams(model, idx)` is (L + 1, B, T, C). What does the model do with the last of it?",
           "`model.transformer.ln_f`, then `model.lm_head`; both work on any leading dimensions.",
           "`model.lm_head(model.transformer.ln_f(x))[..., :model.cfg.vocab_size]`")))


def induction_loop(maps, n):
    "One pair after the other"
    L, B, nh = maps.shape[:3]
    out = np.zeros((L, nh))
    for l, b, h in np.ndindex(L, B, nh):
        for t in range(n, 2 * n): out[l, h] += float(maps[l, b, h, t, t - n + 1]) / (B * n)
    return torch.from_numpy(out).float()

def maps_of(seed):
    "Causal maps on twice n tokens: random ones, a single row of a single head, and even ones"
    g = torch.Generator().manual_seed(seed)
    new = lambda L, B, nh, T: torch.randn(L, B, nh, T, T, generator=g) * 2
    raw = [*((new(2, 3, 2, 2 * n), n) for n in (3, 5, 2)), (new(1, 1, 1, 8), 4),
           (torch.zeros(2, 1, 3, 6, 6), 3), (new(3, 2, 4, 12), 6)]
    return [(hide(s, s).softmax(-1), n) for s, n in raw]

def at_offset(o, first=0):
    "Mean weight that t in the second half gives to t - n + o"
    def fn(maps, n):
        t = torch.arange(n + first, 2 * n)
        return maps[..., t, t - n + o].mean((1, 3))
    return fn

def pairs_in(maps, n): return maps.diagonal(1 - n, -2, -1)[..., 1:] # (L, B, nh, n)

register(Exercise(
    "viz.induction_share", "14", "Mean attention weight that a token of the second half gives to "
    "the token after its earlier occurrence: (L, B, nh, 2n, 2n) to (L, nh).",
    inputs=maps_of, oracle=induction_loop, package="gpt2_course.viz:induction_share",
    wrongs=(
        Wrong("it measures the earlier occurrence itself", at_offset(0),
              "Off by one: a head that finds the same token again does not copy, because the token "
              "to copy stands one place later."),
        Wrong("it measures the second token after the earlier occurrence", at_offset(2),
              "Off by one: t - n + 1 follows t - n. A perfect induction head would score 0."),
        Wrong("it measures the previous token",
              lambda maps, n: maps.diagonal(-1, -2, -1)[..., n - 1:].mean((1, 3)),
              "That is the other half of the pair, the previous-token head of an earlier block. "
              "An induction head looks back nearly a whole copy."),
        Wrong("the last position of the first half is counted too",
              lambda maps, n: maps.diagonal(1 - n, -2, -1).mean((1, 3)),
              "Its token has no earlier occurrence: the score of a perfect head is diluted."),
        Wrong("the first position of the second half is left out", at_offset(1, first=1),
              "Its token has been seen, at position 0: from t = n on, all n positions count."),
        Wrong("the sum is divided by the length of the row, 2n",
              lambda maps, n: pairs_in(maps, n).sum(3).mean(1) / (2 * n),
              "Only the n positions of the second half can score. A perfect head would get 0.5."),
        Wrong("the weights are summed over the positions, not averaged",
              lambda maps, n: pairs_in(maps, n).sum(3).mean(1),
              "The score grows with n; as a mean it lies between 0 and 1, whatever the length."),
        Wrong("the largest weight is taken, not the mean",
              lambda maps, n: pairs_in(maps, n).amax((1, 3)),
              "One lucky position makes a head look like an induction head, which has to work at "
              "every position."),
        Wrong("rows and columns are swapped",
              lambda maps, n: maps.diagonal(n - 1, -2, -1)[..., 1:].mean((1, 3)),
              "It reads the weights of the future, which are zero, so every score is zero."),
        Wrong("the mean runs over the heads, not over the rows",
              lambda maps, n: pairs_in(maps, n).mean((2, 3)),
              "The result has one number for each row of the batch, so the heads cannot be told "
              "apart.")),
    hints=("For n = 10, the token at position 13 has occurred before, at 3. Which position comes "
           "after that?",
           "The pairs (t, t - n + 1) lie on one diagonal of the (2n, 2n) map, number 1 - n.",
           "`maps.diagonal(1 - n, dim1=-2, dim2=-1)` starts at t = n - 1: drop its first entry."),
    excused=dict(gradient="The score is only reported; no gradient flows through it",
                 wide="Attention weights lie between 0 and 1")))


PLACE, MANY, ROW = 2, 256, 128 # blocks passed, rows to learn from, letters in a row

def vectors_and_letters(model, tok, name, rows):
    "(n, C) stream after two blocks and (n,) letters that follow, of a play past its first part"
    text = packaged(f"shakespeare/{name}.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tok.encode_ordinary(text)[20_000:20_000 + rows * (ROW + 1)])
    ids = ids.view(rows, ROW + 1)
    x = torch.cat([streams(model, part)[PLACE] for part in ids[:, :-1].split(64)])
    return x.flatten(0, 1), ids[:, 1:].flatten()

def probe_loss(fn, seconds):
    "What a probe reads in the middle of the model, on a play that neither has learned from"
    model, tok = subject()
    V = tok.n_vocab
    x, y = vectors_and_letters(model, tok, "hamlet", MANY // 2)
    x2, y2 = vectors_and_letters(model, tok, "othello", MANY // 2)
    held_x, held_y = vectors_and_letters(model, tok, "alls_well_that_ends_well", 64)
    with torch.enable_grad(): probe = fn(torch.cat([x, x2]), torch.cat([y, y2]), V)
    if not callable(probe): raise ValueError(f"return a function of (n, C), not {kind(probe)}")
    mixed = torch.randperm(len(held_x)) # neighbours in the text tell nothing
    with torch.no_grad(): logits = probe(held_x[mixed])
    want = (len(held_x), V)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != want:
        raise ValueError(f"the probe must give logits of shape {want} for x of shape "
                         f"{tuple(held_x.shape)}")
    return F.cross_entropy(logits.float(), held_y[mixed]).item()

def straight_line(x, y, V):
    "One linear layer on normalised vectors, 300 steps"
    mean, std = x.mean(0), x.std(0)
    probe = torch.nn.Linear(x.size(1), V)
    opt = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(300):
        rows = torch.randint(len(x), (1024,))
        loss = F.cross_entropy(probe((x[rows] - mean) / std), y[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return lambda x: probe((x - mean) / std)

set_challenge(Challenge(
    "viz.probe", "14", "Given (x, y, V): the stream x (n, C) of this chapter's model after its "
    "second block, at n = 32,768 places of two plays, and the letters y (n,) that come next. "
    "Return a function (m, C) -> (m, V) logits that reads what half of the model already knows.",
    score=probe_loss, plain=straight_line, to_beat=1.847,
    unit="nats per letter on a held-out play",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30, fixed=True))
