"""The catalogue of chapter 03: what to write, oracles that count in plain Python, and the classic
mistakes with their names."""

import math
from collections import Counter

import numpy as np

from ..check import Exercise, Wrong, register


def count_pairs(
    ids:np.ndarray, # (n,) tokens
    V:int,          # vocabulary size
) -> np.ndarray:    # (V, V) integers: row this, column next
    "How often each token followed each other"
    counts = np.zeros((V, V), int)
    for a, b in zip(ids, ids[1:]): counts[a, b] += 1
    return counts


def count_inputs(seed):
    "Texts: random, a tune in which pairs repeat, a run of one token, two tokens"
    rng = np.random.default_rng(seed)
    tune = np.array([0, 1, 2] * 4)
    return [(rng.integers(0, 4, 40), 4), (tune, 3), (np.ones(7, int), 2), (np.array([0, 2]), 3)]

def count_python(ids, V):
    "Every pair looked up in a Counter"
    seen = Counter(zip(ids.tolist(), ids.tolist()[1:]))
    return np.array([[seen[a, b] for b in range(V)] for a in range(V)])

def count_at_once(ids, V):
    "NumPy writes each place once, however often it is named"
    counts = np.zeros((V, V), int)
    counts[ids[:-1], ids[1:]] += 1
    return counts

register(Exercise(
    "bigram.count_pairs", "03", "A (V, V) array of integers: entry [a, b] is how often token b "
    "came right after token a.", inputs=count_inputs, oracle=count_python,
    package="gpt2_course.exercises.bigram:count_pairs",
    wrongs=(
        Wrong("rows and columns are exchanged", lambda ids, V: count_python(ids, V).T,
              "Row a then says what came before a: the model would write backwards."),
        Wrong("a pair is counted once, however often it occurs", count_at_once,
              "counts[a, b] += 1 with arrays adds once a place; np.add.at or a loop adds every "
              "time."),
        Wrong("the last token is followed by the first",
              lambda ids, V: count_python(np.append(ids, ids[0]), V),
              "np.roll, or ids[i - 1] at i = 0, closes the text to a ring: one pair too many, that "
              "nobody wrote."),
        Wrong("the last pair is forgotten", lambda ids, V: count_python(ids[:-1], V),
              "n tokens make n - 1 pairs; the range ends one too early.")),
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

    def __repr__(self): return f"a model of {self.V} tokens with k = {self.k}"
    def count(self, a, b): return self.table[a, b]

    def prob(self, a, b): # in plain Python, pair by pair
        one = lambda x, y: ((int(self.table[x, y]) + self.k * float(self.p_one[y]))
                            / (int(self.n_first[x]) + self.k))
        return np.array([one(x, y) for x, y in zip(a, b)])

def prob_inputs(seed):
    "All pairs of five tokens; token 4 stands only at the end, so nothing ever followed it"
    rng = np.random.default_rng(seed)
    a, b = (i.ravel() for i in np.indices((5, 5)))
    texts = [np.append(rng.choice(4, 40, p=[.4, .3, .2, .1]), 4) for _ in range(3)]
    return [(Counted(ids, 5, k), a, b) for ids, k in zip(texts, (1.0, 0.5, 10.0))]

def divide(n, d):
    "n / d without a warning where d is 0"
    with np.errstate(all="ignore"): return n / d


register(Exercise(
    "bigram.prob", "03", "For arrays a and b of tokens, the smoothed probabilities p(b | a), from "
    "model.count(a, b), model.n_first, model.p_one and model.k.",
    inputs=prob_inputs, oracle=lambda m, a, b: m.prob(a, b),
    package="gpt2_course.bigram:Bigram.prob",
    wrongs=(
        Wrong("the smoothing is added after normalising",
              lambda m, a, b: m.count(a, b) / np.maximum(m.n_first[a], 1) + m.k * m.p_one[b],
              "The rows then sum to about 1 + k: no distribution, and a loss that is too good."),
        Wrong("k is missing below the line",
              lambda m, a, b: divide(m.count(a, b) + m.k * m.p_one[b], m.n_first[a]),
              "What is lent above must be counted below, else rows sum to more than one."),
        Wrong("every token borrows k, not k times its frequency",
              lambda m, a, b: (m.count(a, b) + m.k) / (m.n_first[a] + m.k),
              "V tokens borrow k each, but below the line it is paid once: rows sum to more than "
              "one."),
        Wrong("the counts are normalised over columns: divided by those of b, not of a",
              lambda m, a, b: (m.count(a, b) + m.k * m.p_one[b]) / (m.n_first[b] + m.k),
              "This leans towards p(a | b), which token came before; the rows do not sum to "
              "one."),
        Wrong("nothing is smoothed", lambda m, a, b: divide(m.count(a, b), m.n_first[a]),
              "A pair that was never seen gets 0, and its logarithm is infinite; a row that was "
              "never seen is 0/0, not a number.")),
    hints=("Without smoothing: the count of the pair over the count of its first token.",
           "The row borrows weight k in all, shared out by p_one: add k * p_one[b] above the line.",
           "Then k itself goes below: model.n_first[a] + model.k.")))


def loss_inputs(seed):
    "A model, and a text to be examined on: short, long, with an unseen token"
    rng = np.random.default_rng(seed)
    model = Counted(np.append(rng.choice(4, 60, p=[.5, .3, .15, .05]), 4), 5, 1.0)
    return [(model, rng.integers(0, 5, n)) for n in (12, 40)] + [(model, np.array([0, 3, 1, 4, 2]))]

def loss_python(model, ids):
    "One pair after the other"
    p = model.prob(ids[:-1], ids[1:]).tolist()
    return -math.fsum(math.log(x) for x in p) / len(p)

register(Exercise(
    "bigram.loss", "03", "The mean of -log p(b | a) over all pairs of neighbours in ids, in nats; "
    "model.prob(a, b) takes two arrays.",
    inputs=loss_inputs, oracle=loss_python, package="gpt2_course.bigram:Bigram.loss",
    wrongs=(
        Wrong("the logarithm has base 2", lambda m, ids: loss_python(m, ids) / math.log(2),
              "That is bits; this course, like PyTorch, uses nats. ln V would no longer be the "
              "loss of knowing nothing."),
        Wrong("the logarithm of the mean is taken, not the mean of the logarithms",
              lambda m, ids: -math.log(m.prob(ids[:-1], ids[1:]).mean()),
              "Probabilities of a text multiply, so logarithms add. One impossible token should "
              "ruin the loss; here it hides."),
        Wrong("the direction is wrong: p(a | b)",
              lambda m, ids: loss_python(m, ids[::-1]),
              "model.prob(a, b) is about b after a: hand it ids[:-1] first, then ids[1:]."),
        Wrong("the losses are summed, not averaged",
              lambda m, ids: loss_python(m, ids) * (len(ids) - 1),
              "A longer text then has a larger loss: two texts cannot be compared."),
        Wrong("the minus sign is missing", lambda m, ids: -loss_python(m, ids),
              "Logarithms of probabilities are negative. Whoever minimises this learns to be as "
              "wrong as possible.")),
    hints=("Which two arrays hold each token and its successor?",
           "p = model.prob(ids[:-1], ids[1:]); now take logarithms before you average.",
           "float(-np.log(p).mean())")))
