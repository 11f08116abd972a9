"""The catalogue of chapter 00 and its answers: what knowing nothing costs and how many tokens a
step reads, with the classic mistakes and their names."""

import math

import numpy as np
import torch

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..compare import kind
from ..config import GPTConfig, packaged
from ..model import GPT
from ..tokenizer import CharTokenizer


def uniform_loss(
    V:int, # tokens in the vocabulary
) -> float: # nats per token
    "The surprise of a model that gives every token the same probability"
    return math.log(V)


def uniform_inputs(seed):
    "Vocabularies: a coin, characters, GPT-2's, and one that is drawn"
    rng = np.random.default_rng(seed)
    return [(2,), (65,), (50257,), (int(rng.integers(100, 5000)),)]

def uniform_mean(V):
    "The mean surprise over all V tokens, one probability for each"
    return float(-np.log(np.full(V, 1 / V)).mean())

register(Exercise(
    "start.uniform_loss", "00", "The loss, in nats, of a model that gives each of V tokens the "
    "same probability.", inputs=uniform_inputs, oracle=uniform_mean,
    package="gpt2_course.exercises.start:uniform_loss",
    wrongs=(
        Wrong("the logarithm has base 2", lambda V: math.log2(V),
              "That counts bits. The losses of language models are given in nats, with the natural "
              "logarithm, `math.log`: one nat is 1.44 bits."),
        Wrong("the logarithm has base 10", lambda V: math.log10(V),
              "The loss is defined with the natural logarithm, `math.log`. With base 10 it is 2.3 "
              "times too small, and a model that knows nothing would look trained."),
        Wrong("the result is the probability, not the surprise", lambda V: 1 / V,
              "1/V is the probability of each token. The surprise is minus the logarithm of that "
              "probability."),
        Wrong("the sign is wrong", lambda V: -math.log(V),
              "A probability is below 1, so its logarithm is below 0. The surprise is minus this "
              "logarithm, so it is above 0."),
        Wrong("the result is the probability of a wrong guess, not the surprise",
              lambda V: 1 - 1 / V,
              "The loss asks how small the probability of the right token was: it is minus the "
              "logarithm of 1/V."),
        Wrong("the result is the perplexity, not the loss", lambda V: V,
              "A model that chooses blindly among V tokens has the perplexity V. The loss is the "
              "logarithm of the perplexity."),
        Wrong("the surprise is multiplied by the probability", lambda V: math.log(V) / V,
              "This is one of V equal terms of the mean. Add all V of them, and the 1/V cancels."),
        Wrong("one token too many is counted", lambda V: math.log(V + 1),
              "V is already the number of tokens, the one that ends a text included."),
        Wrong("the result is rounded", lambda V: round(math.log(V), 2),
              "Return the number itself, with all its digits. Round only when you print it."),
        Wrong("V is not used: the result is ln 1024 for every vocabulary",
              lambda V: math.log(1024),
              "1024 is the vocabulary of this chapter only. Use the argument V: `check` calls your "
              "function with several vocabularies."),
    ),
    hints=("V tokens share the probability 1 equally. How much does each of them get?",
           "The surprise at a token is minus the natural logarithm of its probability 1/V. In "
           "Python, `math.log` is the natural logarithm.", "-log(1/V) = log(V).")))


def step_tokens(
    rows:int,      # of a process's micro-batch
    block_size:int,# tokens of a row
    passes:int,    # forward and backward passes before the weights move
    processes:int, # working side by side
) -> int:
    "Tokens that one optimiser step learns from"
    return rows * block_size * passes * processes


def step_inputs(seed):
    "Rows, block size, passes, processes: as in the run of the chapter, then three other runs"
    rng = np.random.default_rng(seed)
    rows, T, passes, processes = map(int, rng.integers((2, 16, 2, 2), (9, 65, 9, 9)))
    return [(16, 64, 1, 2), (16, 128, 3, 4), (5, 512, 8, 1), (rows, T, passes, processes)]

def step_count(rows, T, passes, processes):
    "A one for every token, all of them added up"
    return int(np.ones((processes, passes, rows, T), np.int8).sum())

register(Exercise(
    "start.step_tokens", "00", "The number of tokens that one step of the optimiser learns from, "
    "given the rows of a micro-batch, the tokens of a row, and the numbers of passes and "
    "processes.",
    inputs=step_inputs, oracle=step_count,
    package="gpt2_course.exercises.start:step_tokens",
    wrongs=(
        Wrong("the processes are forgotten", lambda rows, T, passes, world: rows * T * passes,
              "Each process reads rows of its own. If you move from eight GPUs to one and change "
              "nothing else, you train with an eighth of the batch."),
        Wrong("the passes are forgotten", lambda rows, T, passes, world: rows * T * world,
              "The gradients of several passes are added up before the weights move, so the "
              "tokens of all passes count."),
        Wrong("rows are counted, not tokens", lambda rows, T, passes, world: rows * passes * world,
              "A row holds block_size tokens, and the model learns from each of them."),
        Wrong("the tokens of one row are counted, not of all rows",
              lambda rows, T, passes, world: T * passes * world,
              "A micro-batch has several rows of block_size tokens: multiply by `rows`."),
        Wrong("the last token of each row is not counted",
              lambda rows, T, passes, world: rows * (T - 1) * passes * world,
              "A window is block_size + 1 tokens long, so each of the block_size positions of a "
              "row has a next token to learn from."),
        Wrong("one token too many is counted in each row",
              lambda rows, T, passes, world: rows * (T + 1) * passes * world,
              "A window is block_size + 1 tokens long, but its first token is never predicted: the "
              "model learns from the other block_size tokens."),
        Wrong("the rows are divided among the processes",
              lambda rows, T, passes, world: rows * T * passes // world,
              "`rows` already belongs to a single process. Each process reads that many, so more "
              "processes mean more tokens."),
        Wrong("passes and processes are added, not multiplied",
              lambda rows, T, passes, world: rows * T * (passes + world),
              "Each process runs all the passes: 3 passes in 4 processes are 12 micro-batches, "
              "not 7."),
        Wrong("passes and processes are both forgotten",
              lambda rows, T, passes, world: rows * T,
              "This is one pass of one process. Several passes in several processes add up before "
              "the weights move, and all of their tokens count."),
        Wrong("the four numbers are added, not multiplied",
              lambda rows, T, passes, world: rows + T + passes + world,
              "A table of `rows` rows with `block_size` tokens each holds rows * block_size "
              "tokens, and there are several such tables in a step."),
    ),
    hints=("Begin with one process and one pass: it reads `rows` rows of `block_size` tokens each.",
           "Every process does that once per pass: multiply by the passes and by the processes.",
           "rows * block_size * passes * processes")))


TOKENS, PARAMETERS = 400_000, 200_000 # what a run of the challenge may use

def train_small(settings, train, V):
    "A GPT of these settings after so many tokens, by AdamW with warm-up and cosine decay"
    T, rows, lr = settings["block_size"], settings["rows"], settings["lr"]
    model = GPT(GPTConfig(T, V, settings["n_layer"], settings["n_head"], settings["n_embd"]))
    size = sum(p.numel() for p in model.parameters())
    if size > PARAMETERS: raise ValueError(
        f"these settings make {size:,} parameters; at most {PARAMETERS:,} are allowed")
    steps = TOKENS // (rows * T)
    if steps < 1: raise ValueError(f"a batch of {rows} rows of {T} exceeds {TOKENS:,} tokens")
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        now = min((step + 1) / (0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in opt.param_groups: group["lr"] = lr * now
        at = torch.randint(len(train) - T, (rows, 1)) + torch.arange(T + 1)
        loss = model(train[at[:, :-1]], train[at[:, 1:]])
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    return model

def odd_keys(found, names):
    "Which keys are missing or unknown, in words"
    if not isinstance(found, dict): return f", not {kind(found)}"
    missing = [n for n in names if n not in found]
    other = [repr(k) for k in found if k not in names]
    said = [f"missing: {', '.join(missing)}"] * bool(missing)
    return "; " + "; ".join(said + [f"unknown: {', '.join(other)}"] * bool(other))

def settings_score(fn, seconds):
    "Loss on Macbeth of a model with these settings that was trained on the other works"
    found, names = fn(), ("n_layer", "n_head", "n_embd", "block_size", "rows", "lr")
    if not isinstance(found, dict) or set(found) != set(names):
        raise ValueError(f"return a dict with the keys {', '.join(names)}" + odd_keys(found, names))
    for name in names:
        kinds = (int, float) if name == "lr" else (int,)
        if type(found[name]) not in kinds or not found[name] > 0:
            raise ValueError(f"{name} is {found[name]!r}: give a "
                             f"{'number' if name == 'lr' else 'whole number'} above 0")
    files = sorted(packaged("shakespeare").glob("*.txt"))
    texts = {f.stem: f.read_text("utf-8") for f in files}
    tok = CharTokenizer("".join(texts.values()))
    held_out = torch.tensor(tok.encode(texts.pop("macbeth")))
    train = torch.tensor(tok.encode("".join(texts.values())))
    model, T = train_small(found, train, tok.n_vocab), found["block_size"]
    if T >= len(held_out): raise ValueError(f"a block of {T} is longer than Macbeth")
    with torch.no_grad():
        n = (len(held_out) - 1) // T * T
        x, y = (held_out[i:i + n].view(-1, T) for i in (0, 1))
        parts = [(model(a, b).item(), b.numel()) for a, b in
                 zip(x.split(max(1, 8192 // T)), y.split(max(1, 8192 // T)))]
    return sum(loss * m for loss, m in parts) / n

def plain_settings():
    "A narrow model of two layers, and cautious steps"
    return dict(n_layer=2, n_head=2, n_embd=64, block_size=32, rows=32, lr=1e-3)

set_challenge(Challenge(
    "start.settings", "00", "Choose n_layer, n_head, n_embd, block_size, rows and lr (a dict). A "
    f"GPT with at most {PARAMETERS:,} parameters then reads {TOKENS:,} characters of Shakespeare, "
    "and its loss is measured on Macbeth, which it has not read.",
    settings_score, plain_settings, to_beat=2.50, unit="nats per character on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
