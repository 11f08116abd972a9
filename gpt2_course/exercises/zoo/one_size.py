"""One size: RoPE's table of angles, never cut to the row."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import normal


def angles(
    T:int,       # positions now
    past:int,    # positions before them, in the cache
    hs:int,      # head size, even
    block:int,   # longest row; the answer does not depend on it
):               # (T, hs / 2) rotation angles of RoPE (Su et al. 2021): p / 10000^(2 i / hs)
    "The angles of these positions, whatever their number"
    rates = 10_000.0 ** (-torch.arange(0, hs, 2) / hs)
    return torch.arange(past, past + T)[:, None] * rates

def whole_table(T, past, hs, block): return angles(block, 0, hs, block)

def one_size() -> str:
    "Rotate rows of several lengths in a model of block size 32"
    told = []
    for T in (32, 31, 16, 2, 1):
        q, a = normal(0)(1, 2, T, 8), whole_table(T, 0, 8, 32)
        try:
            even, odd = q[..., ::2], q[..., 1::2]
            said = f"{tuple((even * a.cos() - odd * a.sin()).shape)}"
        except RuntimeError as e: said = str(e)[:90]
        told.append(f"T = {T:2}: {said}")
    return "\n".join(told)

def angles_numpy(T, past, hs, block):
    "Position by position, in float64"
    return torch.tensor([[p * 10_000 ** (-2 * i / hs) for i in range(hs // 2)]
                         for p in range(past, past + T)])

def places(seed):
    "Rows of several lengths, with and without a past"
    r = np.random.default_rng(seed)
    return [(int(r.integers(3, 6)), 5, 8, 16), (1, int(r.integers(1, 12)), 4, 16), (4, 0, 6, 12),
            (1, 0, 2, 4), (2, 1000, 16, 1024)]

lab("one_size", "RoPE's table is never cut to the row",
    "rows of one length only; a row of one comes back as 32", "another length",
    "tough/23_variants.ipynb",
    "https://github.com/lucidrains/rotary-embedding-torch/issues/11", one_size, (
        ("the table of angles always has block_size rows",
         "only the full length fits, and a single row is silently stretched to 32 by broadcasting"),
        ("the length must be a power of two", "16 and 2 fail too"),
        ("the head size is odd", "then the full length would fail as well"),
        ("the block size in the config is too small", "shorter rows fail, not longer ones")),
    answer="angles",
    task="RoPE's angles (T, hs / 2) for positions past … past + T - 1: position p, pair i has "
         "p / 10000^(2 i / hs).",
    inputs=places, oracle=angles_numpy,
    wrongs=(
        Wrong("the whole table is returned", whole_table,
              "Only rows of exactly block_size work; a row of one is broadcast to all positions."),
        Wrong("the past is forgotten", lambda T, past, hs, b: angles(T, 0, hs, b),
              "Right in training; in cached generation every new token stands at position 0."),
        Wrong("the exponent is i / hs",
              lambda T, past, hs, b: torch.arange(past, past + T)[:, None]
              * 10_000.0 ** (-torch.arange(hs // 2) / hs),
              "The pairs turn too fast: consistent in training, but no longer RoPE, and weights of "
              "others do not load."),
        Wrong("positions are counted from 1", lambda T, past, hs, b: angles(T, past + 1, hs, b),
              "Only differences of positions matter to attention, so training does not notice; "
              "keys that were cached by other code then lie one turn apart."),
        Wrong("every rate stands twice",
              lambda T, past, hs, b: angles(T, past, hs, b).repeat(1, 2),
              "There is one angle for each of the hs / 2 pairs. Tables with hs columns belong to "
              "the other layout, which turns halves and not neighbours.")),
    hints=("Positions are torch.arange(past, past + T).", "One rate for each of hs / 2 pairs; an "
           "outer product of both."),
    excused={"ignore block": "that the length of the table plays no part is the point"})
