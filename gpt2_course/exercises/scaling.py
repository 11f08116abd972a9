"""The catalogue of the scaling chapter: tokens for a budget, Huber's loss, and the best size in
closed form, with oracles that search instead of solving."""

import math
from pathlib import Path

import numpy as np

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import read_json
from ..scaling import fit, law


def tokens_for(
    flops:float, # of the whole training
    N:float,     # parameters
) -> float:      # tokens
    "Tokens that a budget buys: 6 FLOPs per parameter and token (Kaplan et al. 2020, section 2.1)"
    return flops / (6 * N)

def tokens_inputs(seed):
    "GPT-2 on ten billion tokens, and two odd ones; so many tokens that rounding changes nothing"
    rng = np.random.default_rng(seed)
    return [(6 * 124e6 * 1e10, 124e6), (float(rng.uniform(1e11, 1e13)), 57344.0), (3e15, 1.3e6)]

def tokens_counted(flops, N):
    "Two FLOPs forwards, four backwards, for each parameter"
    forwards, backwards = 2 * N, 4 * N
    return flops / (forwards + backwards)

register(Exercise(
    "scaling.tokens", "24", "The number of tokens that a model of N parameters can be trained on "
    "for a budget of FLOPs.", inputs=tokens_inputs, oracle=tokens_counted,
    package="gpt2_course.exercises.scaling:tokens_for",
    wrongs=(
        Wrong("only the forward pass is paid", lambda flops, N: flops / (2 * N),
              "2 N FLOPs per token is generation. Training goes back as well, which costs twice as "
              "much again."),
        Wrong("only the backward pass is paid", lambda flops, N: flops / (4 * N),
              "Before a gradient there is a forward pass: 2 N more for each token."),
        Wrong("a multiplication with its addition counts once", lambda flops, N: flops / (3 * N),
              "FLOPs count the multiplication and the addition: two for a parameter, forwards."),
        Wrong("the forward pass is computed twice", lambda flops, N: flops / (8 * N),
              "That is training with activation checkpointing, which repeats the forward pass to "
              "save memory. The usual law counts the arithmetic that is needed: 6 N."),
        Wrong("the six is left out", lambda flops, N: flops / N,
              "A parameter takes part in three multiplications and three additions for each token, "
              "not in one operation."),
        Wrong("the parameters are left out", lambda flops, N: flops / 6,
              "Each token passes through every parameter."),
        Wrong("the fraction is upside down", lambda flops, N: 6 * N / flops,
              "That is the share of the budget that a single token uses. Its inverse is the number "
              "of tokens."),
    ),
    hints=("C = 6 N D.", "Solve it for D.", "flops / (6 * N)")))


def huber_inputs(seed):
    "Small and large errors of both signs, exactly delta, a thousand, equal ones, three dimensions"
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=8), 0.5), (np.array([-2.0, -0.1, 0.0, 0.1, 0.25, -0.25, 3.0]), 0.25),
            (rng.normal(size=(2, 3)) * 10, 1.0), (np.array([[-1500.0, 1000.0], [0.5, 2.5]]), 2.0),
            (rng.normal(size=(2, 1, 3)) * 3, 1.5), (np.full((1, 4), -0.75), 0.5)]

def huber_slope(r, delta):
    "The integral of a slope that is cut at delta, in two pieces"
    out = np.empty(r.shape)
    for i, x in np.ndenumerate(np.abs(r)):
        pieces = (np.linspace(0, min(x, delta), 101), np.linspace(min(x, delta), x, 101))
        out[i] = sum(np.trapezoid(np.minimum(t, delta), t) for t in pieces)
    return out

def bent(r, delta, inner=lambda a, d: a**2 / 2, outer=lambda a, d: d * (a - d / 2)):
    "Huber's loss with exchangeable mistakes"
    a = np.abs(r)
    return np.where(a <= delta, inner(a, delta), outer(a, delta))

register(Exercise(
    "scaling.huber", "24", "Huber's loss of an array of errors: r²/2 up to delta, beyond it a "
    "straight line that continues the parabola smoothly.", inputs=huber_inputs,
    oracle=huber_slope, package="gpt2_course.scaling:huber", rtol=1e-4, atol=1e-6,
    wrongs=(
        Wrong("the square is never cut", lambda r, delta: r**2 / 2,
              "Beyond delta an error must pull with a constant force, or one odd run decides."),
        Wrong("it is |r| everywhere, times delta", lambda r, delta: delta * np.abs(r),
              "Near zero the loss is a parabola. An absolute value has a kink there, and its pull "
              "does not fade as the error does."),
        Wrong("the line does not meet the parabola",
              lambda r, delta: bent(r, delta, outer=lambda a, d: d * a),
              "At delta the parabola is delta²/2; your line is there delta²: subtract the half."),
        Wrong("a whole delta is subtracted instead of a half",
              lambda r, delta: bent(r, delta, outer=lambda a, d: d * (a - d)),
              "At delta your line is 0 and the parabola delta²/2: the loss jumps down just where "
              "errors become large."),
        Wrong("the loss is level beyond delta",
              lambda r, delta: bent(r, delta, outer=lambda a, d: a * 0 + d**2 / 2),
              "A level loss has no slope: a run that is far off would not pull at all, and many "
              "false fits would look equally good."),
        Wrong("the slope of the line is 1",
              lambda r, delta: bent(r, delta, outer=lambda a, d: a - d + d**2 / 2),
              "The line continues the parabola, whose slope at delta is delta."),
        Wrong("the parabola is r², without the half",
              lambda r, delta: bent(r, delta, inner=lambda a, d: a**2),
              "The slope at delta is then 2 delta on one side and delta on the other: a kink."),
        Wrong("everything is twice as large",
              lambda r, delta: 2 * bent(r, delta),
              "Some texts define it so. Here the parabola is r²/2, whose slope is r itself."),
        Wrong("everything is divided by delta", lambda r, delta: bent(r, delta) / delta,
              "That is PyTorch's smooth_l1_loss with beta = delta. huber_loss is the one with "
              "r²/2."),
        Wrong("the corner is rounded: pseudo-Huber",
              lambda r, delta: delta**2 * (np.sqrt(1 + (r / delta)**2) - 1),
              "A smooth relative with the same limits. Huber's own is exactly r²/2 up to delta."),
        Wrong("negative errors count negative", lambda r, delta: np.where(
            r <= delta, np.sign(r) * r**2 / 2, delta * (r - delta / 2)),
              "Take the absolute value first: too low is as wrong as too high."),
        Wrong("large negative errors stay squared", lambda r, delta: np.where(
            r <= delta, r**2 / 2, delta * (r - delta / 2)),
              "A negative error is always below delta. Compare its absolute value."),
        Wrong("the two cases are exchanged", lambda r, delta: np.where(
            np.abs(r) > delta, r**2 / 2, delta * (np.abs(r) - delta / 2)),
              "The parabola is for small errors, the line for large ones; and the line is negative "
              "near zero."),
    ),
    hints=("np.abs first, np.where for the two cases.", "The line's slope is delta.",
           "delta * (|r| - delta / 2)")))


def optimal_inputs(seed):
    "Three laws, three budgets"
    rng = np.random.default_rng(seed)
    return [((1.69, 406.4, 410.7, 0.34, 0.28), 6e21), ((2.1, 60.0, 900.0, 0.35, 0.45), 1e15),
            ((1.0, 50.0, 80.0, float(rng.uniform(0.2, 0.6)), float(rng.uniform(0.2, 0.6))), 1e12)]

def optimal_search(theta, flops):
    "Look along N D = flops / 6, finer and finer"
    E, A, B, alpha, beta = theta
    low, high = 0.0, float(np.log(flops))
    for _ in range(8):
        n = np.linspace(low, high, 401)
        loss = A * np.exp(-alpha * n) + B * np.exp(-beta * (np.log(flops / 6) - n))
        i = int(loss.argmin())
        low, high = n[max(i - 1, 0)], n[min(i + 1, 400)]
    N = float(np.exp((low + high) / 2))
    return N, flops / 6 / N

def closed(theta, flops, ratio=lambda A, B, a, b: a * A / (b * B), both=False, six=6,
           root=lambda a, b: 1 / (a + b)):
    "The closed form with exchangeable mistakes"
    e, A, B, alpha, beta = theta
    k, power = flops / six, (alpha if both else beta) / (alpha + beta)
    N = ratio(A, B, alpha, beta) ** root(alpha, beta) * k**power
    return N, k / N

register(Exercise(
    "scaling.optimal", "24", "(N, D) with the lowest law E + A/N^alpha + B/D^beta among those with "
    "6 N D = flops.", inputs=optimal_inputs, oracle=optimal_search,
    package="gpt2_course.scaling:optimal", rtol=1e-3,
    wrongs=(
        Wrong("the exponents of N and D are exchanged", lambda t, f: closed(t, f, both=True),
              "N grows with k to the power beta/(alpha + beta): with a large beta the price of "
              "short text falls quickly, and the rest of the budget is better spent on size."),
        Wrong("A and B are exchanged",
              lambda t, f: closed(t, f, lambda A, B, a, b: a * B / (b * A)),
              "A is the price of being small: a larger A asks for a larger N."),
        Wrong("the ratio is upside down",
              lambda t, f: closed(t, f, lambda A, B, a, b: b * B / (a * A)),
              "Solve alpha A N^-alpha = beta B (N/k)^beta for N: alpha A stands above, so that a "
              "larger A asks for a larger N."),
        Wrong("the two terms are made equal, not their slopes",
              lambda t, f: closed(t, f, lambda A, B, a, b: A / B),
              "At the minimum what you gain by a little more N is what you lose by less D: slopes "
              "balance. Differentiating brings down alpha and beta."),
        Wrong("the root of the ratio is forgotten",
              lambda t, f: closed(t, f, root=lambda a, b: 1),
              "N^(alpha + beta) stands on one side: take the root of the whole other side, of the "
              "ratio as well as of k^beta."),
        Wrong("the six is forgotten", lambda t, f: closed(t, f, six=1),
              "N times D is flops / 6."),
        Wrong("the six is forgotten in D", lambda t, f: (closed(t, f)[0], f / closed(t, f)[0]),
              "N times D is flops / 6: your pair costs six times the budget."),
        Wrong("size and tokens are equal", lambda t, f: ((f / 6) ** 0.5, (f / 6) ** 0.5),
              "That is the answer only if both terms are alike. Differentiate along the "
              "hyperbola."),
        Wrong("it is twenty tokens per parameter",
              lambda t, f: (math.sqrt(f / 120), 20 * math.sqrt(f / 120)),
              "That rule of thumb belongs to one law at one budget. Here the law is given: its "
              "five numbers decide."),
        Wrong("tokens come first", lambda t, f: closed(t, f)[::-1],
              "The answer is a pair: the size N first, then the tokens D."),
    ),
    hints=("Put D = k / N, with k = flops / 6, into the law.",
           "Set the derivative with respect to N to zero: alpha A N^-alpha = beta B (N/k)^beta.",
           "N = (alpha A / (beta B) * k**beta) ** (1 / (alpha + beta)), D = k / N")))


RUNS = Path(__file__).resolve().parents[2] / "assets" / "scaling"
BUDGETS = 2e11, 4e11, 8e11 # FLOPs: what is cheaper is given, what is dearer is asked

def questions():
    "(runs that are known, runs to predict) for two recipes and three budgets"
    found = []
    for name in ("first.json", "results.json"): # AdamW, Muon
        if not (RUNS / name).exists():
            raise ValueError(f"assets/scaling/{name} is missing: run this in a checkout.")
        kept = read_json(RUNS / name)
        for budget in BUDGETS:
            known = [p for p in kept["points"] if p["flops"] <= budget]
            rest = [p for p in kept["points"] if p["flops"] > 1.5 * budget]
            found.append((known, [*rest, kept["held"]]))
    return found

def foretold(fn, seconds):
    "Mean error over all questions, each counted alike"
    errors, shown = [], ("n_layer", "n_embd", "steps", "seed", "N", "D", "flops")
    for known, asked in questions():
        given = [{k: p[k] for k in (*shown, "val", "loss")} for p in known]
        said = fn(given, [{k: p[k] for k in shown} for p in asked])
        try: said = np.asarray(said, float)
        except (TypeError, ValueError):
            raise ValueError("Return losses: one number per run.") from None
        if said.shape != (len(asked),):
            raise ValueError(f"{len(asked)} runs were asked for, and the answer has the shape "
                             f"{said.shape}: return one loss for each.")
        errors.append(np.abs(said - [p["loss"] for p in asked]).mean())
    return float(np.mean(errors))

def by_the_law(known, asked):
    "The chapter's own way"
    theta = fit(*(np.array([p[k] for p in known], float) for k in ("N", "D", "loss")))
    return [law(theta, p["N"], p["D"]) for p in asked]

set_challenge(Challenge(
    "scaling.foretell", "24", "Write a function of (known, asked): cheap runs with their losses, "
    "and dearer ones without. It returns a predicted final loss for each run that is asked. The "
    "runs are those of assets/scaling, of two recipes, cut at three budgets.",
    score=foretold, plain=by_the_law,
    to_beat=0.061, unit="nats, mean error",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30))
