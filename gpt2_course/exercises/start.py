"""The catalogue of chapter 00 and its answers: what knowing nothing costs, how many tokens a step
reads, and how probabilities follow from scores, with the classic mistakes and their names."""

import math

import numpy as np

from ..check import Exercise, Wrong, register


def uniform_loss(
    V:int, # tokens in the vocabulary
) -> float: # nats a token
    "The surprise of a model that gives every token the same probability"
    return math.log(V)


register(Exercise(
    "start.uniform_loss", "00", "The loss, in nats, of a model that gives each of V tokens the "
    "same probability.", inputs=lambda seed: [(V + seed,) for V in (2, 65, 1024, 50257)],
    oracle=lambda V: float(-np.log(np.full(V, 1 / V, np.float64)).mean()),
    package="gpt2_course.exercises.start:uniform_loss",
    wrongs=(
        Wrong("the logarithm has base 2", lambda V: math.log2(V),
              "That counts bits. Losses of language models are in nats, with the natural "
              "logarithm: a nat is 1.44 bits."),
        Wrong("the logarithm has base 10", lambda V: math.log10(V),
              "The number is 2.3 times too small: a model that knows nothing would look trained."),
        Wrong("it is the probability, not its surprise", lambda V: 1 / V,
              "1/V is what each token gets. The loss is minus the logarithm of it."),
        Wrong("the sign is lost", lambda V: -math.log(V),
              "A surprise is never negative: the probability is below one, its logarithm below "
              "zero, and the loss is minus that."),
    ),
    hints=("Each token has the probability 1/V.", "The surprise at a token is minus the natural "
           "logarithm of its probability.", "-log(1/V) = log(V).")))


def step_tokens(
    rows:int,      # of a process's micro-batch
    block_size:int,# tokens of a row
    passes:int,    # forward and backward passes before the weights move
    processes:int, # working side by side
) -> int:
    "Tokens that one optimiser step learns from"
    return rows * block_size * passes * processes


register(Exercise(
    "start.step_tokens", "00", "How many tokens one step of the optimiser learns from, from rows "
    "of a micro-batch, block size, passes and processes.",
    inputs=lambda seed: [(16, 128, 2 + seed, 2), (5, 1024, 8, 8 + seed), (3 + seed, 64, 5, 3)],
    oracle=lambda rows, T, passes, world: int(np.ones((world, passes, rows, T), np.int8).sum()),
    package="gpt2_course.exercises.start:step_tokens",
    wrongs=(
        Wrong("the processes are forgotten", lambda rows, T, passes, world: rows * T * passes,
              "Each process reads rows of its own. Who moves from eight GPUs to one and changes "
              "nothing else trains with an eighth of the batch."),
        Wrong("the passes are forgotten", lambda rows, T, passes, world: rows * T * world,
              "Gradients of several passes are added up before the weights move: all of their "
              "tokens count."),
        Wrong("rows are counted, not tokens", lambda rows, T, passes, world: rows * passes * world,
              "A row holds block_size tokens, and each of them is a question with an answer."),
        Wrong("the block's last token is not counted",
              lambda rows, T, passes, world: rows * (T - 1) * passes * world,
              "A window is T + 1 tokens long, so that each of its T positions has a next one."),
    ),
    hints=("One process and one pass read rows of block_size tokens.",
           "Passes and processes multiply that.", "rows * block_size * passes * processes")))
