"""The catalogue of the scaling chapter: tokens for a budget, Huber's loss, and the best size in
closed form, with oracles that search instead of solving."""

import numpy as np

from ..check import Exercise, Wrong, register


def tokens_for(
    flops:float, # of the whole training
    N:float,     # parameters
) -> float:      # tokens
    "Tokens that a budget buys: 6 FLOPs a parameter and token (Kaplan et al. 2020, section 2.1)"
    return flops / (6 * N)

def tokens_inputs(seed):
    "GPT-2 on ten billion tokens, and two odd ones"
    rng = np.random.default_rng(seed)
    return [(6 * 124e6 * 1e10, 124e6), (float(rng.uniform(1e9, 1e12)), 57344.0), (3e15, 1.3e6)]

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
              "2 N FLOPs a token is generation. Training goes back as well, which costs twice as "
              "much again."),
        Wrong("a multiplication with its addition counts once", lambda flops, N: flops / (3 * N),
              "FLOPs count the multiplication and the addition: two for a parameter, forwards."),
        Wrong("the parameters are left out", lambda flops, N: flops / 6,
              "Each token passes through every parameter."),
    ),
    hints=("C = 6 N D.", "Solve it for D.", "flops / (6 * N)")))


def huber_inputs(seed):
    "Small and large errors of both signs, and exactly delta"
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=8), 0.5), (np.array([-2.0, -0.1, 0.0, 0.1, 0.25, 3.0]), 0.25),
            (rng.normal(size=(2, 3)) * 10, 1.0)]

def huber_slope(r, delta):
    "The integral of a slope that is cut at delta"
    r, fine = np.abs(r), 20001
    out = np.empty(r.shape)
    for i, x in np.ndenumerate(r):
        t = np.linspace(0, x, fine)
        out[i] = np.trapezoid(np.minimum(t, delta), t)
    return out

register(Exercise(
    "scaling.huber", "24", "Huber's loss of an array of errors: r²/2 up to delta, beyond it a "
    "straight line that continues the parabola smoothly.", inputs=huber_inputs,
    oracle=huber_slope, package="gpt2_course.scaling:huber", rtol=1e-4, atol=1e-6,
    wrongs=(
        Wrong("the square is never cut", lambda r, delta: r**2 / 2,
              "Beyond delta an error must pull with a constant force, or one odd run decides."),
        Wrong("the line does not meet the parabola",
              lambda r, delta: np.where(np.abs(r) <= delta, r**2 / 2, delta * np.abs(r)),
              "At delta the parabola is delta²/2; your line is there delta²: subtract the half."),
        Wrong("negative errors count negative", lambda r, delta: np.where(
            r <= delta, np.sign(r) * r**2 / 2, delta * (r - delta / 2)),
              "Take the absolute value first: too low is as wrong as too high."),
        Wrong("the slope of the line is 1", lambda r, delta: np.where(
            np.abs(r) <= delta, r**2 / 2, np.abs(r) - delta + delta**2 / 2),
              "The line continues the parabola, whose slope at delta is delta."),
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

def turned(theta, flops, swap=False, both=False, six=True):
    "The closed form with exchangeable mistakes"
    e, A, B, alpha, beta = theta
    if swap: A, B = B, A
    k = flops / 6 if six else flops
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * k ** ((alpha if both else beta) / (alpha + beta))
    return N, k / N

register(Exercise(
    "scaling.optimal", "24", "(N, D) with the lowest law E + A/N^alpha + B/D^beta among those with "
    "6 N D = flops.", inputs=optimal_inputs, oracle=optimal_search,
    package="gpt2_course.scaling:optimal", rtol=1e-3,
    wrongs=(
        Wrong("the exponents of N and D are exchanged", lambda t, f: turned(t, f, both=True),
              "N grows with k to the power beta/(alpha + beta): if more text helps much (a large "
              "beta), a given D has soon done its work, and the rest goes into size."),
        Wrong("A and B are exchanged", lambda t, f: turned(t, f, swap=True),
              "A is the price of being small: a larger A asks for a larger N."),
        Wrong("the six is forgotten", lambda t, f: turned(t, f, six=False),
              "N times D is flops / 6."),
        Wrong("size and tokens are equal", lambda t, f: ((f / 6) ** 0.5, (f / 6) ** 0.5),
              "That is the answer only if both terms are alike. Differentiate along the "
              "hyperbola."),
        Wrong("tokens come first", lambda t, f: turned(t, f)[::-1],
              "The answer is a pair: the size N first, then the tokens D."),
    ),
    hints=("Put D = k / N, with k = flops / 6, into the law.",
           "Set the derivative with respect to N to zero: alpha A N^-alpha = beta B (N/k)^beta.",
           "N = (alpha A / (beta B) * k**beta) ** (1 / (alpha + beta)), D = k / N")))
