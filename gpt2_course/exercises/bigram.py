"""The catalogue of chapter 03: what to write, oracles that count in plain Python, and the classic
mistakes with their names."""

import math
from collections import Counter

import numpy as np

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged


def count_pairs(
    ids:np.ndarray, # (n,) tokens
    V:int,          # vocabulary size
) -> np.ndarray:    # (V, V) integers: row this, column next
    "How often each token followed each other"
    counts = np.zeros((V, V), int)
    for a, b in zip(ids, ids[1:]): counts[a, b] += 1
    return counts


def count_inputs(seed):
    "Texts: random, a tune, tokens that never come, two tokens, and pairs that come 70,000 times"
    rng = np.random.default_rng(seed)
    tune = np.array([0, 1, 2] * 4)
    return [(rng.integers(0, 4, 40), 4), (tune, 3), (np.ones(7, int), 2), (np.array([0, 2]), 3),
            (rng.integers(0, 3, 20), 6), (np.repeat([1, 0], (70_000, 300)), 2)]

def count_python(ids, V):
    "Every pair looked up in a Counter"
    seen = Counter(zip(ids.tolist(), ids.tolist()[1:]))
    return np.array([[seen[a, b] for b in range(V)] for a in range(V)])

def count_at_once(ids, V):
    "NumPy writes each place once, however often it is named"
    counts = np.zeros((V, V), int)
    counts[ids[:-1], ids[1:]] += 1
    return counts

def divide(n, d):
    "n / d without a warning where d is 0"
    with np.errstate(all="ignore"): return n / d

def change(fn):
    "A mistake in what becomes of the counts"
    return lambda ids, V: fn(count_python(ids, V))

register(Exercise(
    "bigram.count_pairs", "03", "A (V, V) array of integers: entry [a, b] is how often token b "
    "came right after token a.", inputs=count_inputs, oracle=count_python,
    package="gpt2_course.exercises.bigram:count_pairs",
    wrongs=(
        Wrong("rows and columns are exchanged", change(lambda n: n.T),
              "Row a then says what came before a: the model would write backwards."),
        Wrong("a pair is counted once, however often it occurs", count_at_once,
              "With arrays of indices, counts[a, b] += 1 adds one to each place only once. "
              "np.add.at, or a loop, adds every time."),
        Wrong("the last token is followed by the first",
              lambda ids, V: count_python(np.append(ids, ids[0]), V),
              "np.roll, or ids[i - 1] at i = 0, closes the text to a ring: one pair too many, "
              "which nobody wrote."),
        Wrong("the last pair is forgotten", lambda ids, V: count_python(ids[:-1], V),
              "n tokens make n - 1 pairs; the range ends one too early."),
        Wrong("the first pair is forgotten", lambda ids, V: count_python(ids[1:], V),
              "n tokens make n - 1 pairs, and the first is (ids[0], ids[1]): the range begins one "
              "too late."),
        Wrong("the table is too small: V is taken from the text",
              lambda ids, V: count_python(ids, int(ids.max()) + 1),
              "A token of the vocabulary that this text does not contain needs a row and a column "
              "all the same: another text will ask for it. Use the argument V."),
        Wrong("the counts are uint8, which overflow",
              change(lambda n: (n % 256).astype(np.uint8)),
              "After 255 comes 0 again, without an error. Common pairs come thousands of times: "
              "np.zeros((V, V), int)."),
        Wrong("the counts are floating-point numbers", change(lambda n: n.astype(float)),
              "np.zeros((V, V)) makes floating-point numbers; counts are whole: "
              "np.zeros((V, V), int). In float32, adding one has no effect from 16,777,216 on."),
        Wrong("each pair is counted in both directions", change(lambda n: n + n.T),
              "Which token comes first matters: after q comes u, but after u hardly ever q."),
        Wrong("all counts are one too high", change(lambda n: n + 1),
              "The table must begin with zeros. To add something to every count is smoothing, and "
              "comes later."),
        Wrong("the counts are divided by their row's sum",
              change(lambda n: divide(n, n.sum(1, keepdims=True))),
              "Those are probabilities. Keep the counts: a row that was seen twice and one that "
              "was seen a thousand times should not look alike.")),
    hints=("zip(ids, ids[1:]) gives every token with its successor.",
           "Start with np.zeros((V, V), int), and add one at [a, b] for each pair.",
           "Without a loop: np.add.at(counts, (ids[:-1], ids[1:]), 1).")))


class Counted:
    "The ingredients of a bigram model: `count`, `n_first`, `p_one`, `k` and `V`"
    def __init__(self, ids, V, k):
        self.ids, self.V, self.k = [int(i) for i in ids], V, k
        self.table = count_python(np.array(self.ids), V)
        self.n_first = np.array([self.ids[:-1].count(a) for a in range(V)])
        self.p_one = np.array([(self.ids.count(b) + 1) / (len(self.ids) + V) for b in range(V)])

    def __repr__(self):
        p_one = ", ".join(f"{p:.4f}" for p in self.p_one)
        return (f"a model of {self.V} tokens with k = {self.k}, n_first = {self.n_first.tolist()}, "
                f"p_one = [{p_one}]")
    def count(self, a, b): return self.table[a, b]

    def prob(self, a, b): # in plain Python, pair by pair
        one = lambda x, y: ((int(self.table[x, y]) + self.k * float(self.p_one[y]))
                            / (int(self.n_first[x]) + self.k))
        return np.array([one(x, y) for x, y in zip(a, b)])

def prob_inputs(seed):
    "All pairs of five tokens, then some; token 4 stands only at the end: nothing ever followed it"
    rng = np.random.default_rng(seed)
    a, b = (i.ravel() for i in np.indices((5, 5)))
    texts = [np.append(rng.choice(4, 40, p=[.4, .3, .2, .1]), 4) for _ in range(3)]
    one, half, ten = (Counted(ids, 5, k) for ids, k in zip(texts, (1.0, 0.5, 10.0)))
    some = np.array([0, 2, 1, 4, 0, 3]), np.array([1, 1, 0, 2, 4, 3])
    return [(one, a, b), (half, a, b), (ten, a[::-1].copy(), b), (half, *some),
            (ten, some[0][:1], some[1][:1])]

register(Exercise(
    "bigram.prob", "03", "For arrays a and b of tokens, the smoothed probabilities p(b | a), from "
    "model.count(a, b), model.n_first, model.p_one and model.k.",
    inputs=prob_inputs, oracle=lambda m, a, b: m.prob(a, b),
    package="gpt2_course.bigram:Bigram.prob",
    wrongs=(
        Wrong("the smoothing is added after dividing",
              lambda m, a, b: m.count(a, b) / np.maximum(m.n_first[a], 1) + m.k * m.p_one[b],
              "A row then sums to 1 + k: it is no distribution, and the loss is too good."),
        Wrong("k is missing from the denominator",
              lambda m, a, b: divide(m.count(a, b) + m.k * m.p_one[b], m.n_first[a]),
              "What is added above the line must be added below it, or the row sums to more than "
              "one."),
        Wrong("k is missing from the numerator: every p(b) has weight one",
              lambda m, a, b: (m.count(a, b) + m.p_one[b]) / (m.n_first[a] + m.k),
              "Over all b, the numerator must add up to n_a + k. It does if p_one[b] is multiplied "
              "by k."),
        Wrong("every token gets k, not k times its frequency",
              lambda m, a, b: (m.count(a, b) + m.k) / (m.n_first[a] + m.k),
              "V tokens get k each, but below the line k is added only once: the row sums to more "
              "than one."),
        Wrong("k is added V times below the line",
              lambda m, a, b: (m.count(a, b) + m.k * m.p_one[b]) / (m.n_first[a] + m.k * m.V),
              "That belongs to another smoothing, where every token gets k. Here all tokens share "
              "one k, so it is added once."),
        Wrong("every token gets k, and k is added V times below the line",
              lambda m, a, b: (m.count(a, b) + m.k) / (m.n_first[a] + m.k * m.V),
              "This is Laplace's smoothing, a distribution too. But it trusts all tokens alike, "
              "where ours prefers the frequent ones: use p_one."),
        Wrong("the overall frequency is that of a, not of b",
              lambda m, a, b: (m.count(a, b) + m.k * m.p_one[a]) / (m.n_first[a] + m.k),
              "The row of a is a distribution over what comes next, and that is b: p_one[b]."),
        Wrong("the counts are divided by those of b, not of a",
              lambda m, a, b: (m.count(a, b) + m.k * m.p_one[b]) / (m.n_first[b] + m.k),
              "p(b | a) is about all pairs that begin with a: n_first[a]. Divided by the counts of "
              "b, the row does not sum to one."),
        Wrong("the counts are divided by those of the whole text",
              lambda m, a, b: (m.count(a, b) + m.k * m.p_one[b]) / (m.n_first.sum() + m.k),
              "That is how probable the pair is among all pairs. p(b | a) knows a already: divide "
              "by the pairs that begin with a, n_first[a]."),
        Wrong("the pair is looked up the wrong way round",
              lambda m, a, b: (m.count(b, a) + m.k * m.p_one[b]) / (m.n_first[a] + m.k),
              "model.count(a, b) is how often b came after a: a is first, in the text and in the "
              "call."),
        Wrong("nothing is smoothed", lambda m, a, b: divide(m.count(a, b), m.n_first[a]),
              "A pair that was never seen gets 0, and its logarithm is infinite; a row that was "
              "never seen is 0/0, which is not a number."),
        Wrong("k is not used: the weight is always one",
              lambda m, a, b: (m.count(a, b) + m.p_one[b]) / (m.n_first[a] + 1),
              "The weight of the overall frequencies is model.k, which differs from model to "
              "model.")),
    hints=("Without smoothing: the count of the pair over the count of its first token.",
           "The row borrows weight k in all, shared out by p_one: add k * p_one[b] above the line.",
           "Then k itself goes below: model.n_first[a] + model.k.")))


def loss_inputs(seed):
    "Models and texts: short, long, of one pair, with an unseen token, and of 3,000 tokens"
    rng = np.random.default_rng(seed)
    draw = lambda n: np.append(rng.choice(4, n, p=[.5, .3, .15, .05]), 4)
    one, two = Counted(draw(60), 5, 1.0), Counted(draw(25), 6, 5.0)
    unseen = np.array([0, 3, 1, 4, 2])
    return [(one, rng.integers(0, 5, 12)), (two, rng.integers(0, 6, 40)), (one, unseen),
            (two, unseen), (one, np.array([0, 1])), (two, rng.integers(0, 5, 3000))]

def loss_python(model, ids):
    "One pair after the other"
    p = model.prob(ids[:-1], ids[1:]).tolist()
    return -math.fsum(math.log(x) for x in p) / len(p)

def probs(model, ids): return model.prob(ids[:-1], ids[1:])

def log_of_product(model, ids):
    "Underflows: the product of many probabilities is 0.0, and its logarithm is minus infinity"
    with np.errstate(all="ignore"): return -np.log(np.prod(probs(model, ids))) / (len(ids) - 1)

register(Exercise(
    "bigram.loss", "03", "The mean of -log p(b | a) over all pairs of neighbours in ids, in nats; "
    "model.prob(a, b) takes two arrays.",
    inputs=loss_inputs, oracle=loss_python, package="gpt2_course.bigram:Bigram.loss",
    wrongs=(
        Wrong("the logarithm has base 2", lambda m, ids: loss_python(m, ids) / math.log(2),
              "That is bits; this course, like PyTorch, uses nats. With base 2, ln V would no "
              "longer be the loss of knowing nothing."),
        Wrong("the logarithm has base 10", lambda m, ids: loss_python(m, ids) / math.log(10),
              "np.log is the natural logarithm. With np.log10 every loss is 2.3 times too small."),
        Wrong("the logarithm of the mean is taken, not the mean of the logarithms",
              lambda m, ids: -math.log(probs(m, ids).mean()),
              "The probabilities of a text multiply, so their logarithms add. One impossible token "
              "should ruin the loss; here it hides."),
        Wrong("the probabilities are multiplied first, and their product underflows to zero",
              log_of_product,
              "The product of 3,000 probabilities is smaller than any floating-point number, so "
              "it becomes 0, and the loss infinite. Take logarithms first, and add them."),
        Wrong("the product of the probabilities is zero, and math.log refuses it",
              lambda m, ids: -math.log(math.prod(probs(m, ids))) / (len(ids) - 1),
              "The product of 3,000 probabilities is smaller than any floating-point number. Take "
              "logarithms first, and add them."),
        Wrong("no logarithm is taken", lambda m, ids: 1 - probs(m, ids).mean(),
              "The surprise at a token is -log p, not 1 - p: a token of probability one in a "
              "million must cost far more than one of probability one in ten."),
        Wrong("this is the mean probability", lambda m, ids: probs(m, ids).mean(),
              "The loss is the mean of -log p: a probability of one costs nothing, a small one "
              "costs much."),
        Wrong("the direction is wrong: p(a | b)",
              lambda m, ids: loss_python(m, ids[::-1]),
              "model.prob(a, b) is about b after a: hand it ids[:-1] first, then ids[1:]."),
        Wrong("each token is asked for itself",
              lambda m, ids: -np.log(m.prob(ids, ids)).mean(),
              "p(a | a) is how probable a repetition is. The second array must be the successors, "
              "ids[1:]."),
        Wrong("the last token is followed by the first",
              lambda m, ids: -np.log(m.prob(ids, np.roll(ids, -1))).mean(),
              "np.roll closes the text to a ring: a pair too many, which nobody wrote. n tokens "
              "have n - 1 pairs."),
        Wrong("the sum is divided by the tokens, not by the pairs",
              lambda m, ids: loss_python(m, ids) * (len(ids) - 1) / len(ids),
              "n tokens have n - 1 pairs: nothing predicts the first. Divided by n, the loss is a "
              "little too good."),
        Wrong("the losses are summed, not averaged",
              lambda m, ids: loss_python(m, ids) * (len(ids) - 1),
              "A longer text then has a larger loss, and two texts cannot be compared."),
        Wrong("this is the perplexity", lambda m, ids: math.exp(loss_python(m, ids)),
              "The perplexity is the exponential of the loss; here the loss itself is asked for."),
        Wrong("the minus sign is missing", lambda m, ids: -loss_python(m, ids),
              "Logarithms of probabilities are negative. A model that minimises this learns to be "
              "as wrong as possible.")),
    hints=("Which two arrays hold each token and its successor?",
           "p = model.prob(ids[:-1], ids[1:]); now take logarithms before you average.",
           "float(-np.log(p).mean())")))


ENTRIES, LETTERS = 20_000, 30_000 # what a table may hold, and how much of Macbeth it is asked for

def entries_score(fn, seconds):
    "Loss on the beginning of Macbeth of a table that was filled from the other works"
    texts = {f.stem: f.read_text("utf-8") for f in sorted(packaged("shakespeare").glob("*.txt"))}
    chars = "".join(sorted(set("".join(texts.values()))))
    held_out = texts.pop("macbeth")[:LETTERS]
    found = fn("".join(texts.values()), chars)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], dict) \
            or not callable(found[1]):
        raise ValueError("return a tuple: a dict, and a function (table, past) that reads it")
    table, predict = found
    if len(table) > ENTRIES:
        raise ValueError(f"the table has {len(table):,} entries; {ENTRIES:,} are allowed")
    if not all(isinstance(k, str) and isinstance(v, (int, float, np.number))
               for k, v in table.items()):
        raise ValueError("the table must map strings to numbers")
    index, total = {c: i for i, c in enumerate(chars)}, 0.0
    for i, c in enumerate(held_out):
        p = np.asarray(predict(table, held_out[max(0, i - 8):i]), float)
        if p.shape != (len(chars),):
            raise ValueError(f"{p.shape} is the shape of a prediction: {len(chars)} probabilities "
                             "are needed, in the order of `chars`")
        if not (p >= 0).all() or abs(p.sum() - 1) > 1e-6:
            raise ValueError("the probabilities must not be negative, and must sum to one")
        total -= math.log(max(p[index[c]], 1e-300))
    return total / len(held_out)

def plain_entries(text, chars):
    "The most frequent letters, pairs and triples, each smoothed by the one below it"
    counts = Counter(chars)
    for n in (1, 2, 3): counts.update(map("".join, zip(*(text[i:] for i in range(n)))))
    table = dict(counts.most_common(ENTRIES))

    def predict(table, past):
        p = np.full(len(chars), 1 / len(chars))
        for n in range(min(2, len(past)) + 1):
            seen = np.array([table.get(past[len(past) - n:] + c, 0) for c in chars])
            p = (seen + 5 * p) / (seen.sum() + 5)
        return p
    return table, predict

set_challenge(Challenge(
    "bigram.entries", "03", "From `text`, all of Shakespeare but Macbeth, and `chars`, the "
    f"vocabulary, make a table (a dict) of at most {ENTRIES:,} entries, each from a string to a "
    "number, and a function (table, past) that turns the last 8 letters or fewer into the "
    "probabilities of the next one. Return both; the loss is measured on Macbeth.",
    entries_score, plain_entries, to_beat=2.166, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60))
