"""The catalogue of chapter 02: what to write, oracles in plain Python, and the classic mistakes
with their names."""

import numpy as np
import torch

from ..bigram import Bigram
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..data import epoch_starts


def rows_inputs(seed):
    "Views, ends and starts: shards of unequal length, windows out of order and exactly on a border"
    rng, out = np.random.default_rng(seed), []
    draw = lambda low, high: rng.integers(low, high, 2).tolist()
    for sizes, T, starts in (((9, 40), 4, [30, 2, 12, 31, 3, *draw(10, 36)]),
                             ((30,), 6, [23, 0, 11, 4, *draw(1, 24)]),
                             ((8, 40, 90), 3, [48, *draw(49, 134), 8, 0, 134, *draw(9, 44), 44, 4]),
                             ((12, 25), 3, [20, 5, 30, 33]),
                             ((20, 20, 20), 5, [40]), # one row: the first window of a shard
                             ((5, 7), 2, [5, 2, 9])): # small, to be printed: first, last, last
        shards = [rng.integers(0, 100 if T == 2 else 65536, n).astype(np.uint16) for n in sizes]
        views = [np.lib.stride_tricks.sliding_window_view(s, T + 1) for s in shards]
        out.append((views, np.cumsum(sizes), np.array(starts)))
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

def rows_found(shard_of, begin=lambda ends, s: ends[s - 1] if s else 0):
    "Mistaken rows: the shard of a window, or the place where the shard begins, is wrong"
    def fn(views, ends, starts):
        found = [(shard_of(ends, start), int(start)) for start in starts]
        both = np.array([views[s][start - begin(ends, s)] for s, start in found])
        both = torch.from_numpy(both.astype(np.int64))
        return both[:, :-1], both[:, 1:]
    return fn

def shard_right(ends, start): return int(np.searchsorted(ends, start, side="right"))
def shard_left(ends, start): return int(np.searchsorted(ends, start, side="left"))

def change(fn):
    "A mistake in the last step: what is made of x and y"
    return lambda *args: fn(*rows_plain(*args))


register(Exercise(
    "data.rows", "02", "Gather windows of T + 1 tokens into inputs x and targets y, a tuple of two "
    "(B, T) int64 tensors, row b from the window that starts at starts[b].",
    inputs=rows_inputs, oracle=rows_plain, package="gpt2_course.data:rows", exact=True,
    wrongs=(
        Wrong("the target is the input itself", change(lambda x, y: (x, x)),
              "The model learns to copy: its loss falls to zero within minutes, and it has learned "
              "nothing."),
        Wrong("inputs and targets are exchanged", change(lambda x, y: (y, x)),
              "Each position is then asked for the token before it, which it already sees as part "
              "of its past: the loss is far too good, and the text is noise."),
        Wrong("the last token of each window is dropped",
              change(lambda x, y: (x[:, :-1], y[:, :-1])),
              "A window has T + 1 tokens in order to give T examples, not T - 1: one T-th of the "
              "text is never predicted."),
        Wrong("each window has one target, not one at every position",
              change(lambda x, y: (x, y[:, -1])),
              "A language model predicts the next token at all T positions at once. With one "
              "target per window it learns from one T-th of the text."),
        Wrong("x keeps all T + 1 tokens",
              change(lambda x, y: (torch.cat([x, y[:, -1:]], 1), y)),
              "The last token of a window is a target only: it has no successor in the window. "
              "Inputs and targets need the same shape."),
        Wrong("a window exactly at the border is taken from the shard before",
              rows_found(shard_left),
              "A window that starts at ends[s] is the first of shard s + 1. np.searchsorted finds "
              "that with side='right'; its default is 'left'."),
        Wrong("offsets count from the start of the stream, not of the shard",
              rows_found(shard_right, lambda ends, s: 0),
              "`starts` are offsets into all shards laid end to end: subtract where the shard "
              "begins. Otherwise other text is read, or the run crashes."),
        Wrong("the end of the shard is subtracted, not its beginning",
              rows_found(shard_right, lambda ends, s: ends[s]),
              "The place within the shard becomes negative, and NumPy counts it from the back: "
              "other text, and no error. A shard begins where the one before it ends."),
        Wrong("all windows are taken from the first shard", rows_found(lambda ends, start: 0),
              "Find the shard of each window first: it is the first one whose end lies behind the "
              "start of the window."),
        Wrong("the rows come in the order of the shards", rows_by_shard,
              "Row b must come from starts[b]. Otherwise two runs that should be equal are not, "
              "and several processes can no longer be compared with one."),
        Wrong("the rows come in the order of the text",
              lambda views, ends, starts: rows_plain(views, ends, np.sort(starts)),
              "Row b must come from starts[b]: the order of `starts` is the shuffled order in "
              "which the run reads."),
        Wrong("the tokens stay uint16, as they lie in the shard",
              change(lambda x, y: (x.to(torch.uint16), y.to(torch.uint16))),
              "That type saves space on disk. An embedding and the loss want int64, and PyTorch "
              "computes almost nothing with uint16."),
        Wrong("the tokens are int32", change(lambda x, y: (x.int(), y.int())),
              "An embedding accepts int32 inputs, but the cross-entropy wants int64 targets and "
              "raises an error: use .astype(np.int64) or .long()."),
        Wrong("the tokens are floating-point numbers", change(lambda x, y: (x.float(), y.float())),
              "Tokens are indices into a table. torch.Tensor(...) and np.empty(...) make "
              "floating-point numbers unless they are told the type.")),
    hints=("np.searchsorted(ends, starts, side='right') says in which shard each window lies.",
           "A window's place within its shard is its start minus the end of the shard before.",
           "Fill an int64 array of shape (B, T + 1), shard by shard with a boolean index; then "
           "x = both[:, :-1] and y = both[:, 1:], as tensors.")))


def starts_plain(sizes, T, order, seed, epoch, need=1, one_stream=False, use_epoch=True,
                 draw="permutation", phases=True, short=True, last=1, step=0, bases=True,
                 always=(), dtype=np.int64):
    "Where windows start, found by walking along the shards; the switches make the mistakes"
    rng = np.random.default_rng([seed, epoch if use_epoch else 0])
    if one_stream: sizes = [sum(sizes)]
    out, base, step = [], 0, step or T
    for n in sizes:
        lengths = range(0, n - T - need + 1, step) # every place where a window of T + need fits
        slack = max(0, n - need - len(lengths) * T)
        drawn = order == "epochs" or "phase" in always
        if phases and drawn and (short or lengths): phase = int(rng.integers(slack + last))
        else: phase = 0
        out.append([base * bases + phase + at for at in lengths])
        base += n
    if draw == "in each shard": out = [list(rng.permutation(part)) for part in out]
    out = [at for part in out for at in part]
    if order == "epochs" or "shuffle" in always:
        if draw == "permutation": out = [out[i] for i in rng.permutation(len(out))]
        if draw == "integers": out = [out[i] for i in rng.integers(0, len(out), len(out))]
    return np.array(out, dtype)

def starts_inputs(seed):
    "Shards that are a multiple of T, too short, or without slack; two epochs, then front to back"
    rng = np.random.default_rng(seed)
    T, s = int(rng.integers(4, 8)), int(rng.integers(1000))
    sizes = [int(rng.integers(8, 12)) * T, 3, int(rng.integers(7, 12)) * T + 3, 2 * T + 1]
    return [(sizes, T, "epochs", s, 1), (sizes, T, "epochs", s, 2), (sizes, T, "sequential", s, 1),
            ([50, 3, 67, 31], 8, "epochs", 7, 3), ([50, 16, 17], 8, "sequential", 7, 3)]

def mistaken(**kw): return lambda *args: starts_plain(*args, **kw)


register(Exercise(
    "data.epoch_starts", "02", "Where the windows of one epoch start, an int64 array of offsets "
    'into the shards laid end to end: shuffled for order "epochs", front to back for "sequential".',
    inputs=starts_inputs, oracle=starts_plain, package="gpt2_course.data:epoch_starts", exact=True,
    wrongs=(
        Wrong("windows straddle two shards", mistaken(one_stream=True),
              "The end of one shard is continued by the beginning of another: a jump that the text "
              "never makes, and a read past the end of a memory map."),
        Wrong("a window is given T tokens, not T + 1", mistaken(need=0),
              "Where T divides the shard's length, the last window's last target lies outside the "
              "shard: the number of windows is (n - 1) // T."),
        Wrong("the offsets begin at 0 again in each shard", mistaken(bases=False),
              "All shards are laid end to end: add the lengths of the shards before. Otherwise "
              "only the first shard is read."),
        Wrong("a window starts at every token, not at every T-th", mistaken(step=1),
              "Neighbouring windows share one token only. A window for every token reads the text "
              "T times in one epoch."),
        Wrong("neighbouring windows share no token",
              lambda sizes, T, *rest: starts_plain(sizes, T, *rest, step=T + 1),
              "The last target of a window is the first input of the next, so windows start T "
              "tokens apart. With T + 1, one token in T + 1 is never predicted."),
        Wrong("no phase is drawn", mistaken(phases=False),
              "In every epoch the same words stand at the same positions of a window, and the end "
              "of each shard is never read."),
        Wrong("the largest phase is never drawn", mistaken(last=0),
              "rng.integers leaves out its upper end: rng.integers(slack + 1) draws 0 to slack. "
              "rng.integers(0), for a shard without slack, is an error."),
        Wrong("a shard that is too short for a window draws no phase", mistaken(short=False),
              "Every shard draws, in order, even if it has no window. Otherwise the generator "
              "gives other numbers from there on, and two programs disagree."),
        Wrong("windows are drawn with replacement", mistaken(draw="integers"),
              "In an epoch's worth of steps more than a third of the text is not read, and other "
              "parts are read several times: take rng.permutation."),
        Wrong("the windows are not shuffled", mistaken(draw=""),
              "Read front to back, the loss rises and falls with the plays, and neighbouring rows "
              "of a batch are alike: take rng.permutation of all starts."),
        Wrong("each shard is shuffled by itself", mistaken(draw="in each shard"),
              "The shards still come one after the other, and with them the waves in the loss: one "
              "permutation of all starts, at the end."),
        Wrong("every epoch has the order of the first", mistaken(use_epoch=False),
              "The generator must be seeded with the seed and the epoch. Otherwise the model meets "
              "the same batches in the same order in every epoch."),
        Wrong('order "sequential" draws a phase', mistaken(always=("phase",)),
              'The phase is 0 for "sequential": each shard is read from its first token.'),
        Wrong('order "sequential" is shuffled as well', mistaken(always=("shuffle",)),
              'Only "epochs" is shuffled; "sequential" is front to back, as its name says.'),
        Wrong("the offsets are floating-point numbers", mistaken(dtype=np.float64),
              "np.array([]) and np.zeros(w) hold floating-point numbers, and so does all that is "
              "concatenated with them. Offsets are indices: begin with an empty list."),
        Wrong("the offsets are int32", mistaken(dtype=np.int32),
              "A corpus of ten billion tokens has offsets above 2**31 - 1, where int32 ends.")),
    hints=("A window needs T + 1 tokens, and neighbours overlap by one: (n - 1) // T fit.",
           "Those windows cover w * T + 1 tokens; the phase is drawn from the tokens left over, "
           "0 to slack inclusive: rng.integers(slack + 1), once for each shard, in order.",
           "base + phase + T * np.arange(w) for each shard, np.concatenate, rng.permutation; for "
           '"sequential" the phase is 0 and nothing is permuted.')))


def deal(position, B, rank, world):
    "Deal the next world x B windows like cards: B to the first rank, B to the second …"
    cards, hands = list(range(position, position + world * B)), []
    while cards: hands.append([cards.pop(0) for _ in range(B)])
    return np.array(hands[rank]), position + world * B

def share_inputs(seed):
    "Several ranks, from a position that is no multiple of anything; one row; a single rank"
    rng = np.random.default_rng(seed)
    position = int(rng.integers(1, 10_000))
    return [(position, 4, 2, 3), (position + 5, 3, 1, 4), (0, 2, 0, 2), (7, 5, 0, 1),
            (position, 1, 4, 5)]

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
              "seen `world` times per epoch."),
        Wrong("the position is the end of this rank's share, not of the step",
              lambda p, B, rank, world: (p + rank * B + np.arange(B), p + (rank + 1) * B),
              "All ranks must agree on the position, or they take overlapping shares in the next "
              "step. It moves by world * B on every rank."),
        Wrong("the position does not move",
              lambda p, B, rank, world: (p + rank * B + np.arange(B), p),
              "Every step would read the same batch again: the loss falls fast, and the model "
              "learns one batch by heart."),
        Wrong("the position is forgotten in the numbers",
              lambda p, B, rank, world: (rank * B + np.arange(B), p + world * B),
              "The numbers continue from `position`. Without it every step reads the first "
              "windows of the epoch."),
        Wrong("ranks are counted from 1",
              lambda p, B, rank, world: (p + (rank - 1) * B + np.arange(B), p + world * B),
              "The first rank is 0 and takes the first B windows. Here it would take those that "
              "the step before has read."),
        Wrong("a rank begins one window after its neighbour, not B",
              lambda p, B, rank, world: (p + rank + np.arange(B), p + world * B),
              "The ranks' batches overlap in all but one row, and the last windows of each step "
              "are read by no rank."),
        Wrong("rank r begins at r * world, not at r * B",
              lambda p, B, rank, world: (p + rank * world + np.arange(B), p + world * B),
              "Each rank before this one takes B windows, so rank * B of them are taken. The two "
              "agree only where B equals the number of ranks."),
        Wrong("a rank takes every world-th window",
              lambda p, B, rank, world: (p + rank + world * np.arange(B), p + world * B),
              "The union is right, but the ranks' batches laid end to end are not one process's "
              "batch, so the two cannot be compared row by row."),
        Wrong("the numbers are all those of the step, not this rank's",
              lambda p, B, rank, world: (p + np.arange(world * B), p + world * B),
              "Every rank would compute the whole batch. Its share is B of the world * B numbers, "
              "from rank * B on.")),
    hints=("One step uses world * B windows, starting at `position`. Draw them as a row of boxes.",
           "Rank 0 takes the first B boxes, rank 1 the next B: where does rank r begin?",
           "position + rank * B + np.arange(B), and the next position: position + world * B.")))


T, B = 256, 64 # tokens of a window and windows of a batch, in the challenge

def checked(starts, sizes):
    "The starts as an array, if they are one epoch: as many windows as fit, none twice, none across"
    found = np.asarray(starts)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise ValueError("return a vector of whole numbers: where each window starts")
    W = sum((n - 1) // T for n in sizes)
    if len(found) != W: raise ValueError(f"{len(found):,} starts; an epoch has {W:,} windows")
    at, ends = np.sort(found.astype(np.int64)), np.cumsum(sizes)
    if at[0] < 0 or at[-1] + T >= ends[-1]: raise ValueError("a window lies outside the text")
    if (np.diff(at) < T).any(): raise ValueError(f"two windows start less than {T} tokens apart")
    if (at + T >= ends[np.searchsorted(ends, at, side="right")]).any():
        raise ValueError("a window crosses the border between two works")
    return found.astype(np.int64)

def waves_score(fn, seconds):
    "Standard deviation, over the batches of an epoch, of the loss of a bigram that read Macbeth"
    texts = {f.stem: f.read_bytes() for f in sorted(packaged("shakespeare").glob("*.txt"))}
    macbeth, stream = (np.frombuffer(t, np.uint8) for t in
                       (texts.pop("macbeth"), b"".join(texts.values())))
    sizes = [len(t) for t in texts.values()]
    starts = checked(fn(stream.copy(), list(sizes), T, B), sizes)
    stream = stream.astype(np.int64)
    surprise = -np.log(Bigram(macbeth, 256).prob(stream[:-1], stream[1:]))
    total = np.cumsum(np.append(0.0, surprise))
    losses = (total[starts + T] - total[starts]) / T
    return losses[:len(losses) // B * B].reshape(-1, B).mean(1).std()

def plain_order(stream, sizes, T, B):
    "The shuffled epoch of the chapter"
    return epoch_starts(sizes, T, "epochs", 0, 0)

set_challenge(Challenge(
    "data.waves", "02", "An order in which every batch resembles the whole. From the bytes of all "
    f"works of Shakespeare but Macbeth, their lengths, T = {T} and B = {B}, return where each "
    "window of one epoch starts, in the order of reading; the loss of a bigram that has read "
    "Macbeth should vary as little as possible from batch to batch.", waves_score, plain_order,
    to_beat=0.0324, unit="nats, the standard deviation of the batch losses",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=20))
