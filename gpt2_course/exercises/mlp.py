"""The catalogue of chapter 05: what to write, oracles in plain Python and NumPy, and the classic
mistakes with their names."""

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register


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

register(Exercise(
    "mlp.context_windows", "05", "From (L,) tokens, all (L - n, n) inputs and the (L - n,) tokens "
    "that follow them.", inputs=texts, oracle=windows_python,
    package="gpt2_course.mlp:context_windows",
    wrongs=(
        Wrong("the last window is left out (off by one)",
              lambda ids, n: (sliding(ids, n + 1)[:-1, :n], ids[n:-1]),
              "range(L - n - 1) in place of range(L - n): the last token of each text is never "
              "learned, and a text of n + 1 tokens gives nothing at all."),
        Wrong("the window includes its target", lambda ids, n: (sliding(ids, n)[1:], ids[n:]),
              "The answer stands in the question: the training loss falls towards zero, and the "
              "text is noise."),
        Wrong("the target is one token too late",
              lambda ids, n: (sliding(ids, n)[:-2], ids[n + 1:]),
              "The model learns to skip a character: its loss stays high and its words have "
              "holes."),
        Wrong("the windows do not overlap",
              lambda ids, n: (sliding(ids, n + 1)[::n + 1, :n], sliding(ids, n + 1)[::n + 1, n]),
              "Only one token in n + 1 becomes a target: a text gives a fraction of its "
              "lessons.")),
    hints=("Write the example out by hand: how many windows of 2 has [3, 1, 4, 1, 5], if each "
           "needs a token after it?",
           "Input i is ids[i : i + n] and its target is ids[i + n], for i from 0 to L - n - 1.",
           "ids.unfold(0, n + 1, 1) is (L - n, n + 1): the last column is the targets.")))


def tables(
    seed:int,
) -> list: # of (wte, x)
    "Random tables (V, E) and windows (B, n), also of one row"
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(11, E, generator=g), torch.randint(11, (B, n), generator=g))
            for B, n, E in ((4, 3, 2), (2, 5, 3), (1, 4, 6))]

def lookup_numpy(wte, x):
    "Each row of the window after the other, written into its place"
    (B, n), E, table = x.shape, wte.shape[1], wte.numpy()
    out = np.zeros((B, n * E), np.float32)
    for b, j in np.ndindex(B, n): out[b, j * E:(j + 1) * E] = table[int(x[b, j])]
    return torch.from_numpy(out)

register(Exercise(
    "mlp.lookup", "05", "The (V, E) table's vectors of (B, n) tokens, laid end to end: (B, n * E).",
    inputs=tables, oracle=lookup_numpy, package="gpt2_course.mlp:lookup",
    wrongs=(
        Wrong("the embeddings are summed, not laid end to end", lambda wte, x: wte[x].sum(1),
              "A sum forgets the order: 'no' and 'on' become the same window."),
        Wrong("it is flattened in the wrong order",
              lambda wte, x: wte[x].transpose(1, 2).flatten(1),
              "Component by component, not token by token: a model trained so works, and one "
              "loaded from elsewhere reads noise."),
        Wrong("the window is read backwards", lambda wte, x: wte[x.flip(1)].flatten(1),
              "The newest token stands where the weights expect the oldest: training never minds, "
              "borrowed weights do."),
        Wrong("the vectors are not joined", lambda wte, x: wte[x],
              "(B, n, E) goes through a linear layer of n * E inputs only by raising, and through "
              "one of E inputs it treats each letter alone.")),
    hints=("A tensor of integers is an index: table[tokens] takes rows.",
           "wte[x] is (B, n, E). Which two dimensions have to become one?",
           "wte[x].flatten(1), or .view(B, n * E): tokens outside, components inside.")))


def layers(
    seed:int,
) -> list: # of (e, W, b, U, d)
    "Random embedded windows and the four parameters of two layers"
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=g)
    return [(new(B, D), new(H, D) * 0.6, new(H), new(V, H), new(V) + 1)
            for B, D, H, V in ((3, 4, 5, 6), (2, 6, 6, 6), (1, 3, 8, 2))]

def hidden_numpy(e, W, b, U, d):
    "Two layers in float64"
    e, W, b, U, d = (t.double().numpy() for t in (e, W, b, U, d))
    h = np.tanh(np.einsum("bi,hi->bh", e, W) + b)
    return torch.from_numpy(np.einsum("bh,vh->bv", h, U) + d).float()

register(Exercise(
    "mlp.hidden_logits", "05", "tanh(W e + b) through the head U with bias d: (B, V) logits.",
    inputs=layers, oracle=hidden_numpy, package="gpt2_course.mlp:hidden_logits",
    wrongs=(
        Wrong("there is no non-linearity", lambda e, W, b, U, d: (e @ W.T + b) @ U.T + d,
              "Two matrices in a row are one matrix: the hidden layer costs time and learns "
              "nothing."),
        Wrong("the logits are bent too",
              lambda e, W, b, U, d: torch.tanh(torch.tanh(e @ W.T + b) @ U.T + d),
              "Logits between -1 and 1 can never be sure: with 70 characters no probability "
              "exceeds a tenth."),
        Wrong("a softmax is applied to the logits",
              lambda e, W, b, U, d: (torch.tanh(e @ W.T + b) @ U.T + d).softmax(-1),
              "cross_entropy applies its own: the second softmax flattens everything, and the loss "
              "sticks near ln V."),
        Wrong("the bias is added after the tanh",
              lambda e, W, b, U, d: (torch.tanh(e @ W.T) + b) @ U.T + d,
              "All units then bend at zero and b is one more constant of the head.")),
    hints=("Read the formula from inside out: first W e + b, for each row of e.",
           "W is stored (out, in), so for a batch of rows the product is e @ W.T.",
           "torch.tanh(e @ W.T + b) is (B, H); then @ U.T + d, with nothing after it.")))


class Table:
    "A model of one token: the last one's row of a random table"
    def __init__(self, weight): self.weight = weight
    def __call__(self, x): return self.weight[x[:, -1]]

def exams(
    seed:int,
) -> list: # of (model, x, y, batch)
    "Row counts that the batch does and does not divide, and a batch larger than all"
    g = torch.Generator().manual_seed(seed)
    return [(Table(torch.randn(6, 6, generator=g) * 3), torch.randint(6, (N, 2), generator=g),
             torch.randint(6, (N,), generator=g), batch)
            for N, batch in ((11, 4), (12, 4), (9, 8), (5, 8))]

def dataset_loss_numpy(model, x, y, batch):
    "One row after the other in float64"
    total = 0.0
    for a, b in zip(x, y):
        z = model(a[None])[0].double().numpy()
        total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[int(b)]
    return total / len(x)

def in_batches(combine):
    "A mistaken loss: the batches' sums and sizes are combined in another way"
    def fn(model, x, y, batch):
        parts = list(zip(x.split(batch), y.split(batch)))
        sums = [float(F.cross_entropy(model(a), b, reduction="sum")) for a, b in parts]
        return combine(sums, [len(b) for _, b in parts], batch)
    return fn

def full_only(sums, sizes, batch):
    "Leave the last, smaller batch out, as a loader with drop_last=True does"
    full = [(s, n) for s, n in zip(sums, sizes) if n == batch]
    return sum(s for s, _ in full) / max(sum(n for _, n in full), 1)

register(Exercise(
    "mlp.dataset_loss", "05", "Mean cross-entropy of model over all rows of (x, y), at most batch "
    "rows at a time: a float.",
    inputs=exams, oracle=dataset_loss_numpy, package="gpt2_course.mlp:dataset_loss",
    wrongs=(
        Wrong("it is the mean of the batches' means",
              in_batches(lambda s, n, batch: sum(a / b for a, b in zip(s, n)) / len(s)),
              "A last batch of one row then weighs as much as a full one: the number changes with "
              "the batch size."),
        Wrong("the last, smaller batch is left out", in_batches(full_only),
              "Some of the text is never examined, and a text smaller than a batch has loss 0."),
        Wrong("the sum is divided by batches times batch size",
              in_batches(lambda s, n, batch: sum(s) / (len(s) * batch)),
              "The last batch is counted as full: the loss is too good, most of all for short "
              "texts."),
        Wrong("it is a sum, not a mean", in_batches(lambda s, n, batch: sum(s)),
              "Texts of different length cannot be compared, and ln V is no longer the start.")),
    hints=("Does your number change with the batch size? It must not.",
           "Add up sums, not means: F.cross_entropy has reduction='sum'.",
           "x.split(batch) and y.split(batch) go in step; divide by len(x), once, at the end.")))
