"""The catalogue of chapter 13, with its reference answers: what to write, oracles in NumPy float64,
and the classic mistakes with their names."""

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register


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
    "A linear model and micro-batches, among them a single one"
    g = torch.Generator().manual_seed(seed)
    pair = lambda n: (torch.randn(n, 4, generator=g), torch.randint(5, (n,), generator=g))
    return [(torch.randn(4, 5, generator=g).requires_grad_(), [pair(n) for _ in range(k)])
            for k, n in ((3, 2), (1, 4), (5, 3))]

def gradient_numpy(w, batches):
    "Softmax minus one-hot, in float64, over all rows at once"
    w = w.detach().double().numpy()
    x = np.concatenate([x.double().numpy() for x, _ in batches])
    y = np.concatenate([y.numpy() for _, y in batches])
    p = np.exp(x @ w)
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return torch.from_numpy(x.T @ p / len(y)).float()

def scaled(divisor, forget=False):
    "A mistaken accumulation: another divisor, or gradients forgotten on the way"
    def fn(w, batches):
        for x, y in batches:
            if forget: w.grad = None
            (F.cross_entropy(x @ w, y) / divisor(batches)).backward()
        return w.grad
    return fn


register(Exercise(
    "training.accumulated_gradient", "13", "The gradient of the mean loss over all micro-batches, "
    "by one backward for each; w.grad is returned.",
    inputs=weights_and_batches, oracle=gradient_numpy,
    package="gpt2_course.exercises.training:accumulated_gradient",
    wrongs=(
        Wrong("the loss is not divided by the number of micro-batches", scaled(lambda b: 1),
              "The gradient is as many times too long: the logged norm jumps and clipping cuts "
              "every step. AdamW hides it otherwise."),
        Wrong("the gradients are forgotten between micro-batches",
              scaled(lambda b: len(b), forget=True),
              "zero_grad belongs before the first micro-batch only: here the last one decides "
              "alone, and with a fraction of its weight."),
        Wrong("the loss is divided by the number of rows", scaled(lambda b: len(b) * len(b[0][1])),
              "cross_entropy has divided by the rows of its micro-batch already; divide by the "
              "number of micro-batches."),
        Wrong("the last micro-batch counts alone", scaled(lambda b: 1, forget=True),
              "The others are computed and thrown away: the step costs much and sees little.")),
    hints=("backward adds to w.grad: nothing has to be summed by hand.",
           "The mean of n equal-sized means is their sum divided by n: divide each loss.",
           "for x, y in batches: (F.cross_entropy(x @ w, y) / len(batches)).backward()")))


def loss_of_batches(
    batches, # list of logits (n, V), targets (n,); -1 is ignored
) -> float:  # nats a token, over all targets that count
    "Sum over sum: every token has the same weight, whatever its batch"
    total = sum(float(F.cross_entropy(z, y, ignore_index=-1, reduction="sum")) for z, y in batches)
    return total / sum(int((y != -1).sum()) for _, y in batches)


def logits_and_targets(
    seed:int,
) -> list: # of a tuple with one list of logits (n, V), targets (n,)
    "Batches of unequal sizes with ignored targets; the last list has a batch without a target"
    g = torch.Generator().manual_seed(seed)
    def pair(n, ignored):
        z, y = torch.randn(n, 6, generator=g) * 2, torch.randint(6, (n,), generator=g)
        return z, y.where(torch.arange(n) >= ignored, -1)
    return [([pair(5, 1), pair(2, 0)],), ([pair(4, 0)],), ([pair(4, 3), pair(6, 1), pair(3, 3)],)]

def loss_numpy(batches):
    "Token by token in float64"
    surprise = []
    for z, y in batches:
        for row, target in zip(z.double().numpy(), y.tolist()):
            if target >= 0: surprise.append(np.log(np.exp(row).sum()) - row[target])
    return float(np.mean(surprise))

def summed(divisor):
    "The summed loss over another divisor"
    return lambda batches: sum(float(F.cross_entropy(
        z, y, ignore_index=-1, reduction="sum")) for z, y in batches) / divisor(batches)


register(Exercise(
    "training.loss_of_batches", "13", "The mean loss over all tokens of a list of (logits, "
    "targets), as a float; a target of -1 does not count.",
    inputs=logits_and_targets, oracle=loss_numpy,
    package="gpt2_course.exercises.training:loss_of_batches",
    wrongs=(
        Wrong("it is a mean of the batches' means",
              lambda batches: float(np.mean([float(F.cross_entropy(z, y, ignore_index=-1))
                                             for z, y in batches])),
              "A small last batch weighs as much as a full one, and a batch without a target is "
              "0/0: NaN."),
        Wrong("ignored targets are counted in the divisor",
              summed(lambda batches: sum(y.numel() for _, y in batches)),
              "The loss looks better the more padding there is."),
        Wrong("the target -1 is read as the last token",
              lambda batches: float(torch.cat([-z.log_softmax(-1)[range(len(y)), y]
                                               for z, y in batches]).mean()),
              "Python counts -1 from the end: padding is scored as if it were a word."),
        Wrong("the sum is divided by the number of batches", summed(len),
              "The number grows with the batch size and cannot be compared with ln V.")),
    hints=("Add up two things over the batches: the surprise, and how many tokens it comes from.",
           "reduction='sum' and ignore_index=-1 do the first; (y != -1).sum() is the second.",
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
    "Falling, noisy curves and how much to smooth them"
    rng = np.random.default_rng(seed)
    curve = lambda n: [float(v) for v in 4 * 0.8**np.arange(n) + 1 + rng.random(n) / 2]
    return [(curve(6), 0.9), (curve(9), 0.7), (curve(1), 0.95)]

def smoothed_numpy(values, beta):
    "Weighted means with weights beta**age"
    v = np.array(values)
    weights = [beta ** np.arange(t, -1, -1) for t in range(len(v))]
    return [float((w * v[:len(w)]).sum() / w.sum()) for w in weights]

def moving(values, start=lambda v: 0.0, keep=lambda b: b, divisor=lambda b, t: 1.0, feed=False):
    "A mistaken moving average: one part of the right one is exchanged"
    def fn(v, beta):
        m, out = start(v), []
        for t, x in enumerate(v, start=1):
            m = keep(beta) * m + (1 - keep(beta)) * x
            out.append(m / divisor(keep(beta), t))
            if feed: m = out[-1]
        return out
    return fn(*values)


correct = lambda b, t: 1 - b**t
register(Exercise(
    "training.smoothed", "13", "An exponential moving average with bias correction: a list as long "
    "as values.", inputs=curves, oracle=smoothed_numpy,
    package="gpt2_course.exercises.training:smoothed",
    wrongs=(
        Wrong("the bias is not corrected", lambda v, b: moving((v, b)),
              "The average starts at 0, so the first losses look far too good and the curve "
              "rises before it falls."),
        Wrong("the average starts at the first value",
              lambda v, b: moving((v, b), start=lambda v: v[0]),
              "The first loss, the largest of all, keeps a weight that is not its own and holds "
              "the curve up for long."),
        Wrong("beta and 1 - beta are exchanged",
              lambda v, b: moving((v, b), keep=lambda b: 1 - b, divisor=correct),
              "A beta of 0.9 then hardly smooths: the new value gets nine tenths."),
        Wrong("the corrected value is fed back into the average",
              lambda v, b: moving((v, b), divisor=correct, feed=True),
              "Each step corrects what was corrected before: the curve flies away.")),
    hints=("Keep one number m: beta of the old, 1 - beta of the new value.",
           "m starts at 0, so after t values its weights add up to 1 - beta**t only.",
           "Append m / (1 - beta**t), t counted from 1, and leave m itself uncorrected.")))


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
    "Rows with a slow start, logged at several intervals; in the last list the run is done"
    rng = np.random.default_rng(seed)
    def log(n, every, slow, pace):
        return [dict(step=every * i, seconds=slow + every * i * pace) for i in range(1, n + 1)]
    pace = lambda: float(rng.uniform(0.2, 0.8))
    return [(log(4, 10, 30.0, pace()), 200), (log(3, 5, 9.0, pace()), 60),
            (log(2, 20, 7.0, pace()), 40)]

def rest_of_line(rows, steps):
    "Follow a straight line through the two ends up to the last step (NumPy's polyfit)"
    step, seconds = (np.array([rows[i][k] for i in (0, -1)]) for k in ("step", "seconds"))
    return float(np.polyval(np.polyfit(step, seconds, 1), steps) - seconds[-1])

def ends(rows):
    "Steps done, steps and seconds between the first and the last row"
    a, b = rows[0], rows[-1]
    return b["step"], b["step"] - a["step"], b["seconds"] - a["seconds"]


def by_rows(rows, steps):
    "Mistaken: the interval of logging is taken for one step"
    done, _, seconds = ends(rows)
    return (steps - done) * seconds / (len(rows) - 1)

def upside_down(rows, steps):
    "Mistaken: steps a second where seconds a step are meant"
    done, n, seconds = ends(rows)
    return (steps - done) * n / seconds

register(Exercise(
    "training.time_left", "13", "Seconds left of a run of `steps` steps, at the pace between the "
    "first and the last of the given rows (keys step and seconds).",
    inputs=logs, oracle=rest_of_line, package="gpt2_course.exercises.training:time_left",
    wrongs=(
        Wrong("the slow start is part of the pace",
              lambda rows, steps: (steps - rows[-1]["step"]) * rows[-1]["seconds"]
              / rows[-1]["step"],
              "Compiling and filling caches happen once; an estimate that counts them is far too "
              "long at first."),
        Wrong("it is the time of the whole run",
              lambda rows, steps: steps * ends(rows)[2] / ends(rows)[1],
              "What is done is done: count the steps that are left."),
        Wrong("a row is taken for a step", by_rows,
              "Rows come every log_every steps; the estimate is too long by that factor."),
        Wrong("the pace is upside down", upside_down,
              "Steps a second times steps is no time: check the units.")),
    hints=("Pace in seconds a step: the difference of two clocks over the difference of two steps.",
           "Use the keys step and seconds of rows[0] and rows[-1].",
           "(steps - last step) * (last seconds - first seconds) / (last step - first step)"),
    atol=1e-4))
