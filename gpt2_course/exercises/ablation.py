"""The catalogue of the fair test: an interval from a few seeds, the step at which one curve passes
another's end, and the best learning rate of a sweep, with brute-force oracles and the mistakes
that make papers."""

import math
import statistics

import numpy as np

from ..ablation import T95
from ..check import Exercise, Wrong, register


def interval_inputs(seed):
    "Losses of two, three, five and nine seeds"
    rng = np.random.default_rng(seed)
    return [(list(3.5 + rng.normal(size=n) / 20),) for n in (2, 3, 5, 9)]

def interval_statistics(x):
    "Mean and half width"
    return statistics.mean(x), T95[len(x) - 1] * statistics.stdev(x) / math.sqrt(len(x))

def half(x, t=None, ddof=1, root=True):
    "The interval with exchangeable mistakes"
    t = T95[len(x) - 1] if t is None else t
    return float(np.mean(x)), float(t * np.std(x, ddof=ddof) / (len(x) ** 0.5 if root else 1))

register(Exercise(
    "ablation.interval", "23", "(mean, half width of the 95 % interval of the mean) for the final "
    "losses of a few seeds, with Student's t.", inputs=interval_inputs, oracle=interval_statistics,
    package="gpt2_course.ablation:interval",
    wrongs=(
        Wrong("1.96 is used for a handful of seeds", lambda x: half(x, t=1.96),
              "That is right for very many. For three, Student's t is 4.303: the interval would "
              "miss the truth far more often than it says."),
        Wrong("the spread of single runs is given, not of their mean",
              lambda x: half(x, root=False),
              "Divide by the root of the number of seeds: a mean varies less than one run."),
        Wrong("the standard deviation divides by n", lambda x: half(x, ddof=0),
              "The mean was fitted to the same numbers, so one of them is not free. For three "
              "seeds this makes the interval almost a fifth too narrow."),
        Wrong("t is read at n instead of n - 1", lambda x: half(x, t=T95[len(x)]),
              "n numbers leave n - 1 degrees of freedom, once their mean is taken."),
    ),
    hints=("statistics.stdev, or numpy's std with ddof=1.", "T95[len(x) - 1] is Student's t.",
           "T95[n - 1] * s / sqrt(n)")))


def steps_inputs(seed):
    "A falling curve, one with a bump, one that starts below, one that never arrives"
    rng = np.random.default_rng(seed)
    steps = list(range(0, 700, 100))
    fall = list(np.round(6 - np.sqrt(np.arange(7)) + rng.uniform(0, 0.1, 7), 3))
    bump = [6.0, 4.0, 4.8, 4.4, 4.1, 3.6, 3.4]
    return [(steps, fall, 4.3), (steps, bump, 3.9), ([50, 100], [3.0, 2.5], 4.0),
            (steps, fall, 1.0), (steps, bump, 4.5)]

def steps_fine(steps, losses, target):
    "First crossing on a fine grid of the straight lines, then refined"
    if min(losses) > target: return None
    t = np.linspace(steps[0], steps[-1], 60001)
    y = np.interp(t, steps, losses)
    i = int(np.argmax(y <= target))
    if i == 0: return float(t[0])
    return float(t[i - 1] + (y[i - 1] - target) / (y[i - 1] - y[i]) * (t[i] - t[i - 1]))

def crossing(steps, losses, target, first=True, line=True):
    "The crossing with exchangeable mistakes"
    below = [i for i, loss in enumerate(losses) if loss <= target]
    if not below: return None
    if first: i = below[0]
    else: i = next((j + 1 for j in range(len(losses) - 2, -1, -1) if losses[j] > target), 0)
    if i == 0 or not line: return float(steps[i])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return steps[i - 1] + share * (steps[i] - steps[i - 1])

register(Exercise(
    "ablation.steps_to", "23", "The first step at which a curve of validation losses comes down to "
    "a target, by straight lines between its points; None if it never does.",
    inputs=steps_inputs, oracle=steps_fine, package="gpt2_course.ablation:steps_to",
    rtol=1e-4, atol=1e-2,
    wrongs=(
        Wrong("the last crossing is taken", lambda s, l, t: crossing(s, l, t, first=False),
              "A curve may rise again for a while. The question is when it was there first."),
        Wrong("the next validation is taken, without a line between",
              lambda s, l, t: crossing(s, l, t, line=False),
              "The answer then depends on how often you validate, and is always late."),
        Wrong("never is answered with the last step",
              lambda s, l, t: float(s[-1]) if min(l) > t else crossing(s, l, t),
              "A run that never arrives would look like one that just made it. None says so."),
        Wrong("the nearest point is taken",
              lambda s, l, t: None if min(l) > t else float(s[int(np.abs(np.subtract(l, t))
                                                                  .argmin())]),
              "The nearest may lie before the crossing, or after a bump, far from it."),
    ),
    hints=("Look for the first loss at or below the target.", "The crossing lies between it and "
           "the point before: at the same share of the way in steps as in loss.",
           "s0 + (l0 - target) / (l0 - l1) * (s1 - s0)")))


def best_inputs(seed):
    "Sweeps with a lucky seed, a divergence, and a rate that has fewer seeds"
    rng = np.random.default_rng(seed)
    near = lambda m: {s: float(m + e) for s, e in enumerate(rng.uniform(-0.01, 0.01, 3))}
    lucky = {0: 3.2, 1: 3.9, 2: 3.9}
    return [({1e-3: near(3.7), 2e-3: near(3.5), 4e-3: lucky},),
            ({1e-3: near(3.7), 2e-3: near(3.6), 4e-3: {0: 3.3, 1: 3.3, 2: math.inf}},),
            ({1e-3: near(3.7), 2e-3: near(3.6), 4e-3: {0: 3.3}},),
            ({1e-3: near(3.4), 2e-3: near(3.6)},)]

def best_loop(losses):
    "The lowest mean among the rates with the most seeds, none of which diverged"
    most, best = max(map(len, losses.values())), None
    for lr, by_seed in losses.items():
        mean = sum(by_seed.values()) / len(by_seed)
        if len(by_seed) == most and math.isfinite(mean) and (best is None or mean < best[0]):
            best = mean, lr
    return best and best[1]

def lowest(losses, score):
    "The rate with the lowest score"
    return min(losses, key=lambda lr: score(list(losses[lr].values())))

register(Exercise(
    "ablation.best_rate", "23", "From {learning rate: {seed: final loss}} the rate with the lowest "
    "mean, among those with the most seeds; a diverged run has an infinite loss.",
    inputs=best_inputs, oracle=best_loop, package="gpt2_course.ablation:best_rate",
    wrongs=(
        Wrong("the best single run decides", lambda x: lowest(x, min),
              "One lucky seed wins the sweep. With three rates and three seeds you would choose "
              "the luckiest of nine runs, and call it a method."),
        Wrong("the median decides", lambda x: lowest(x, lambda v: sorted(v)[len(v) // 2]),
              "A rate at which one run of three diverges looks splendid. You would not start your "
              "large run with it."),
        Wrong("rates with fewer seeds compete", lambda x: lowest(x, np.mean),
              "A rate that has run once competes with its luck against the means of others."),
        Wrong("the highest rate that did not diverge is taken",
              lambda x: max(lr for lr, v in x.items() if math.isfinite(sum(v.values()))),
              "It is often near the best, and as often beyond it. The sweep is there to be read."),
    ),
    hints=("Leave out rates with fewer seeds than the others.", "Then means; infinite ones are "
           "out.", "min(means, key=means.get)")))
