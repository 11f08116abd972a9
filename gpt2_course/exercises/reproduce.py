"""The catalogue of chapter 25: steps, micro-batches, days and bytes of a run, an oracle that adds
things up one by one, and the classic mistakes with their names."""

from fractions import Fraction

import numpy as np

from ..check import Exercise, Wrong, register


def steps_of(
    tokens:int,       # to train on, each once
    B:int,            # rows of a micro-batch
    T:int,            # block size
    accumulation:int, # micro-batches a step, in each process
    world:int,        # processes
) -> int:             # whole optimiser steps that the tokens suffice for
    "Tokens of the run by tokens of a step"
    return tokens // (B * T * accumulation * world)

def steps_counted(tokens, B, T, accumulation, world):
    "Take step after step until what is left is too little for another"
    step = sum(B * T for _ in range(accumulation) for _ in range(world))
    steps = 0
    while tokens >= step: tokens, steps = tokens - step, steps + 1
    return steps

def step_inputs(seed):
    "Small runs with a remainder"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    rows = [(n(2, 6), n(8, 33), n(2, 5), n(2, 9)) for _ in range(4)]
    return [(n(20, 60) * B * T * a * w + B * T * a * w // 2 + 1, B, T, a, w)
            for B, T, a, w in rows]

register(Exercise(
    "reproduce.steps", "25", "Whole optimiser steps of a run: tokens to train on, rows B of T "
    "tokens in a micro-batch, micro-batches a step in each process, processes.",
    inputs=step_inputs, oracle=steps_counted, package="gpt2_course.exercises.reproduce:steps_of",
    wrongs=(
        Wrong("micro-batches are counted, not steps",
              lambda n, B, T, a, w: n // (B * T * w),
              "The schedule is accumulation times too long: warm-up never ends and the learning "
              "rate never comes down."),
        Wrong("the other processes are forgotten", lambda n, B, T, a, w: n // (B * T * a),
              "Each process computes a part of the step: the run reads the data `world` times, "
              "for `world` times the money."),
        Wrong("rows are counted as tokens", lambda n, B, T, a, w: n // (B * a * w),
              "A row holds T tokens: the run would be T times too long."),
        Wrong("the last, incomplete step is counted",
              lambda n, B, T, a, w: -(-n // (B * T * a * w)),
              "There are no tokens left for it: the loader would start a second epoch.")),
    hints=("How many tokens does one process read in one micro-batch?",
           "A step is B * T tokens, accumulation times, in every process.",
           "Whole steps only: //.")))


def micro_batches(
    batch_tokens:int, # tokens in a step, over all processes
    B:int,            # rows that a GPU has room for
    T:int,            # block size
    world:int,        # processes
) -> int:             # micro-batches a step in each process
    "What each process adds up before a step, so that the step stays the same"
    return batch_tokens // (B * T * world)

def micro_dealt(batch_tokens, B, T, world):
    "Deal the step's micro-batches to the processes like cards"
    hands = [0] * world
    for i in range(batch_tokens // (B * T)): hands[i % world] += 1
    return max(hands)

def micro_inputs(seed):
    "Batches that divide, on 2 to 8 processes"
    rng = np.random.default_rng(seed)
    pick = lambda *xs: int(rng.choice(xs))
    rows = [(pick(2, 4), pick(8, 16), pick(2, 4), pick(2, 4, 8)) for _ in range(4)]
    return [(B * T * w * a * 2, B, T, w) for B, T, w, a in rows]

register(Exercise(
    "reproduce.micro_batches", "25", "Micro-batches a step in each process, so that a step has "
    "`batch_tokens` tokens over all of them.",
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
        Wrong("processes are multiplied in", lambda n, B, T, w: n * w // (B * T),
              "More GPUs would then make a step slower: the batch grows with the square of their "
              "number.")),
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
    mfu:float,    # share of it that training reaches
) -> float:       # hours
    "6 N + 12 L T C FLOPs a token (PaLM, appendix B), at the given share of the peak"
    return (6 * params + 12 * L * T * C) * tokens / (gpus * peak * mfu) / 3600

def hours_exact(params, L, T, C, tokens, gpus, peak, mfu):
    "In fractions: forward once, backward twice; a multiply and an add for each weight and score"
    forward = 2 * params + L * (2 * T * C + 2 * T * C) # q k^T and shares v
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
    "reproduce.hours", "25", "Hours of a run, from parameters, shape, tokens, GPUs, their peak "
    "and the MFU.", inputs=hour_inputs, oracle=hours_exact,
    package="gpt2_course.exercises.reproduce:hours",
    wrongs=(
        Wrong("the backward pass is forgotten",
              lambda N, L, T, C, n, g, p, m: (2*N + 4*L*T*C) * n / (g * p * m) / 3600,
              "2 N is the forward pass alone; the backward pass makes two products for each of "
              "its products. You would promise a third of the time."),
        Wrong("the GPUs are forgotten",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (p * m) / 3600,
              "That is GPU hours: what it costs, not how long it takes."),
        Wrong("the MFU is forgotten",
              lambda N, L, T, C, n, g, p, m: (6*N + 12*L*T*C) * n / (g * p) / 3600,
              "No program reaches the data sheet's peak: 30 to 60 % of it is usual."),
        Wrong("attention's own products are forgotten",
              lambda N, L, T, C, n, g, p, m: 6 * N * n / (g * p * m) / 3600,
              "Scores and mixes have no weights, but they cost: at T = 1024 an eighth of GPT-2 "
              "124M's arithmetic, and more with longer rows.")),
    hints=("FLOPs of a token, times tokens, by what the GPUs do in a second.",
           "A token costs 6 N + 12 L T C; a GPU does peak * mfu.",
           "(6 N + 12 L T C) * tokens / (gpus * peak * mfu) / 3600."), atol=0.0))


def state_bytes(
    params:int,   # parameters
    gpus:int,     # processes
    sliced:bool,  # FSDP: each process holds its slice; otherwise DDP: each holds all
) -> int:         # bytes a GPU: weights, gradients and AdamW's two averages in fp32
    "Sixteen bytes a parameter, or a slice of them"
    return 16 * (-(-params // gpus) if sliced else params)

def bytes_counted(params, gpus, sliced):
    "Four arrays of float32, made and measured; the first process has the longest slice"
    n = len(range(0, params, gpus)) if sliced else params
    return sum(np.zeros(n, np.float32).nbytes for _ in ("weight", "gradient", "mean", "square"))

register(Exercise(
    "reproduce.state_bytes", "25", "Bytes that weights, gradients and AdamW's state take on one "
    "GPU, in fp32: DDP (each has all) or FSDP (each has a slice, the longest counts).",
    inputs=lambda seed: [(1000 + seed % 7, 8, False), (1003 + seed % 5, 4, True),
                         (12 * 64 + seed % 3, 2, True)],
    oracle=bytes_counted, package="gpt2_course.exercises.reproduce:state_bytes",
    wrongs=(
        Wrong("DDP shares the state out too", lambda n, g, s: 16 * -(-n // g),
              "Under DDP every GPU holds a whole copy: more GPUs save time, not memory."),
        Wrong("something of the four is forgotten", lambda n, g, s: 12 * (-(-n // g) if s else n),
              "Gradients live beside the weights, and AdamW remembers the gradient and its square: "
              "weight, gradient and two averages make 16 bytes."),
        Wrong("FSDP is taken for DDP", lambda n, g, s: 16 * n,
              "Slicing is what FSDP is for: each GPU holds one part in `gpus`."),
        Wrong("everything is in bf16", lambda n, g, s: 8 * (-(-n // g) if s else n),
              "Autocast computes in bf16; weights and state stay in fp32, or small updates are "
              "rounded away.")),
    hints=("Four numbers a parameter: which?", "Weight, gradient, mean, mean square: 4 bytes each.",
           "16 * params, and under FSDP params / gpus, rounded up.")))
