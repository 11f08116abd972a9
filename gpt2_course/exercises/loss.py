"""The catalogue of chapter 04 and its answers in NumPy: softmax, cross-entropy, its gradient,
perplexity and bits per byte, with PyTorch as the oracle, and the classic mistakes with their
names."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register
from ..evals import bits_per_byte, perplexity


def softmax(
    x:np.ndarray, # (…, V) logits
) -> np.ndarray:  # (…, V) probabilities: each row sums to one
    "exp and normalise; the largest logit is subtracted first, so that nothing overflows"
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_inputs(seed):
    "Logits of (N, V): ordinary, one row, and rows far above and far below zero"
    rng = np.random.default_rng(seed)
    new = lambda *shape: rng.normal(size=shape) * 2
    return [(new(4, 6),), (new(1, 5),), (new(3, 3) + np.array([[2000.], [0.], [-2000.]]),)]

def softmax_torch(x): return F.softmax(torch.tensor(x, dtype=torch.float64), -1).numpy()

def exp_over(x, total):
    "A mistaken softmax: exponentials over another total, without warnings"
    with np.errstate(all="ignore"):
        e = np.exp(x)
        return e / total(e)

def global_max(x):
    "One maximum for the whole table"
    return exp_over(x - x.max(), lambda e: e.sum(-1, keepdims=True))

def whole_table(x):
    "One maximum and one sum for the whole table"
    return exp_over(x - x.max(), lambda e: e.sum())

register(Exercise(
    "loss.softmax", "04", "The softmax of an array of logits over its last axis, also for very "
    "large ones.", inputs=softmax_inputs, oracle=softmax_torch,
    package="gpt2_course.exercises.loss:softmax",
    wrongs=(
        Wrong("the maximum is not subtracted",
              lambda x: exp_over(x, lambda e: e.sum(-1, keepdims=True)),
              "exp overflows: 88 is the end in fp32, 11 in fp16. Infinity over infinity is NaN, "
              "and the run is lost."),
        Wrong("it is normalised over the wrong axis",
              lambda x: exp_over(x - x.max(0), lambda e: e.sum(0)),
              "Columns sum to one instead of rows: tokens compete over positions, not over the "
              "vocabulary."),
        Wrong("one maximum is subtracted from all rows", global_max,
              "A row far below the largest underflows to 0/0. Each row needs its own maximum."),
        Wrong("the axis is forgotten: maximum and sum are those of the whole table", whole_table,
              "All rows together then sum to one, so each position gets too little. Give both "
              "the axis -1, and keepdims=True."),
        Wrong("there is no exponential", lambda x: x / x.sum(-1, keepdims=True),
              "Logits may be negative, and then so are these probabilities: their logarithm is "
              "NaN.")),
    hints=("exp makes all numbers positive; a division by their sum makes them shares.",
           "Softmax does not change when a constant is taken from a row. Which one makes the "
           "largest exponent 0?",
           "e = np.exp(x - x.max(-1, keepdims=True)), then divide by its sum, the same way.")))


def cross_entropy(
    logits:np.ndarray,  # (N, V)
    targets:np.ndarray, # (N,) the right tokens; -1: this position does not count
) -> float:             # nats a token
    "Mean over the tokens that count of log-sum-exp(logits) - logit of the target"
    real = targets != -1
    x, y = logits[real], targets[real]
    top = x.max(-1)
    lse = top + np.log(np.exp(x - top[:, None]).sum(-1))
    return float((lse - x[np.arange(len(y)), y]).mean())


def loss_inputs(seed):
    "Logits and targets: ordinary, some targets ignored, one token, a hopeless and a sure one"
    rng = np.random.default_rng(seed)
    new = lambda N, V: (rng.normal(size=(N, V)) * 2, rng.integers(0, V, N))
    some, y = new(6, 5)
    sure = rng.normal(size=(3, 4)) + 900 * np.eye(4)[[0, 1, 2]]
    return [new(7, 5), (some, np.where([0, 1, 0, 0, 1, 0], -1, y)), new(1, 3),
            (sure, np.array([0, 3, -1]))]

def loss_torch(logits, targets, reduction="mean", ignore=-1):
    "PyTorch's cross-entropy in float64"
    x, y = torch.tensor(logits, dtype=torch.float64), torch.tensor(targets)
    return float(F.cross_entropy(x, y, ignore_index=ignore, reduction=reduction))

def log_of_softmax(logits, targets):
    "Two steps, of which the first rounds small probabilities to zero"
    p = softmax(logits)[targets != -1]
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(p)), targets[targets != -1]]).mean())

register(Exercise(
    "loss.cross_entropy", "04", "The mean cross-entropy, in nats, of (N, V) logits and (N,) "
    "targets; targets of -1 do not count.", inputs=loss_inputs, oracle=loss_torch,
    package="gpt2_course.exercises.loss:cross_entropy",
    wrongs=(
        Wrong("softmax twice: probabilities are treated as logits",
              lambda x, y: loss_torch(softmax(x), y),
              "F.cross_entropy applies the softmax itself. Probabilities lie between 0 and 1, so "
              "with a large vocabulary the loss can never fall far below ln V."),
        Wrong("the losses are summed, not averaged",
              lambda x, y: loss_torch(x, y, reduction="sum"),
              "The loss, and so the gradient, grows with the batch: the learning rate means "
              "something else for every batch size."),
        Wrong("ignored targets are counted in the denominator",
              lambda x, y: loss_torch(x, y, reduction="sum") / len(y),
              "Padding then makes every model look better; divide by the tokens that count."),
        Wrong("a target of -1 picks the last token",
              lambda x, y: loss_torch(x, np.where(y < 0, x.shape[1] - 1, y)),
              "In NumPy index -1 is the last column: padding is trained as if it were a token, "
              "without any error."),
        Wrong("the logarithm is taken of rounded probabilities", log_of_softmax,
              "The softmax of a hopeless token is 0 in floating point, its logarithm infinite. "
              "Take log-sum-exp less the logit instead.")),
    hints=("-log(exp(x_y) / sum(exp(x))) = log(sum(exp(x))) - x_y: no division is left.",
           "Subtract each row's maximum before exp and add it again after log.",
           "Keep the rows where targets != -1 first; x[np.arange(len(y)), y] picks the right "
           "logits.")))


def gradient(
    logits:np.ndarray,  # (N, V)
    targets:np.ndarray, # (N,) the right tokens; -1: this position does not count
) -> np.ndarray:        # (N, V) slope of the mean loss along each logit
    "(p - y) / n, where n positions count; zero where the target is -1"
    real = targets != -1
    g = softmax(logits)
    g[np.arange(len(g))[real], targets[real]] -= 1
    return g * real[:, None] / real.sum()


def gradient_torch(logits, targets, reduction="mean"):
    "By backpropagation"
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(x, torch.tensor(targets), ignore_index=-1, reduction=reduction).backward()
    return x.grad.numpy()

register(Exercise(
    "loss.gradient", "04", "The gradient of the mean cross-entropy with respect to the (N, V) "
    "logits; targets of -1 do not count.", inputs=loss_inputs, oracle=gradient_torch,
    package="gpt2_course.exercises.loss:gradient",
    wrongs=(
        Wrong("the sign is turned: y - p", lambda x, y: -gradient_torch(x, y),
              "Descent becomes ascent: the loss rises from the first step on."),
        Wrong("it is not divided by the number of tokens",
              lambda x, y: gradient_torch(x, y, "sum"),
              "This is the gradient of the sum: with N tokens every step is N times too long."),
        Wrong("it is divided by all positions, ignored ones too",
              lambda x, y: gradient_torch(x, y, "sum") / len(y),
              "The mean was taken over the tokens that count; steps shrink wherever there is "
              "padding."),
        Wrong("ignored positions keep a gradient",
              lambda x, y: (softmax(x) - np.eye(x.shape[1])[y] * (y != -1)[:, None])
              / (y != -1).sum(),
              "Their targets are nothing, but p pushes all their logits down; these rows must be "
              "zero.")),
    hints=("The slope of log-sum-exp along logit j is p_j; the target's own logit adds -1.",
           "So: the softmax, less one at the target. Divide by the number of tokens that count.",
           "g = softmax(x); g[rows, targets] -= 1 for counted rows; zero the others.")))


def report(
    loss:float,  # nats a token
    tokens:int,  # of the text
    n_bytes:int, # of the same text in UTF-8
) -> tuple[float, float]: # perplexity, bits per byte
    "A loss in the two units that papers use"
    return perplexity(loss), bits_per_byte(loss, tokens / n_bytes)


def report_inputs(seed):
    "A loss, tokens, bytes: like GPT-2's, one byte a token, random"
    rng = np.random.default_rng(seed)
    return [(3.3, 1000, 4400), (math.log(256), 50, 50),
            (float(rng.uniform(1, 6)), 100, int(rng.integers(200, 500)))]

register(Exercise(
    "loss.report", "04", "The tuple (perplexity, bits per byte) of a loss in nats a token over a "
    "text of so many tokens and bytes.", inputs=report_inputs,
    oracle=lambda loss, tokens, n_bytes: (2**(loss / math.log(2)),
                                          loss * tokens / n_bytes * math.log2(math.e)),
    package="gpt2_course.exercises.loss:report",
    wrongs=(
        Wrong("the perplexity is 2 to the power of nats",
              lambda loss, tokens, n_bytes: (2**loss, bits_per_byte(loss, tokens / n_bytes)),
              "2 belongs to bits, e to nats. The perplexity looks far better than it is."),
        Wrong("tokens and bytes are exchanged",
              lambda loss, tokens, n_bytes: (math.exp(loss), bits_per_byte(loss, n_bytes / tokens)),
              "The surprise of all tokens is shared among the bytes, of which there are more: "
              "bits per byte are fewer than bits a token."),
        Wrong("nats are not turned into bits",
              lambda loss, tokens, n_bytes: (math.exp(loss), loss * tokens / n_bytes),
              "One nat is 1.44 bits; without ln 2 the model seems to compress better than it "
              "does."),
        Wrong("these are bits a token, not bits a byte",
              lambda loss, tokens, n_bytes: (math.exp(loss), loss / math.log(2)),
              "A tokenizer with longer tokens would look worse, though it says the same text.")),
    hints=("The two functions are in gpt2_course.evals; only one of them needs the tokens.",
           "bits_per_byte wants tokens per byte: less than one, for any tokenizer that joins "
           "bytes.",
           "perplexity(loss), bits_per_byte(loss, tokens / n_bytes)")))
