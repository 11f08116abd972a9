"""The catalogue of the fair test: an interval from a few seeds, the step at which one curve passes
another's end, and the best learning rate of a sweep, with brute-force oracles and the mistakes
that make papers."""

import math
import statistics
from fractions import Fraction

import numpy as np

from ..ablation import T95
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register


def interval_inputs(seed):
    "Two, three, five and nine seeds; equal losses; tokens per second"
    rng = np.random.default_rng(seed)
    draw = lambda n: (rng.normal(size=n) / 20).tolist()
    return [*(([3.5 + x for x in draw(n)],) for n in (2, 3, 5, 9)), ([3.25] * 4,),
            ([1000 * (1 + x) for x in draw(4)],)]

def interval_statistics(x):
    "Mean and half width"
    return statistics.mean(x), T95[len(x) - 1] * statistics.stdev(x) / math.sqrt(len(x))

ONE_SIDED = {1: 6.3138, 2: 2.9200, 3: 2.3534, 4: 2.1318, 8: 1.8595} # 95 % point, by n - 1

def half(x, t=None, ddof=1, by=lambda n: n ** 0.5, power=1):
    "The interval with exchangeable mistakes"
    t = T95[len(x) - 1] if t is None else t
    return float(np.mean(x)), float(t * np.std(x, ddof=ddof) ** power / by(len(x)))

def ends(x):
    "The two ends of the interval"
    mean, width = half(x)
    return mean - width, mean + width

register(Exercise(
    "ablation.interval", "23", "(mean, half width of the 95 % interval of the mean) for the final "
    "losses of two or more seeds, with Student's t.", inputs=interval_inputs,
    oracle=interval_statistics, package="gpt2_course.ablation:interval",
    # T95 is rounded to three decimals: its entries are off by up to 0.0005 in 2.306, the smallest
    # that is used here; t at n in place of n - 1 is off by 2 % at nine seeds
    rtol=2.5e-4,
    wrongs=(
        Wrong("1.96 is used for a handful of seeds", lambda x: half(x, t=1.96),
              "That is right for very many. For three, Student's t is 4.303: the interval would "
              "miss the truth far more often than it says."),
        Wrong("t is left out", lambda x: half(x, t=1.0),
              "That is the standard error. For three seeds the truth lies within it only in 58 of "
              "a hundred cases; times t it is in 95."),
        Wrong("t is the 95 % point", lambda x: half(x, t=ONE_SIDED[len(x) - 1]),
              "An interval has two ends, and 2.5 % lie beyond each: t is the 97.5 % point. With "
              "the 95 % point this is an interval of 90 %."),
        Wrong("t is read at n instead of n - 1", lambda x: half(x, t=T95[len(x)]),
              "n numbers leave n - 1 degrees of freedom, once their mean is subtracted."),
        Wrong("the spread of single runs is given, not of their mean",
              lambda x: half(x, by=lambda n: 1),
              "Divide by the root of the number of seeds: a mean varies less than one run."),
        Wrong("it is divided by n, not by its root", lambda x: half(x, by=lambda n: n),
              "Variances are divided by n, so standard deviations by the root of n. Nine seeds "
              "make the mean three times as certain, not nine times."),
        Wrong("it is divided by the root of n - 1", lambda x: half(x, by=lambda n: (n - 1) ** 0.5),
              "n - 1 belongs in the standard deviation, once. The mean is over n numbers: divide "
              "by the root of n."),
        Wrong("the standard deviation divides by n", lambda x: half(x, ddof=0),
              "The mean was computed from the same numbers, so one of them is not free. For three "
              "seeds this makes the interval almost a fifth too narrow."),
        Wrong("the variance stands in place of the standard deviation",
              lambda x: half(x, power=2),
              "A variance is in nats squared. Take its root before you add it to a loss."),
        Wrong("the whole width is given, not the half", lambda x: (half(x)[0], 2 * half(x)[1]),
              "The task wants what stands behind ±: the distance from the mean to either end."),
        Wrong("the two ends are given", ends,
              "The task wants the mean and the half width, as in 3.52 ± 0.04."),
        Wrong("the median stands in place of the mean",
              lambda x: (statistics.median(x), half(x)[1]),
              "Student's interval is that of a mean. A median has another, wider one."),
    ),
    hints=("statistics.stdev, or numpy's std with ddof=1.",
           "Student's t: T95[len(x) - 1], or scipy's t.ppf(0.975, n - 1).",
           "T95[n - 1] * s / sqrt(n)")))


def steps_inputs(seed):
    "A falling curve, a bump, unequal steps, losses equal to the target, one below at once, never"
    rng = np.random.default_rng(seed)
    steps = list(range(0, 700, 100))
    fall = np.round(6 - np.sqrt(np.arange(7)) + rng.uniform(0, 0.1, 7), 3).tolist()
    bump = [6.0, 4.0, 4.8, 4.4, 4.1, 3.6, 3.4]
    late = [40, 60, 150, 400, 1000]
    return [(steps, fall, 4.3), (steps, bump, 3.9), ([50, 100], [3.0, 2.5], 4.0),
            (steps, fall, 1.0), (steps, bump, 4.5), (late, [7.0, 5.5, 5.2, 4.0, 3.5], 4.75),
            (steps, bump, 4.0), (late, [6.5, 5.5, 5.0, 4.5, 4.25], 4.25)]

def steps_fractions(steps, losses, target):
    "Every crossing from above, in fractions; the smallest of them"
    points = [(Fraction(s), Fraction(loss)) for s, loss in zip(steps, losses)]
    target = Fraction(target)
    found = [points[0][0]] * (points[0][1] <= target)
    for (s, a), (t, b) in zip(points, points[1:]):
        if a > target >= b: found.append(s + (t - s) * (a - target) / (a - b))
    return float(min(found)) if found else None

def crossing(steps, losses, target, last=False, reached=lambda loss, target: loss <= target,
             answer=None, first=None, never=None):
    "The crossing with exchangeable mistakes"
    below = [i for i, loss in enumerate(losses) if reached(loss, target)]
    if not below: return never(steps) if never else None
    i = below[0]
    if last: i = next((j + 1 for j in range(len(losses) - 2, -1, -1) if losses[j] > target), 0)
    if i == 0: return first(steps, losses, target) if first else float(steps[0])
    s, t, a, b = steps[i - 1], steps[i], losses[i - 1], losses[i]
    share = (a - target) / (a - b)
    return answer(i, s, t, share) if answer else s + share * (t - s)

def wrapped(steps, losses, target):
    "Python's index -1, without notice"
    share = (losses[-1] - target) / (losses[-1] - losses[0])
    return steps[-1] + share * (steps[0] - steps[-1])

def nearest(steps, losses, target):
    "The point with the loss nearest to the target"
    if min(losses) > target: return None
    return float(steps[int(np.abs(np.subtract(losses, target)).argmin())])

register(Exercise(
    "ablation.steps_to", "23", "The first step at which a curve of validation losses is at or "
    "below a target, by straight lines between its points; None if it never is.",
    inputs=steps_inputs, oracle=steps_fractions, package="gpt2_course.ablation:steps_to",
    rtol=1e-4, atol=1e-2,
    wrongs=(
        Wrong("the last crossing is taken", lambda s, l, t: crossing(s, l, t, last=True),
              "A curve may rise again for a while. The question is when it was there first."),
        Wrong("a loss equal to the target does not count",
              lambda s, l, t: crossing(s, l, t, reached=lambda loss, target: loss < target),
              "At the target is reached: use <=. Otherwise a curve that ends exactly there has "
              "never arrived."),
        Wrong("the next validation is taken, without a line between",
              lambda s, l, t: crossing(s, l, t, answer=lambda i, s, t, share: float(t)),
              "The answer then depends on how often you validate, and is always late."),
        Wrong("the validation before is taken, without a line between",
              lambda s, l, t: crossing(s, l, t, answer=lambda i, s, t, share: float(s)),
              "There the loss is still above the target: the answer is always early."),
        Wrong("the middle between two validations is taken",
              lambda s, l, t: crossing(s, l, t, answer=lambda i, s, t, share: (s + t) / 2),
              "A curve that has almost arrived at the first of two points crosses soon after it: "
              "the losses say where between them."),
        Wrong("the share of the way is counted from the far end", lambda s, l, t: crossing(
            s, l, t, answer=lambda i, s, t, share: s + (1 - share) * (t - s)),
              "At the first of the two points nothing of the way is done. The share is (l0 - "
              "target) / (l0 - l1), which is 0 there."),
        Wrong("an index is given in place of a step",
              lambda s, l, t: crossing(s, l, t, first=lambda s, l, t: 0.0,
                                       answer=lambda i, s, t, share: i - 1 + share),
              "Validations are many steps apart, and not always equally many: read the step at "
              "that index."),
        Wrong("the first point looks back at the last one",
              lambda s, l, t: crossing(s, l, t, first=wrapped),
              "Where the first loss is already low enough there is no point before it, and "
              "losses[-1] is the end of the list. Answer with the first step."),
        Wrong("a curve that starts below has never arrived",
              lambda s, l, t: crossing(s, l, t, first=lambda s, l, t: None),
              "It was there from the beginning: the answer is the first step."),
        Wrong("never is answered with the last step",
              lambda s, l, t: crossing(s, l, t, never=lambda s: float(s[-1])),
              "A run that never arrives would look like one that just made it. None says so."),
        Wrong("never is answered with infinity",
              lambda s, l, t: crossing(s, l, t, never=lambda s: math.inf),
              "The task wants None: a mean over seeds must not swallow it unseen."),
        Wrong("the nearest point is taken", nearest,
              "The nearest may lie before the crossing, or after a bump, far from it."),
        Wrong("np.interp reads the curve backwards",
              lambda s, l, t: float(np.interp(t, l[::-1], s[::-1])),
              "np.interp wants rising x. A loss that rises for a while breaks that without an "
              "error, and a target that is never reached gives the last step."),
    ),
    hints=("Look for the first loss at or below the target.", "The crossing lies between it and "
           "the point before: at the same share of the way in steps as in loss.",
           "s0 + (l0 - target) / (l0 - l1) * (s1 - s0)")))


def best_inputs(seed):
    "A lucky seed, an unlucky one, a divergence, rates with fewer seeds, two seeds each"
    rng = np.random.default_rng(seed)
    near = lambda m, n=3: {s: float(m + e) for s, e in enumerate(rng.uniform(-0.01, 0.01, n))}
    lucky, bad = {0: 3.9, 1: 3.2, 2: 3.9}, math.inf
    return [({1e-3: near(3.7), 2e-3: near(3.5), 4e-3: lucky},),
            ({4e-3: {0: 3.3, 1: bad, 2: 3.3}, 1e-3: near(3.7), 2e-3: near(3.6)},),
            ({1e-3: near(3.7), 2e-3: near(3.6), 4e-3: {0: 3.3}},),
            ({1e-3: near(3.4), 2e-3: near(3.6), 4e-3: {0: 3.9, 1: 3.9}},),
            ({2e-3: near(3.6, 2), 1e-3: near(3.5, 2), 4e-3: near(3.8, 2)},),
            ({1e-3: {0: 3.3, 1: 3.9, 2: 3.9}, 2e-3: {0: 3.7, 1: 3.6, 2: 3.5}, 4e-3: near(3.8)},),
            ({1e-3: near(3.6), 2e-3: {0: 3.1, 1: 3.6, 2: 3.8}, 4e-3: {0: 3.4, 1: 4.6, 2: 3.4}},)]

def best_loop(losses):
    "The lowest mean among the rates with the most seeds, none of which diverged"
    most, best = max(map(len, losses.values())), None
    for lr, by_seed in losses.items():
        mean = sum(by_seed.values()) / len(by_seed)
        if len(by_seed) == most and math.isfinite(mean) and (best is None or mean < best[0]):
            best = mean, lr
    return best and best[1]

def lowest(losses, score, at_least=0):
    "The rate with the lowest score"
    scores = {lr: score(list(v.values())) for lr, v in losses.items() if len(v) >= at_least}
    return min(scores, key=scores.get, default=None)

def most(losses): return max(map(len, losses.values()))

def of_finite(values):
    "The mean of the runs that did not diverge"
    return float(np.mean([v for v in values if math.isfinite(v)]))

def lowest_mean(losses):
    "The loss itself"
    return float(np.mean(list(losses[best_loop(losses)].values())))

register(Exercise(
    "ablation.best_rate", "23", "From {learning rate: {seed: final loss}} the rate with the lowest "
    "mean, among those with the most seeds; a diverged run has an infinite loss.",
    inputs=best_inputs, oracle=best_loop, package="gpt2_course.ablation:best_rate",
    wrongs=(
        Wrong("the best single run decides", lambda x: lowest(x, min, most(x)),
              "One lucky seed wins the sweep. With three rates and three seeds you would choose "
              "the luckiest of nine runs, and call it a method."),
        Wrong("the worst run decides", lambda x: lowest(x, max, most(x)),
              "One unlucky seed loses the sweep. The mean counts all runs alike, and varies less "
              "from sweep to sweep than its extremes."),
        Wrong("only the first seed is read", lambda x: lowest(x, lambda v: v[0], most(x)),
              "The other seeds were paid for. One run is mostly luck; the mean of three is less "
              "so."),
        Wrong("the median decides",
              lambda x: lowest(x, lambda v: sorted(v)[len(v) // 2], most(x)),
              "A rate at which one run of three diverges looks splendid. You would not start your "
              "large run with it."),
        Wrong("diverged runs are left out of the mean", lambda x: lowest(x, of_finite, most(x)),
              "The rate that blows up one run in three is then judged by the two that survived. "
              "An infinite loss makes the mean infinite, and that is the point."),
        Wrong("rates with fewer seeds compete", lambda x: lowest(x, np.mean),
              "A rate that has run once competes with its luck against the means of others."),
        Wrong("sums are compared, not means", lambda x: lowest(x, sum),
              "A rate with fewer seeds has a smaller sum, however bad its runs are."),
        Wrong("three seeds are always required", lambda x: lowest(x, np.mean, 3),
              "The sweep may have run two seeds, or five: compare with the largest number that "
              "any of the rates has."),
        Wrong("the highest rate that did not diverge is taken",
              lambda x: max(lr for lr, v in x.items() if math.isfinite(sum(v.values()))),
              "It is often near the best, and as often beyond it. The sweep is there to be read."),
        Wrong("the loss is returned, not the rate", lowest_mean,
              "You know how good the best rate is, but not which one it is: min(means, "
              "key=means.get) gives the rate."),
    ),
    hints=("Leave out rates with fewer seeds than the others.", "Then compare means; infinite ones "
           "lose.", "min(means, key=means.get)")))


WORLDS, ALLOWED, MOST_RUNS = 500, 0.05, 200 # comparisons, share of errors, runs for each

class Comparison:
    "Two arms, each with a best rate of its own, of which one is better by 0.02 to 0.1 nats"

    def __init__(self, number):
        rng = np.random.default_rng([23, number])
        self.number, self.runs = number, 0
        self.best_rates, self.worse = rng.uniform(-2, 2, 2), int(rng.integers(2))
        self.gap, self.level = rng.uniform(0.02, 0.1), 3.6 + 0.2 * rng.normal()

    def run(self, arm, lr, seed):
        "The final loss of a run; the same arguments give the same loss"
        if arm not in (0, 1): raise ValueError(f"run: arm {arm!r}: there are 0 and 1.")
        if not 2.5e-4 <= lr <= 6.4e-2: raise ValueError(f"run: rate {lr!r}: from 2.5e-4 to 6.4e-2.")
        self.runs += 1
        if self.runs > MOST_RUNS: raise ValueError(f"More than {MOST_RUNS} runs for one decision.")
        off = math.log2(lr / 4e-3) - self.best_rates[arm] # in octaves; too high is worse
        key = round(1e6 * math.log2(lr)) + 2**40
        shared = np.random.default_rng([1, self.number, seed]).normal() # same text, same order
        own = np.random.default_rng([2, self.number, arm, seed, key]).normal()
        return float(self.level + self.gap * (arm == self.worse)
                     + (0.04 if off > 0 else 0.03) * off**2 + 0.05 * shared + 0.04 * own)

def decided(fn, seconds):
    "Mean runs per decision; too many wrong decisions make no score"
    wrong = runs = 0
    for number in range(WORLDS):
        c = Comparison(number)
        said = fn(c.run)
        if isinstance(said, (bool, str)) or said not in (0, 1):
            raise ValueError(f"Return 0 or 1, the better arm, not {said!r}.")
        wrong, runs = wrong + (said == c.worse), runs + c.runs
    if wrong > ALLOWED * WORLDS:
        raise ValueError(f"{wrong / WORLDS:.1%} of {WORLDS} decisions were wrong, with "
                         f"{runs / WORLDS:.1f} runs each: at most {ALLOWED:.0%} may be.")
    return runs / WORLDS

def whole_sweep(run):
    "Five rates, four seeds, both arms; the lowest mean wins"
    rates = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    best = [min(np.mean([run(arm, lr, seed) for seed in range(4)]) for lr in rates)
            for arm in (0, 1)]
    return int(best[1] < best[0])

set_challenge(Challenge(
    "ablation.decide", "23", "Write a function of run(arm, learning rate, seed) -> final loss that "
    "decides which of two arms, 0 or 1, ends lower at its own best rate. It judges 500 simulated "
    "comparisons; at most 5 % of the decisions may be wrong.",
    score=decided, plain=whole_sweep,
    to_beat=40.0, unit="runs per decision",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30))
