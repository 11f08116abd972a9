"""The catalogue of chapter 15: operations, bytes and their ratio, an oracle that counts them one
product at a time, and the classic mistakes with their names."""

import math

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..attention import attend
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..flash import PeakBytes
from ..model import GPT
from ..optim import adamw
from ..plan import memory


# --- block_flops ---

def block_flops(
    T:int, # tokens of a row
    C:int, # width
) -> int:  # of the forward pass of one block, matrix products only
    "A multiply and an add for each weight and token (24 T C^2), scores and mixes (4 T^2 C)"
    return 24 * T * C * C + 4 * T * T * C

def product_flops(m, k, n):
    "Count the multiplications and additions of an (m, k) by (k, n) product, entry by entry"
    return sum(2 * k for _ in range(m) for _ in range(n))

def block_counted(T, C):
    "Six products: c_attn, scores, mix, c_proj, c_fc, c_proj; with a single head"
    shapes = [(T, C, 3 * C), (T, C, T), (T, T, C), (T, C, C), (T, C, 4 * C), (T, 4 * C, C)]
    return sum(product_flops(*s) for s in shapes)

def rows_and_widths(seed):
    "Short and long rows, narrow and wide blocks, a single token, a width of 1"
    r = np.random.default_rng(seed)
    return [(int(r.integers(4, 9)), 8), (16, 12), (24, int(r.integers(4, 7))), (1, 6), (5, 1)]

register(Exercise(
    "cost.block_flops", "15", "The FLOPs of the matrix products in one block's forward pass, for a "
    "row of T tokens; count the whole (T, T) table.",
    inputs=rows_and_widths,
    oracle=block_counted, package="gpt2_course.exercises.cost:block_flops",
    wrongs=(
        Wrong("a multiply-add counts as one operation",
              lambda T, C: 12 * T * C * C + 2 * T * T * C,
              "Data sheets count two, a multiplication and an addition: your MFU would come out at "
              "half its value."),
        Wrong("attention's own products are forgotten", lambda T, C: 24 * T * C * C,
              "The scores and the weighted sum of the values involve no parameters, yet they are "
              "matrix products, and their cost grows with the square of T."),
        Wrong("the MLP is taken to be C wide",
              lambda T, C: 12 * T * C * C + 4 * T * T * C,
              "The MLP is 4 C wide inside and holds two thirds of a block's weights."),
        Wrong("half of the attention table is missing",
              lambda T, C: 24 * T * C * C + 2 * T * T * C,
              "Either one of its two products is missing (scores, q with k; weighted sum, weights "
              "with v), or both are counted for the causal half alone. Here the whole (T, T) table "
              "is computed for both, and the future is hidden afterwards."),
        Wrong("only the keys that causality lets through are counted",
              lambda T, C: 24 * T * C * C + 2 * T * (T + 1) * C,
              "Query t sees t + 1 keys, T (T + 1) / 2 in all. But the plain form computes the "
              "whole table and hides the future afterwards; the task counts what is computed."),
        Wrong("the backward pass is counted as well",
              lambda T, C: 3 * (24 * T * C * C + 4 * T * T * C),
              "Each product of the forward pass brings two more in the backward pass, so the total "
              "is three times the work. The task asks for the forward pass."),
        Wrong("the count is for one token", lambda T, C: 24 * C * C + 4 * T * C,
              "The task asks for a row of T tokens: every weight is used by each of them."),
        Wrong("c_attn is taken to make only one of queries, keys and values",
              lambda T, C: 20 * T * C * C + 4 * T * T * C,
              "It makes all three: its weight is (C, 3 C).")),
    hints=("List the products: c_attn, q with k, weights with v, c_proj, c_fc, c_proj.",
           "An (m, k) by (k, n) product has m k n multiply-adds, two operations each.",
           "Weights: (3 + 1 + 4 + 4) C^2, times 2 T. Table: two products of T T C, times 2.")))


# --- product_bytes ---

def product_bytes(
    m:int, k:int, n:int, # (m, k) by (k, n)
    size:int,            # bytes of a number
) -> int:                # bytes
    "Read both matrices once, write the result once: the least that a product must move"
    return size * (m * k + k * n + m * n)

def bytes_counted(m, k, n, size):
    "Allocate the matrices and measure them"
    kind = {2: np.float16, 4: np.float32, 8: np.float64}[size]
    a, b = np.zeros((m, k), kind), np.zeros((k, n), kind)
    return a.nbytes + b.nbytes + (a @ b).nbytes

def shapes(seed):
    "A thick product, a thin one, a single row, an outer product; three number formats"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    return [(n(5, 9), n(10, 14), n(15, 19), 4), (n(20, 30), n(2, 5), n(6, 9), 2),
            (1, n(8, 12), n(13, 17), 4), (5, 1, 7, 8)]

register(Exercise(
    "cost.product_bytes", "15", "The smallest number of bytes that an (m, k) by (k, n) product can "
    "move, with numbers of `size` bytes.",
    inputs=shapes, oracle=bytes_counted, package="gpt2_course.exercises.cost:product_bytes",
    wrongs=(
        Wrong("the result is not written", lambda m, k, n, size: size * (m * k + k * n),
              "The result has to reach memory too. For the logits it is the largest of the three "
              "matrices."),
        Wrong("each operation reads its operands anew",
              lambda m, k, n, size: size * 2 * m * k * n,
              "That describes a machine without a cache; a good kernel uses each number many times "
              "once it has been read."),
        Wrong("numbers are counted, not bytes", lambda m, k, n, size: m * k + k * n + m * n,
              "In bf16 the same product moves half the bytes: the size of a number matters."),
        Wrong("only the weights are read", lambda m, k, n, size: size * k * n,
              "This is nearly right for a single row; for a whole batch the activations, (m, k) "
              "and (m, n), can outweigh the weights."),
        Wrong("the result is counted twice",
              lambda m, k, n, size: size * (m * k + k * n + 2 * m * n),
              "The result is written once and not read: its sums are finished in registers before "
              "they go to memory."),
        Wrong("the size is taken for bits", lambda m, k, n, size: size * (m*k + k*n + m*n) / 8,
              "`size` is already in bytes: 4 for float32, 2 for bf16.")),
    hints=("Which three matrices take part?", "They have m k, k n and m n elements.",
           "size * (m * k + k * n + m * n)")))


# --- intensity ---

def intensity(
    m:int, k:int, n:int, # (m, k) by (k, n)
    size:int,            # bytes of a number
) -> float:              # FLOPs per byte
    "How often a product uses each byte it moves"
    return 2 * m * k * n / product_bytes(m, k, n, size)

register(Exercise(
    "cost.intensity", "15", "The FLOPs per byte of an (m, k) by (k, n) product, with numbers of "
    "`size` bytes.", inputs=shapes,
    oracle=lambda m, k, n, size: product_flops(m, k, n) / bytes_counted(m, k, n, size),
    package="gpt2_course.exercises.cost:intensity",
    wrongs=(
        Wrong("the ratio is upside down",
              lambda m, k, n, size: product_bytes(m, k, n, size) / (2 * m * k * n),
              "This gives bytes per FLOP: the axis of the roofline would run the other way."),
        Wrong("a multiply-add counts as one operation",
              lambda m, k, n, size: m * k * n / product_bytes(m, k, n, size),
              "Peaks are given in operations, two for each multiply-add: every point of the "
              "roofline would lie a factor of two too far to the left."),
        Wrong("FLOPs are divided by numbers, not by bytes",
              lambda m, k, n, size: 2 * m * k * n / product_bytes(m, k, n, 1),
              "The ridge point is in FLOPs per byte; counted in numbers, bf16 and fp32 would look "
              "alike."),
        Wrong("only the weights are counted as moved",
              lambda m, k, n, size: 2 * m / size,
              "This grows with the batch without limit, while the true intensity is bounded by the "
              "width."),
        Wrong("the result is not counted as moved",
              lambda m, k, n, size: 2 * m * k * n / (size * (m * k + k * n)),
              "Writes count as much as reads: with many columns, as in the head, the result is "
              "most of the traffic."),
        Wrong("the result is rounded down",
              lambda m, k, n, size: 2 * m * k * n // product_bytes(m, k, n, size),
              "// divides and rounds down. A single token has an intensity of about one half in "
              "fp32, which would become 0.")),
    hints=("Divide the FLOPs by the bytes.", "There are 2 m k n operations.",
           "2 * m * k * n / (size * (m * k + k * n + m * n))"), atol=0.0))


# --- kv_bytes ---

def kv_bytes(
    L:int,    # blocks
    nh:int,   # heads
    hs:int,   # head size
    T:int,    # positions
    B:int,    # rows
    size:int, # bytes of a number
) -> int:     # bytes
    "A key and a value for every position, in every head of every block"
    return 2 * L * B * nh * T * hs * size

def kv_counted(L, nh, hs, T, B, size):
    "Allocate the cache and measure it"
    kind = {2: np.float16, 4: np.float32}[size]
    return sum(np.zeros((B, nh, T, hs), kind).nbytes for _ in range(L) for _ in "kv")

def caches(seed):
    "Several rows and one, a single position, a single block with a single head"
    r = np.random.default_rng(seed)
    return [(2, 3, 4, int(r.integers(5, 9)), 6, 4), (3, 4, 8, 7, 1, 2), (5, 2, 4, 1, 3, 4),
            (1, 1, 8, 6, 2, 2)]

register(Exercise(
    "cost.kv_bytes", "15", "The size in bytes of a KV cache: L blocks, nh heads of size hs, T "
    "positions, B rows, numbers of `size` bytes.",
    inputs=caches,
    oracle=kv_counted, package="gpt2_course.exercises.cost:kv_bytes",
    wrongs=(
        Wrong("only the keys are counted", lambda L, nh, hs, T, B, size: L * B * nh * T * hs * size,
              "Each position keeps a key and a value."),
        Wrong("the blocks are forgotten", lambda L, nh, hs, T, B, size: 2 * B * nh * T * hs * size,
              "Every block has keys and values of its own."),
        Wrong("the heads are forgotten", lambda L, nh, hs, T, B, size: 2 * L * B * T * hs * size,
              "A position keeps nh vectors of hs numbers, C in all. Sharing one of them among all "
              "heads would be a different model: multi-query attention."),
        Wrong("numbers are counted, not bytes",
              lambda L, nh, hs, T, B, size: 2 * L * B * nh * T * hs,
              "The result is two or four times too small: there will not be enough memory."),
        Wrong("the rows are forgotten", lambda L, nh, hs, T, B, size: 2 * L * nh * T * hs * size,
              "Each row of the batch is a text of its own, with its own keys and values. The "
              "weights are shared among rows; the cache is not."),
        Wrong("queries are kept as well",
              lambda L, nh, hs, T, B, size: 3 * L * B * nh * T * hs * size,
              "A query is needed once, when its token is processed. Later tokens have queries of "
              "their own and need only the old keys and values."),
        Wrong("a table of scores is kept",
              lambda L, nh, hs, T, B, size: 2 * L * B * nh * T * T * size,
              "The cache holds vectors of hs numbers for each position, so it grows with T. Scores "
              "(T per position) are computed anew for every token.")),
    hints=("What does one position keep in one head of one block?",
           "A key and a value of hs numbers each: 2 hs.", "2 * L * B * nh * T * hs * size")))


# --- the open challenge: predict the memory of a training step ---

HELD_OUT = [ # block_size, vocab_size, n_layer, n_head, n_embd, rows
    (32, 65, 1, 1, 16, 1), (64, 65, 2, 4, 64, 1), (128, 300, 4, 4, 64, 2), (16, 2000, 2, 2, 32, 4),
    (256, 65, 3, 3, 48, 1), (64, 500, 3, 4, 96, 8), (128, 1000, 2, 8, 128, 1),
    (24, 4000, 1, 2, 64, 16), (96, 257, 8, 2, 32, 3), (200, 96, 2, 5, 160, 2),
    (8, 5000, 6, 4, 128, 1), (64, 65, 12, 2, 64, 2)]

class Arithmetic(TorchDispatchMode):
    "A prediction may look at a model without memory (on the meta device), but not run one"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in ("mm", "bmm", "addmm", "baddbmm", "embedding"):
            raise ValueError("a prediction is made with arithmetic: it does not run the model")
        return func(*args, **(kwargs or {}))

def peak_of_a_step(m, B): # bytes, counted in the second training step
    with PeakBytes() as peak:
        net = GPT(m, attend)
        optimizer = adamw(net, 1e-3, 0.1, (0.9, 0.95), "cpu")
        for _ in range(2):
            peak.most = 0
            x, y = torch.randint(m.vocab_size, (2, B, m.block_size))
            net(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return peak.most

def percent_off(
    fn,            # function (GPTConfig, rows) -> bytes
    seconds:float, # not needed: the number of steps is fixed
) -> float:        # mean error in percent
    "Predictions first, then a counted step of every shape"
    rows = []
    for T, V, L, nh, C, B in HELD_OUT:
        m = GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=nh, n_embd=C)
        with Arithmetic(): guess = fn(m, B)
        if not isinstance(guess, (int, float, np.number)) or not 0 < guess < math.inf:
            raise ValueError(f"for {m} and {B} rows it returns {guess!r}: it must return a "
                             "positive number of bytes")
        rows.append((m, B, float(guess)))
    return 100 * float(np.mean([abs(guess / peak_of_a_step(m, B) - 1) for m, B, guess in rows]))

def as_planned(m, B):
    "The planner of chapter 25"
    return memory(m, B, attention="manual", runtime=0)["peak"]

set_challenge(Challenge(
    "cost.memory", "15", "Predict, by arithmetic alone, the peak memory, in bytes, of the tensors "
    "alive during a training step (float32, plain attention, AdamW): fn(m, B) gets a GPTConfig and "
    "the number of rows. Its predictions are compared with the peak counted in training steps of "
    "twelve models that it has not seen.",
    score=percent_off, plain=as_planned, to_beat=0.7493, unit="percent off, on average",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=20))
