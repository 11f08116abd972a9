"""The catalogue of chapter 20 with its reference answers, the program that measures what a process
holds when the model is cut into slices, and the challenge of the best recipe."""

from contextlib import nullcontext

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig, OptimConfig, from_dict, packaged
from ..data import TokenLoader
from ..distributed import World, shard_mesh, slice_up
from ..evals import validation_sum
from ..model import GPT
from ..optim import adamw, cosine_lr, muon, wsd_lr
from ..tokenizer import CharTokenizer
from ..trainer import accumulate, split_batch, update


def held(
    world:World,
    parallel:str, # ddp or fsdp
) -> dict:        # bytes of weights, gradients and AdamW's moments; losses of three steps
    "Train three steps and count what this process keeps between them"
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=512, n_layer=4, n_head=4, n_embd=128))
    if parallel == "fsdp": trained = slice_up(model, shard_mesh(world, "cpu"))
    else: trained = DistributedDataParallel(model) if world.size > 1 else model
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    x, y = torch.randint(512, (2, 8, 32), generator=torch.Generator().manual_seed(0))
    mine, losses = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = trained(x[mine], y[mine])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    local = lambda t: (t.to_local() if hasattr(t, "to_local") else t).nbytes
    weights = list(model.parameters())
    states = [v for p in weights for v in optimizer.state[p].values() if torch.is_tensor(v)]
    return dict(weights=sum(map(local, weights)), gradients=sum(local(p.grad) for p in weights),
                memories=sum(map(local, states)), losses=losses)


def deal(batch_tokens, T, world, micro_batch):
    "Deal out rows, one to each process in turn, then stack each process's rows"
    piles, left = [0] * world, batch_tokens
    while left > 0:
        for r in range(world): piles[r] += 1
        left -= T * world
    size = min(micro_batch, piles[0])
    passes = 0
    while piles[0] > 0: piles[0], passes = piles[0] - size, passes + 1
    return size, passes

def batches_of(
    seed:int,
) -> list: # of (batch_tokens, T, world, micro_batch)
    "Several processes, one, a step smaller than a micro-batch, exactly one, a single row"
    rng = np.random.default_rng(seed)
    return [(2**17, 1024, 4, 8), (2**17, 1024, 1, 16), (4096, 128, 2, 64),
            (128 * 6 * int(rng.integers(2, 6)), 64, 2, 3), (2**15, 64, 8, 64), (256, 256, 1, 4)]

def small_steps(rows): # a split that counts each process's rows by `rows`
    def fn(b, T, w, B):
        n = rows(b, T, w)
        B = max(1, min(B, n))
        return B, n // B
    return fn

def rows_of(b, T, w): return b // (T * w)

register(Exercise(
    "trainer.split_batch", "20", "(rows of a micro-batch, micro-batches per step) in each process, "
    "for a step of batch_tokens over all processes; micro_batch is the largest number of rows that "
    "a process computes at once. You may assume that the numbers divide evenly.",
    inputs=batches_of, oracle=deal, package="gpt2_course.trainer:split_batch",
    wrongs=(
        Wrong("the number of processes is forgotten", small_steps(lambda b, T, w: b // T),
              "Each process does the whole step: with eight GPUs the effective batch is eight "
              "times as large, and a step takes as long as on one."),
        Wrong("the micro-batches of all processes are counted",
              lambda b, T, w, B: (min(B, rows_of(b, T, w)), b // (T * min(B, rows_of(b, T, w)))),
              "The rows are divided among the processes, and so are the micro-batches: each does "
              "`world` times too many."),
        Wrong("a step is always a single micro-batch", lambda b, T, w, B: (B, 1),
              "Each process then computes one micro-batch, whatever batch_tokens says: on one GPU "
              "the batch is a fraction of the recipe's, and the loss stalls."),
        Wrong("all rows are computed at once", lambda b, T, w, B: (rows_of(b, T, w), 1),
              "micro_batch is what fits into memory. A step of many rows does not fit at once: use "
              "several micro-batches."),
        Wrong("the rows of a micro-batch are divided among the processes",
              lambda b, T, w, B: (n := min(max(1, B // w), rows_of(b, T, w)),
                                  rows_of(b, T, w) // n),
              "micro_batch is what each process computes at once. Divided by the number of "
              "processes, it leaves every GPU partly idle and takes more passes."),
        Wrong("rows are counted, not tokens", small_steps(lambda b, T, w: b // w),
              "batch_tokens counts tokens; a row has T of them. The step becomes T times as "
              "large."),
        Wrong("a step smaller than a micro-batch is not handled",
              lambda b, T, w, B: (B, b // (T * w * B)),
              "The number of micro-batches becomes 0: the step reads nothing, and its loss is 0 / "
              "0."),
        Wrong("the two numbers are swapped",
              lambda b, T, w, B: small_steps(rows_of)(b, T, w, B)[::-1],
              "The rows come first. If they are swapped, the step has the right number of tokens, "
              "but a micro-batch may no longer fit into memory.")),
    hints=("One row in each process makes T * world tokens.",
           "If the step has fewer rows per process than micro_batch, take only those.",
           "rows = batch_tokens // (T * world); B = min(micro_batch, rows); (B, rows // B)")))


def padded_batches(
    seed:int,
) -> list: # of (list of (x, y), World()): -1 among the targets does not count
    "Micro-batches with different numbers of real targets, one of them with none, one alone"
    g = torch.Generator().manual_seed(seed)
    some = lambda low, high: int(torch.randint(low, high, (), generator=g))
    def pair(*lengths):
        y = torch.randint(50, (len(lengths), 8), generator=g)
        y[0, 0] = 0 # an ordinary token
        return y.clone(), y.where(torch.arange(8) < torch.tensor(lengths)[:, None], -1)
    return [([pair(8, 3), pair(2)], World()), ([pair(5, 1), pair(0), pair(7)], World()),
            ([pair(8, 8), pair(8, some(4, 8)), pair(1, 6, 2), pair(3)], World()),
            ([pair(4, some(1, 8))], World())]

def shares_numpy(batches, world):
    "Counts over their sum"
    counts = np.array([np.count_nonzero(y.numpy() != -1) for _, y in batches], np.float64)
    return torch.from_numpy(counts / counts.sum()).float()

def real(batches): # targets that count, of each micro-batch
    return torch.tensor([float((y != -1).sum()) for _, y in batches])

def counted(rule): # weights from another count, divided by their sum
    def fn(batches, world):
        n = torch.tensor([float(rule(y)) for _, y in batches])
        return n / n.sum()
    return fn

register(Exercise(
    "trainer.shares", "20", "The weights of the micro-batches' mean losses, (n,) floats, chosen so "
    "that every token that counts (y is not -1) has the same weight in the step; world is one "
    "process.",
    inputs=padded_batches, oracle=shares_numpy, package="gpt2_course.trainer:shares",
    excused={"ignore world": "the task is for one process: a larger world would need real ones"},
    wrongs=(
        Wrong("every micro-batch has the same weight",
              lambda b, w: torch.full((len(b),), 1 / len(b)),
              "This is right for full rows only. Here two real tokens count as much as eleven."),
        Wrong("padding is counted too", counted(lambda y: y.numel()),
              "A micro-batch of padding then has a weight although it contributes nothing, so the "
              "real tokens count too little."),
        Wrong("token 0 is taken for padding", counted(lambda y: (y > 0).sum()),
              "Ids count from 0: token 0 is an ordinary one, and only -1 marks padding. Use y >= "
              "0."),
        Wrong("the padding is counted instead of the tokens",
              lambda b, w: (n := torch.tensor([float((y == -1).sum()) for _, y in b]))
              / n.sum().clamp(min=1),
              "The emptiest micro-batch then gets the largest weight: the condition is inverted."),
        Wrong("the weights are counts", lambda b, w: real(b),
              "They must add up to 1, or the gradient grows with the number of tokens."),
        Wrong("each count is divided by the size of its own micro-batch",
              lambda b, w: torch.tensor([float((y != -1).float().mean()) for _, y in b]),
              "That says how full a micro-batch is, not what part of the step it holds; the "
              "weights must add up to 1 over all micro-batches."),
        Wrong("the weights are relative to the largest", lambda b, w: real(b) / real(b).max(),
              "The gradient is then too large by a factor that changes from step to step."),
        Wrong("the weights average to 1", lambda b, w: len(b) * real(b) / real(b).sum(),
              "The weighted losses are added, not averaged again: the gradient would be too large "
              "by a factor of the number of micro-batches."),
        Wrong("the counts go through a softmax", lambda b, w: real(b).softmax(0),
              "In a softmax each further token multiplies a weight by e: the fullest micro-batch "
              "gets nearly all the weight. Divide by the sum.")),
    hints=("A mean loss times its number of targets is a sum over tokens.",
           "(y >= 0).sum() counts the targets of a micro-batch.",
           "counts / counts.sum(), as floats")))


def validated(
    every:int, # steps between validations
    steps:int, # length of the run
) -> list:     # numbers of finished steps at which the loss is validated
    "Before the first step, at each multiple, and at the end"
    return [s for s in range(steps + 1) if s % every == 0 or s == steps]


def schedules(
    seed:int,
) -> list: # of (every, steps)
    "An end that is a multiple, one that is not, a run shorter than `every`, one of a single step"
    rng = np.random.default_rng(seed)
    return [(20, 60), (25, int(rng.integers(61, 75))), (100, int(rng.integers(20, 40))), (7, 20),
            (10, 10), (5, 1)]

def by_walking(every, steps):
    "Go forward in strides; the end is a stop of its own"
    stops, at = [], 0
    while at < steps: stops, at = [*stops, at], at + every
    return [*stops, steps]

register(Exercise(
    "trainer.validated", "20", "The numbers of finished steps after which the model is validated: "
    "0, the multiples of `every`, and the last one; in ascending order, each once.",
    inputs=schedules, oracle=by_walking, package="gpt2_course.exercises.trainer:validated",
    wrongs=(
        Wrong("the last step is missing unless it is a multiple",
              lambda e, n: list(range(0, n + 1, e)),
              "The final loss, the number that everyone asks for, is never computed."),
        Wrong("the last step is missing even where it is a multiple",
              lambda e, n: list(range(0, n, e)),
              "range stops before its end: after the last step, with `steps` finished, the model "
              "is not validated."),
        Wrong("a last step that is a multiple is listed twice",
              lambda e, n: [*range(0, n + 1, e), n],
              "The model is validated twice at the end, and the log has two rows for one step."),
        Wrong("the last step is taken for steps - 1",
              lambda e, n: [s for s in range(n) if s % e == 0 or s == n - 1],
              "Finished steps are counted from 0 to `steps`. This validates before the last step, "
              "not after it."),
        Wrong("the untrained model is not validated",
              lambda e, n: [s for s in by_walking(e, n) if s],
              "A loss of ln V at step 0 is the cheapest test of all; without it a wrong "
              "initialisation goes unnoticed."),
        Wrong("the condition tests the running step, not the finished steps",
              lambda e, n: [s + 1 for s in range(n) if s % e == 0 or s == n - 1],
              "This validates after 1, every + 1 … finished steps: the axis is off by one, and a "
              "checkpoint of step 250 carries the loss of step 251."),
        Wrong("only the beginning and the end are validated", lambda e, n: [0, n],
              "The multiples of `every` are missing: the curve has only two points."),
        Wrong("every step is validated", lambda e, n: list(range(n + 1)),
              "A validation costs as much as many steps: most of the run would be spent on it."),
        Wrong("the condition can never hold",
              lambda e, n: [s for s in range(n + 1) if s % e == e],
              "A remainder is smaller than its divisor. A well-known script had this line, and "
              "never ran its validation.")),
    hints=("Count finished steps: 0 before the first one, steps after the last.",
           "Two reasons to validate: a multiple of every, or the end.",
           "[s for s in range(steps + 1) if s % every == 0 or s == steps]")))


def mfu(
    tokens_per_s:float, # of all processes together
    N:int,              # parameters, without the positions
    n_layer:int, T:int, C:int, # of the model
    peak:float,         # FLOP/s that one device can do
    world:int,          # devices
) -> float:             # fraction of the devices' peak, 0 to 1
    "6 N + 12 L T C FLOPs for each token (PaLM, appendix B), against what the devices could do"
    return tokens_per_s * (6 * N + 12 * n_layer * T * C) / (peak * world)


def speeds(
    seed:int,
) -> list: # of (tokens_per_s, N, n_layer, T, C, peak, world)
    "One device, eight, a small model, and rows so long that attention costs more than the weights"
    rng = np.random.default_rng(seed)
    fast = lambda low, high: float(rng.uniform(low, high))
    return [(fast(1.5e5, 2e5), 124_000_000, 12, 1024, 768, 312e12, 1),
            (fast(1e6, 2e6), 124_000_000, 12, 1024, 768, 989e12, 8),
            (fast(5e3, 9e3), 1_000_000, 4, 64, 128, 1e11, 2),
            (fast(2e4, 3e4), 124_000_000, 12, 16_384, 768, 989e12, 1)]

def by_parts(tokens_per_s, N, n_layer, T, C, peak, world):
    "Multiply-adds of the forward pass one by one; backward costs twice as much"
    weights = 2.0 * N                            # a multiplication and an addition for each
    scores = n_layer * 2.0 * T * C               # q k^T: T dot products of C numbers in all heads
    values = n_layer * 2.0 * T * C               # weights times v
    forward = weights + scores + values
    return float(np.float64(tokens_per_s) / world * 3 * forward / peak)

def per_token(weights, attention, devices=lambda w: w, scale=1.0, length=lambda T: T, layers=True):
    "Another count of FLOPs"
    return lambda s, N, L, T, C, peak, w: scale * s * (
        weights * N + attention * (L if layers else 1) * length(T) * C) / (peak * devices(w))

register(Exercise(
    "trainer.mfu", "20", "The fraction of the devices' peak that training uses, from the tokens "
    "per second of all processes together; attention counts in full, as if nothing were masked.",
    inputs=speeds, oracle=by_parts, package="gpt2_course.exercises.trainer:mfu", rtol=1e-5,
    atol=1e-12,
    wrongs=(
        Wrong("only the forward pass is counted", per_token(2, 4),
              "Backward computes two gradients, of inputs and of weights: twice the work. The MFU "
              "comes out three times too low."),
        Wrong("backward is taken to cost as much as forward", per_token(4, 8),
              "Each product of the forward pass needs two in the backward pass: a gradient for its "
              "input and one for its weight. The MFU comes out a third too low."),
        Wrong("a multiplication and its addition count as one", per_token(3, 6),
              "Data sheets count both, and so does the peak: two FLOPs for each weight and token. "
              "The MFU comes out at half its value."),
        Wrong("attention is left out", per_token(6, 0),
              "For long rows it is a good part of the work; the MFU would fall with T although the "
              "device is as busy as before."),
        Wrong("attention is counted half, as for a causal mask", per_token(6, 6),
              "Either the causal mask is taken into account, as in some papers, whereas the usual "
              "convention (PaLM) counts in full; or only the scores are counted, without the "
              "weighted sum of the values."),
        Wrong("attention is counted for a whole row, not for one token",
              per_token(6, 12, length=lambda T: T * T),
              "T^2 dot products belong to a row of T tokens: each token has T of them. The MFU "
              "exceeds 100 %."),
        Wrong("attention is counted for one layer only", per_token(6, 12, layers=False),
              "Every layer has its own attention: 12 L T C for L layers."),
        Wrong("all tokens are divided by the peak of one "
              "device", per_token(6, 12, devices=lambda w: 1),
              "With eight GPUs the MFU can then reach 300 %."),
        Wrong("the number of devices divides twice", per_token(6, 12, devices=lambda w: w * w),
              "Either divide the tokens by the devices or multiply the peak by them. Both together "
              "make eight GPUs look eight times worse."),
        Wrong("the result is in per cent", per_token(6, 12, scale=100.0),
              "The log's mfu is a fraction from 0 to 1.")),
    hints=("A multiplication and an addition for each weight and token: 2 N forward.",
           "Attention: 4 L T C forward. Backward is twice forward, so three times in all.",
           "tokens_per_s * (6 N + 12 L T C) / (peak * world)")))


# --- the challenge: the best recipe for a given number of tokens

TOKENS, ROW = 2**18, 64 # letters that are read; letters of a row

def follow(recipe, texts, held):
    "Train a small model by a recipe; its loss on text that it never reads, in nats per letter"
    if not isinstance(recipe, dict): raise ValueError("it must return a dict")
    batch_tokens = recipe.get("batch_tokens", 4096)
    o = from_dict(OptimConfig, {k: v for k, v in recipe.items() if k != "batch_tokens"},
                  where="your recipe")
    if type(batch_tokens) is not int or batch_tokens % ROW or not 256 <= batch_tokens <= TOKENS:
        raise ValueError(f"batch_tokens must be a multiple of {ROW} from 256 to {TOKENS}")
    tok = CharTokenizer("".join(texts) + held)
    ids = lambda text: np.array(tok.encode(text), np.uint16)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=ROW, vocab_size=tok.n_vocab, n_layer=2, n_head=4, n_embd=64))
    optimizer = dict(adamw=adamw, muon=muon)[o.name](
        model, o.lr, o.weight_decay, (o.beta1, o.beta2), "cpu")
    rows = batch_tokens // ROW
    B, passes = split_batch(batch_tokens, ROW, 1, max(n for n in range(1, 17) if rows % n == 0))
    loader = TokenLoader([ids(t) for t in texts], B, ROW, seed=0)
    steps = TOKENS // batch_tokens
    span = dict(max_lr=o.lr, min_lr=o.min_lr, warmup=o.warmup, steps=steps)
    off = torch.amp.GradScaler("cpu", enabled=False)
    for s in range(steps):
        lr = cosine_lr(s, **span) if o.schedule == "cosine" else wsd_lr(
            s, cooldown=o.cooldown, **span)
        accumulate(model, [loader.next() for _ in range(passes)], nullcontext, off)
        update(model, optimizer, off, lr, o.grad_clip)
    loss, n = validation_sum(model, [ids(held)], 64).tolist()
    return loss / n

def on_macbeth(fn, seconds):
    "All the other plays and poems are for training"
    files = sorted(packaged("shakespeare").glob("*.txt"))
    texts = {f.stem: f.read_text(encoding="utf-8") for f in files}
    held = texts.pop("macbeth")
    return follow(fn(TOKENS), list(texts.values()), held)

def usual_recipe(tokens):
    "The plain solution: the rates of chapter 13's small model, steps of 4,096 letters"
    return dict(batch_tokens=4096, lr=3e-3, min_lr=3e-4, warmup=10)

set_challenge(Challenge(
    "trainer.recipe", "20", "A small model reads 262,144 letters of Shakespeare, once. Return the "
    "recipe, a dict: batch_tokens (letters per step, a multiple of 64, at least 256) and any "
    "fields of OptimConfig (name, lr, min_lr, warmup, schedule, cooldown, weight_decay, beta1, "
    "beta2, grad_clip). The function gets the number of letters.",
    score=on_macbeth, plain=usual_recipe, to_beat=2.726, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
