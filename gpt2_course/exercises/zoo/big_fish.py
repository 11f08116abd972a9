"""The big fish: a document longer than a shard."""

import numpy as np

from ...check import Wrong
from .common import lab


def shard_sizes(
    lengths:list, # tokens of each document
    size:int,     # tokens of a shard
) -> list:        # tokens of each shard; only the last may be smaller
    "A shard is a piece of the stream, wherever documents begin and end"
    total = sum(lengths)
    return [size] * (total // size) + [total % size] * (total % size > 0)

def write_shards(lengths, size): # as a well-known script does it; returns the shards' sizes
    buffer, used, out = np.empty(size, np.uint16), 0, []
    for n in lengths:
        doc, room = np.zeros(n, np.uint16), size - used
        if n < room:
            buffer[used:used + n] = doc
            used += n
        else:
            buffer[used:] = doc[:room]
            out.append(size)
            buffer[:n - room] = doc[room:]
            used = n - room
    return out + [used] * (used > 0)

def big_fish() -> str:
    "Write shards of 1000 tokens from documents of several sizes"
    told = []
    for lengths in ([300] * 9, [300, 900, 900, 300], [300, 300, 2100, 300]):
        try: said = f"shards of {write_shards(lengths, 1000)}"
        except ValueError as e: said = f"{type(e).__name__}: {e}"
        told.append(f"documents of {lengths}\n   {said}")
    return "\n".join(told)

def cut_once(lengths, size):
    "The mistaken fix: what does not fit into the second shard is lost"
    out, used = [], 0
    for n in lengths:
        if used + n < size: used += n
        else: out, used = out + [size], min(n - (size - used), size)
    return out + [used] * (used > 0)

def never_cut(lengths, size):
    "The mistaken fix: a document that does not fit begins a shard of its own"
    out, used = [], 0
    for n in lengths:
        if used and used + n > size: out, used = out + [used], 0
        used += n
    return out + [used] * (used > 0)

lab("big_fish", "a document longer than a shard", "a crash in data preparation, on some texts only",
    "documents of several sizes", "tough/21_prepare.ipynb", "", big_fish, (
        ("a document is cut in two at most, and its second part may not fit into a shard either",
         "it needs one of more than a shard's room: 2100 into shards of 1000, with 600 in use"),
        ("the type uint16 overflows", "sizes are counted in ordinary integers; the message speaks "
         "of shapes"),
        ("a document is empty", "none is"),
        ("the shards are too small for the vocabulary", "a shard holds any ids; its size is a "
         "number of tokens")),
    answer="shard_sizes",
    task="Sizes of the shards of a stream of documents of these lengths: all `size`, only the last "
         "may be smaller, and no token is lost.",
    inputs=lambda seed: [([3, 2, 21 + seed % 5, 4], 10), ([4, 4, 4], 6), ([25], 8), ([5, 5], 10),
                         ([3], 10), ([0, 4, 0, 7], 5)],
    oracle=lambda ls, size: [len(p) for p in
                             (range(sum(ls))[i:i + size] for i in range(0, sum(ls), size))],
    wrongs=(
        Wrong("the rest of a long document is lost", cut_once,
              "The crash is gone, and so is text, without a word."),
        Wrong("long documents are cut to a shard",
              lambda ls, size: shard_sizes([min(n, size) for n in ls], size),
              "Books lose their endings; the count of tokens in meta.json no longer fits the "
              "source."),
        Wrong("no document is ever cut", never_cut,
              "Shards of all sizes, one of them as long as the longest book: a loader that was "
              "promised equal shards trips."),
        Wrong("the last, short shard is dropped", lambda ls, size: [size] * (sum(ls) // size),
              "Up to size - 1 tokens are lost, and a corpus that is smaller than a shard gives "
              "nothing at all."),
        Wrong("an empty shard stands at the end",
              lambda ls, size: [size] * (sum(ls) // size) + [sum(ls) % size],
              "Where the stream fits exactly, nothing is left over: a file without a token breaks "
              "the loader that opens it.")),
    hints=("Forget the documents: how long is the stream?", "total // size full shards, and one of "
           "total % size if that is not 0."))
