"""The catalogue of chapter 13, with its reference answers: what to write, oracles in NumPy float64,
the classic mistakes with their names, and a training run within a budget."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..compare import kind
from ..config import GPTConfig, packaged
from ..model import GPT
from ..optim import adamw, cosine_lr
from ..tokenizer import CharTokenizer


def accumulated_gradient(
    w,       # (D, V) weights of a linear model, requires_grad
    batches, # micro-batches: x (n, D), y (n,) with the same n
):           # (D, V) gradient of the mean loss over all rows
    "One backward for each micro-batch; the gradients add up in w.grad"
    for x, y in batches: (F.cross_entropy(x @ w, y) / len(batches)).backward()
    return w.grad


def weights_and_batches(
    seed:int,
) -> list: # of (w, batches): (D, V) and a list of x (n, D), y (n,)
    "Linear models and micro-batches: a single one, one feature, zero weights, very large weights"
    g = torch.Generator().manual_seed(seed)
    whole = lambda most, *shape: torch.randint(-most, most + 1, shape, generator=g).float()
    pair = lambda n, D: (torch.randn(n, D, generator=g), torch.randint(5, (n,), generator=g))
    some = lambda k, n, D: [pair(n, D) for _ in range(k)]
    sure = [(whole(2, 3, 4), torch.randint(5, (3,), generator=g)) for _ in range(2)]
    weights = lambda D: torch.randn(D, 5, generator=g)
    found = [(weights(4), some(3, 2, 4)), (weights(4), some(1, 4, 4)), (weights(4), some(5, 3, 4)),
             (weights(1), some(2, 3, 1)), (torch.zeros(4, 5), some(2, 4, 4)),
             (whole(3, 4, 5) * 1000, sure)]
    return [(w.requires_grad_(), batches) for w, batches in found]

def gradient_numpy(w, batches):
    "Softmax minus one-hot, in float64, over all rows at once"
    w = w.detach().double().numpy()
    x = np.concatenate([x.double().numpy() for x, _ in batches])
    y = np.concatenate([y.numpy() for _, y in batches])
    p = np.exp(x @ w - (x @ w).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return torch.from_numpy(x.T @ p / len(y)).float()

def scaled(divisor, forget=False, reduction="mean", only_first=False):
    "A mistaken accumulation: another divisor, or gradients forgotten on the way"
    def fn(w, batches):
        for x, y in batches[:1] if only_first else batches:
            if forget: w.grad = None
            (F.cross_entropy(x @ w, y, reduction=reduction) / divisor(batches)).backward()
        return w.grad
    return fn

def running_total(w, batches):
    total = 0.0
    for x, y in batches:
        total = total + F.cross_entropy(x @ w, y) / len(batches)
        total.backward(retain_graph=True)
    return w.grad


register(Exercise(
    "training.accumulated_gradient", "13", "The gradient of the mean loss over all micro-batches, "
    "with one backward pass for each; return w.grad.",
    inputs=weights_and_batches, oracle=gradient_numpy,
    package="gpt2_course.exercises.training:accumulated_gradient",
    wrongs=(
        Wrong("the loss is not divided by the number of micro-batches", scaled(lambda b: 1),
              "The gradient is too large by that factor: the logged norm jumps, and clipping cuts "
              "every step. Apart from that, AdamW hides the mistake."),
        Wrong("only the last micro-batch counts, with a fraction of its weight",
              scaled(len, forget=True),
              "zero_grad belongs before the first micro-batch, and backward inside the loop, once "
              "for each micro-batch. Otherwise the work on all but the last is lost."),
        Wrong("only the last micro-batch counts, with its full weight",
              scaled(lambda b: 1, forget=True),
              "The others are computed and thrown away: the step is expensive and uses few rows. "
              "Let all of them add to the gradient, and divide each loss by their number."),
        Wrong("only the first micro-batch is used", scaled(len, only_first=True),
              "The return stands inside the loop, so the loop ends after its first iteration. The "
              "other micro-batches are never seen."),
        Wrong("the loss is divided by the number of rows", scaled(lambda b: len(b) * len(b[0][1])),
              "cross_entropy has already divided by the number of rows in its micro-batch; divide "
              "by the number of micro-batches."),
        Wrong("the losses of the rows are summed, not averaged", scaled(len, reduction="sum"),
              "The gradient is n times too large for micro-batches of n rows. A larger micro-batch "
              "then means larger steps."),
        Wrong("it is divided by the number of micro-batches twice",
              lambda w, batches: scaled(len)(w, batches) / len(batches),
              "Divide the losses or divide the gradient, not both: the more you accumulate, the "
              "less the model learns."),
        Wrong("backward runs over the sum of all losses so far", running_total,
              "The first loss is then differentiated in every iteration, the last one only once. "
              "backward adds to w.grad by itself: give it the loss of this micro-batch alone.")),
    hints=("backward adds to w.grad: you need not sum anything by hand.",
           "The mean of n equal-sized means is their sum divided by n: divide each loss.",
           "`for x, y in batches: (F.cross_entropy(x @ w, y) / len(batches)).backward()`"),
    excused=dict(batch="The weights of a linear model are a matrix (D, V)")))


def loss_of_batches(
    batches, # list of logits (n, V), targets (n,); -1 is ignored
) -> float:  # nats per token, over all targets that count
    "Sum over sum: every token has the same weight, whatever its batch"
    total = sum(float(F.cross_entropy(z, y, ignore_index=-1, reduction="sum")) for z, y in batches)
    return total / sum(int((y != -1).sum()) for _, y in batches)


def logits_and_targets(
    seed:int,
) -> list: # of a tuple with one list of logits (n, V), targets (n,)
    "Batches of unequal sizes with ignored targets, one without any target, very large logits"
    g = torch.Generator().manual_seed(seed)
    def pair(n, ignored, spread=2.0):
        z = torch.randn(n, 6, generator=g) * spread
        return z, torch.randint(6, (n,), generator=g).where(torch.arange(n) >= ignored, -1)
    equal = torch.ones(3, 6), torch.tensor([5, -1, 2])
    return [([pair(5, 1), pair(2, 0)],), ([pair(4, 0)],), ([pair(4, 3), pair(6, 1), pair(3, 3)],),
            ([pair(1, 0), equal],), ([pair(4, 1, 1500.0), pair(2, 0, 1500.0)],),
            ([pair(4, 2), pair(1, 0), pair(6, 1)],)]

def loss_numpy(batches):
    "Token by token in float64"
    surprise = []
    for z, y in batches:
        for row, target in zip(z.double().numpy(), y.tolist()):
            row = row - row.max()
            if target >= 0: surprise.append(np.log(np.exp(row).sum()) - row[target])
    return float(np.mean(surprise))

def summed(divisor):
    "The summed loss over another divisor"
    return lambda batches: sum(float(F.cross_entropy(
        z, y, ignore_index=-1, reduction="sum")) for z, y in batches) / divisor(batches)

def mean_of(z, y): return float(F.cross_entropy(z, y, ignore_index=-1))
def counting(batches): return [(z, y) for z, y in batches if (y != -1).any()]

def by_rows(batches):
    means = [mean_of(z, y) * len(y) for z, y in counting(batches)]
    return sum(means) / sum(len(y) for _, y in counting(batches))

def by_softmax(batches):
    z, y = (torch.cat(part) for part in zip(*batches))
    p = z.softmax(-1)[y != -1, y[y != -1]]
    return float(-p.log().mean())


register(Exercise(
    "training.loss_of_batches", "13", "The mean loss over all tokens of a list of (logits, "
    "targets), as a float; a target of -1 does not count.",
    inputs=logits_and_targets, oracle=loss_numpy,
    package="gpt2_course.exercises.training:loss_of_batches",
    wrongs=(
        Wrong("it is a mean of the batches' means",
              lambda batches: float(np.mean([mean_of(z, y) for z, y in batches])),
              "A small last batch weighs as much as a full one, and a batch without a target is "
              "0/0: NaN."),
        Wrong("it is a mean of the batches' means, empty ones left out",
              lambda batches: float(np.mean([mean_of(z, y) for z, y in counting(batches)])),
              "A small last batch weighs as much as a full one: the loss depends on how the text "
              "was cut into batches."),
        Wrong("the batches' means are weighted by their rows, ignored targets included", by_rows,
              "A batch should count by its number of targets. Here one with much padding weighs as "
              "much as one without."),
        Wrong("ignored targets are counted in the divisor",
              summed(lambda batches: sum(y.numel() for _, y in batches)),
              "The more padding there is, the better the loss looks."),
        Wrong("the target -1 is read as the last token",
              lambda batches: float(torch.cat([-z.log_softmax(-1)[range(len(y)), y]
                                               for z, y in batches]).mean()),
              "Python counts -1 from the end: padding is scored as if it were a token."),
        Wrong("the sum is divided by the number of batches", summed(len),
              "The number grows with the batch size and cannot be compared with ln V."),
        Wrong("the sum is not divided at all", summed(lambda batches: 1),
              "The number grows with the text. Two evaluations are comparable only per token."),
        Wrong("only the last batch counts", lambda batches: mean_of(*counting(batches)[-1]),
              "The loss of a few rows is noisy. The evaluation should use all batches."),
        Wrong("the logarithm is taken of the softmax", by_softmax,
              "Where the target is far behind, its probability underflows to 0, and -log 0 is "
              "infinite. log_softmax, which F.cross_entropy uses, subtracts log-sum-exp from the "
              "logit instead.")),
    hints=("Add up two things over the batches: the loss, and the number of tokens it comes from.",
           '`reduction="sum"` and `ignore_index=-1` do the first; `(y != -1).sum()` is the second.',
           "Divide once, at the very end.")))


def smoothed(
    values,     # n numbers, such as losses
    beta:float, # memory, from 0 up to, not including, 1
) -> list:      # n numbers: at each place the weighted mean of all so far
    "Exponential moving average with bias correction, as in Adam"
    m, out = 0.0, []
    for t, v in enumerate(values, start=1):
        m = beta * m + (1 - beta) * v
        out.append(m / (1 - beta**t))
    return out


def curves(
    seed:int,
) -> list: # of (values, beta)
    "Falling, noisy curves and how much to smooth them; a single value, a level, a sudden spike"
    rng = np.random.default_rng(seed)
    curve = lambda n: [float(v) for v in 4 * 0.8**np.arange(n) + 1 + rng.random(n) / 2]
    spike = [2.0, 2.5, 1000.0 + float(rng.random()), 2.0, -1000.0, 1.5]
    return [(curve(6), 0.9), (curve(9), 0.7), (curve(1), 0.95), ([3.0] * 5, 0.8), (spike, 0.6),
            (curve(80), 0.1), (curve(120), 0.98)]

def smoothed_numpy(values, beta):
    "Weighted means with weights beta**age"
    v = np.array(values)
    weights = [beta ** np.arange(t, -1, -1) for t in range(len(v))]
    return [float((w * v[:len(w)]).sum() / w.sum()) for w in weights]

def uncorrected(b, t): return 1.0
def corrected(b, t): return 1 - b**t

def moving(start=lambda v: 0.0, keep=lambda b: b, divisor=corrected, feed=False,
           new=lambda b: 1 - b):
    "A mistaken moving average: one part of the right one is exchanged"
    def fn(values, beta):
        m, out, b = start(values), [], keep(beta)
        for t, x in enumerate(values, start=1):
            m = b * m + new(b) * x
            out.append(m / divisor(b, t))
            if feed: m = out[-1]
        return out
    return fn


register(Exercise(
    "training.smoothed", "13", "The exponential moving average of values, with bias correction: "
    "one number for each value.", inputs=curves, oracle=smoothed_numpy,
    package="gpt2_course.exercises.training:smoothed",
    wrongs=(
        Wrong("the bias is not corrected", moving(divisor=uncorrected),
              "The average starts at 0, so the first losses look far too good and the curve "
              "rises before it falls."),
        Wrong("the average starts at the first value, in place of a correction",
              moving(start=lambda v: v[0], divisor=uncorrected),
              "The first loss, the largest of all, keeps more weight than its age allows and keeps "
              "the curve too high for a long time."),
        Wrong("the average starts at the first value and is corrected as well",
              moving(start=lambda v: v[0]),
              "The correction makes up for a start at 0. After any other start it counts the first "
              "value several times: the curve begins far too high."),
        Wrong("beta and 1 - beta are swapped", moving(keep=lambda b: 1 - b),
              "A beta of 0.9 then hardly smooths: the new value gets a weight of nine tenths."),
        Wrong("the new value is not weighted by 1 - beta", moving(new=lambda b: 1.0),
              "The weights then add up to 1 / (1 - beta), not to 1: for a beta of 0.9 the curve is "
              "ten times too high."),
        Wrong("the corrected value is fed back into the average", moving(feed=True),
              "Each step corrects what has been corrected before, so the curve rises far too "
              "high."),
        Wrong("the correction is the same for every step, 1 - beta",
              moving(divisor=lambda b, t: 1 - b),
              "That is right for the first value only. After t values the weights add up to 1 - "
              "beta**t, which approaches 1."),
        Wrong("the correction counts one step too many",
              moving(divisor=lambda b, t: 1 - b**(t + 1)),
              "After the first value the weights add up to 1 - beta, so t is 1 there. With t + 1 "
              "the curve starts at about half its height."),
        Wrong("it is the plain mean of all values so far",
              lambda values, beta: [float(np.mean(values[:t + 1])) for t in range(len(values))],
              "Old values count as much as new ones, and beta is not used: late in a run the curve "
              "no longer moves.")),
    hints=("Keep one number m: beta times the old m plus 1 - beta times the new value.",
           "m starts at 0, so after t values its weights add up to 1 - beta**t only.",
           "Append `m / (1 - beta**t)`, t counted from 1, and leave m itself uncorrected.")))


def time_left(
    rows,      # rows of metrics, oldest first: step (finished), seconds (since the start)
    steps:int, # length of the run
) -> float:    # seconds
    "The steps that are left, at the pace between the first and the last of these rows"
    first, last = rows[0], rows[-1]
    pace = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return (steps - last["step"]) * pace


def logs(
    seed:int,
) -> list: # of (rows, steps)
    "Rows after a slow start, logged at several intervals, slowing down; the last run is finished"
    rng = np.random.default_rng(seed)
    def log(slow, *steps):
        pace, rows, clock, before = float(rng.uniform(0.2, 0.8)), [], slow, 0
        for i, step in enumerate(steps):
            clock += (step - before) * pace * (1 + i / 4)
            rows.append(dict(step=step, seconds=clock))
            before = step
        return rows
    return [(log(30.0, 10, 20, 30, 40), 200), (log(9.0, 5, 10, 15), 60), (log(7.0, 20, 40), 40),
            (log(0.5, 100, 110, 400, 450), 20_000), (log(50.0, 1, 2), 3)]

def rest_of_line(rows, steps):
    "The slope of a straight line through the two ends (NumPy's polyfit), times what is left"
    step, seconds = (np.array([rows[i][k] for i in (0, -1)]) for k in ("step", "seconds"))
    return float((steps - step[-1]) * np.polyfit(step, seconds, 1)[0])

def ends(rows):
    "Steps done, steps and seconds between the first and the last row"
    a, b = rows[0], rows[-1]
    return b["step"], b["step"] - a["step"], b["seconds"] - a["seconds"]


def interval_as_step(rows, steps):
    done, _, seconds = ends(rows)
    return (steps - done) * seconds / (len(rows) - 1)

def upside_down(rows, steps):
    done, n, seconds = ends(rows)
    return (steps - done) * n / seconds

def other_rest(rest):
    "The right pace, times another number of steps"
    return lambda rows, steps: rest(rows, steps) * ends(rows)[2] / ends(rows)[1]

def over_all(rows, steps): # a least-squares line through every row
    step, seconds = ([r[k] for r in rows] for k in ("step", "seconds"))
    return float((steps - step[-1]) * np.polyfit(step, seconds, 1)[0])

register(Exercise(
    "training.time_left", "13", "The seconds left in a run of `steps` steps, at the pace between "
    "the first and the last of the given rows (keys step and seconds).",
    inputs=logs, oracle=rest_of_line, package="gpt2_course.exercises.training:time_left",
    wrongs=(
        Wrong("the slow start is part of the pace",
              lambda rows, steps: (steps - rows[-1]["step"]) * rows[-1]["seconds"]
              / rows[-1]["step"],
              "Compiling and filling caches happen once; an estimate that counts them is far too "
              "long at first."),
        Wrong("it is the time of the whole run", other_rest(lambda rows, steps: steps),
              "Finished steps take no more time: count only the steps that are left."),
        Wrong("the steps left are counted from the first row",
              other_rest(lambda rows, steps: steps - rows[0]["step"]),
              "The newest row says where the run is now. Counted from the oldest, the finished "
              "steps in between are included again."),
        Wrong("the steps left are one too few",
              other_rest(lambda rows, steps: steps - rows[-1]["step"] - 1),
              "A row's step is the number of steps that are finished, so steps - step are left. A "
              "finished run would have a negative time left."),
        Wrong("it is the clock time at the end of the run, not the time until then",
              lambda rows, steps: rows[-1]["seconds"] + time_left(rows, steps),
              "The seconds so far have passed already. Subtract them, or do not add them."),
        Wrong("the pace is that of the last interval alone",
              lambda rows, steps: time_left(rows[-2:], steps),
              "One interval is noisy. The task asks for the pace from the first row to the last; "
              "the caller chooses how far back that is."),
        Wrong("the pace is a line fitted to all rows", over_all,
              "This is a sensible method, but a different one: rows in the middle then change the "
              "result. The task asks for the pace between the two ends."),
        Wrong("each row is counted as one step", interval_as_step,
              "Rows are logged every log_every steps, so the estimate is too long by that factor."),
        Wrong("the pace is inverted", upside_down,
              "Steps per second times steps is not a time: check the units.")),
    hints=("Pace in seconds per step: the difference of the seconds over the difference of the "
           "steps.",
           "Use the keys step and seconds of `rows[0]` and `rows[-1]`.",
           "(steps - last step) * (last seconds - first seconds) / (last step - first step)"),
    atol=1e-4))


STEPS, ROWS, BLOCK = 500, 16, 32 # batches of a run, rows of each, letters in a row
MOST = 120_000 # parameters

@functools.cache
def letters():
    "Three tragedies for training and Macbeth after its cast list, as ids; and the vocabulary size"
    plays = [packaged(f"shakespeare/{n}.txt").read_text(encoding="utf-8")
             for n in ("hamlet", "othello", "king_lear", "macbeth")]
    tok = CharTokenizer("".join(plays))
    held_out = torch.tensor(tok.encode(plays[-1][10_000:]))
    return torch.tensor(tok.encode("".join(plays[:-1]))), held_out, tok.n_vocab

def windows(ids, starts): # (n,) starts -> two (n, BLOCK): letters, and what follows each
    w = ids[starts[:, None] + torch.arange(BLOCK + 1)]
    return w[:, :-1], w[:, 1:]

def check_model(model, x, V):
    "Refuse what is too large, gives another shape, or sees the future"
    if not isinstance(model, nn.Module): raise ValueError(f"return the model, not {kind(model)}")
    n = sum(p.numel() for p in model.parameters())
    if n > MOST: raise ValueError(f"the model has {n:,} parameters; {MOST:,} are allowed")
    logits = model(x)
    if not isinstance(logits, torch.Tensor) or logits.shape != (*x.shape, V):
        raise ValueError(f"model(ids) must give logits of shape {(*x.shape, V)}")
    changed = torch.cat([x[:, :-1], (x[:, -1:] + 1) % V], dim=1)
    if not torch.allclose(model(changed)[:, :-1], logits[:, :-1], atol=1e-4):
        raise ValueError("the model sees the future: another last letter changes earlier logits")

def held_out_loss(fn, seconds):
    "Every optimiser may step once for each batch; the loss is that on fixed windows of Macbeth"
    train, held_out, V = letters()
    g, taken = torch.Generator().manual_seed(0), {}
    def count(optimizer, *_):
        taken[id(optimizer)] = taken.get(id(optimizer), 0) + 1
        if taken[id(optimizer)] > STEPS:
            raise ValueError(f"more than {STEPS} steps of an optimiser: one for each batch")
    draw = lambda: torch.randint(len(train) - BLOCK, (ROWS,), generator=g)
    hook = register_optimizer_step_pre_hook(count)
    try: model = fn((windows(train, draw()) for _ in range(STEPS)), V, BLOCK)
    finally: hook.remove()
    x, y = windows(held_out, torch.arange(256) * BLOCK)
    if isinstance(model, nn.Module): model.eval()
    with torch.no_grad():
        check_model(model, x[:2], V)
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()

def as_in_the_chapter(batches, V, T):
    "The loop of this chapter: AdamW, warm-up and cosine, clipping"
    model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=2, n_head=4, n_embd=64))
    opt = adamw(model, 3e-3, 0.1, (0.9, 0.95), "cpu")
    for s, (x, y) in enumerate(batches):
        rate = cosine_lr(s, max_lr=3e-3, min_lr=3e-4, warmup=50, steps=STEPS)
        for group in opt.param_groups: group["lr"] = rate
        opt.zero_grad(set_to_none=True)
        model(x, y).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    return model

set_challenge(Challenge(
    "training.macbeth", "13", f"Given (batches, V, T): an iterator over {STEPS} batches (x, y) of "
    f"{ROWS} rows of T = {BLOCK} letters from three tragedies, ids below V. Return a trained "
    f"model of at most {MOST:,} parameters; model(ids) gives logits (B, T, V). One optimiser step "
    "for each batch.",
    score=held_out_loss, plain=as_in_the_chapter, to_beat=2.353,
    unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
