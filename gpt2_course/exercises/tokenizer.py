"""The catalogue of chapter 01: what to write, oracles by Python's own strings and by tiktoken, and
the classic mistakes with their names."""

import re
from collections import Counter

import numpy as np
import tiktoken

from ..check import Exercise, Wrong, register


def merge_chars(ids, pair, new):
    "Merge by Python's own `str.replace`"
    text = "".join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))
    return [ord(c) for c in text]

def merge_inputs(seed):
    "Sequences of four tokens: random, with the pair twice, a run of one token, and an empty one"
    rng = np.random.default_rng(seed)
    a, b, c = map(int, rng.choice(200, 3, replace=False))
    noise = [int(i) for i in rng.choice([a, b, c], 12)]
    return [(noise + [a, b, c, a, b, a], (a, b), 256), ([c, b, a, a, a], (a, a), 300),
            ([b, a, b, b, a, b], (b, a), 257), ([], (a, b), 256)]

def merge_variant(step=2, most=10**9, order=1):
    "A mistaken merge; order -1 reads the sequence from its end"
    def fn(ids, pair, new):
        ids, pair = list(ids)[::order], tuple(pair)[::order]
        out, i, done = [], 0, 0
        while i < len(ids):
            hit = tuple(ids[i:i + 2]) == pair and done < most
            out.append(new if hit else ids[i])
            done += hit
            i += step if hit else 1
        return out[::order]
    return fn

register(Exercise(
    "tokenizer.merge", "01", "The sequence `ids` with every occurrence of `pair` replaced by "
    "`new`, from left to right.", inputs=merge_inputs, oracle=merge_chars,
    package="gpt2_course.tokenizer:merge",
    wrongs=(
        Wrong("the second half of the pair stays", merge_variant(step=1),
              "After a hit the index must move by two. Else text is doubled: what comes back from "
              "decode is longer than what went in."),
        Wrong("only the first occurrence is replaced", merge_variant(most=1),
              "The others stay as they were; training then finds the same pair again and gives it "
              "a second id."),
        Wrong("the sequence is read from right to left", merge_variant(order=-1),
              "In a run such as 5 5 5 another pair is joined: nothing is lost, but the tokens are "
              "not those of tiktoken."),
        Wrong("the last token is forgotten",
              lambda ids, pair, new: merge_chars(ids, pair, new)[:len(ids) and -1],
              "A loop over pairs ends one before the last token: every text loses its end.")),
    hints=("You need an index of your own, since you sometimes move by one and sometimes by two.",
           "At index i, look at ids[i] and ids[i + 1], if there is one. A hit appends `new`.",
           "hit = (ids[i], ids[i + 1]) == pair; append new or ids[i]; i += 2 if hit else 1.")))


def train_chars(text, n_merges, tie=lambda p: p, cut=r" ?[a-z]+", weigh=True, recount=True):
    "Byte-pair encoding on strings of characters; the switches make the classic mistakes"
    words = Counter(re.findall(cut, text, re.S))
    if not weigh: words = dict.fromkeys(words, 1)
    words, merges, counts = list(words.items()), [], {}
    while len(merges) < n_merges:
        if recount or not counts:
            counts = {}
            for w, n in words:
                for p in zip(w, w[1:]): counts[p] = counts.get(p, 0) + n
        left = {p: n for p, n in counts.items() if n > 0 and p not in merges}
        if not left: break
        top = max(left.values())
        best = [p for p in left if left[p] == top] # in the order in which they were met
        best = min(best, key=tie) if tie else best[0]
        merges.append(best)
        words = [(w.replace("".join(best), chr(255 + len(merges))), n) for w, n in words]
    return [(ord(a), ord(b)) for a, b in merges]


def train_inputs(seed):
    "Texts of few words with many ties; one runs out of pairs, one has a word that is common"
    rng = np.random.default_rng(seed)
    a, b, c, d, e = map(str, rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5, replace=False))
    word = lambda n: "".join(map(str, rng.choice([a, b, c, d], n)))
    some = " ".join(word(int(n)) for n in rng.integers(2, 6, size=12))
    common = " ".join([a + b] * 6 + [c + d, c + d + a, c + d + b, c + d + e, e + c + d])
    ties = f"{max(a, b)}{min(a, b)} {max(c, d)}{min(c, d)} {min(a, b)}{max(a, b)}"
    overlap = " ".join([a + b + c] * 4 + [b + c + d] * 2 + [a + b + e])
    return [(some, 6), (common, 3), (ties, 2), (overlap, 4), (a, 5)]

reverse = lambda p: (-ord(p[0]), -ord(p[1]))
register(Exercise(
    "tokenizer.train_bpe", "01", "The list of merged pairs, most frequent first, ties to the "
    "smallest pair; pair i becomes id 256 + i.", inputs=train_inputs, oracle=train_chars,
    package="gpt2_course.tokenizer:train_bpe",
    wrongs=(
        Wrong("merges cross the borders of words", lambda t, n: train_chars(t, n, cut=".+"),
              "The vocabulary fills with ends of words glued to beginnings of the next. Cut the "
              "text with split_words first."),
        Wrong("every distinct word counts once", lambda t, n: train_chars(t, n, weigh=False),
              "A word that occurs a thousand times must count a thousand times, or rare names "
              "take the vocabulary."),
        Wrong("the pairs are counted once and never again",
              lambda t, n: train_chars(t, n, recount=False),
              "A merge uses up its neighbours' pairs and makes new ones: pairs with the new id "
              "never come, so no token is longer than two bytes."),
        Wrong("a tie goes to the largest pair", lambda t, n: train_chars(t, n, tie=reverse),
              "As good a tokenizer, but another one: two programs must break ties alike to agree."),
        Wrong("a tie goes to the pair that was met first",
              lambda t, n: train_chars(t, n, tie=None),
              "Counter.most_common does so: the merges then depend on the order of the text, and "
              "shuffled documents give another tokenizer.")),
    hints=("Counter(split_words(text)) gives each distinct word and how often it occurs.",
           "For each merge: count all pairs afresh, each weighted by its word's frequency.",
           "min(counts, key=lambda p: (-counts[p], p)) is the most frequent, smallest on ties. "
           "Then merge it in every word.")))


def token_bytes(ranks):
    "Byte string of every token, by id"
    out = [bytes([i]) for i in range(256)]
    for a, b in sorted(ranks, key=ranks.get): out.append(out[a] + out[b])
    return out

def encode_tiktoken(word, ranks):
    "tiktoken, with our merges and no cutting"
    table = {b: i for i, b in enumerate(token_bytes(ranks))}
    enc = tiktoken.Encoding("ours", pat_str=r"(?s:.+)", mergeable_ranks=table, special_tokens={})
    return enc.encode_ordinary(word.decode())

def encode_inputs(seed):
    "Words over four letters, with merges that compete for them; one word is a single byte"
    rng = np.random.default_rng(seed)
    w, x, y, z = map(int, rng.choice(np.arange(97, 123), 4, replace=False))
    pairs = [(x, y), (w, x), (y, z), (256, z), (257, 257), (w, 256)]
    ranks = {p: 256 + i for i, p in enumerate(pairs)}
    draw = lambda n: bytes(map(int, rng.choice([w, x, y, z], n)))
    fixed = bytes([w, x, y, z, w, w, x, w, x, z, z, x, y, z, w, x, y, x, w, y, z, x])
    return [(draw(14), ranks), (fixed, ranks), (fixed[1:9], ranks), (bytes([x]), ranks)]


def by_choice(choose, most=10**9):
    "A mistaken encoder: `choose` picks which of the pairs at hand is joined next, and where"
    def fn(word, ranks):
        ids, done = list(word), 0
        while done < most:
            at = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) in ranks]
            if not at: break
            i = choose(at, lambda i: ranks[ids[i], ids[i + 1]])
            ids[i:i + 2] = [ranks[ids[i], ids[i + 1]]]
            done += 1
        return ids
    return fn

def longest_first(word, ranks):
    "Take the longest token that fits, again and again"
    table, out = {b: i for i, b in enumerate(token_bytes(ranks))}, []
    while word:
        n = next(n for n in range(len(word), 0, -1) if word[:n] in table)
        out, word = out + [table[word[:n]]], word[n:]
    return out

register(Exercise(
    "tokenizer.encode_word", "01", "The tokens of one word: of the pairs that are there, join the "
    "one learned first, until none is left.", inputs=encode_inputs, oracle=encode_tiktoken,
    package="gpt2_course.tokenizer:encode_word",
    wrongs=(
        Wrong("the merges go by position, not by age", by_choice(lambda at, rank: at[0]),
              "Nothing is lost, so a round trip passes; but these are not the tokens that the "
              "model was trained on."),
        Wrong("it stops after the first merge", by_choice(lambda at, rank: min(at, key=rank), 1),
              "A merge makes new pairs, which may be merged in turn: put a loop around it."),
        Wrong("the merge learned last goes first", by_choice(lambda at, rank: max(at, key=rank)),
              "Later merges were learned on text in which the earlier ones had been applied: "
              "take min, not max."),
        Wrong("the longest token that fits is taken", longest_first,
              "That is WordPiece's rule (BERT). Byte-pair encoding knows pairs and their age, not "
              "lengths.")),
    hints=("Start with list(word): the bytes. Which of the neighbouring pairs are in `ranks`?",
           "A smaller id was learned earlier. A pair that is not in `ranks` counts as infinite.",
           "pair = min(zip(ids, ids[1:]), key=lambda p: ranks.get(p, inf)); stop if it is not in "
           "ranks; else merge it and look again.")))
