"""The catalogue of chapter 22: the window of an ending, its log-probability, three ways to
choose and a comparison with its standard error, each with an independent oracle and its classic
mistakes; and the challenge of deciding early."""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register


def texts(
    seed:int,
) -> list: # of (context, ending, block_size)
    "Short, an exact fit, a long context, endings as long as the block and longer"
    rng = np.random.default_rng(seed)
    ids = lambda n: [int(i) for i in rng.integers(1, 1000, n)]
    return [(ids(3), ids(2), 8), (ids(6), ids(3), 8), (ids(int(rng.integers(20, 25))), ids(4), 5),
            (ids(2), ids(12), 8), (ids(7), ids(3), 8), (ids(3), ids(8), 8), (ids(1), ids(1), 1)]

def window_backwards(context, ending, block_size):
    "The last input is the token before the last: collect from the end"
    tokens, asked = [], 0
    for i, t in enumerate(reversed([*context, *ending])):
        if len(tokens) == block_size + 1: break
        tokens.insert(0, t)
        asked += i < len(ending) and i < block_size
    return tokens, asked

def ending_alone(c, e, T): # no context at all where both do not fit
    tokens = c + e if len(c + e) <= T + 1 else e[-T - 1:]
    return tokens, min(len(e), T)

register(Exercise(
    "evaluation.window", "22", "From context, ending and block_size: the tokens that are used (one "
    "more than the model reads), and how many of the last ones are scored.",
    inputs=texts, oracle=window_backwards, package="gpt2_course.evals:window",
    wrongs=(
        Wrong("the end is cut off, not the beginning",
              lambda c, e, T: ((c + e)[:T + 1], min(len(e), T)),
              "The ending is gone and the last words of the context are scored in its place: four "
              "nearly equal scores, and no error message."),
        Wrong("one token of context is dropped", lambda c, e, T: ((c + e)[-T:], min(len(e), T)),
              "The last token is predicted, not read: block_size inputs need block_size + 1 "
              "tokens."),
        Wrong("the last token is left out, since it is never read",
              lambda c, e, T: ((c + e)[-T - 1:-1], min(len(e), T)),
              "It is the last one to be predicted: otherwise the ending is scored without its last "
              "token, and every scored position is one too far to the left."),
        Wrong("nothing is cut", lambda c, e, T: (c + e, len(e)),
              "The row is longer than the block: there are no positions for its end, and a careful "
              "model refuses it."),
        Wrong("the context is cut to the block, then the ending is added",
              lambda c, e, T: (c[-T:] + e, len(e)),
              "Cut after joining: this row is longer than the block by the whole ending."),
        Wrong("the whole context is dropped where both do not fit", ending_alone,
              "As much of it as fits should stay: its last words matter most for the ending."),
        Wrong("the whole ending is scored, even where it does not fit",
              lambda c, e, T: ((c + e)[-T - 1:], len(e)),
              "More tokens are to be scored than there are predictions: the sum is divided by a "
              "length that was never scored."),
        Wrong("every prediction is scored",
              lambda c, e, T: ((c + e)[-T - 1:], min(len(c + e) - 1, T)),
              "The tokens of the context are predicted too, but only those of the ending count."),
        Wrong("one more token is scored than can be predicted",
              lambda c, e, T: ((c + e)[-T - 1:], min(len(e), T + 1)),
              "Of block_size + 1 tokens the first has nothing before it: there are block_size "
              "predictions.")),
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
    return logp.gather(1, ids[-n:, None]).sum().item()


def readings(
    seed:int,
) -> list: # of (logits, ids, n)
    "Several tokens, one, all but the first; logits far from zero, huge ones, and all equal"
    g = torch.Generator().manual_seed(seed)
    def new(T, V, n, at=0.0):
        return torch.randn(T, V, generator=g) * 2 + at, torch.randint(V, (T,), generator=g), n
    z, ids, n = new(6, 5, 3)
    z[3] = 1000.0          # equal: every token has the probability 1 / V
    z[4] = 1000.0          # sure of anything but the right one
    z[4, ids[5]] = -1000.0
    return [new(9, 7, 4), new(5, 11, 1, -5.0), new(6, 5, 5), new(12, 30, 3, 5.0), (z, ids, n)]

def logprob_numpy(logits, ids, n):
    "Token by token in float64"
    z, total = logits.double().numpy(), 0.0
    for t in range(len(ids) - n, len(ids)):
        top = z[t - 1].max()
        total += z[t - 1, int(ids[t])] - top - math.log(np.exp(z[t - 1] - top).sum())
    return total

def of_all(logits, ids): return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0] # (T,)
def shifted(logits, ids): return of_all(logits[:-1], ids[1:])                        # (T - 1,)

def picked(change): # sum over the ending of what is made of the logits first
    return lambda z, ids, n: change(z)[-n - 1:-1].gather(1, ids[-n:, None]).sum().item()

register(Exercise(
    "evaluation.ending_logprob", "22", "From (T, V) logits, (T,) ids and n: the summed "
    "log-probability of the last n ids, as a number.",
    inputs=readings, oracle=logprob_numpy,
    package="gpt2_course.exercises.evaluation:ending_logprob",
    excused={"row": "the first token has nothing before it, so a text has two tokens or more",
             "batch": "the task is the log-probability of one ending"},
    wrongs=(
        Wrong("each token is scored by the logits of its own position",
              lambda z, ids, n: float(of_all(z, ids)[-n:].sum()),
              "Logits at t predict token t + 1. Scored this way, the model seems to know nothing, "
              "and accuracy stays near chance."),
        Wrong("the context is counted too", lambda z, ids, n: float(shifted(z, ids).sum()),
              "The context adds the same amount to all endings, so the sum still chooses well; "
              "divided by length it no longer does."),
        Wrong("the first token of the ending is not counted",
              lambda z, ids, n: float(shifted(z, ids)[len(ids) - n:].sum()),
              "Its logits are one position before the ending, at the context's last token. A slice "
              "from -n on misses them."),
        Wrong("the mean is taken, not the sum",
              lambda z, ids, n: float(shifted(z, ids)[-n:].mean()),
              "That is already the score of acc_norm_token: a later division by the length would "
              "be the second one."),
        Wrong("the loss is returned, which has the other sign",
              lambda z, ids, n: float(-shifted(z, ids)[-n:].sum()),
              "cross_entropy gives minus the log-probability. The largest loss would be chosen: "
              "the least likely ending."),
        Wrong("the result is in bits, not in nats",
              lambda z, ids, n: float(shifted(z, ids)[-n:].sum()) / math.log(2),
              "Here, as everywhere in the course, log is the natural logarithm; base 2 makes each "
              "value 1.44 times as large."),
        Wrong("the softmax runs over the positions", picked(lambda z: z.log_softmax(0)),
              "Each position has a distribution over the vocabulary, the last dimension: dim=-1. "
              "With dim=0 even tokens that come later change the result."),
        Wrong("the logits are added without a softmax", picked(lambda z: z),
              "The logits of each position include a constant of their own, which only the softmax "
              "removes."),
        Wrong("the logarithm is taken of the softmax",
              picked(lambda z: z.double().softmax(-1).log()),
              "A probability below the smallest float becomes 0, and its logarithm minus infinity. "
              "log_softmax, or logsumexp, never forms the tiny probability."),
        Wrong("exp is taken of the logits themselves",
              picked(lambda z: (z.double().exp() / z.double().exp().sum(-1, keepdim=True)).log()),
              "exp(1000) is infinite, and infinity over infinity is NaN. Subtract each row's "
              "maximum first, or use log_softmax."),
        Wrong("probabilities are added, not their logarithms",
              lambda z, ids, n: float(shifted(z, ids)[-n:].exp().sum()),
              "One easy token then outweighs an impossible one; the probability of an ending is "
              "the product of its tokens' probabilities.")),
    hints=("Logits at position t predict the token at t + 1.",
           "So the rows are logits[-n - 1:-1], the targets ids[-n:].",
           "logits[-n - 1:-1].log_softmax(-1).gather(1, ids[-n:, None]).sum()")))


def clear(score): # whether the best of (E,) scores stays the best however they are rounded
    second, best = np.sort(score)[-2:]
    return best - second > 1e-3 * abs(best)

def scored(
    seed:int,
) -> list: # of (logp, tokens, chars)
    "Questions on which the three ways disagree, their endings shuffled, and random ones"
    rng, out = np.random.default_rng(seed), []
    for rows in ([(-8.0, 4, 12), (-10.0, 8, 14), (-12.0, 6, 40)], [(-8.0, 10, 40), (-9.0, 4, 20)],
                 [(-8.0, 10, 40), (-8.1, 4, 20)], [(-4.0, 2, 20), (-12.0, 10, 40)],
                 [(-1.0, 6, 30), (-9.0, 3, 12)], [(-2400.0, 900, 4100), (-2350.0, 700, 2900)]):
        logp, tokens, chars = np.array(rows)[rng.permutation(len(rows))].T
        out.append((logp, tokens.astype(np.int64), chars.astype(np.int64)))
    for E in (4, 8, 8):
        done = False
        while not done:
            tokens = rng.permutation(np.arange(5, 9 + E))[:E]
            chars = np.round(tokens * rng.uniform(2.5, 6.5, E)).astype(np.int64)
            logp = np.round(-tokens * rng.uniform(0.5, 3.5, E), 3)
            done = clear(logp) and clear(logp / tokens) and clear(logp / chars)
        out.append((logp, tokens, chars))
    return out

def pick_fractions(logp, tokens, chars):
    "With fractions, compared one by one"
    def best(lengths):
        score = [Fraction(float(p)) / int(n) for p, n in zip(logp, lengths)]
        return score.index(max(score))
    return np.array([best([1] * len(logp)), best(tokens), best(chars)])

def by_scores(*ways): # positions of the largest of three scores
    return lambda p, n, c: np.array([np.argmax(way(p, n, c)) for way in ways])

def summed(p, n, c): return p
def by_token(p, n, c): return p / n
def by_character(p, n, c): return p / c

register(Exercise(
    "evaluation.pick", "22", "From the endings' log-probabilities and their numbers of tokens and "
    "characters: an array of the three answers by sum, by token and by character (positions, from "
    "0).",
    inputs=scored, oracle=pick_fractions, package="gpt2_course.evals:pick",
    excused={"equal": "of endings that tie either may be chosen",
             "batch": "the task is one question; its endings are a row"},
    wrongs=(
        Wrong("the smallest is chosen, as if these were losses",
              lambda p, n, c: np.array([s.argmin() for s in (p, p / n, p / c)]),
              "The model's least likely ending is taken for its answer: accuracy falls below "
              "chance, and the better the model, the lower it gets."),
        Wrong("tokens and characters are swapped", by_scores(summed, by_character, by_token),
              "Each accuracy is reported under the other's name, and compared with published "
              "values of the wrong kind."),
        Wrong("the sum decides all three", by_scores(summed, summed, summed),
              "Without division all three favour short endings, and there is nothing to compare."),
        Wrong("the sum is divided by both lengths at once",
              by_scores(summed, by_token, lambda p, n, c: p / n / c),
              "acc_norm_char divides the sum by the characters alone. When it is divided twice, "
              "long endings win."),
        Wrong("probabilities are divided, not their logarithms",
              by_scores(summed, lambda p, n, c: np.exp(p) / n, lambda p, n, c: np.exp(p) / c),
              "A probability falls exponentially with length; dividing by 10 does not undo that. "
              "All three ways then nearly always agree with the sum."),
        Wrong("the lengths are multiplied",
              by_scores(summed, lambda p, n, c: p * n, lambda p, n, c: p * c),
              "Log-probabilities are negative: multiplied by the length, they penalise a long "
              "ending twice."),
        Wrong("the best scores are returned, not their positions",
              lambda p, n, c: np.array([s.max() for s in (p, p / n, p / c)]),
              "The answer is which ending it is, to be compared with the label: argmax, not max."),
        Wrong("the endings are numbered from 1",
              lambda p, n, c: np.array([s.argmax() + 1 for s in (p, p / n, p / c)]),
              "Labels count from 0. With numbers from 1, every answer is compared as if it were "
              "the next ending.")),
    hints=("The sum is the first way; the other two divide it.",
           "Log-probabilities are negative, and the largest is the likeliest.",
           "np.array([s.argmax() for s in (logp, logp / tokens, logp / chars)])")))


def compare(
    a:np.ndarray, # (n,) bool: which questions the first model gets right
    b:np.ndarray, # (n,) the second model, same questions
) -> tuple[float, float]: # accuracy of b minus that of a, its standard error
    "A paired comparison: what both get right or wrong says nothing about the difference"
    d = b.astype(float) - a.astype(float)
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def exam(rng, both, won, lost, neither): # questions in any order; `won`: only the second is right
    order = rng.permutation(both + won + lost + neither)
    a = np.repeat([True, False, True, False], [both, won, lost, neither])[order]
    return a, np.repeat([True, True, False, False], [both, won, lost, neither])[order]

def exams(
    seed:int,
) -> list: # of (a, b)
    "Two models that often agree, one that is far better, one against itself, and random ones"
    rng = np.random.default_rng(seed)
    a = rng.random(200) < 0.35
    return [exam(rng, 60, 24, 10, 106), exam(rng, 5, 36, 2, 17), (a, a.copy()),
            (a, np.where(rng.random(200) < 0.3, rng.random(200) < 0.6, a))]

def compare_counts(a, b):
    "From the questions that only one of the two gets right (McNemar 1947)"
    n, won, lost = len(a), int((b & ~a).sum()), int((a & ~b).sum())
    mean = (won - lost) / n
    return mean, math.sqrt(((won + lost) / n - mean**2) / (n - 1))

def errors(a, b): # of the two accuracies
    return [math.sqrt(x.mean() * (1 - x.mean()) / (len(x) - 1)) for x in (a, b)]

def pooled(a, b): # as in the z-test for two proportions
    share = (a.mean() + b.mean()) / 2
    return math.sqrt(2 * share * (1 - share) / len(a))

def with_error(of): # the right difference, and another error
    return lambda a, b: (float(b.mean()) - float(a.mean()), float(of(a, b)))

def differences(a, b): return b.astype(float) - a
def paired(a, b): return compare_counts(a, b)[1]

def without_equals(a, b):
    d = differences(a, b)
    d = d[d != 0]
    return d.std(ddof=1) / math.sqrt(len(d)) if len(d) > 1 else 0.0

register(Exercise(
    "evaluation.compare", "22", "From two arrays of bools, (n,) each: the accuracy of the second "
    "minus that of the first, and the standard error of this difference, for the same questions.",
    inputs=exams, oracle=compare_counts, package="gpt2_course.exercises.evaluation:compare",
    rtol=0.1, # n or n - 1, a formula, a jackknife or a bootstrap: all are right
    wrongs=(
        Wrong("the two are treated as if they had seen different questions",
              with_error(lambda a, b: math.hypot(*errors(a, b))),
              "Questions that are easy or hard for both cancel in the difference. Without this the "
              "error comes out too large, and real gains look like noise."),
        Wrong("the error is that of a test of two groups, with one pooled accuracy",
              with_error(pooled),
              "That is for different questions of equally good models. Here the questions are the "
              "same: what is easy or hard for both cancels in the difference."),
        Wrong("the errors of the two accuracies are added",
              with_error(lambda a, b: sum(errors(a, b))),
              "Independent errors add as squares; and these are not even independent, since the "
              "questions are the same. Take the difference for each question first."),
        Wrong("only the error of the second accuracy is given",
              with_error(lambda a, b: errors(a, b)[1]),
              "It says how much this one accuracy would vary from test to test, not the difference "
              "of two on the same test."),
        Wrong("the second is subtracted from the first",
              lambda a, b: (float(a.mean()) - float(b.mean()), paired(a, b)),
              "The sign says which model is better: positive where the second one is."),
        Wrong("the standard deviation is not divided by the square root of n",
              with_error(lambda a, b: differences(a, b).std(ddof=1)),
              "That is the spread of one question, not of the mean of n: no test would ever be "
              "large enough."),
        Wrong("the standard deviation is divided by n, not by its square root",
              with_error(lambda a, b: differences(a, b).std(ddof=1) / len(a)),
              "The error looks tiny, and every difference looks significant. Four times as many "
              "questions halve the error; they do not quarter it."),
        Wrong("the variance is returned, without the square "
              "root", with_error(lambda a, b: paired(a, b)**2),
              "A variance has squared units: 0.0007 instead of 0.027. Its square root is the "
              "standard error."),
        Wrong("the half-width of an interval is given",
              with_error(lambda a, b: 1.96 * paired(a, b)),
              "An interval of 1.96 standard errors on each side covers the truth in 95 of 100 "
              "tests; the task asks for the standard error itself."),
        Wrong("the mean difference is not subtracted",
              with_error(lambda a, b: math.sqrt((differences(a, b)**2).mean() / (len(a) - 1))),
              "That is the error if the two were equally good, as McNemar's test assumes. Where "
              "one is far better it is too large."),
        Wrong("questions with equal answers are left out", with_error(without_equals),
              "They are evidence that the two are close, and they count towards n.")),
    hints=("Take the difference for each question first: -1, 0 or 1.",
           "Its mean is the difference of the accuracies; the standard error of a mean is the "
           "standard deviation over the square root of n.",
           "d.mean(), d.std(ddof=1) / math.sqrt(len(d)), with d = b.astype(float) - a")))


# --- the challenge: which of two models is better, after as few questions as possible

PAIRS, MOST, MISTAKES = 2000, 4000, 0.05 # pairs of models; questions for each; wrong decisions

def two_models(rng):
    "Answers of two models to the same questions, (MOST,) bools each, and which is the better one"
    gap, better = float(rng.choice([0.03, 0.06, 0.12])), int(rng.integers(2))
    u = rng.random(MOST) # both are right below 0.3, then only the worse, then only the better one
    worse = u < 0.39
    good = (u < 0.3) | (u >= 0.39) & (u < 0.48 + gap)
    return ((worse, good) if better else (good, worse)), better

def questions_needed(fn, seconds):
    "Decide for many pairs of models; the mean number of questions that were looked at"
    used = wrong = 0
    def asked(a, b):
        nonlocal used
        for pair in zip(a.tolist(), b.tolist()):
            used += 1
            yield pair
    for i in range(PAIRS):
        answers, better = two_models(np.random.default_rng([22, i]))
        said = fn(asked(*answers))
        if said not in (0, 1):
            raise ValueError(f"it must return 0 or 1, the index of the better model, not {said!r}")
        wrong += said != better
    if wrong > MISTAKES * PAIRS:
        raise ValueError(f"{wrong / PAIRS:.1%} of {PAIRS:,} decisions are wrong, after "
                         f"{used / PAIRS:.0f} questions on average; {MISTAKES:.0%} are allowed")
    return used / PAIRS

def after_three_hundred(questions):
    "The plain solution: a fixed number of questions, then whichever has more right answers"
    ahead = 0
    for n, (a, b) in enumerate(questions, 1):
        ahead += b - a
        if n == 300: break
    return int(ahead > 0)

set_challenge(Challenge(
    "evaluation.decide", "22", "Two models answer the same questions: `questions` yields (whether "
    "model 0 is right, whether model 1 is right), up to 4,000 times. Return 0 or 1, the better "
    "one, after as few questions as you like; at most 5 % of 2,000 decisions may be wrong. The "
    "models differ by 3, 6 or 12 points; both are right on 30 % of the questions, and the worse "
    "one alone is right on 9 %.",
    score=questions_needed, plain=after_three_hundred, to_beat=300, unit="questions per decision",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=20))
