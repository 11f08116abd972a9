"""The catalogue of chapter 25: steps, micro-batches, days and bytes of a run, an oracle that adds
things up one by one, and the classic mistakes with their names."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import read_json


def steps_of(
    tokens:int,       # to train on, each once
    B:int,            # rows of a micro-batch
    T:int,            # block size
    accumulation:int, # micro-batches per step, in each process
    world:int,        # processes
) -> int:             # whole optimiser steps that the tokens suffice for
    "Tokens of the run by tokens per step"
    return tokens // (B * T * accumulation * world)

def steps_counted(tokens, B, T, accumulation, world):
    "Take step after step until what is left is too little for another"
    step = sum(B * T for _ in range(accumulation) for _ in range(world))
    steps = 0
    while tokens >= step: tokens, steps = tokens - step, steps + 1
    return steps

def step_inputs(seed):
    "Runs with a remainder, without one, one token short, too short for a step; GPT-2's own"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    rows = [(n(2, 6), n(8, 33), n(2, 5), n(2, 9)) for _ in range(6)]
    sizes = [B * T * a * w for B, T, a, w in rows]
    over = [size // 2 + 1 for size in sizes[:3]] + [0, -1]
    tokens = [n(20, 60) * size + more for size, more in zip(sizes, over)] + [sizes[5] - 1]
    return [*((t, *row) for t, row in zip(tokens, rows)), (10**10, 16, 1024, 4, 8)]

register(Exercise(
    "reproduce.steps", "25", "Whole optimiser steps of a run, from the tokens to train on, B rows "
    "of T tokens per micro-batch, micro-batches per step in each process, and processes.",
    inputs=step_inputs, oracle=steps_counted, package="gpt2_course.exercises.reproduce:steps_of",
    wrongs=(
        Wrong("micro-batches are counted, not steps",
              lambda n, B, T, a, w: n // (B * T * w),
              "The schedule is accumulation times too long: warm-up never ends and the learning "
              "rate never comes down."),
        Wrong("accumulation is multiplied in instead of divided out",
              lambda n, B, T, a, w: n * a // (B * T * w),
              "A step of more micro-batches reads more tokens, so there are fewer steps."),
        Wrong("the other processes are forgotten", lambda n, B, T, a, w: n // (B * T * a),
              "Each process computes a part of the step: the run reads the data `world` times, "
              "for `world` times the money."),
        Wrong("processes are multiplied in instead of divided out",
              lambda n, B, T, a, w: n * w // (B * T * a),
              "More processes read more tokens in each step, so there are fewer steps."),
        Wrong("rows are counted as tokens", lambda n, B, T, a, w: n // (B * a * w),
              "A row holds T tokens: the run would be T times too long."),
        Wrong("the rows are forgotten", lambda n, B, T, a, w: n // (T * a * w),
              "A micro-batch has B rows of T tokens: the run would be B times too long."),
        Wrong("a row takes T + 1 tokens", lambda n, B, T, a, w: n // (B * (T + 1) * a * w),
              "A row reads one token more for its last target, but that one is the first of the "
              "next row: T new tokens per row."),
        Wrong("the last, incomplete step is counted",
              lambda n, B, T, a, w: -(-n // (B * T * a * w)),
              "There are no tokens left for it: the loader would start a second epoch."),
        Wrong("one step is always added", lambda n, B, T, a, w: n // (B * T * a * w) + 1,
              "range(steps) starts at 0 but still makes `steps` steps: nothing has to be added."),
        Wrong("it is rounded to the nearest", lambda n, B, T, a, w: round(n / (B * T * a * w)),
              "Half a step or more is rounded up, and its tokens do not exist. Cut it: //."),
        Wrong("the steps are no whole number", lambda n, B, T, a, w: n / (B * T * a * w),
              "There is no half step: what remains is too little for a batch. Use //.")),
    hints=("How many tokens does one process read in one micro-batch?",
           "A step is B * T tokens, accumulation times, in every process.",
           "Whole steps only: //.")))


def micro_batches(
    batch_tokens:int, # tokens in a step, over all processes
    B:int,            # rows that a GPU has room for
    T:int,            # block size
    world:int,        # processes
) -> int:             # micro-batches per step, in each process
    "What each process adds up before a step, so that the step stays the same"
    return batch_tokens // (B * T * world)

def micro_dealt(batch_tokens, B, T, world):
    "Deal the step's micro-batches to the processes like cards"
    hands = [0] * world
    for i in range(batch_tokens // (B * T)): hands[i % world] += 1
    return max(hands)

def micro_inputs(seed):
    "Batches that divide; many micro-batches of short rows; GPT-2's own on one GPU and on eight"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    rows = [(n(2, 6), n(8, 17), n(2, 9), n(2, 9)) for _ in range(5)]
    return [*((B * T * w * a, B, T, w) for B, T, w, a in rows), (960, 2, 8, 3),
            (524288, 16, 1024, 1), (524288, 64, 1024, 8)]

register(Exercise(
    "reproduce.micro_batches", "25", "Micro-batches per step in each process, so that a step has "
    "`batch_tokens` tokens over all of them; the numbers divide without a remainder.",
    inputs=micro_inputs, oracle=micro_dealt,
    package="gpt2_course.exercises.reproduce:micro_batches",
    wrongs=(
        Wrong("there is no accumulation", lambda n, B, T, w: 1,
              "With fewer GPUs the step shrinks: noisy gradients at a learning rate chosen for a "
              "large batch, and too little text in the planned number of steps."),
        Wrong("each process makes the whole batch", lambda n, B, T, w: n // (B * T),
              "The step is `world` times too large: fewer updates for the same text."),
        Wrong("rows are counted as tokens", lambda n, B, T, w: n // (B * w),
              "A row holds T tokens: each step would be T times too long."),
        Wrong("the rows are forgotten", lambda n, B, T, w: n // (T * w),
              "A micro-batch has B rows of T tokens: each step would be B times too long."),
        Wrong("tokens are counted, not micro-batches", lambda n, B, T, w: n // w,
              "That is each process's part of the step in tokens. A micro-batch holds B * T of "
              "them."),
        Wrong("processes are multiplied in", lambda n, B, T, w: n * w // (B * T),
              "More GPUs would then make a step slower: the batch grows with the square of their "
              "number."),
        Wrong("one is added", lambda n, B, T, w: n // (B * T * w) + 1,
              "The numbers divide: one more micro-batch makes the step larger than the recipe's."),
        Wrong("the fraction is upside down", lambda n, B, T, w: B * T * w // n,
              "That is how many steps fit into one round of micro-batches: at most one.")),
    hints=("How many micro-batches of B x T tokens does the whole step have?",
           "They are dealt out to the processes.",
           "batch_tokens // (B * T * world).")))


def hours(
    params:int,   # parameters that multiply: the tied head once, positions not
    L:int,        # blocks
    T:int,        # block size
    C:int,        # width
    tokens:int,   # to train on
    gpus:int,
    peak:float,   # FLOP/s of one GPU, as its data sheet says
    mfu:float,    # fraction of it that training reaches
) -> float:       # hours
    "6 N + 12 L T C FLOPs per token (PaLM, appendix B), at the given fraction of the peak"
    return (6 * params + 12 * L * T * C) * tokens / (gpus * peak * mfu) / 3600

def hours_exact(params, L, T, C, tokens, gpus, peak, mfu):
    "In fractions: forward once, backward twice; a multiply and an add for each weight and score"
    forward = 2 * params + L * (2 * T * C + 2 * T * C) # q k^T, and weights times v
    a_token = Fraction(forward + 2 * forward)
    second = Fraction(peak) * Fraction(mfu) * gpus
    return float(a_token * tokens / second / 3600)

def hour_inputs(seed):
    "Runs of GPT-2's sizes on some GPUs"
    rng = np.random.default_rng(seed)
    shapes = [(124_000_000, 12, 1024, 768), (353_000_000, 24, 1024, 1024), (900_000, 2, 64, 96)]
    return [(*s, int(rng.integers(2, 50)) * 10**9, int(2**rng.integers(1, 6)),
             float(rng.integers(100, 1000)) * 1e12, float(rng.uniform(0.2, 0.6))) for s in shapes]

register(Exercise(
    "reproduce.hours", "25", "Hours of a run, from parameters, shape, tokens, GPUs, their peak in "
    "FLOP/s and the MFU.", inputs=hour_inputs, oracle=hours_exact,
    package="gpt2_course.exercises.reproduce:hours", atol=0.0,
    wrongs=(
        Wrong("the backward pass is forgotten",
              lambda N, L, T, C, n, g, p, m: (2*N + 4*L*T*C) * n / (g * p * m) / 3600,
              "2 N is the forward pass alone; the backward pass makes two products for each of "
              "its products. You would promise a third of the time."),
        Wrong("attention's backward pass is forgotten",
              lambda N, L, T, C, n, g, p, m: (6*N + 4*L*T*C) * n / (g * p * m) / 3600,
              "Scores and mixes are differentiated like any other product: 4 L T C forwards, twice "
              "that backwards."),
        Wrong("attention's own products are forgotten",
              lambda N, L, T, C, n, g, p, m: 6 * N * n / (g * p * m) / 3600,
              "Scores and mixes have no weights, but they cost: at T = 1024 an eighth of GPT-2 "
              "124M's arithmetic, and more with longer rows."),
        Wrong("attention is counted for a row, not for a token",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*T*C) * n / (g * p * m) / 3600,
              "One token attends to at most T others: 12 L T C. The square of T is the cost of a "
              "whole row."),
        Wrong("attention is counted for one block",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*T*C) * n / (g * p * m) / 3600,
              "Every block has an attention of its own: times L."),
        Wrong("the GPUs are forgotten",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (p * m) / 3600,
              "That is GPU hours: what it costs, not how long it takes."),
        Wrong("the GPUs multiply the time",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n * g / (p * m) / 3600,
              "More GPUs share the work: the time is divided by their number."),
        Wrong("the MFU is forgotten",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (g * p) / 3600,
              "No program reaches the data sheet's peak: 30 to 60 % of it is usual."),
        Wrong("the MFU makes it faster",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n * m / (g * p) / 3600,
              "At 40 % of the peak a run takes 2.5 times as long, not 0.4 times: divide by it."),
        Wrong("seconds are given",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (g * p * m),
              "FLOP by FLOP/s is seconds. An hour has 3600 of them."),
        Wrong("minutes are given",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (g * p * m) / 60,
              "FLOP by FLOP/s is seconds; divided by 60 they are minutes, by 3600 hours.")),
    hints=("FLOPs per token, times tokens, by what the GPUs do in a second.",
           "A token costs 6 N + 12 L T C; a GPU does peak * mfu.",
           "(6 N + 12 L T C) * tokens / (gpus * peak * mfu) / 3600.")))


def state_bytes(
    params:int,   # parameters
    gpus:int,     # processes
    sliced:bool,  # FSDP: each process holds its slice; otherwise DDP: each holds all
) -> int:         # bytes per GPU: weights, gradients and AdamW's two averages in fp32
    "Sixteen bytes per parameter, or a slice of them"
    return 16 * (-(-params // gpus) if sliced else params)

def bytes_counted(params, gpus, sliced):
    "Four arrays of float32, made and measured; the first process has the longest slice"
    n = len(range(0, params, gpus)) if sliced else params
    return sum(np.zeros(n, np.float32).nbytes for _ in ("weight", "gradient", "mean", "square"))

def byte_inputs(seed):
    "Parameters that divide by the GPUs and others that do not, by one too many and one too few"
    rng = np.random.default_rng(seed)
    n = lambda: int(rng.integers(100, 300))
    return [(8 * n() + 3, 8, False), (6 * (n() // 5) + 1, 6, True), (8 * n() - 1, 8, True),
            (2 * n(), 2, True), (n(), 1, True), (16 * n(), 16, False)]

def four(n, g, sliced, weight=True, gradient=True, state=True):
    "Weights, gradients and two averages, of which only some are sliced"
    slice_ = lambda cut: -(-n // g) if cut and sliced else n
    return 4 * (slice_(weight) + slice_(gradient) + 2 * slice_(state))

register(Exercise(
    "reproduce.state_bytes", "25", "Bytes that weights, gradients and AdamW's state take on one "
    "GPU, in fp32: DDP (each has all) or FSDP (each has a slice, the longest counts).",
    inputs=byte_inputs,
    oracle=bytes_counted, package="gpt2_course.exercises.reproduce:state_bytes",
    wrongs=(
        Wrong("DDP shares the state out too", lambda n, g, s: 16 * -(-n // g),
              "Under DDP every GPU holds a whole copy: more GPUs save time, not memory."),
        Wrong("FSDP is taken for DDP", lambda n, g, s: 16 * n,
              "Slicing is what FSDP is for: each GPU holds one part in `gpus`."),
        Wrong("DDP and FSDP are exchanged", lambda n, g, s: four(n, g, not s),
              "`sliced` is True for FSDP, which slices everything; under DDP each GPU holds all."),
        Wrong("only AdamW's state is sliced",
              lambda n, g, s: four(n, g, s, weight=False, gradient=False),
              "That is ZeRO's first stage. FSDP slices weights and gradients as well."),
        Wrong("the weights stay whole", lambda n, g, s: four(n, g, s, weight=False),
              "That is ZeRO's second stage. FSDP keeps a slice of each weight and gathers a layer "
              "only while it computes."),
        Wrong("the slice is rounded down", lambda n, g, s: 16 * (n // g if s else n),
              "Somebody holds the rest: the longest slice is what has to fit."),
        Wrong("one parameter is always added to the slice",
              lambda n, g, s: 16 * (n // g + 1 if s else n),
              "Where the parameters divide, all slices are equal: round up only if something is "
              "left over."),
        Wrong("the slice is no whole number", lambda n, g, s: 16 * (n / g if s else n),
              "A parameter lies on one GPU or on another: round the slice up."),
        Wrong("bytes are rounded up, not parameters",
              lambda n, g, s: -(-16 * n // g) if s else 16 * n,
              "A parameter is not cut in the middle of its bytes: round up the number of "
              "parameters, then multiply by 16."),
        Wrong("one of the four is forgotten", lambda n, g, s: 12 * (-(-n // g) if s else n),
              "Gradients lie beside the weights, and AdamW keeps averages of the gradient and of "
              "its square: weight, gradient and two averages make 16 bytes."),
        Wrong("only the weights are counted", lambda n, g, s: 4 * (-(-n // g) if s else n),
              "That is enough to generate text. Training needs gradients and AdamW's two averages "
              "as well: four times as much."),
        Wrong("everything is in bf16", lambda n, g, s: 8 * (-(-n // g) if s else n),
              "Autocast computes in bf16; weights and state stay in fp32, or small updates are "
              "rounded away.")),
    hints=("There are four numbers per parameter: which?",
           "Weight, gradient, mean, mean square: 4 bytes each.",
           "16 * params, and under FSDP 16 times params / gpus, rounded up.")))


LOGS = Path(__file__).resolve().parents[2] / "assets" / "ablation" / "results.json"
KNOWN, SEEN = ("gpt2", "rmsnorm", "swiglu", "swiglu-rmsnorm"), 200 # arms in full; steps of others

def logs():
    "Runs of four arms in full, and runs of three others"
    if not LOGS.exists():
        raise ValueError("assets/ablation/results.json is missing: run this in a checkout.")
    runs = [dict(arm=c["arm"], lr=c["lr"], seed=c["seed"], steps=c["val"][-1][0],
                 val=[(step, loss) for step, tokens, loss in c["val"]])
            for c in read_json(LOGS)["cells"] if c["status"] == "finished"]
    return ([r for r in runs if r["arm"] in KNOWN], [r for r in runs if r["arm"] not in KNOWN])

def forecast(fn, seconds):
    "Mean error of the final losses that are forecast from a third of each log"
    complete, rest = logs()
    asked = [{**r, "val": [(s, loss) for s, loss in r["val"] if s <= SEEN]} for r in rest]
    said = fn(complete, asked)
    try: said = np.asarray(said, float)
    except (TypeError, ValueError):
        raise ValueError("Return losses: one number per run.") from None
    if said.shape != (len(asked),):
        raise ValueError(f"{len(asked)} runs were asked for, and the answer has the shape "
                         f"{said.shape}: return one loss for each.")
    return float(np.abs(said - [r["val"][-1][1] for r in rest]).mean())

def falls_alike(complete, asked):
    "From here on each falls as much as complete runs of its learning rate do on average"
    at = lambda r: dict(r["val"])[SEEN]
    fall = lambda lr: np.mean([at(r) - r["val"][-1][1] for r in complete if r["lr"] == lr])
    return [at(r) - fall(r["lr"]) for r in asked]

set_challenge(Challenge(
    "reproduce.forecast", "25", "Write a function of (complete, asked): whole logs of 48 runs, and "
    "the first 200 of 600 steps of 36 others, of two parts and an optimiser that the complete "
    "runs lack. It returns a forecast of the final validation loss for each run that is asked.",
    score=forecast, plain=falls_alike,
    to_beat=0.1021, unit="nats, mean error",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=20))
