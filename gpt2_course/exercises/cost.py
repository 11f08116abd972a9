"""The catalogue of chapter 15: operations, bytes and their ratio, an oracle that counts them one
product at a time, and the classic mistakes with their names."""

import numpy as np

from ..check import Exercise, Wrong, register


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
    "Six products: c_attn, scores, mix, c_proj, c_fc, c_proj; one head has them all"
    shapes = [(T, C, 3 * C), (T, C, T), (T, T, C), (T, C, C), (T, C, 4 * C), (T, 4 * C, C)]
    return sum(product_flops(*s) for s in shapes)

register(Exercise(
    "cost.block_flops", "15", "FLOPs of the matrix products of one block, forward, for a row of T "
    "tokens; the whole (T, T) table counts.",
    inputs=lambda seed: [(4 + seed % 5, 8), (16, 12), (24, 4 + seed % 3)],
    oracle=block_counted, package="gpt2_course.exercises.cost:block_flops",
    wrongs=(
        Wrong("a multiply-add counts as one", lambda T, C: 12 * T * C * C + 2 * T * T * C,
              "Data sheets count two: your MFU would come out at half."),
        Wrong("attention's own products are forgotten", lambda T, C: 24 * T * C * C,
              "Scores and mixes have no weights, and yet grow with the square of T."),
        Wrong("the MLP is taken to be C wide",
              lambda T, C: 12 * T * C * C + 4 * T * T * C,
              "It is 4 C wide inside: two thirds of the weights are there."),
        Wrong("scores are counted once, mixes not",
              lambda T, C: 24 * T * C * C + 2 * T * T * C,
              "Attention makes two products of this size: q with k, shares with v.")),
    hints=("List the products: c_attn, q with k, shares with v, c_proj, c_fc, c_proj.",
           "An (m, k) by (k, n) product has m k n multiply-adds, two operations each.",
           "Weights: (3 + 1 + 4 + 4) C^2, times 2 T. Table: two products of T T C, times 2.")))


def product_bytes(
    m:int, k:int, n:int, # (m, k) by (k, n)
    size:int,            # bytes of a number
) -> int:                # bytes
    "Read both matrices once, write the result once: the least that a product must move"
    return size * (m * k + k * n + m * n)

def bytes_counted(m, k, n, size):
    "Make the matrices and look"
    kind = {2: np.float16, 4: np.float32, 8: np.float64}[size]
    a, b = np.zeros((m, k), kind), np.zeros((k, n), kind)
    return a.nbytes + b.nbytes + (a @ b).nbytes

def shapes(seed):
    "A square product, a thin one, and a single row, in two kinds of numbers"
    rng = np.random.default_rng(seed)
    n = lambda low, high: int(rng.integers(low, high))
    return [(n(5, 9), n(10, 14), n(15, 19), 4), (n(20, 30), n(2, 5), n(6, 9), 2),
            (1, n(8, 12), n(13, 17), 4)]

register(Exercise(
    "cost.product_bytes", "15", "The least bytes that an (m, k) by (k, n) product moves, with "
    "numbers of `size` bytes.",
    inputs=shapes, oracle=bytes_counted, package="gpt2_course.exercises.cost:product_bytes",
    wrongs=(
        Wrong("the result is not written", lambda m, k, n, size: size * (m * k + k * n),
              "For the logits the result is the largest of the three."),
        Wrong("each operation reads anew", lambda m, k, n, size: size * 2 * m * k * n,
              "That is a program without a cache; a good kernel uses each number many times."),
        Wrong("numbers are counted, not bytes", lambda m, k, n, size: m * k + k * n + m * n,
              "In bf16 the same product moves half the bytes: the unit is the point."),
        Wrong("only the weights are read", lambda m, k, n, size: size * k * n,
              "Right for a single row, nearly; for a whole batch the activations weigh more.")),
    hints=("Which three matrices take part?", "Their numbers: m k, k n and m n.",
           "size * (m * k + k * n + m * n).")))


def intensity(
    m:int, k:int, n:int, # (m, k) by (k, n)
    size:int,            # bytes of a number
) -> float:              # FLOPs a byte
    "How often a product uses each byte it moves"
    return 2 * m * k * n / product_bytes(m, k, n, size)

register(Exercise(
    "cost.intensity", "15", "FLOPs a byte of an (m, k) by (k, n) product, with numbers of `size` "
    "bytes.", inputs=shapes,
    oracle=lambda m, k, n, size: product_flops(m, k, n) / bytes_counted(m, k, n, size),
    package="gpt2_course.exercises.cost:intensity",
    wrongs=(
        Wrong("it is upside down",
              lambda m, k, n, size: product_bytes(m, k, n, size) / (2 * m * k * n),
              "Bytes a FLOP: the roofline's axis would run the other way."),
        Wrong("a multiply-add counts as one",
              lambda m, k, n, size: m * k * n / product_bytes(m, k, n, size),
              "Peaks are given in operations, two for each multiply-add: every point of the "
              "roofline would stand a factor two too far left."),
        Wrong("FLOPs are divided by numbers, not by bytes",
              lambda m, k, n, size: 2 * m * k * n / product_bytes(m, k, n, 1),
              "The ridge is in FLOPs a byte; bf16 and fp32 would look alike."),
        Wrong("only the weights are counted as moved",
              lambda m, k, n, size: 2 * m / size,
              "It grows with the batch for ever; the true one is bounded by the width.")),
    hints=("FLOPs above, bytes below.", "2 m k n operations.",
           "2 * m * k * n / (size * (m * k + k * n + m * n))."), atol=0.0))


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
    "Make the cache and look"
    kind = {2: np.float16, 4: np.float32}[size]
    return sum(np.zeros((B, nh, T, hs), kind).nbytes for _ in range(L) for _ in "kv")

register(Exercise(
    "cost.kv_bytes", "15", "Bytes of a KV cache: L blocks, nh heads of size hs, T positions, B "
    "rows, numbers of `size` bytes.",
    inputs=lambda seed: [(2, 3, 4, 5 + seed % 4, 6, 4), (3, 4, 8, 7, 1, 2), (5, 2, 4, 1, 3, 4)],
    oracle=kv_counted, package="gpt2_course.exercises.cost:kv_bytes",
    wrongs=(
        Wrong("only keys are counted", lambda L, nh, hs, T, B, size: L * B * nh * T * hs * size,
              "Each position keeps a key and a value."),
        Wrong("blocks are forgotten", lambda L, nh, hs, T, B, size: 2 * B * nh * T * hs * size,
              "Every block has keys of its own."),
        Wrong("heads are forgotten", lambda L, nh, hs, T, B, size: 2 * L * B * T * hs * size,
              "A position keeps nh vectors of hs numbers, C in all. Sharing them among heads is "
              "another model: multi-query attention."),
        Wrong("numbers are counted, not bytes",
              lambda L, nh, hs, T, B, size: 2 * L * B * nh * T * hs,
              "Two or four times too small: there will be no room.")),
    hints=("What does one position keep in one head of one block?",
           "A key and a value of hs numbers: 2 hs.", "2 * L * B * nh * T * hs * size.")))
