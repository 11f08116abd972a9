"""The catalogue of chapter 22: the window of an ending, its log-probability, three ways to choose
and a comparison with its error, each with an independent oracle and its classic mistakes."""

import math

import numpy as np
import torch
from torch import Tensor

from ..check import Exercise, Wrong, register


def texts(
    seed:int,
) -> list: # of (context, ending, block_size)
    "Short, an exact fit, a long context, an ending longer than the block"
    rng = np.random.default_rng(seed)
    ids = lambda n: [int(i) for i in rng.integers(1, 1000, n)]
    return [(ids(3), ids(2), 8), (ids(6), ids(3), 8), (ids(20 + seed % 5), ids(4), 8),
            (ids(2), ids(12), 8)]

def window_backwards(context, ending, block_size):
    "The last input is the token before the last: collect from the end"
    tokens, asked = [], 0
    for i, t in enumerate(reversed([*context, *ending])):
        if len(tokens) == block_size + 1: break
        tokens.insert(0, t)
        asked += i < len(ending) and i < block_size
    return tokens, asked

register(Exercise(
    "evaluation.window", "22", "From context, ending and block_size: the tokens that are used (one "
    "more than the model reads), and how many of the last ones are asked for.",
    inputs=texts, oracle=window_backwards, package="gpt2_course.evals:window",
    wrongs=(
        Wrong("the end is cut off, not the beginning",
              lambda c, e, T: ((c + e)[:T + 1], min(len(e), T)),
              "The ending is gone and the last words of the context are scored in its place: four "
              "nearly equal numbers, and no error."),
        Wrong("one token of context is thrown away", lambda c, e, T: ((c + e)[-T:], min(len(e), T)),
              "The last token is predicted, not read: block_size inputs need block_size + 1 "
              "tokens."),
        Wrong("the context is cut to the block, then the ending is added",
              lambda c, e, T: (c[-T:] + e, len(e)),
              "The row is longer than the block: positions run out, and a careful model refuses "
              "it."),
        Wrong("the whole ending is asked for, even where it does not fit",
              lambda c, e, T: ((c + e)[-T - 1:], len(e)),
              "More tokens are asked for than there are predictions: the sum is divided by a "
              "length that was never scored.")),
    hints=("Join context and ending, then cut once.",
           "A negative slice keeps the end: block_size inputs and one token to predict after them.",
           "(context + ending)[-block_size - 1:], min(len(ending), block_size)")))


def ending_logprob(
    logits:Tensor, # (T, V) after each of the T tokens
    ids:Tensor,    # (T,) context and ending
    n:int,         # tokens of the ending
) -> float:
    "Sum of the log-probabilities of the last n tokens, each given all before it"
    logp = logits[-n - 1:-1].double().log_softmax(-1)                      # (n, V)
    return float(logp.gather(1, ids[-n:, None]).sum())


def readings(
    seed:int,
) -> list: # of (logits, ids, n)
    "An ending of several tokens, of one, and of all but the first token; logits far from zero"
    g = torch.Generator().manual_seed(seed)
    def new(T, V, n, at=0.0):
        return torch.randn(T, V, generator=g) * 2 + at, torch.randint(V, (T,), generator=g), n
    return [new(9, 7, 4), new(5, 11, 1, -5.0), new(6, 5, 5), new(12, 30, 3, 5.0)]

def logprob_numpy(logits, ids, n):
    "Token by token in float64"
    z, total = logits.double().numpy(), 0.0
    for t in range(len(ids) - n, len(ids)):
        p = np.exp(z[t - 1] - z[t - 1].max())
        total += math.log(p[int(ids[t])] / p.sum())
    return total

def of_all(logits, ids): return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0] # (T,)
def shifted(logits, ids): return of_all(logits[:-1], ids[1:])                        # (T - 1,)

register(Exercise(
    "evaluation.ending_logprob", "22", "From (T, V) logits, (T,) ids and n: the summed "
    "log-probability of the last n ids, as a number.",
    inputs=readings, oracle=logprob_numpy,
    package="gpt2_course.exercises.evaluation:ending_logprob",
    wrongs=(
        Wrong("each token is scored by the logits of its own position",
              lambda z, ids, n: float(of_all(z, ids)[-n:].sum()),
              "Logits at t predict token t + 1. Scored so, the model seems to know nothing, and "
              "accuracy stays near chance for ever."),
        Wrong("the context is counted too", lambda z, ids, n: float(shifted(z, ids).sum()),
              "It adds the same to all endings, so the sum still chooses well; divided by length "
              "it no longer does."),
        Wrong("the mean is taken, not the sum",
              lambda z, ids, n: float(shifted(z, ids)[-n:].mean()),
              "That is acc_norm_token already: whoever divides again divides twice."),
        Wrong("the logits are added without a softmax",
              lambda z, ids, n: float(z[-n - 1:-1].gather(1, ids[-n:, None]).sum()),
              "Every position has another constant in its logits; only the softmax takes it out."),
        Wrong("probabilities are added, not their logarithms",
              lambda z, ids, n: float(shifted(z, ids)[-n:].exp().sum()),
              "One easy token outweighs a word that is impossible; the product of probabilities "
              "is what an ending has.")),
    hints=("Logits at position t say what comes at t + 1.",
           "So the rows are logits[-n - 1:-1], the targets ids[-n:].",
           "logits[-n - 1:-1].log_softmax(-1).gather(1, ids[-n:, None]).sum()")))


def scored(
    seed:int,
) -> list: # of (logp, tokens, chars)
    "Two tests in which the ways disagree, their endings shuffled, and random ones"
    rng, out = np.random.default_rng(seed), []
    for rows in ([(-8.0, 4, 12), (-10.0, 8, 14), (-12.0, 6, 40)], [(-8.0, 10, 40), (-9.0, 4, 20)]):
        logp, tokens, chars = np.array(rows)[rng.permutation(len(rows))].T
        out.append((logp, tokens.astype(np.int64), chars.astype(np.int64)))
    for E in (4, 8, 8):
        tokens = rng.permutation(np.arange(5, 9 + E))[:E]
        chars = np.round(tokens * rng.uniform(2.5, 6.5, E)).astype(np.int64)
        out.append((np.round(-tokens * rng.uniform(0.5, 3.5, E), 3), tokens, chars))
    return out

def pick_fractions(logp, tokens, chars):
    "With fractions, compared one by one"
    from fractions import Fraction
    def best(lengths):
        score = [Fraction(float(p)) / int(n) for p, n in zip(logp, lengths)]
        return score.index(max(score))
    return np.array([best([1] * len(logp)), best(tokens), best(chars)])

register(Exercise(
    "evaluation.pick", "22", "From log-probabilities, tokens and characters of the endings: an "
    "array of the three answers by sum, by token and by character.",
    inputs=scored, oracle=pick_fractions, package="gpt2_course.evals:pick",
    wrongs=(
        Wrong("the smallest is chosen, as if these were losses",
              lambda p, n, c: np.array([s.argmin() for s in (p, p / n, p / c)]),
              "The model's least likely ending is taken for its answer: accuracy falls below "
              "chance, the better the model the lower."),
        Wrong("tokens and characters are exchanged",
              lambda p, n, c: np.array([s.argmax() for s in (p, p / c, p / n)]),
              "Each number is compared with someone else's under a name that is not its own."),
        Wrong("probabilities are divided, not their logarithms",
              lambda p, n, c: np.array([s.argmax() for s in (p, np.exp(p) / n, np.exp(p) / c)]),
              "A probability falls exponentially with length; a division by 10 does not undo it. "
              "All three ways then nearly always agree with the sum."),
        Wrong("the lengths are multiplied",
              lambda p, n, c: np.array([s.argmax() for s in (p, p * n, p * c)]),
              "Log-probabilities are negative: times the length, a long ending is punished "
              "twice.")),
    hints=("The sum is the first way; the other two divide it.",
           "Log-probabilities are negative, and the largest is the likeliest.",
           "np.array([s.argmax() for s in (logp, logp / tokens, logp / chars)])")))


def compare(
    a:np.ndarray, # (n,) bool: which questions the first model gets right
    b:np.ndarray, # (n,) the second model, same questions
) -> tuple[float, float]: # accuracy of b less that of a, its standard error
    "A paired comparison: what both get right or wrong says nothing about the difference"
    d = b.astype(float) - a.astype(float)
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def exams(
    seed:int,
) -> list: # of (a, b)
    "Two models that often agree, two that do not, and one against itself"
    rng = np.random.default_rng(seed)
    a, c = rng.random(200) < 0.35, rng.random(60) < 0.5
    return [(a, np.where(rng.random(200) < 0.2, rng.random(200) < 0.5, a)),
            (c, rng.random(60) < 0.6), (a, a.copy())]

def compare_counts(a, b):
    "With the questions that only one of the two gets right (McNemar 1947)"
    n, won, lost = len(a), int((b & ~a).sum()), int((a & ~b).sum())
    mean = (won - lost) / n
    return mean, math.sqrt(((won + lost) / n - mean**2) / (n - 1))

def apart(a, b): # as if the questions were different ones
    errors = [math.sqrt(x.mean() * (1 - x.mean()) / (len(x) - 1)) for x in (a, b)]
    return float(b.mean() - a.mean()), math.hypot(*errors)

def spread(scale, only=False): # a mistaken error of the mean
    def fn(a, b):
        d = b.astype(float) - a
        if only: d = d[d != 0]
        s = d.std(ddof=1) if len(d) > 1 else 0.0
        return float(b.mean() - a.mean()), float(s / scale(len(d)) if len(d) else 0.0)
    return fn

register(Exercise(
    "evaluation.compare", "22", "From two arrays of bools, (n,) each: the accuracy of the second "
    "less that of the first, and the standard error of this difference.",
    inputs=exams, oracle=compare_counts, package="gpt2_course.exercises.evaluation:compare",
    wrongs=(
        Wrong("the two are treated as if they had seen different questions", apart,
              "Questions that are easy or hard for both cancel in the difference. Without that the "
              "error comes out too large, and real gains look like noise."),
        Wrong("the standard deviation is not divided by the root of n", spread(lambda n: 1.0),
              "That is the spread of one question, not of the mean of n: no test would ever be "
              "large enough."),
        Wrong("it is divided by n, not by its root", spread(lambda n: n),
              "The error looks tiny and every difference a discovery. Four times the questions "
              "halve the error, they do not quarter it."),
        Wrong("questions with equal answers are left out", spread(math.sqrt, only=True),
              "They are evidence that the two are close, and belong into n.")),
    hints=("Take the difference for each question first: -1, 0 or 1.",
           "Its mean is the difference of the accuracies; a mean's error is the standard deviation "
           "over the root of n.",
           "d.mean(), d.std(ddof=1) / math.sqrt(len(d)), with d = b.astype(float) - a")))
