"""The catalogue of chapter 02: what to write, oracles in plain Python, and the classic mistakes
with their names."""

import numpy as np
import torch

from ..check import Exercise, Wrong, register


def rows_inputs(seed):
    "Views, ends and starts: shards of unequal length, and windows asked for out of order"
    rng, out = np.random.default_rng(seed), []
    for sizes, T in (((9, 40), 4), ((30,), 6), ((8, 40, 90), 3)):
        shards = [rng.integers(0, 1000, n).astype(np.uint16) for n in sizes]
        views = [np.lib.stride_tricks.sliding_window_view(s, T + 1) for s in shards]
        first = np.cumsum((0, *sizes[:-1]))
        starts = [b + rng.integers(0, n - T - b, 2) for b, n in zip(first, sizes)]
        starts = np.concatenate(starts[::-1]) # the last shard is asked for first
        out.append((views, np.cumsum(sizes), starts))
    return out

def rows_plain(views, ends, starts):
    "One row at a time, one token at a time"
    x, y = [], []
    for start in map(int, starts):
        s = next(i for i, end in enumerate(ends) if start < end)
        window = [int(t) for t in views[s][start - (int(ends[s - 1]) if s else 0)]]
        x.append([window[t] for t in range(len(window) - 1)])
        y.append([window[t + 1] for t in range(len(window) - 1)])
    return torch.tensor(x), torch.tensor(y)

def rows_by_shard(views, ends, starts):
    "Collects shard after shard: the order that was asked for is lost"
    which = np.searchsorted(ends, starts, side="right")
    return rows_plain(views, ends, np.asarray(starts)[np.argsort(which, kind="stable")])

def rows_from_stream(views, ends, starts):
    "Finds the shard, then uses the offset as if the shard began at 0"
    both = [views[s][start] for s, start in
            zip(np.searchsorted(ends, starts, side="right"), starts)]
    both = torch.from_numpy(np.array(both).astype(np.int64))
    return both[:, :-1], both[:, 1:]

def change(fn):
    "A mistake in the last step: what is made of x and y"
    return lambda *args: fn(*rows_plain(*args))


register(Exercise(
    "data.rows", "02", "Gather windows of T + 1 tokens into inputs x and targets y, (B, T) int64 "
    "tensors each, row b from the window that starts at starts[b].",
    inputs=rows_inputs, oracle=rows_plain, package="gpt2_course.data:rows",
    wrongs=(
        Wrong("the target is the input itself", change(lambda x, y: (x, x)),
              "The model learns to copy: its loss falls to zero within minutes and it has "
              "learned nothing."),
        Wrong("the target is the token before", change(lambda x, y: (y, x)),
              "Each position already sees the token it shall predict, since it is part of its "
              "past: the loss is far too good, the text is noise."),
        Wrong("the last token of each window is dropped",
              change(lambda x, y: (x[:, :-1], y[:, :-1])),
              "A window has T + 1 tokens in order to give T examples, not T - 1: a share 1/T of "
              "the text is never predicted."),
        Wrong("offsets count from the start of the stream, not of the shard", rows_from_stream,
              "`starts` are offsets into all shards laid end to end: subtract where the shard "
              "begins. Else it reads other text, or crashes at the end of a long run."),
        Wrong("the rows come in the order of the shards", rows_by_shard,
              "Row b must be starts[b]: else two runs that should be equal are not, and "
              "processes can no longer be compared with one.")),
    hints=("np.searchsorted(ends, starts, side='right') says in which shard each window lies.",
           "A window's place within its shard is its start less the end of the shard before.",
           "Fill an array of shape (B, T + 1), shard by shard with a boolean index; then "
           "x = both[:, :-1] and y = both[:, 1:], as int64 tensors.")))


def starts_plain(sizes, T, order, seed, epoch, need=1, one_stream=False, use_epoch=True,
                 draw="permutation"):
    "Where windows start, found by walking along the shards; the switches make the mistakes"
    rng = np.random.default_rng([seed, epoch if use_epoch else 0])
    if one_stream: sizes = [sum(sizes)]
    out, base = [], 0
    for n in sizes:
        lengths = range(0, n - T - need + 1, T) # every place where a window of T + need fits
        slack = max(0, n - need - len(lengths) * T)
        phase = int(rng.integers(slack + 1)) if order == "epochs" else 0
        out += [base + phase + at for at in lengths]
        base += n
    if order == "epochs":
        if draw == "permutation": picks = rng.permutation(len(out))
        else: picks = rng.integers(0, len(out), len(out))
        out = [out[i] for i in picks]
    return np.array(out, np.int64)

def starts_inputs(seed):
    "Two epochs of three shards (one of them a multiple of T, one too short), then front to back"
    rng = np.random.default_rng(seed)
    T = int(rng.integers(4, 8))
    sizes = [int(rng.integers(8, 12)) * T, 3, int(rng.integers(40, 80)), 2 * T + 1]
    return [(sizes, T, "epochs", seed % 1000, 1), (sizes, T, "epochs", seed % 1000, 2),
            (sizes, T, "sequential", seed % 1000, 1), ([5 * T + 2], T, "epochs", 7, 3)]

def mistaken(**kw): return lambda *args: starts_plain(*args, **kw)


register(Exercise(
    "data.epoch_starts", "02", "Where the windows of one epoch start, as int64 offsets into the "
    'shards laid end to end: shuffled for order "epochs", front to back for "sequential".',
    inputs=starts_inputs, oracle=starts_plain, package="gpt2_course.data:epoch_starts",
    wrongs=(
        Wrong("windows straddle two shards", mistaken(one_stream=True),
              "The end of one shard is continued by the beginning of another: a jump that the "
              "text never makes, and a read past the end of a memory map."),
        Wrong("a window is given T tokens, not T + 1", mistaken(need=0),
              "Where T divides the shard's length, the last window's last target lies outside "
              "the shard: the number of windows is (n - 1) // T."),
        Wrong("windows are drawn with replacement", mistaken(draw="integers"),
              "In an epoch's worth of steps more than a third of the text is not read and "
              "another part is read again and again: take rng.permutation."),
        Wrong("every epoch has the order of the first", mistaken(use_epoch=False),
              "The generator must be seeded by the seed and the epoch: else the model meets the "
              "same batches in the same order for ever.")),
    hints=("A window needs T + 1 tokens, and neighbours overlap by one: (n - 1) // T fit.",
           "Those windows cover w * T + 1 tokens; the phase is drawn from the tokens left over, "
           "0 to slack inclusive: rng.integers(slack + 1), once for each shard, in order.",
           "base + phase + T * np.arange(w) for each shard, np.concatenate, rng.permutation; for "
           '"sequential" the phase is 0 and nothing is permuted.')))


def deal(position, B, rank, world):
    "Deal the next world x B windows as cards: B to the first rank, B to the second …"
    cards, hands = list(range(position, position + world * B)), []
    while cards: hands.append([cards.pop(0) for _ in range(B)])
    return np.array(hands[rank]), position + world * B

def share_inputs(seed):
    "Several ranks, from a position that is no multiple of anything"
    rng = np.random.default_rng(seed)
    position = int(rng.integers(1, 10_000))
    return [(position, 4, 2, 3), (position, 3, 1, 4), (0, 2, 0, 2), (position + 5, 5, 0, 1)]

register(Exercise(
    "data.share", "02", "The numbers of this rank's next B windows (an array), and the position "
    "after the step (an int): of every world x B windows, rank r takes the r-th B.",
    inputs=share_inputs, oracle=deal, package="gpt2_course.data:share",
    wrongs=(
        Wrong("all ranks read the same windows",
              lambda p, B, rank, world: (p + np.arange(B), p + world * B),
              "Eight GPUs compute one gradient eight times: no error, no speed, and most of the "
              "text is skipped."),
        Wrong("the position moves by B, not by world x B",
              lambda p, B, rank, world: (p + rank * B + np.arange(B), p + B),
              "Each rank then reads what its neighbour has read a step before: every window is "
              "seen `world` times an epoch."),
        Wrong("a rank begins one window after its neighbour, not B",
              lambda p, B, rank, world: (p + rank + np.arange(B), p + world * B),
              "The ranks' batches overlap in all but one row, and the end of each step's windows "
              "is read by nobody."),
        Wrong("a rank takes every world-th window",
              lambda p, B, rank, world: (p + rank + world * np.arange(B), p + world * B),
              "The union is right, but the ranks' batches laid end to end are not one process's "
              "batch, so the two cannot be compared row by row.")),
    hints=("One step uses world * B windows, starting at `position`. Draw them as a row of boxes.",
           "Rank 0 takes the first B boxes, rank 1 the next B: where does rank r begin?",
           "position + rank * B + np.arange(B), and the next position: position + world * B.")))
