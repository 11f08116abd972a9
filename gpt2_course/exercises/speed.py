"""The catalogue of chapter 16: which keys a block of queries needs, a loss with its gradient in one
go, padding that gets no share; oracles in NumPy and plain Python, and the classic mistakes with
their names."""

import numpy as np
import torch

from ..check import Exercise, Wrong, register


def spans_counted(T, S, block):
    "Query by query"
    out, queries = [], list(range(T))
    while queries:
        mine, queries = queries[:block], queries[block:]
        out.append((mine[0], mine[-1] + 1, max(len(range(S - T + t + 1)) for t in mine)))
    return out

def spans_shapes(seed):
    "A ragged last block, a past, a single query, whole blocks"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    return [(n(17, 24), n(30, 40), 8), (12, 12, 4), (1, n(5, 9), 4), (n(9, 12), n(13, 20), 4)]

def spans_of(end, keys):
    "A wrong version: where a block ends, and how many keys it gets"
    return lambda T, S, block: [(a, end(a, T, block), keys(a, end(a, T, block), T, S))
                                for a in range(0, T, block)]

least = lambda a, T, block: min(a + block, T)

register(Exercise(
    "speed.spans", "16", "T queries, the last T of S positions, in blocks: a list of (a, b, n), "
    "queries a to b (without b) need the first n keys.",
    inputs=spans_shapes, oracle=spans_counted, package="gpt2_course.speed:spans",
    wrongs=(
        Wrong("the past is forgotten", spans_of(least, lambda a, b, T, S: b),
              "With a cache the first query already has S - T positions behind it: it would "
              "generate without most of its context, and only there."),
        Wrong("every block gets all keys", spans_of(least, lambda a, b, T, S: S),
              "The result is right and nothing is spared: the mask hides what was computed."),
        Wrong("the keys end where the block begins",
              spans_of(least, lambda a, b, T, S: S - T + a),
              "A query sees itself and the others of its block before it; the first block of all "
              "would have no key, and its softmax would be 0 / 0."),
        Wrong("the last block is as long as the others",
              spans_of(lambda a, T, block: a + block, lambda a, b, T, S: S - T + b),
              "Slices beyond the end are cut silently by PyTorch, so it seems to work; a kernel "
              "that writes there would write into foreign memory.")),
    hints=("A block is answered as a whole: which of its queries sees most?",
           "Query t of T stands at position S - T + t and sees that many keys and itself.",
           "The last query is b - 1, so n = S - T + b, with b = min(a + block, T).")))


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
    "Ordinary rows, rows with large logits, a single row"
    g = torch.Generator().manual_seed(seed)
    z = lambda n, V, scale: scale * torch.randn(n, V, generator=g)
    y = lambda n, V: torch.randint(V, (n,), generator=g)
    high = z(3, 5, 2.0) + torch.tensor([0.0, 120.0, -40.0])[:, None]
    return [(z(6, 9, 1.0), y(6, 9)), (high, y(3, 5)), (z(1, 4, 1.0), y(1, 4))]

def chunk_wrong(gradient, top=True):
    "A wrong version with another gradient, or without the maximum"
    def fn(logits, targets):
        z = logits.double() - (logits.double().amax(-1, keepdim=True) if top else 0)
        e = z.exp().float() # as float32 would overflow
        p = e / e.sum(-1, keepdim=True)
        hot = torch.nn.functional.one_hot(targets, logits.size(-1)).float()
        return -(p * hot).sum(-1).log(), gradient(p, hot)
    return fn

register(Exercise(
    "speed.chunk_gradient", "16", "Logits (n, V) and targets (n,): the loss of each row, (n,), and "
    "its gradient by the row's logits, (n, V).",
    inputs=chunk_inputs, oracle=chunk_numpy, package="gpt2_course.speed:chunk_gradient",
    wrongs=(
        Wrong("the one-hot is not subtracted", chunk_wrong(lambda p, hot: p),
              "Every logit is pushed down, the target's too: the model learns nothing."),
        Wrong("the sign is turned round", chunk_wrong(lambda p, hot: hot - p),
              "The loss climbs from the first step on."),
        Wrong("it is divided by the rows of the chunk",
              chunk_wrong(lambda p, hot: (p - hot) / len(p)),
              "A mean of each chunk: a shorter last chunk, or one with ignored targets, would "
              "count too much, and the gradient depends on the size of a chunk."),
        Wrong("the highest logit is not subtracted before exp",
              chunk_wrong(lambda p, hot: p - hot, top=False),
              "exp of 89 is too large for float32: infinity by infinity is no number. It happens "
              "when a model becomes confident, hours into a run.")),
    hints=("The loss is logsumexp(z) - z[target].", "The derivative of logsumexp by z_j is p_j.",
           "log_softmax gives both: -logp[target], and exp(logp) minus one at the target."),
    atol=1e-4, rtol=1e-3))


def hide_numpy(logits, V):
    "What the loss would be made of: tokens as they are, nothing for the rest"
    out = np.full(tuple(logits.shape), -np.inf)
    out[:, :V] = logits.numpy()[:, :V]
    return out

def hide_inputs(seed):
    "Some padding, a single padding column, none at all"
    g = torch.Generator().manual_seed(seed)
    z = lambda n, V: torch.randn(n, V, generator=g)
    return [(z(4, 12), 7), (z(2, 9), 8), (z(3, 5), 5)]

def hide_from(start, value):
    "A wrong version: other columns, or another value"
    def fn(logits, V):
        logits[:, start(V):] = value
        return logits
    return fn

register(Exercise(
    "speed.hide", "16", "Logits (n, Vp) of which V columns are tokens: the same shape, with "
    "padding that gets the share 0.",
    inputs=hide_inputs, oracle=hide_numpy, package="gpt2_course.speed:hide",
    wrongs=(
        Wrong("padding is set to 0", hide_from(lambda V: V, 0.0),
              "exp(0) = 1: at the start of a run padding would have as much as every token, and "
              "the loss would begin at the logarithm of the padded size."),
        Wrong("the first padding column is left", hide_from(lambda V: V + 1, -torch.inf),
              "Columns are counted from 0: token V - 1 is the last, column V the first padding."),
        Wrong("the last token is hidden, too", hide_from(lambda V: V - 1, -torch.inf),
              "Its loss is infinite as soon as it occurs: in GPT-2's vocabulary the last token "
              "ends every document."),
        Wrong("the columns are cut off", lambda logits, V: logits[:, :V],
              "Right for the loss; but the gradient is multiplied by the padded table, and (n, V) "
              "does not fit (Vp, C).")),
    hints=("Which number has an exp of 0?", "Column V is the first padding column.",
           "logits[:, V:] = -torch.inf")))
