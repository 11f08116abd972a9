"""The catalogue of chapter 05: what to write, oracles in plain Python and NumPy, the classic
mistakes with their names, and an open challenge: the loss on Macbeth after a minute of training."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..mlp import MLPModel
from ..tokenizer import CharTokenizer


def texts(
    seed:int,
) -> list: # of (ids, n)
    "Random tokens, all different, so that a shift by one shows; also the shortest text of all"
    g = torch.Generator().manual_seed(seed)
    return [(torch.randperm(40, generator=g)[:L], n) for L, n in ((9, 3), (12, 1), (20, 8), (5, 4))]

def windows_python(ids, n):
    "One window after the other, with lists"
    ids = ids.tolist()
    x = [[ids[i + j] for j in range(n)] for i in range(len(ids) - n)]
    return torch.tensor(x), torch.tensor([ids[i + n] for i in range(len(ids) - n)])

def sliding(ids, size): return ids.unfold(0, size, 1)

def every(step):
    "A mistaken cut: windows start every so many tokens"
    def fn(ids, n):
        w = sliding(ids, n + 1)[::step(n)]
        return w[:, :-1], w[:, -1]
    return fn

def padded(ids, n):
    "As makemore does it: the text is preceded by n tokens that are not in it"
    return sliding(torch.cat((ids.new_zeros(n), ids)), n)[:-1], ids

register(Exercise(
    "mlp.context_windows", "05", "From (L,) tokens, all (L - n, n) inputs and the (L - n,) tokens "
    "that follow them.", inputs=texts, oracle=windows_python,
    package="gpt2_course.mlp:context_windows",
    wrongs=(
        Wrong("the last window is left out (off by one)",
              lambda ids, n: (sliding(ids, n + 1)[:-1, :n], ids[n:-1]),
              "range(L - n - 1) stands in place of range(L - n): the last token of each text is "
              "never a target, and a text of n + 1 tokens gives no window at all."),
        Wrong("the first window is left out (off by one)",
              lambda ids, n: (sliding(ids, n + 1)[1:, :n], ids[n + 1:]),
              "The first window starts at token 0: a loop that starts at 1 skips it, and a text of "
              "n + 1 tokens gives no window at all."),
        Wrong("there is one window too many, and it has no target",
              lambda ids, n: (sliding(ids, n), ids[n:]),
              "L - n + 1 windows fit into the text, but nothing follows the last one. Inputs and "
              "targets need the same length."),
        Wrong("the window includes its target", lambda ids, n: (sliding(ids, n)[1:], ids[n:]),
              "The input then contains the answer: the training loss falls towards zero, and the "
              "generated text is noise."),
        Wrong("the target is the last token of the window",
              lambda ids, n: (sliding(ids, n)[:-1], ids[n - 1:-1]),
              "ids[i + n - 1] is inside the window, ids[i + n] comes after it: the model only has "
              "to copy what it sees."),
        Wrong("the target is one token too late",
              lambda ids, n: (sliding(ids, n)[:-2], ids[n + 1:]),
              "The model learns to skip a character: its loss stays high, and letters are missing "
              "from its words."),
        Wrong("the targets are windows as well, shifted by one",
              lambda ids, n: (sliding(ids, n)[:-1], sliding(ids, n)[1:]),
              "That is the form for a transformer, which predicts at every position. This model "
              "makes one prediction per window, so a target is a single token."),
        Wrong("inputs and targets are swapped",
              lambda ids, n: (ids[n:], sliding(ids, n)[:-1]),
              "The task asks for the inputs first, then the targets."),
        Wrong("the windows do not overlap", every(lambda n: n + 1),
              "Only one token in n + 1 becomes a target: most of the text is never predicted."),
        Wrong("each window starts where the last one ended", every(lambda n: n),
              "Only one token in n becomes a target: most of the text is never predicted. Move the "
              "window by one token."),
        Wrong("the text is padded at its beginning", padded,
              "With n extra tokens in front every token of the text becomes a target, which is a "
              "good idea for short names. Here L tokens give L - n windows, all of real "
              "text.")),
    hints=("Write the example out by hand: how many windows of 2 does [3, 1, 4, 1, 5] have if each "
           "needs a token after it?",
           "Input i is ids[i : i + n] and its target is ids[i + n], for i from 0 to L - n - 1.",
           "ids.unfold(0, n + 1, 1) is (L - n, n + 1): the last column is the targets.")))


def tables(
    seed:int,
) -> list: # of (wte, x)
    """Tables (V, E) and windows (B, n) with the first and the last token in them; one row, a
    token that repeats, a table of a single row, large entries and a row of equal ones"""
    g = torch.Generator().manual_seed(seed)
    cases = [(torch.randn(V, E, generator=g), torch.randint(V, (B, n), generator=g))
             for V, B, n, E in ((11, 4, 3, 2), (7, 2, 5, 3), (11, 1, 4, 6), (1, 3, 9, 5))]
    for wte, x in cases: x[0, 0], x[-1, -1] = len(wte) - 1, 0
    wte, x = torch.randn(5, 4, generator=g) * 1000, torch.tensor([[2, 2, 4], [0, 2, 2], [4, 1, 3]])
    wte[0, 0], wte[2] = 2000.0, -1500.0
    return [*cases, (wte, x)]

def lookup_numpy(wte, x):
    "Each row of the window after the other, written into its place"
    (B, n), E, table = x.shape, wte.shape[1], wte.numpy()
    out = np.zeros((B, n * E), np.float32)
    for b, j in np.ndindex(B, n): out[b, j * E:(j + 1) * E] = table[int(x[b, j])]
    return torch.from_numpy(out)

register(Exercise(
    "mlp.lookup", "05", "The vectors of (B, n) tokens in the (V, E) table, laid end to end: (B, n "
    "* E).",
    inputs=tables, oracle=lookup_numpy, package="gpt2_course.mlp:lookup", gradient=True,
    excused={"batch": "The only floating-point input is the table, which is (V, E) by the task."},
    wrongs=(
        Wrong("the embeddings are summed, not laid end to end", lambda wte, x: wte[x].sum(1),
              "A sum forgets the order: 'no' and 'on' become the same window."),
        Wrong("the embeddings are averaged, not laid end to end", lambda wte, x: wte[x].mean(1),
              "A mean forgets the order: 'no' and 'on' become the same window."),
        Wrong("it is flattened in the wrong order",
              lambda wte, x: wte[x].transpose(1, 2).flatten(1),
              "A row then runs component by component, not token by token: a model trained from "
              "scratch adapts to that, but weights trained elsewhere read noise."),
        Wrong("the window is read backwards", lambda wte, x: wte[x.flip(1)].flatten(1),
              "The newest token stands where the weights expect the oldest: training from scratch "
              "hides the mistake, but weights trained elsewhere read noise."),
        Wrong("the tokens of different windows are mixed",
              lambda wte, x: wte[x].transpose(0, 1).reshape(len(x), -1),
              "After the transpose the window is the first dimension, and reshape ignores where "
              "one ends: a row holds tokens of other windows."),
        Wrong("the vectors are not joined", lambda wte, x: wte[x],
              "The result is (B, n, E). A linear layer with n * E inputs raises an error, and one "
              "with E inputs treats each letter alone."),
        Wrong("the windows are joined as well", lambda wte, x: wte[x].flatten(),
              "flatten() without an argument joins all dimensions, the batch too: one row where B "
              "are wanted."),
        Wrong("batch and window are joined, not window and vector",
              lambda wte, x: wte[x].flatten(0, 1),
              "(B * n, E) has a row for each token, so the layer above sees one letter at a time. "
              "Join the last two dimensions."),
        Wrong("columns of the table are taken, not rows",
              lambda wte, x: wte.T[x.clamp(max=wte.shape[1] - 1)].flatten(1),
              "A token is a row of the table. Columns go across all tokens, and there are only E "
              "of them.")),
    hints=("A tensor of integers is an index: table[tokens] takes rows.",
           "wte[x] is (B, n, E). Which two dimensions have to become one?",
           "wte[x].flatten(1), or .view(B, n * E): tokens outside, components inside.")))


def layers(
    seed:int,
) -> list: # of (e, W, b, U, d)
    """Embedded windows and the parameters of two layers: random, square, one row; then sums of
    more than a thousand, where a tanh is 1 or -1, and a row of equal entries"""
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    cases = [(new(B, D), new(H, D) * 0.6, new(H), new(V, H), new(V) + 1)
             for B, D, H, V in ((3, 4, 5, 6), (2, 6, 6, 6), (1, 3, 8, 2))]
    sign = torch.tensor([[1, 1, 1], [1, -1, -1], [1, 1, -1], [1, -1, 1]])
    steep = sign * (torch.rand(4, 3, generator=g) + 0.5)                   # no sum near zero
    e = torch.tensor([[-3000.0, 0, 0], [0, 4000.0, 0], [0.5, 0.5, 0.5]])
    return [*cases, (e, steep, new(4), new(5, 4), new(5))]

def hidden_numpy(e, W, b, U, d):
    "Two layers in float64"
    e, W, b, U, d = (t.double().numpy() for t in (e, W, b, U, d))
    h = np.tanh(np.einsum("bi,hi->bh", e, W) + b)
    return torch.from_numpy(np.einsum("bh,vh->bv", h, U) + d).float()

def bent(act):
    "A mistaken hidden layer: another non-linearity"
    return lambda e, W, b, U, d: act(e @ W.T + b) @ U.T + d

def own_tanh(s): return (s.exp() - (-s).exp()) / (s.exp() + (-s).exp())
def own_tanh_2(s): return ((2 * s).exp() - 1) / ((2 * s).exp() + 1)

register(Exercise(
    "mlp.hidden_logits", "05", "(B, V) logits: tanh(W e + b), then the head U with bias d.",
    inputs=layers, oracle=hidden_numpy, package="gpt2_course.mlp:hidden_logits", gradient=True,
    excused={"batch": "The task is a batch (B, n * E): each window is already one long vector."},
    wrongs=(
        Wrong("there is no non-linearity", bent(lambda s: s),
              "Two matrices in a row are one matrix: the hidden layer costs time and learns "
              "nothing."),
        Wrong("the non-linearity is a ReLU", bent(torch.relu),
              "A ReLU works as well, and later chapters use a smooth one; but this model of 2003 "
              "has a tanh, and weights trained with one do not fit the other."),
        Wrong("the non-linearity is a sigmoid", bent(torch.sigmoid),
              "A sigmoid lies between 0 and 1 and is 0.5 at zero: all units start half on, and "
              "the logits are shifted."),
        Wrong("the tanh is written with exponentials that overflow", bent(own_tanh),
              "exp(s) is infinite for s above 88 in float32, and infinity over infinity is NaN. "
              "torch.tanh is safe."),
        Wrong("the tanh is written with exp(2 s), which overflows", bent(own_tanh_2),
              "exp(2 s) is infinite for s above 44 in float32, and infinity over infinity is NaN. "
              "torch.tanh is safe."),
        Wrong("the logits go through a tanh, too",
              lambda e, W, b, U, d: torch.tanh(torch.tanh(e @ W.T + b) @ U.T + d),
              "With logits between -1 and 1 the model can never be confident: with 70 characters "
              "no probability exceeds a tenth."),
        Wrong("a softmax is applied to the logits",
              lambda e, W, b, U, d: (torch.tanh(e @ W.T + b) @ U.T + d).softmax(-1),
              "cross_entropy applies its own: the second softmax flattens the probabilities, and "
              "the loss remains near ln V."),
        Wrong("a log-softmax is applied to the logits",
              lambda e, W, b, U, d: (torch.tanh(e @ W.T + b) @ U.T + d).log_softmax(-1),
              "A second log-softmax changes nothing, so the loss would be right; but these are "
              "log-probabilities, and the task asks for the logits."),
        Wrong("the bias is added after the tanh",
              lambda e, W, b, U, d: (torch.tanh(e @ W.T) + b) @ U.T + d,
              "Every unit then bends at zero, and b only adds a constant to the logits."),
        Wrong("the tanh is applied to the input, not to the sums",
              lambda e, W, b, U, d: (torch.tanh(e) @ W.T + b) @ U.T + d,
              "A tanh of each input component alone cannot combine letters, and the two linear "
              "layers after it are equivalent to one."),
        Wrong("the hidden layer has no bias",
              lambda e, W, b, U, d: torch.tanh(e @ W.T) @ U.T + d,
              "Every unit then bends at zero; b lets each unit choose where."),
        Wrong("the head has no bias", lambda e, W, b, U, d: torch.tanh(e @ W.T + b) @ U.T,
              "d encodes how frequent each token is, whatever the context: without it the hidden "
              "units have to learn that, too."),
        Wrong("the matrices are not transposed",
              lambda e, W, b, U, d: torch.tanh(e @ W + b) @ U + d,
              "PyTorch stores (out, in), so a batch of rows needs e @ W.T. Only square matrices "
              "hide the mistake; the others raise an error.")),
    hints=("Read the formula from the inside out: first W e + b, for each row of e.",
           "W is stored (out, in), so for a batch of rows the product is e @ W.T.",
           "torch.tanh(e @ W.T + b) is (B, H); then @ U.T + d, with nothing after it.")))


class Table:
    "A model that looks the last token up in a table; its memory holds `room` windows"
    def __init__(self, weight, room): self.weight, self.room = weight, room
    def __call__(self, x):
        if len(x) > self.room:
            raise RuntimeError(f"out of memory: {len(x)} windows at once, {self.room} would fit")
        return self.weight[x[:, -1]]
    def __repr__(self): return f"<a model for batches of at most {self.room}>"

def exams(
    seed:int,
) -> list: # of (model, x, y, batch)
    """Row counts that the batch does and does not divide, a batch larger than all, many small
    batches, batches of one, large logits; in the first case there is room for more than a batch"""
    g = torch.Generator().manual_seed(seed)
    return [(Table(torch.randn(6, 6, generator=g) * scale, room),
             torch.randint(6, (N, 2), generator=g), torch.randint(6, (N,), generator=g), batch)
            for N, batch, room, scale in ((11, 4, 6, 3), (12, 4, 4, 3), (9, 8, 8, 3), (5, 8, 8, 3),
                                          (9, 2, 2, 3), (3, 1, 1, 3), (7, 3, 3, 1000))]

def dataset_loss_numpy(model, x, y, batch):
    "One row after the other in float64"
    total = 0.0
    for a, b in zip(x, y):
        z = model(a[None])[0].double().numpy()
        total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[int(b)]
    return total / len(x)

def in_batches(combine, loss_of=F.cross_entropy):
    "A mistaken loss: the batches' sums and sizes are combined in another way"
    def fn(model, x, y, batch):
        parts = list(zip(x.split(batch), y.split(batch)))
        sums = [float(loss_of(model(a), b, reduction="sum")) for a, b in parts]
        return combine(sums, [len(b) for _, b in parts], batch)
    return fn

def mean(sums, sizes, batch): return sum(sums) / sum(sizes)

def full_only(sums, sizes, batch):
    "Leave the last, smaller batch out, as a loader with drop_last=True does"
    full = [(s, n) for s, n in zip(sums, sizes) if n == batch]
    return sum(s for s, _ in full) / max(sum(n for _, n in full), 1)

def at_once(model, x, y, batch): return float(F.cross_entropy(model(x), y))

def chunked(model, x, y, batch):
    parts = zip(x.chunk(batch), y.chunk(batch))
    return sum(float(F.cross_entropy(model(a), b, reduction="sum")) for a, b in parts) / len(x)

def loss_of_probabilities(z, y, reduction):
    return F.cross_entropy(z.softmax(-1), y, reduction=reduction)

register(Exercise(
    "mlp.dataset_loss", "05", "Mean cross-entropy of model over all rows of (x, y), at most batch "
    "rows at a time: a float.",
    inputs=exams, oracle=dataset_loss_numpy, package="gpt2_course.mlp:dataset_loss",
    wrongs=(
        Wrong("it is the mean of the batches' means",
              in_batches(lambda s, n, batch: sum(a / b for a, b in zip(s, n)) / len(s)),
              "A last batch of one row then weighs as much as a full one: the number changes with "
              "the batch size."),
        Wrong("the batches' means are added up",
              in_batches(lambda s, n, batch: sum(a / b for a, b in zip(s, n))),
              "F.cross_entropy gives a mean unless told otherwise. The sum of means grows with the "
              "number of batches."),
        Wrong("the batches' means are added up, and divided by the number of rows",
              in_batches(lambda s, n, batch: sum(a / b for a, b in zip(s, n)) / sum(n)),
              "It is divided twice, within each batch and at the end: the loss comes out about "
              "batch times too small. Add up sums: reduction='sum'."),
        Wrong("all rows go through the model at once", at_once,
              "batch says how many rows fit into memory. A whole text has a hundred thousand "
              "windows, and each needs its hidden layer and its logits."),
        Wrong("the rows are cut into batch pieces, not into pieces of batch rows", chunked,
              "x.chunk(n) makes n pieces, x.split(n) makes pieces of n rows. With chunk the pieces "
              "grow with the text, until memory runs out."),
        Wrong("the last, smaller batch is left out", in_batches(full_only),
              "Some of the text is never evaluated, and a text smaller than a batch has loss 0."),
        Wrong("the loop stops one batch too early",
              in_batches(lambda s, n, batch: sum(s[:-1]) / sum(n)),
              "range(0, len(x) - batch, batch) never reaches the last batch, but its rows are "
              "counted: the loss comes out too low."),
        Wrong("only the first batch is evaluated",
              in_batches(lambda s, n, batch: s[0] / n[0]),
              "A return inside the loop ends it in the first iteration."),
        Wrong("only the last batch is evaluated",
              in_batches(lambda s, n, batch: s[-1] / n[-1]),
              "total = loss in the loop overwrites the sum of the earlier batches; total += loss "
              "adds to it."),
        Wrong("the sum is divided by the number of batches times the batch size",
              in_batches(lambda s, n, batch: sum(s) / (len(s) * batch)),
              "The last batch is counted as full: the loss comes out too low, most of all for "
              "short texts."),
        Wrong("the sum is divided by the number of batches",
              in_batches(lambda s, n, batch: sum(s) / len(s)),
              "This is the loss of a batch, not of a row: it grows with the batch size."),
        Wrong("it is a sum, not a mean", in_batches(lambda s, n, batch: sum(s)),
              "Texts of different lengths cannot be compared, and an untrained model no longer has "
              "the loss ln V."),
        Wrong("the softmax is applied twice: probabilities are treated as logits",
              in_batches(mean, loss_of_probabilities),
              "F.cross_entropy applies the softmax itself; after a second one, even a perfect "
              "model has a loss not far below ln V.")),
    hints=("Does your number change with the batch size? It must not.",
           "Add up sums, not means: F.cross_entropy has reduction='sum'.",
           "x.split(batch) and y.split(batch) go in step; divide by len(x), once, at the end.")))


# --- open challenge: the loss on Macbeth after a minute of training ---

LONGEST = 32 # characters of context that a model is shown

def plays() -> tuple:  # (name -> (L,) tokens of every work but Macbeth, those of Macbeth, V)
    "All of Shakespeare's works in the package, in characters"
    files = sorted(Path(packaged("shakespeare/macbeth.txt")).parent.glob("*.txt"))
    read = {f.stem: f.read_text(encoding="utf-8") for f in files}
    tok = CharTokenizer("".join(sorted(set("".join(read.values())))))
    ids = {name: torch.tensor(tok.encode(text)) for name, text in read.items()}
    return ids, ids.pop("macbeth"), tok.n_vocab

@torch.no_grad()
def loss_on(model, ids, V) -> float: # nats per character
    "Every character of a text, predicted from the 32 before it; the windows come in random order"
    windows = ids.unfold(0, LONGEST + 1, 1)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    total = 0.0
    for w in windows.split(4096):
        logits = model(w[:, :-1])
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(w), V):
            found = getattr(logits, "shape", type(logits).__name__)
            raise ValueError(f"the model has to give logits of shape {(len(w), V)} for tokens of "
                             f"shape {(len(w), LONGEST)}; it gave {found}")
        total += float(F.cross_entropy(logits.float(), w[:, -1], reduction="sum"))
    return total / len(windows)

def after_training(train, seconds):
    "Train within the budget, then read Macbeth"
    read, macbeth, V = plays()
    began = time.perf_counter()
    model = train(read, V, seconds)
    took = time.perf_counter() - began
    if took > 1.05 * seconds + 1:
        raise ValueError(f"the training took {took:.0f} s; {seconds:g} s are allowed")
    if not callable(model):
        raise ValueError(f"your function has to return a model, not {type(model).__name__}")
    if isinstance(model, torch.nn.Module): model.eval()
    return loss_on(model, macbeth, V)

def as_in_the_chapter(
    plays:dict,    # name -> (L,) tokens
    V:int,         # size of the vocabulary
    seconds:float, # for the training
):                 # -> function of (B, 32) tokens -> (B, V) logits of the next one
    "The chapter's MLP with its learning rate and number of steps, on all plays instead of one"
    began, steps, n = time.perf_counter(), 3000, 8
    torch.manual_seed(0)
    ids, model = torch.cat(list(plays.values())), MLPModel(V, n)
    opt = torch.optim.Adam(model.parameters())
    for step in range(steps):
        for group in opt.param_groups: group["lr"] = 0.01 * (1 - step / steps)
        w = ids[torch.randint(len(ids) - n, (256, 1)) + torch.arange(n + 1)]
        loss = F.cross_entropy(model(w[:, :-1]), w[:, -1])
        opt.zero_grad()
        loss.backward()
        opt.step()
        if time.perf_counter() - began > 0.95 * seconds: break
    return lambda x: model(x[:, -n:])

set_challenge(Challenge(
    "mlp.macbeth", "05", "The lowest loss on Macbeth after one minute of training. Your function "
    "gets the tokens of all other plays and poems (name -> (L,) tensor), the size V of the "
    "vocabulary and the time limit in seconds; it returns a model, a function of (B, 32) tokens "
    "that gives the (B, V) logits of the next one.",
    score=after_training, plain=as_in_the_chapter, to_beat=1.883, unit="nats per character",
    measured="two cores of an AMD EPYC, one thread, November 2026"))
