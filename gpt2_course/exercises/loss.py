"""The catalogue of chapter 04 and its answers in NumPy: softmax, cross-entropy, its gradient,
perplexity and bits per byte, with PyTorch as the oracle, the classic mistakes with their names,
and an open challenge: compress Macbeth without having read anything."""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..evals import bits_per_byte, perplexity
from ..tokenizer import CharTokenizer


def short(
    x:np.ndarray,
) -> np.ndarray:
    "Multiples of 1/64: float32 holds them exactly, even next to 2,000"
    return np.round(x * 64) / 64


def softmax(
    x:np.ndarray, # (…, V) logits
) -> np.ndarray:  # (…, V) probabilities: each row sums to one
    "exp and normalise; the largest logit is subtracted first, so that nothing overflows"
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_inputs(seed):
    "A table, one row, rows far above and far below zero, a batch, rows that span thousands"
    rng = np.random.default_rng(seed)
    new = lambda *shape: short(rng.normal(size=shape) * 2)
    far = new(3, 3) + np.array([[2000.], [0.], [-2000.]])
    wide = new(3, 4) + np.array([[3., -1000., 0., 1000.], [0.] * 4, [0., 0., 0., -9000.]])
    wide[1] = -1500.0
    return [(new(4, 6),), (new(5),), (far,), (new(2, 3, 4),), (wide,)]

def softmax_torch(x): return F.softmax(torch.tensor(x, dtype=torch.float64), -1).numpy()

def exp_over(x, total=lambda e: e.sum(-1, keepdims=True)):
    "A mistaken softmax: exponentials over a total, without warnings"
    with np.errstate(all="ignore"):
        e = np.exp(x)
        return e / total(e)

def log_probabilities(x):
    "What log_softmax gives"
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))

def without_exp(x):
    with np.errstate(all="ignore"):
        return x / x.sum(-1, keepdims=True)

register(Exercise(
    "loss.softmax", "04", "The softmax of an array of logits over its last axis, also for very "
    "large ones.", inputs=softmax_inputs, oracle=softmax_torch,
    package="gpt2_course.exercises.loss:softmax",
    wrongs=(
        Wrong("the maximum is not subtracted", exp_over,
              "exp overflows above 88 in fp32 and above 11 in fp16. Infinity over infinity is NaN, "
              "and the run is lost."),
        Wrong("the minimum is subtracted, not the maximum",
              lambda x: exp_over(x - x.min(-1, keepdims=True)),
              "The smallest exponent is then 0 and the largest is the whole span of the row, so "
              "exp still overflows."),
        Wrong("the mean is subtracted, not the maximum",
              lambda x: exp_over(x - x.mean(-1, keepdims=True)),
              "Centring a row does not bound its largest entry: one logit far above the others "
              "still overflows. Only the maximum makes every exponent 0 or less."),
        Wrong("the largest absolute value is subtracted, not the maximum",
              lambda x: exp_over(x - np.abs(x).max(-1, keepdims=True)),
              "In a row of large negative logits every exponential underflows to 0, and 0/0 is "
              "NaN."),
        Wrong("the axis is 1, not -1",
              lambda x: exp_over(x - x.max(1, keepdims=True), lambda e: e.sum(1, keepdims=True)),
              "In a table axis 1 is the last one, but in a batch (B, T, V) it is T: positions then "
              "compete with each other, and no error is raised."),
        Wrong("it is normalised over axis 0",
              lambda x: exp_over(x - x.max(0), lambda e: e.sum(0)),
              "Columns sum to one instead of rows: a token competes with the same token at other "
              "positions, not with the rest of the vocabulary."),
        Wrong("one maximum is subtracted from all rows", lambda x: exp_over(x - x.max()),
              "In a row far below the largest every exponential underflows to 0, and 0/0 is NaN. "
              "Each row needs its own maximum."),
        Wrong("the axis is forgotten: the maximum and the sum are those of the whole table",
              lambda x: exp_over(x - x.max(), lambda e: e.sum()),
              "All rows together then sum to one, so every probability is too small. Pass axis -1 "
              "and keepdims=True to both."),
        Wrong("the sum loses its axis (no keepdims)",
              lambda x: exp_over(x - x.max(-1, keepdims=True), lambda e: e.sum(-1)),
              "Sums of shape (N,) are aligned with the columns: a square table is divided by the "
              "wrong sums without an error, and any other shape raises one."),
        Wrong("the maximum loses its axis (no keepdims)",
              lambda x: exp_over(x - x.max(-1)),
              "Maxima of shape (N,) are aligned with the columns: from a square table the wrong "
              "maxima are subtracted without an error, and any other shape raises one."),
        Wrong("the maximum and the sum lose their axis (no keepdims)",
              lambda x: exp_over(x - x.max(-1), lambda e: e.sum(-1)),
              "Numbers of shape (N,) are aligned with the columns, not with the rows: only a "
              "single row comes out right. Pass keepdims=True to both."),
        Wrong("there is no exponential", without_exp,
              "Logits may be negative, and then so are these probabilities: their logarithm is "
              "NaN."),
        Wrong("the sign of the exponent is wrong",
              lambda x: exp_over(x.max(-1, keepdims=True) - x),
              "exp(max - x) gives the most probability to the smallest logit, and overflows as "
              "well."),
        Wrong("the result is the logarithm of the probabilities", log_probabilities,
              "Log-probabilities are negative and do not sum to one. The loss uses them, but the "
              "task asks for the probabilities.")),
    hints=("exp makes every number positive; dividing by the sum of its row makes the row sum to "
           "one.",
           "Softmax does not change when a constant is subtracted from a row. Which constant makes "
           "the largest exponent 0?",
           "e = np.exp(x - x.max(-1, keepdims=True)), then divide by its sum over the same axis.")))



def cross_entropy(
    logits:np.ndarray,  # (N, V)
    targets:np.ndarray, # (N,) the right tokens; -1: this position does not count
) -> float:             # nats per token
    "Mean over the tokens that count of log-sum-exp(logits) - logit of the target"
    real = targets != -1
    x, y = logits[real], targets[real]
    top = x.max(-1)
    lse = top + np.log(np.exp(x - top[:, None]).sum(-1))
    return float((lse - x[np.arange(len(y)), y]).mean())


def loss_inputs(seed):
    """Logits and targets: ordinary, some targets ignored, one token, a confident and a hopeless
    prediction, rows far apart, and rows far above zero, of which one has equal entries"""
    rng = np.random.default_rng(seed)
    logits = lambda N, V: short(rng.normal(size=(N, V)) * 2)
    new = lambda N, V: (logits(N, V), rng.integers(0, V, N))
    some, y = new(6, 5)
    hopeless = logits(3, 4) + np.array([[900., 0, 0, 0], [0, 900., 0, 0], [0, 0, 0, 0]])
    apart, far = logits(3, 4) + np.array([[2000.], [0.], [-2000.]]), logits(4, 3) + 1500
    far[2] = 1500.0
    return [new(7, 5), (some, np.where([0, 1, 0, 0, 1, 0], -1, y)),
            (logits(1, 3), rng.integers(1, 3, 1)), # not token 0: leaving it out would leave nothing
            (hopeless, np.array([0, 3, -1])), (apart, rng.integers(0, 4, 3)),
            (far, np.array([0, 2, 1, 0]))]

def loss_torch(logits, targets, reduction="mean", ignore=-1):
    "PyTorch's cross-entropy in float64"
    x, y = torch.tensor(logits, dtype=torch.float64), torch.tensor(targets)
    return float(F.cross_entropy(x, y, ignore_index=ignore, reduction=reduction))

def kept(fn):
    "A mistaken loss: fn(x, y) of the rows that count, one number for each row, then the mean"
    def loss(logits, targets):
        real = targets != -1
        with np.errstate(all="ignore"):
            return float(np.mean(fn(logits[real], targets[real])))
    return loss

def at(x, y): return x[np.arange(len(y)), y]

def log_sum_exp(x, top=lambda x: x.max(-1, keepdims=True)):
    "Shifted by the maximum, or by what a mistaken version takes in its place"
    return np.log(np.exp(x - top(x)).sum(-1)) + np.broadcast_to(top(x), x[:, :1].shape)[:, 0]

def until_ignored(count):
    "A loop that ends at the first target of -1"
    def loss(logits, targets):
        n = int(np.append(targets == -1, True).argmax())
        x, y = logits[:n], targets[:n]
        return float((log_sum_exp(x) - at(x, y)).sum() / count(n, targets)) if n else math.nan
    return loss

def not_zero(logits, targets):
    "Keeps the rows whose target is not 0; -1 is then the last token"
    x, y = logits[targets != 0], targets[targets != 0]
    return float((log_sum_exp(x) - at(x, y)).mean()) if len(y) else math.nan

def zero(x): return np.zeros((1, 1))
def one_top(x): return x.max()

def without_rule(logits, targets):
    "Positions without a target add their log-sum-exp alone"
    picked = np.where(targets < 0, 0, at(logits, targets))
    return float((log_sum_exp(logits) - picked).mean())

register(Exercise(
    "loss.cross_entropy", "04", "The mean cross-entropy, in nats, of (N, V) logits and (N,) "
    "targets; targets of -1 do not count.", inputs=loss_inputs, oracle=loss_torch,
    package="gpt2_course.exercises.loss:cross_entropy", atol=3e-4,
    excused={"batch": "The task is a table (N, V), as for PyTorch's cross_entropy."},
    wrongs=(
        Wrong("the maximum is not subtracted", kept(lambda x, y: log_sum_exp(x, zero) - at(x, y)),
              "exp overflows at 710 in fp64, 89 in fp32 and 12 in fp16, and far below zero the sum "
              "underflows to 0: the loss is infinite or NaN, although the true one is small."),
        Wrong("the maximum is not subtracted, and a quotient of exponentials is taken",
              kept(lambda x, y: -np.log(at(exp_over(x), y))),
              "exp overflows, infinity over infinity is NaN; and where the quotient underflows its "
              "logarithm is infinite. Take log-sum-exp minus the logit, and subtract the maximum "
              "first."),
        Wrong("the logarithm is taken of rounded probabilities",
              kept(lambda x, y: -np.log(at(softmax(x), y))),
              "The probability of a very unlikely token rounds to 0, and its logarithm is "
              "infinite. Take log-sum-exp minus the logit instead."),
        *(Wrong(f"{eps:g} is added to the probability before the logarithm", kept(
              lambda x, y, eps=eps: -np.log(at(softmax(x), y) + eps)),
              f"No token can then cost more than -ln({eps:g}) = {-math.log(eps):.1f} nats, and a "
              "worse prediction gets no gradient. Log-sum-exp minus the logit needs no such "
              "trick.")
          for eps in (1e-7, 1e-8, 1e-9, 1e-10, 1e-12)),
        Wrong("one maximum is subtracted from all rows",
              kept(lambda x, y: log_sum_exp(x, one_top) - at(x, y)),
              "In a row far below the largest every exponential underflows, and the logarithm of 0 "
              "is minus infinity. Each row needs its own maximum."),
        Wrong("one maximum is subtracted from all rows, and a quotient is taken",
              kept(lambda x, y: -np.log(at(exp_over(x - x.max()), y))),
              "A row far below the largest underflows to 0/0, which is NaN. Each row needs its own "
              "maximum, and log-sum-exp needs no quotient."),
        Wrong("the maximum is subtracted and never added back",
              kept(lambda x, y: log_sum_exp(x) - x.max(-1) - at(x, y)),
              "log(sum(exp(x - m))) is log-sum-exp minus m: the loss comes out m too low, and may "
              "be negative."),
        Wrong("the softmax is applied twice: probabilities are treated as logits",
              lambda x, y: loss_torch(softmax(x), y),
              "F.cross_entropy applies the softmax itself. Probabilities lie between 0 and 1, so "
              "with a large vocabulary the loss can never fall far below ln V."),
        Wrong("the sign is wrong: it is the mean of log p", lambda x, y: -loss_torch(x, y),
              "A loss has to fall as the model improves; log p rises. The surprise is -log p."),
        Wrong("the loss is in bits, not nats", lambda x, y: loss_torch(x, y) / math.log(2),
              "log2 makes it 1.44 times too large: it cannot be compared with ln V, and the "
              "gradient is no longer p - y."),
        Wrong("the losses are summed, not averaged",
              lambda x, y: loss_torch(x, y, reduction="sum"),
              "The loss, and so the gradient, grows with the batch: every batch size then needs "
              "its own learning rate."),
        Wrong("the mean runs over all N * V entries",
              lambda x, y: loss_torch(x, y) / x.shape[1],
              "A row has one surprise, that of its target; the V - 1 zeros of its one-hot vector "
              "are not observations. The loss comes out V times too small."),
        Wrong("x[:, y] picks the targets of all rows from every row",
              kept(lambda x, y: log_sum_exp(x) - x[:, y]),
              "x[:, y] is an (N, N) table: each row is compared with the targets of all rows. "
              "x[np.arange(N), y] picks one logit per row."),
        Wrong("ignored targets are counted in the denominator",
              lambda x, y: loss_torch(x, y, reduction="sum") / len(y),
              "Padding then makes every model look better. Divide by the number of tokens that "
              "count."),
        Wrong("a target of -1 picks the last token",
              lambda x, y: loss_torch(x, np.where(y < 0, x.shape[1] - 1, y)),
              "In NumPy index -1 is the last column: padding is trained as if it were a token, "
              "without any error."),
        Wrong("a target of -1 counts as token 0", lambda x, y: loss_torch(x, np.maximum(y, 0)),
              "Clipping turns the padding into a token: the model is trained to predict token 0 "
              "there."),
        Wrong("a target of -1 has an empty one-hot row, but its log-sum-exp is still added",
              without_rule,
              "No logit is subtracted at these positions, but log-sum-exp is added and the "
              "positions are counted. Remove the rows before anything else."),
        Wrong("F.cross_entropy is not told to ignore -1",
              lambda x, y: float(F.cross_entropy(torch.tensor(x), torch.tensor(y))),
              "Its default is ignore_index=-100, so -1 is an invalid class and raises an error. "
              "This course passes ignore_index=-1."),
        Wrong("gather is given the index -1",
              lambda x, y: -torch.tensor(log_probabilities(x)).gather(
                  1, torch.tensor(y)[:, None]).mean().item(),
              "gather accepts no negative index and raises an error. Remove the rows with target "
              "-1 first."),
        Wrong("the loop ends at the first target of -1", until_ignored(lambda n, y: n),
              "`break` leaves the loop, so no later position counts. `continue` skips only this "
              "one."),
        Wrong("the loop ends at the first target of -1, but all that count are divided by",
              until_ignored(lambda n, y: (y != -1).sum()),
              "`break` leaves the loop, so no later position adds its surprise. `continue` skips "
              "only this one."),
        Wrong("token 0 is ignored, and -1 counts as the last token", not_zero,
              "The condition is targets != -1, not targets != 0: token 0 is an ordinary token, "
              "and in NumPy index -1 is the last column."),
        Wrong("token 0 is ignored as well", lambda x, y: loss_torch(x, np.where(y > 0, y, -1)),
              "targets > 0 also drops token 0, which is an ordinary token. The condition is "
              "targets != -1.")),
    hints=("-log(exp(x_y) / sum(exp(x))) = log(sum(exp(x))) - x_y: no division is left.",
           "Subtract each row's maximum before exp and add it back after log.",
           "First keep the rows where targets != -1; then x[np.arange(len(y)), y] picks the "
           "target's logit in each row.")))


def gradient(
    logits:np.ndarray,  # (N, V)
    targets:np.ndarray, # (N,) the right tokens; -1: this position does not count
) -> np.ndarray:        # (N, V) slope of the mean loss along each logit
    "(p - y) / n, where n positions count; zero where the target is -1"
    real = targets != -1
    g = softmax(logits)
    g[np.arange(len(g))[real], targets[real]] -= 1
    return g * real[:, None] / real.sum()


def gradient_inputs(seed):
    """As for the loss, a prediction that is hopeless in float32 alone, and an ignored position in a
    table whose last token is no target"""
    rows = np.array([[1., 2., 0., .5], [0., 1., 3., -1.], [2., 0., 0., 1.5]])
    return [*loss_inputs(seed), (np.array([[150., 0., 0.]]), np.array([1])),
            (rows, np.array([1, -1, 0]))]

def gradient_torch(logits, targets, reduction="mean"):
    "By backpropagation"
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(x, torch.tensor(targets), ignore_index=-1, reduction=reduction).backward()
    return x.grad.numpy()

def through_log(dtype, loss_of=lambda p, y: -p[torch.arange(len(y)), y].log().mean()):
    "A mistaken gradient: backpropagation through a softmax and, after it, a logarithm"
    def fn(logits, targets):
        x, real = torch.tensor(logits, dtype=dtype, requires_grad=True), targets != -1
        loss_of(x.softmax(-1)[torch.tensor(real)], torch.tensor(targets[real])).backward()
        return x.grad.numpy()
    return fn

def times_one_hot(p, y): return -(F.one_hot(y, p.size(1)) * p.log()).sum(1).mean()

def slope(fn):
    "A mistaken gradient: fn(logits, one-hot targets), divided by n; ignored rows are zero"
    def wrong(x, y):
        real = y != -1
        with np.errstate(all="ignore"):
            g = fn(x, one_hot(x, y)) / real.sum()
        g[~real] = 0
        return g
    return wrong

def one_hot(x, y): return (np.arange(x.shape[1]) == y[:, None]) * 1.0

register(Exercise(
    "loss.gradient", "04", "The gradient of the mean cross-entropy with respect to the (N, V) "
    "logits; targets of -1 do not count.", inputs=gradient_inputs, oracle=gradient_torch,
    package="gpt2_course.exercises.loss:gradient",
    excused={"batch": "The task is a table (N, V), as for PyTorch's cross_entropy."},
    wrongs=(
        Wrong("the sign is reversed: y - p", lambda x, y: -gradient_torch(x, y),
              "Descent becomes ascent: the loss rises from the first step on."),
        Wrong("it is not divided by the number of tokens",
              lambda x, y: gradient_torch(x, y, "sum"),
              "This is the gradient of the sum: with N tokens every step is N times too large."),
        Wrong("it is divided by the number of all positions, ignored ones included",
              lambda x, y: gradient_torch(x, y, "sum") / len(y),
              "The loss is a mean over the tokens that count. Otherwise the steps shrink wherever "
              "there is padding."),
        Wrong("it is divided by N * V, as a mean over the table",
              lambda x, y: gradient_torch(x, y) / x.shape[1],
              "The loss is a mean over N surprises, not over N * V entries: every step is V times "
              "too small."),
        Wrong("ignored positions keep a gradient",
              lambda x, y: (softmax(x) - one_hot(x, y)) / (y != -1).sum(),
              "They have no target, but p pushes all their logits down; these rows must be "
              "zero."),
        Wrong("a target of -1 counts as the last token",
              lambda x, y: (softmax(x) - np.eye(x.shape[1])[y]) / len(y),
              "In NumPy index -1 is the last column: padding pulls the last token's logit up, and "
              "is counted."),
        Wrong("a target of -1 counts as the last token, but not in the denominator",
              lambda x, y: (softmax(x) - np.eye(x.shape[1])[y]) / (y != -1).sum(),
              "In NumPy index -1 is the last column: padding pulls the last token's logit up. The "
              "rows of ignored positions must be zero."),
        Wrong("token 0 is ignored as well",
              lambda x, y: gradient_torch(x, np.where(y > 0, y, -1)),
              "targets > 0 also drops token 0, which is an ordinary token. The condition is "
              "targets != -1."),
        Wrong("the softmax is missing: logits minus y", slope(lambda x, y: x - y),
              "The slope of log-sum-exp along a logit is its probability, not the logit itself: "
              "this gradient is unbounded."),
        Wrong("nothing is subtracted at the target: p, not p - y", slope(lambda x, y: softmax(x)),
              "All slopes are then positive, so every logit is pushed down, the right token's as "
              "well. The slopes of a row must sum to zero: subtract 1 at the target."),
        *(Wrong(name, fn, "p[:, y] -= 1 subtracts in the columns of all targets, in every row. "
                "Give the rows as well: p[np.arange(len(y)), y] -= 1.")
          for name, fn in (
              ("1 is subtracted in the columns of all targets, in every row",
               slope(lambda x, y: softmax(x) - y.max(0))),
              ("1 is subtracted in the columns of all targets, -1 among them, in every row",
               lambda x, y: (softmax(x) - np.eye(x.shape[1])[y].max(0)) * (y != -1)[:, None]
               / (y != -1).sum()))),
        Wrong("only the target's logit gets a gradient",
              slope(lambda x, y: (softmax(x) - 1) * y),
              "Every logit is part of log-sum-exp: the wrong tokens have slope p, and all slopes "
              "of a row sum to zero."),
        Wrong("the derivative of the softmax is applied a second time",
              slope(lambda x, y: (softmax(x) - y) * softmax(x) * (1 - softmax(x))),
              "p - y contains it already. The extra factor p (1 - p) vanishes where the model is "
              "confident and wrong, so it stops learning where it should learn most."),
        Wrong("the softmax runs over the positions",
              slope(lambda x, y: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0) - y),
              "Axis 0 makes columns sum to one: a position's gradient then depends on its "
              "neighbours in the batch."),
        Wrong("the maximum is not subtracted before exp", slope(lambda x, y: exp_over(x) - y),
              "exp overflows, and infinity over infinity is NaN: after one such row every weight "
              "of the network is NaN."),
        Wrong("it is backpropagated through the logarithm of rounded probabilities",
              through_log(torch.float64),
              "The probability of a hopeless token rounds to 0; the slope of log at 0 is infinite, "
              "and infinity times 0 is NaN. p - y needs no logarithm."),
        Wrong("it is backpropagated through the logarithm of probabilities rounded to float32",
              through_log(torch.float32),
              "In float32 a token 104 nats below the best has probability 0; the slope of log at 0 "
              "is infinite, and infinity times 0 is NaN. p - y needs no logarithm."),
        Wrong("it is backpropagated through a one-hot row times the logarithms of all "
              "probabilities",
              through_log(torch.float64, times_one_hot),
              "A probability that rounds to 0 has the logarithm -inf, and 0 * -inf is NaN, even "
              "where the prediction is right. p - y needs no logarithm.")),
    hints=("The slope of log-sum-exp along logit j is p_j; the target's own logit adds -1.",
           "So take the softmax, minus one at the target, and divide by the number of tokens that "
           "count.",
           "g = softmax(x); g[rows, targets[rows]] -= 1 for the rows that count; zero the "
           "others.")))


def report(
    loss:float,  # nats per token
    tokens:int,  # of the text
    n_bytes:int, # of the same text in UTF-8
) -> tuple[float, float]: # perplexity, bits per byte
    "A loss in the two units that papers use"
    return perplexity(loss), bits_per_byte(loss, tokens / n_bytes)


def report_inputs(seed):
    "A loss, tokens, bytes: like GPT-2's, one byte per token, random, and a loss of zero"
    rng = np.random.default_rng(seed)
    return [(3.3, 1000, 4400), (math.log(256), 50, 50),
            (float(rng.uniform(1, 6)), 100, int(rng.integers(200, 500))), (0.0, 10, 37)]

register(Exercise(
    "loss.report", "04", "The tuple (perplexity, bits per byte) of a loss in nats per token, given "
    "the number of tokens and of bytes in the text.", inputs=report_inputs,
    oracle=lambda loss, tokens, n_bytes: (2**(loss / math.log(2)),
                                          loss * tokens / n_bytes * math.log2(math.e)),
    package="gpt2_course.exercises.loss:report",
    wrongs=(
        Wrong("the perplexity is 2 to the power of nats",
              lambda loss, tokens, n_bytes: (2**loss, bits_per_byte(loss, tokens / n_bytes)),
              "A loss in bits needs a power of 2, a loss in nats a power of e. The perplexity "
              "looks far better than it is."),
        Wrong("the perplexity is e to the power of bits",
              lambda loss, tokens, n_bytes: (math.exp(loss / math.log(2)),
                                             bits_per_byte(loss, tokens / n_bytes)),
              "The loss is in nats already, so exp(loss) is the perplexity. A loss in bits needs a "
              "power of 2."),
        Wrong("the perplexity is per byte, not per token",
              lambda loss, tokens, n_bytes: (math.exp(loss * tokens / n_bytes),
                                             bits_per_byte(loss, tokens / n_bytes)),
              "Perplexity counts the tokens that the model hesitates between, so it is exp of the "
              "loss per token; only the second number is per byte."),
        Wrong("tokens and bytes are swapped",
              lambda loss, tokens, n_bytes: (math.exp(loss), bits_per_byte(loss, n_bytes / tokens)),
              "The surprise of all tokens is spread over the bytes, of which there are more, so "
              "there are fewer bits per byte than bits per token."),
        Wrong("nats are not turned into bits",
              lambda loss, tokens, n_bytes: (math.exp(loss), loss * tokens / n_bytes),
              "One nat is 1.44 bits; without ln 2 the model seems to compress better than it "
              "does."),
        Wrong("nats are multiplied by ln 2, not divided",
              lambda loss, tokens, n_bytes: (math.exp(loss),
                                             loss * tokens / n_bytes * math.log(2)),
              "A bit is smaller than a nat, 0.69 of it, so there are more bits than nats: divide "
              "by ln 2."),
        Wrong("the second number is in bits per token, not per byte",
              lambda loss, tokens, n_bytes: (math.exp(loss), loss / math.log(2)),
              "A tokenizer with longer tokens would look worse, though it encodes the same text."),
        Wrong("the two numbers are in the wrong order",
              lambda loss, tokens, n_bytes: (bits_per_byte(loss, tokens / n_bytes),
                                             math.exp(loss)),
              "The task asks for the perplexity first. Unpacked in this order, the tuple reads as "
              "a perplexity of 1 and 27 bits per byte.")),
    hints=("The two functions are in gpt2_course.evals; only one of them needs the tokens.",
           "bits_per_byte wants tokens per byte: less than one, for any tokenizer that joins "
           "bytes.",
           "perplexity(loss), bits_per_byte(loss, tokens / n_bytes)")))


# --- open challenge: compress Macbeth without having read anything ---

def code_length(
    reader,        # function of V -> step; step(token or None) -> (V,) logits of the next token
    seconds:float, # for the whole text
) -> float:        # bits per byte
    "The code length of Macbeth, for a model that learns while it reads"
    text = packaged("shakespeare/macbeth.txt").read_text(encoding="utf-8")
    tok = CharTokenizer(text)
    ids, V, began, total = tok.encode(text), tok.n_vocab, time.perf_counter(), 0.0
    step = reader(V)
    if not callable(step):
        raise ValueError(f"your function has to return a function, not {step!r:.60}")
    for i, (before, token) in enumerate(zip([None, *ids], ids)):
        found = step(before)
        if found is None: raise ValueError("step returned nothing: is its return missing?")
        logits = np.array(torch.as_tensor(found).detach(), dtype=np.float64)
        if logits.shape != (V,):
            raise ValueError(f"step has to return {V} logits; the shape is {logits.shape}")
        if not np.isfinite(logits).all():
            raise ValueError(f"the logits for character {i} are not all finite")
        if time.perf_counter() - began > seconds:
            raise ValueError(f"only {i:,} of {len(ids):,} characters were read in {seconds:g} s")
        top = logits.max()
        total += top + math.log(np.exp(logits - top).sum()) - logits[token]
    return bits_per_byte(total / len(ids), len(ids) / len(text.encode()))

def three_counts(
    V:int, # size of the vocabulary
):         # -> function of the last token (None at the beginning) -> (V,) logits
    "Counts of single characters, pairs and triples so far, mixed with fixed weights"
    tables, past = [{}, {}, {}], []
    def step(token):
        if token is not None: past.append(token)
        p = np.full(V, 1 / V)
        for n, seen in enumerate(tables):
            if len(past) > n: seen.setdefault(tuple(past[-n - 1:-1]), np.zeros(V))[token] += 1
            counts = seen.get(tuple(past[len(past) - n:]), 0) # what followed the last n so far
            p = (counts + 3 * p) / (np.sum(counts) + 3)
        return np.log(p)
    return step

set_challenge(Challenge(
    "loss.compress", "04", "Compress Macbeth without having read anything before. Your function "
    "gets the size V of the vocabulary and returns a function, step, which is called once for each "
    "character of the play: step(token) gets the character just read (an integer; None at the "
    "beginning) and returns the (V,) logits of the next one.",
    score=code_length, plain=three_counts, to_beat=2.943, unit="bits per byte",
    measured="two cores of an AMD EPYC, one thread, November 2026", fixed=True))
