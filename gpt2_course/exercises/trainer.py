"""The catalogue of chapter 20 with its reference answers, and the program that measures what a
process holds when the model is cut into slices."""

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..distributed import World, slice_up
from ..model import GPT
from ..optim import adamw


def held(
    world:World,
    parallel:str, # ddp or fsdp
) -> dict:        # bytes of weights, gradients, AdamW's memories; losses of three steps
    "Train three steps and count what this process keeps between them"
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=512, n_layer=4, n_head=4, n_embd=128))
    if parallel == "fsdp": trained = slice_up(model, world, torch.device("cpu"))
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

register(Exercise(
    "trainer.split_batch", "20", "(rows of a micro-batch, micro-batches a step) in each process, "
    "for a step of batch_tokens over all; what does not divide need not be handled.",
    inputs=lambda seed: [(2**17, 1024, 4, 8), (2**17, 1024, 1, 16), (4096, 128, 2, 64),
                         (128 * 6 * (2 + seed % 3), 64, 2, 3)],
    oracle=deal, package="gpt2_course.trainer:split_batch",
    wrongs=(
        Wrong("the number of processes is forgotten",
              lambda b, T, w, B: (min(B, b // T), b // (T * min(B, b // T))),
              "Each process does the whole step: with eight GPUs the effective batch is eight "
              "times as large, at the price of all of them."),
        Wrong("the step shrinks with the processes", lambda b, T, w, B: (B, 1),
              "One micro-batch in each process, whatever was asked for: on one GPU the step is a "
              "fraction of the recipe's, and the loss gets stuck."),
        Wrong("rows are counted, not tokens",
              lambda b, T, w, B: (min(B, b // w), b // (w * min(B, b // w))),
              "batch_tokens counts tokens; a row has T of them. The step takes T times as long."),
        Wrong("a step smaller than a micro-batch is not handled",
              lambda b, T, w, B: (B, b // (T * w * B)),
              "Zero micro-batches: a step that reads nothing, and 0/0 in the loss.")),
    hints=("A row in each process is T * world tokens.",
           "If the step has fewer rows than micro_batch for each process, take those.",
           "rows = batch_tokens // (T * world); B = min(micro_batch, rows); (B, rows // B)")))


def padded_batches(
    seed:int,
) -> list: # of (list of (x, y), World()): -1 among the targets does not count
    "Micro-batches with different numbers of real targets, one of them with none"
    g = torch.Generator().manual_seed(seed)
    def pair(*lengths):
        y = torch.randint(50, (len(lengths), 8), generator=g)
        return y.clone(), y.where(torch.arange(8) < torch.tensor(lengths)[:, None], -1)
    return [([pair(8, 3), pair(2)], World()), ([pair(5, 1), pair(0), pair(7)], World()),
            ([pair(8, 8), pair(8, 4 + seed % 4), pair(1, 6, 2), pair(3)], World())]

def shares_numpy(batches, world):
    "Counts over their sum"
    counts = np.array([np.count_nonzero(y.numpy() != -1) for _, y in batches], np.float64)
    return torch.from_numpy(counts / counts.sum()).float()

def real(batches): # targets that count, of each micro-batch
    return torch.tensor([float((y != -1).sum()) for _, y in batches])

register(Exercise(
    "trainer.shares", "20", "Weights of the micro-batches' mean losses, (n,) floats, so that every "
    "token that counts (y is not -1) has the same weight in the step; world is one process.",
    inputs=padded_batches, oracle=shares_numpy, package="gpt2_course.trainer:shares",
    wrongs=(
        Wrong("every micro-batch weighs the same",
              lambda b, w: torch.full((len(b),), 1 / len(b)),
              "Right for full rows only. Here two real tokens count as much as eleven."),
        Wrong("padding is counted too",
              lambda b, w: (n := torch.tensor([float(y.numel()) for _, y in b])) / n.sum(),
              "A micro-batch of padding takes its share of the step and gives nothing."),
        Wrong("the weights are counts", lambda b, w: real(b),
              "They must add up to 1, or the gradient grows with the number of tokens."),
        Wrong("the weights are relative to the largest", lambda b, w: real(b) / real(b).max(),
              "The step is then too long by a factor that changes from step to step.")),
    hints=("A mean loss times its number of targets is a sum over tokens.",
           "(y >= 0).sum() counts the targets of a micro-batch.",
           "counts / counts.sum(), as floats")))


def validated(
    every:int, # steps between validations
    steps:int, # length of the run
) -> list:     # numbers of finished steps at which the loss is validated
    "Before the first step, at each multiple, and at the end"
    return [s for s in range(steps + 1) if s % every == 0 or s == steps]


def by_walking(every, steps):
    "Walk in strides; the goal is a stop of its own"
    stops, at = [], 0
    while at < steps: stops, at = [*stops, at], at + every
    return [*stops, steps]

register(Exercise(
    "trainer.validated", "20", "After how many finished steps the model is validated: 0, the "
    "multiples of every, and the last one; ascending, each once.",
    inputs=lambda seed: [(20, 60), (25, 60 + seed), (100, 30), (7, 20)],
    oracle=by_walking, package="gpt2_course.exercises.trainer:validated",
    wrongs=(
        Wrong("the last step is missing unless it is a multiple",
              lambda e, n: list(range(0, n + 1, e)),
              "The number that everyone asks for, the loss at the end, was never computed."),
        Wrong("the untrained model is not validated",
              lambda e, n: [s for s in by_walking(e, n) if s],
              "ln V at step 0 is the cheapest test of all; a wrong initialisation goes unseen."),
        Wrong("the steps are counted from 0 while they run",
              lambda e, n: [s + 1 for s in range(n) if s % e == 0 or s == n - 1],
              "It validates after 1, every + 1 … finished steps: the axis is off by one, and a "
              "checkpoint of step 250 carries the loss of step 251."),
        Wrong("the condition can never hold",
              lambda e, n: [s for s in range(n + 1) if s % e == e],
              "A remainder is smaller than its divisor. A well-known script had this line, and "
              "never validated.")),
    hints=("Count finished steps: 0 before the first one, steps after the last.",
           "Two reasons to validate: a multiple of every, or the end.",
           "[s for s in range(steps + 1) if s % every == 0 or s == steps]")))


def mfu(
    tokens_per_s:float, # of all processes together
    N:int,              # parameters, without the positions
    n_layer:int, T:int, C:int, # of the model
    peak:float,         # FLOP/s that one device can do
    world:int,          # devices
) -> float:             # share of the devices' peak, 0 to 1
    "6 N + 12 L T C FLOPs for each token (PaLM, appendix B), against what the devices could do"
    return tokens_per_s * (6 * N + 12 * n_layer * T * C) / (peak * world)


def by_parts(tokens_per_s, N, n_layer, T, C, peak, world):
    "Multiply-adds of the forward pass one by one; backward costs twice as much"
    weights = 2.0 * N                            # a multiplication and an addition for each
    scores = n_layer * 2.0 * T * C               # q k^T: T dot products of C numbers in all heads
    values = n_layer * 2.0 * T * C               # weights times v
    forward = weights + scores + values
    return float(np.float64(tokens_per_s) / world * 3 * forward / peak)

def per_token(weights, attention, devices=lambda w: w, scale=1.0):
    "Another count of FLOPs"
    return lambda s, N, L, T, C, peak, w: scale * s * (
        weights * N + attention * L * T * C) / (peak * devices(w))

register(Exercise(
    "trainer.mfu", "20", "Share of the devices' peak that training uses, from tokens a second of "
    "all processes together; attention counts in full, as if nothing were masked.",
    inputs=lambda seed: [(180_000.0 + seed, 124_000_000, 12, 1024, 768, 312e12, 1),
                         (1.5e6, 124_000_000, 12, 1024, 768, 989e12, 8),
                         (9e3, 1_000_000, 4, 64, 128, 1e11, 2)],
    oracle=by_parts, package="gpt2_course.exercises.trainer:mfu", rtol=1e-6, atol=1e-12,
    wrongs=(
        Wrong("only the forward pass is counted", per_token(2, 4),
              "Backward computes two gradients, of inputs and of weights: twice the work. The MFU "
              "looks three times too low."),
        Wrong("attention is left out", per_token(6, 0),
              "For long rows it is a good part of the work; the MFU falls with T though the "
              "device is as busy as before."),
        Wrong("all tokens are set against one device", per_token(6, 12, devices=lambda w: 1),
              "Eight GPUs then reach 300 %."),
        Wrong("it is given in per cent", per_token(6, 12, scale=100.0),
              "The log's mfu is a share from 0 to 1.")),
    hints=("A multiplication and an addition for each weight and token: 2 N forward.",
           "Attention: 4 L T C forward. Backward is twice forward, so three times in all.",
           "tokens_per_s * (6 N + 12 L T C) / (peak * world)")))
