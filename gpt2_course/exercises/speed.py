"""The catalogue of chapter 16: which keys a block of queries needs, a loss with its gradient in one
go, padding with a probability of 0; oracles in NumPy and plain Python, and the classic mistakes
with their names."""

import math
import time
from statistics import median

import numpy as np
import torch

from ..attention import attend, causal_mask
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..compare import numbers
from ..speed import blocked, spans


# --- spans ---

def spans_counted(T, S, block):
    "Query by query"
    out, queries = [], list(range(T))
    while queries:
        mine, queries = queries[:block], queries[block:]
        out.append((mine[0], mine[-1] + 1, max(len(range(S - T + t + 1)) for t in mine)))
    return out

def spans_shapes(seed):
    "A ragged last block, a past, a single query, whole blocks, one block, blocks of one"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    return [(n(17, 24), n(30, 40), 8), (12, 12, 4), (1, n(5, 9), 4), (n(9, 12), n(13, 20), 4),
            (4, 6, 4), (3, 3, 8), (3, 5, 1)]

def spans_of(end, keys):
    "A wrong version: where a block ends, and how many keys it gets"
    return lambda T, S, block: [(a, end(a, T, block), keys(a, end(a, T, block), T, S))
                                for a in range(0, T, block)]

least = lambda a, T, block: min(a + block, T)

register(Exercise(
    "speed.spans", "16", "T queries, the last T of S positions, are split into blocks: a list of "
    "(a, b, n), where queries a to b (b excluded) need the first n keys.",
    inputs=spans_shapes, oracle=spans_counted, package="gpt2_course.speed:spans",
    wrongs=(
        Wrong("the past is forgotten", spans_of(least, lambda a, b, T, S: b),
              "With a cache, S - T positions come before the first query: training would work, but "
              "the model would generate without most of its context."),
        Wrong("every block gets all keys", spans_of(least, lambda a, b, T, S: S),
              "The result is right, but nothing is saved: the mask hides scores that were "
              "computed."),
        Wrong("the keys end where the block begins",
              spans_of(least, lambda a, b, T, S: S - T + a),
              "A query sees itself and the others of its block before it. Without a past the first "
              "block would have no key at all, and its softmax would be 0 / 0."),
        Wrong("the last block is as long as the others",
              spans_of(lambda a, T, block: a + block, lambda a, b, T, S: S - T + b),
              "PyTorch cuts slices beyond the end silently, so it seems to work; a kernel would "
              "write past the end of its tensor."),
        Wrong("the queries left over at the end get no block",
              lambda T, S, block: [(a, a + block, S - T + a + block)
                                   for a in range(0, T - block + 1, block)],
              "When T is not a multiple of the block size, the last queries are never answered. "
              "They need a shorter block of their own."),
        Wrong("the keys stop one short",
              spans_of(least, lambda a, b, T, S: S - T + b - 1),
              "The last query of a block is b - 1 and sees itself too: that makes S - T + b keys, "
              "since counting starts at 0."),
        Wrong("n counts the past alone",
              spans_of(least, lambda a, b, T, S: S - T),
              "The S - T keys of the past are there for every query, but each also sees itself "
              "and the new positions before it.")),
    hints=("A block is answered as a whole: which of its queries sees the most keys?",
           "Query t of T stands at position S - T + t and sees that many keys and itself.",
           "The last query is b - 1, so n = S - T + b, with b = min(a + block, T).")))


# --- chunk_gradient ---

def losses_numpy(z, targets):
    "-log p of each row's target"
    top = z.max(-1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(z - top).sum(-1))
    return lse - z[np.arange(len(z)), targets]

def chunk_numpy(logits, targets, h=1e-6):
    "Losses, and their gradient by moving one column of logits at a time"
    z, at = logits.double().numpy(), targets.numpy()
    move = lambda j, by: z + by * np.eye(z.shape[1])[j]
    g = [(losses_numpy(move(j, h), at) - losses_numpy(move(j, -h), at)) / (2 * h)
         for j in range(z.shape[1])]
    return losses_numpy(z, at), np.stack(g, 1)

def chunk_inputs(seed):
    "Ordinary rows, large logits, targets with almost no probability, single and equal rows"
    g = torch.Generator().manual_seed(seed)
    z = lambda n, V, scale=1.0: scale * torch.randn(n, V, generator=g)
    y = lambda n, V: torch.randint(V, (n,), generator=g)
    high = z(3, 5, 2.0) + torch.tensor([0.0, 1000.0, -1000.0])[:, None]
    sure = z(2, 3) + torch.tensor([[80.0, 75.0, -45.0], [-45.0, 80.0, 75.0]])
    return [(z(6, 9), y(6, 9)), (high, y(3, 5)), (sure, torch.tensor([2, 0])), (z(1, 4), y(1, 4)),
            (torch.full((2, 7), 1.5), y(2, 7))]

def one_hot(logits, targets): # (n, V)
    return torch.nn.functional.one_hot(targets, logits.size(-1)).float()

def chunk_wrong(gradient, losses=lambda loss: loss, dim=-1):
    "A wrong version with other gradients or losses, numerically sound"
    def fn(logits, targets):
        logp = logits.log_softmax(dim)
        loss = -logp.gather(1, targets[:, None])[:, 0]
        return losses(loss), gradient(logp.exp(), one_hot(logits, targets))
    return fn

def from_shares(logits, targets): # mistaken: 0 has no logarithm
    p = logits.softmax(-1)
    return -p.gather(1, targets[:, None])[:, 0].log(), p - one_hot(logits, targets)

def from_exp(logits, targets): # mistaken: exp overflows
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -p.gather(1, targets[:, None])[:, 0].log(), p - one_hot(logits, targets)

def from_log_of_sum(logits, targets): # mistaken: the same, with the loss as a difference
    e = logits.exp()
    loss = e.sum(-1).log() - logits.gather(1, targets[:, None])[:, 0]
    return loss, e / e.sum(-1, keepdim=True) - one_hot(logits, targets)

def every_row(p, hot): # mistaken: p[:, targets] -= 1
    return torch.where(hot.sum(0) > 0, p - 1, p)

register(Exercise(
    "speed.chunk_gradient", "16", "From logits (n, V) and targets (n,), the loss of each row, "
    "(n,), and the gradient of each row's loss with respect to its logits, (n, V). Logits may be "
    "large.",
    inputs=chunk_inputs, oracle=chunk_numpy, package="gpt2_course.speed:chunk_gradient",
    wrongs=(
        Wrong("the one-hot is not subtracted", chunk_wrong(lambda p, hot: p),
              "Every logit is pushed down, the target's too: the model learns nothing."),
        Wrong("the sign of the gradient is reversed", chunk_wrong(lambda p, hot: hot - p),
              "The loss climbs from the first step on."),
        Wrong("the gradient is divided by the number of rows in the chunk",
              chunk_wrong(lambda p, hot: (p - hot) / len(p)),
              "That gives the mean of each chunk: a shorter last chunk, or one with ignored "
              "targets, would count too much, and the gradient would depend on the chunk size."),
        Wrong("the softmax is written as exp(z) / sum(exp(z))", from_exp,
              "exp of 89 is too large for float32, and infinity divided by infinity is NaN. This "
              "happens when a model becomes confident, hours into a run. Subtract the highest "
              "logit first, or use log_softmax."),
        Wrong("the log of the sum is taken of exp(z), with nothing subtracted", from_log_of_sum,
              "exp of 89 is too large for float32, so the loss becomes infinite as soon as a logit "
              "is that large. torch.logsumexp subtracts the highest logit first."),
        Wrong("the logarithm is taken of the softmax", from_shares,
              "A probability below 1e-45 is 0 in float32, and its logarithm is -inf: the loss is "
              "infinite exactly where the model is most wrong. log_softmax never forms the "
              "probability."),
        Wrong("1 is subtracted in the targets' columns of every row", chunk_wrong(every_row),
              "p[:, targets] -= 1 picks whole columns. Row i has only its own target: "
              "p[torch.arange(n), targets] -= 1."),
        Wrong("the losses are averaged",
              chunk_wrong(lambda p, hot: p - hot, lambda loss: loss.mean()),
              "The loss of each row is needed: rows whose target does not count are left out of "
              "the sum later, and the mean is taken over all chunks."),
        Wrong("only the target's logit gets a gradient",
              chunk_wrong(lambda p, hot: (p - hot) * hot),
              "The other logits are in the loss too, through the logsumexp: they must be pushed "
              "down by their probabilities, so that a row of the gradient sums to 0."),
        Wrong("the softmax runs over the rows",
              chunk_wrong(lambda p, hot: p - hot, dim=0),
              "The probabilities of all tokens in a row must sum to 1: the softmax runs over the "
              "last dimension.")),
    hints=("The loss is logsumexp(z) - z[target].",
           "The derivative of logsumexp with respect to z_j is p_j.",
           "log_softmax gives both: -logp[target], and exp(logp) minus one at the target."),
    atol=1e-4, rtol=1e-3,
    excused={"batch": "a chunk is a piece of all rows, flattened to (n, V)"}))


# --- hide ---

def hide_numpy(logits, V):
    "What the loss would be made of: tokens as they are, nothing for the rest"
    out = np.full(tuple(logits.shape), -np.inf, np.float32)
    out[:, :V] = logits.numpy()[:, :V]
    return out

def read_hidden(result, logits, V):
    "Tokens' logits as they are, and padding's probabilities, whatever number hides it"
    z = numbers(result)
    if z is not None and z.shape == tuple(logits.shape) and z.dtype.kind == "f":
        z = torch.from_numpy(z.copy())
        result = torch.cat([z[:, :V], z.softmax(-1)[:, V:]], 1)
    elif isinstance(result, torch.Tensor): result = result.clone()
    logits[:, V:] = logits.given[:, V:] # padding may be hidden in place: afterwards both look alike
    return result

def hide_inputs(seed):
    "Some padding, one column, none at all; very high and very low logits; single and equal rows"
    g = torch.Generator().manual_seed(seed)
    z = lambda n, V: torch.randn(n, V, generator=g)
    far = z(3, 6) + torch.tensor([0.0, 3000.0, -3000.0])[:, None]
    cases = [(z(9, 12), 7), (z(2, 9), 8), (z(3, 5), 5), (far, 4), (z(1, 6), 4),
             (torch.full((2, 8), 0.5), 3)]
    for logits, _ in cases: logits.given = logits.clone() # a deep copy takes it along
    return cases

def hide_from(start, value):
    "A wrong version: other columns, or another value"
    def fn(logits, V):
        out = logits.clone()
        out[:, start(V):] = value
        return out
    return fn

def shares_of(logits, V): # mistaken: the softmax as well
    return hide_from(lambda V: V, -torch.inf)(logits, V).softmax(-1)

def hide_rows(logits, V): # mistaken: [V:] are rows
    out = logits.clone()
    out[V:] = -torch.inf
    return out

def times_zero(logits, V): # mistaken: -inf by way of a product
    return logits + (torch.arange(logits.size(1)) >= V) * -torch.inf

register(Exercise(
    "speed.hide", "16", "From logits (n, Vp), whose first V columns are tokens, logits of the same "
    "shape in which padding has a probability of exactly 0. They may be changed in place.",
    inputs=hide_inputs, oracle=hide_numpy, package="gpt2_course.speed:hide",
    read=read_hidden,
    wrongs=(
        Wrong("padding is set to 0", hide_from(lambda V: V, 0.0),
              "exp(0) = 1: at the start of a run each padding column would have as much "
              "probability as a token, and the loss would begin at the logarithm of the padded "
              "size."),
        Wrong("padding is set to a number that is not low enough", hide_from(lambda V: V, -100.0),
              "The mask leaks: where all logits of a row are lower than this number, padding gets "
              "nearly all the probability. Only -inf is lower than any logit; -1e9 or "
              "torch.finfo(torch.float32).min is low enough in practice."),
        Wrong("the first padding column is not hidden", hide_from(lambda V: V + 1, -torch.inf),
              "Columns are counted from 0: token V - 1 is the last, column V the first padding."),
        Wrong("the last token is hidden as well", hide_from(lambda V: V - 1, -torch.inf),
              "Its loss is infinite as soon as it occurs: in GPT-2's vocabulary the last token "
              "ends every document."),
        Wrong("the columns are cut off", lambda logits, V: logits[:, :V],
              "That is right for the loss; but the gradient is multiplied by the padded table, and "
              "(n, V) does not fit (Vp, C)."),
        Wrong("the tokens are hidden and padding is kept",
              lambda logits, V: torch.cat([logits[:, :V] * 0 - torch.inf, logits[:, V:]], 1),
              "The mask is the wrong way round: [:, V:] are the padding columns, [:, :V] the "
              "tokens."),
        Wrong("probabilities are returned", shares_of,
              "The loss takes logits and applies its own softmax: a softmax of a softmax is nearly "
              "flat, and the model hardly learns."),
        Wrong("the mask is multiplied by -inf", times_zero,
              "0 times infinity is NaN, and so is the logit of every token. Use masked_fill, "
              "torch.where or an assignment to the columns."),
        Wrong("rows are hidden, not columns", hide_rows,
              "logits[V:] are the rows from V on. The vocabulary is the second dimension: "
              "logits[:, V:]."),
        Wrong("nothing is hidden", lambda logits, V: logits,
              "Padding then takes part in every softmax, and gradients change its rows of the "
              "embedding table.")),
    hints=("For which number is exp equal to 0?", "Column V is the first padding column.",
           "logits[:, V:] = -torch.inf"),
    excused={"batch": "the loss hands over its rows flattened to (n, Vp)"}))


# --- the open challenge: faster attention ---

def same_as_attend(fn):
    "Forward and gradients, where T is no multiple of a block, and with large scores"
    g = torch.Generator().manual_seed(0)
    for shape, scale in (((2, 3, 200, 16), 1.0), ((1, 2, 77, 32), 12.0), ((1, 1, 1, 8), 1.0)):
        x = [scale * torch.randn(shape, generator=g) for _ in range(3)]
        dO, rows = torch.randn(shape, generator=g), []
        for f in (fn, attend):
            y = [t.clone().requires_grad_() for t in x]
            out = f(*y)
            if not isinstance(out, torch.Tensor) or out.shape != dO.shape:
                raise ValueError(f"for q, k and v of shape {shape}, fn must return such a tensor")
            if not out.requires_grad: raise ValueError("the result has no gradient")
            rows.append([out.detach(), *torch.autograd.grad(out, y, dO, allow_unused=True)])
        for name, mine, right in zip(("result", "gradient of q", "gradient of k", "gradient of v"),
                                     *rows):
            if mine is None: raise ValueError(f"there is no {name}")
            if not (mine - right).abs().max() <= 1e-3 * (1 + right.abs().max()):
                raise ValueError(f"the {name} is not that of attend, for shape {shape}")

def times_faster(
    fn,            # function (q, k, v), each (B, nh, T, hs) -> (B, nh, T, hs)
    seconds:float,
) -> float:        # how many times faster than `blocked`
    "Forward and backward in turns on one thread; the median of the ratios of neighbouring runs"
    threads = torch.get_num_threads()
    x = [torch.randn(1, 4, 512, 64, requires_grad=True) for _ in range(3)]
    dO = torch.randn(1, 4, 512, 64)
    def clock(f):
        began = time.perf_counter()
        torch.autograd.grad(f(*x), x, dO)
        return time.perf_counter() - began
    try:
        torch.set_num_threads(1)
        same_as_attend(fn)
        for f in (fn, blocked, fn, blocked): clock(f)
        ratios, end = [], time.perf_counter() + seconds
        while len(ratios) < 101 and (time.perf_counter() < end or len(ratios) < 5):
            pair = (fn, blocked) if len(ratios) % 2 else (blocked, fn)
            took = {f: clock(f) for f in pair}
            ratios.append(took[blocked] / took[fn])
    finally: torch.set_num_threads(threads)
    return median(ratios)

class BlocksByHand(torch.autograd.Function):
    "`blocked` with a backward pass written by hand, which works in place"
    @staticmethod
    def forward(ctx, q, k, v, block):
        scale = 1 / math.sqrt(q.size(-1))
        shares, out = [], torch.empty_like(q)
        for a, b, n in spans(q.size(-2), k.size(-2), block):
            s = (q[..., a:b, :] * scale) @ k[..., :n, :].mT
            s[..., n - (b - a):].masked_fill_(~causal_mask(b - a, b - a), -torch.inf)
            shares.append(s.softmax(-1))
            out[..., a:b, :] = shares[-1] @ v[..., :n, :]
        ctx.save_for_backward(q, k, v, out, *shares)
        ctx.block, ctx.scale = block, scale
        return out

    @staticmethod
    def backward(ctx, dO):
        q, k, v, out, *shares = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        D = (dO * out).sum(-1, keepdim=True) # chapter 17
        for (a, b, n), p in zip(spans(q.size(-2), k.size(-2), ctx.block), shares):
            g = dO[..., a:b, :]
            dv[..., :n, :] += p.mT @ g
            ds = (g @ v[..., :n, :].mT).sub_(D[..., a:b, :]).mul_(p).mul_(ctx.scale)
            dq[..., a:b, :] = ds @ k[..., :n, :]
            dk[..., :n, :] += ds.mT @ q[..., a:b, :]
        return dq, dk, dv, None

def blocks_by_hand(q, k, v):
    "Blocks of 64 queries"
    return BlocksByHand.apply(q, k, v, 64)

set_challenge(Challenge(
    "speed.attention", "16", "The fastest causal attention on one CPU thread: fn(q, k, v) takes "
    "float32 tensors (B, nh, T, hs) and must equal attend, gradients included. The score is its "
    "speed relative to the package's blocked, forward and backward at (1, 4, 512, 64).",
    score=times_faster, plain=blocks_by_hand, to_beat=1.25, unit="times as fast as blocked",
    measured="two cores of an AMD EPYC, one thread, November 2026", lower=False, seconds=10))
