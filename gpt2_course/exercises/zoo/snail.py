"""The snail: tokens per millisecond that the log calls tokens per second."""

import math, time

import numpy as np

from ...check import Wrong
from .common import lab
from .small import learn, stream, tiny


def tokens_per_second(
    B:int, T:int,    # rows and tokens of a micro-batch
    accumulate:int,  # micro-batches of a step, in each process
    world:int,       # processes
    seconds:float,   # that the step took
) -> float:          # of all processes together
    "Tokens of the step over its seconds"
    return B * T * accumulate * world / seconds

def timed_steps(seed):
    "Steps of several sizes, each with a time of its own"
    r = np.random.default_rng(seed)
    return [(B, T, a, w, float(r.uniform(0.1, 3))) for B, T, a, w in
            ((4, 32, 2, 2), (16, 1024, 5, 8), (1, 8, 1, 1), (3, 8, 4, 1))]

def slow_speed(B, T, accumulate, world, seconds):
    return B * T * accumulate * world / (seconds * 1000)

def snail() -> str:
    "Twelve steps, their own log, and a wall clock beside it"
    model, loader, told = tiny(), stream(16), []
    start = time.perf_counter()
    for s in range(12):
        t0 = time.perf_counter()
        learn(model, 4, lambda s: loader.next())
        dt = time.perf_counter() - t0
        if s % 3 == 0: told.append(f"step {s:2}   dt {dt * 1000:6.1f} ms   tok/s "
                                   f"{slow_speed(16, 32, 4, 1, dt):6.2f}")
    wall = time.perf_counter() - start
    return "\n".join([*told, f"one process; 12 steps of 4 x 16 x 32 tokens took {wall:.2f} s by "
                      "the clock on the wall"])

lab("snail", "tokens per millisecond reported as tokens per second",
    "a speed a thousand times too low", "a clock on the wall", "medium/13_training.ipynb", "",
    snail, (
        ("the tokens are divided by milliseconds",
         "tokens of all steps over seconds on the wall give a thousand times the logged speed"),
        ("only one of the four micro-batches is counted",
         "then it would be off by a factor of 4, not of 1000"),
        ("it counts sequences instead of tokens",
         "then it would be off by the 32 tokens of a row"),
        ("the machine was busy with something else",
         "the wall clock agrees with the milliseconds of the log: the steps are as fast as they "
         "are, only the division is wrong")),
    answer="tokens_per_second",
    task="Tokens per second of all processes together, for a step of `accumulate` micro-batches of "
         "B rows of T tokens in each of `world` processes that took `seconds`.",
    inputs=timed_steps,
    oracle=lambda *a: math.prod(a[:4]) / a[4],
    wrongs=(
        Wrong("the seconds became milliseconds", slow_speed,
              "The log shows dt in milliseconds, and the same variable is divided by: a thousand "
              "times too slow, and the estimate of the end a thousand times too far."),
        Wrong("one micro-batch stands for the whole step",
              lambda B, T, a, w, s: B * T * w / s,
              "With accumulation the step has more tokens than a pass: the speed seems to fall "
              "as you accumulate."),
        Wrong("it is the speed of one process", lambda B, T, a, w, s: B * T * a / s,
              "The estimate of the end, made from all the run's tokens, is then too far away by a "
              "factor of the number of processes."),
        Wrong("it is seconds per token", lambda B, T, a, w, s: s / (B * T * a * w),
              "Check the units: tokens over seconds."),
        Wrong("rows are counted instead of tokens", lambda B, T, a, w, s: B * a * w / s,
              "That is sequences per second: two runs with rows of different lengths can no "
              "longer be compared."),
        Wrong("the number of micro-batches is divided by",
              lambda B, T, a, w, s: B * T * w / (a * s),
              "The step took `seconds` for all of its micro-batches, and all of their tokens "
              "belong to it: accumulate multiplies.")),
    hints=("Count the tokens of the whole step first.", "B * T * accumulate * world of them."))
