"""The catalogue of chapter 01: what to write, oracles by Python's own strings and by tiktoken, and
the classic mistakes with their names."""

import re
from collections import Counter

import numpy as np
import tiktoken

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..tokenizer import train_bpe


def merge_chars(ids, pair, new):
    "Merge by Python's own `str.replace`"
    text = "".join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))
    return [ord(c) for c in text]

def merge_inputs(seed):
    """Sequences of four tokens: random, runs of one token, a merged token, an empty one; and ids
    whose digits hold the pair"""
    rng = np.random.default_rng(seed)
    a, b, c = map(int, rng.choice(200, 3, replace=False))
    noise = [int(i) for i in rng.choice([a, b, c], 12)]
    return [(noise + [c, b, a, c, a, b, c, a, b, a, b, c], (a, b), 256),
            ([c, b, a, a, a], (a, a), 300), ([b, a, b, b, a, b], (b, a), 257),
            ([256, a, c, 256, a, 256, a], (256, a), 258),
            ([a, b, a, b], (a, b), 256), ([b, c, a], (a, b), 256), ([], (a, b), 256),
            ([11, 2, 1, 2, 1, 21, c, 2], (1, 2), 256)]

def merge_variant(step=2, most=10**9, order=1, sort=tuple, put=lambda pair, new: [new],
                  last=0):
    "A mistaken merge; order -1 reads the sequence from its end"
    def fn(ids, pair, new):
        ids, pair = list(ids)[::order], sort(tuple(pair)[::order])
        out, i, done = [], 0, 0
        while i < len(ids) - last:
            hit = sort(ids[i:i + 2]) == pair and done < most
            out += put(ids[i:i + 2], new) if hit else ids[i:i + 1]
            done += hit
            i += step if hit else 1
        return out[::order]
    return fn

def merge_ring(ids, pair, new):
    "Treats the last token and the first as neighbours"
    ids = list(ids)
    ring = tuple(ids[-1:] + ids[:1]) == pair and merge_chars(ids[:-1], pair, new)
    return ring + [new] if ring else merge_chars(ids, pair, new)

def merge_text(ids, pair, new):
    "Replaces in the text of the list, where 1 2 is also found in 11 2 and in 1 21"
    text = " ".join(map(str, ids)).replace(" ".join(map(str, pair)), str(new))
    return list(map(int, text.split()))

def merge_blocks(ids, pair, new):
    "Looks at positions 0 and 1, 2 and 3, and so on"
    cut = [ids[i:i + 2] for i in range(0, len(ids), 2)]
    return [t for two in cut for t in ([new] if tuple(two) == pair else two)]

register(Exercise(
    "tokenizer.merge", "01", "The sequence `ids` with every occurrence of `pair` replaced by "
    "`new`, from left to right.", inputs=merge_inputs, oracle=merge_chars,
    package="gpt2_course.tokenizer:merge",
    wrongs=(
        Wrong("the second half of the pair stays", merge_variant(step=1),
              "After a hit the index must move by two. Otherwise `decode` gives back more text "
              "than went in."),
        Wrong("only the first occurrence is replaced", merge_variant(most=1),
              "The others stay as they were; training then finds the same pair again and gives it "
              "a second id."),
        Wrong("the sequence is read from right to left", merge_variant(order=-1),
              "In a run such as 5 5 5 the wrong pair is joined: nothing is lost, but the tokens "
              "are not those of tiktoken."),
        Wrong("the last token is lost", merge_variant(last=1),
              "A loop that stops one before the end never copies the last token, unless it belongs "
              "to a pair: texts lose their last letter."),
        Wrong("nothing is replaced", lambda ids, pair, new: list(ids),
              "Are you comparing a list with a tuple? They are never equal: [1, 2] == (1, 2) is "
              "False. Compare tuple(ids[i:i + 2]) with the pair."),
        Wrong("the two halves are accepted in either order", merge_variant(sort=sorted),
              "A pair has an order: `th` is not `ht`. decode would turn one into the other."),
        Wrong("each half is replaced by itself, wherever it stands",
              lambda ids, pair, new: [new if t in pair else t for t in ids],
              "Only the two halves side by side are a pair. A single t must stay a t."),
        Wrong("the pair is removed, and `new` is not put in its place",
              merge_variant(put=lambda pair, new: []),
              "The two letters are then lost. Append `new` once for each hit."),
        Wrong("`new` is inserted, and the pair stays",
              merge_variant(put=lambda pair, new: [new, *pair]),
              "The sequence becomes longer, where a merge should make it shorter: `new` stands for "
              "both halves."),
        Wrong("the second half of each pair stays, and the last token is lost",
              lambda ids, pair, new: [new if p == pair else p[0] for p in zip(ids, ids[1:])],
              "A for loop over zip(ids, ids[1:]) cannot skip the second half after a hit, and it "
              "ends one before the last token. Use `while` and an index of your own."),
        Wrong("the last token and the first are treated as a pair", merge_ring,
              "ids[i - 1] at i = 0, or ids[(i + 1) % len(ids)] at the end, closes the text into a "
              "ring. The last token has no neighbour on its right."),
        Wrong("a pair is found inside longer numbers", merge_text,
              "As text, `1 2` also occurs in `11 2` and in `1 21`. Compare the ids themselves, not "
              "their digits."),
        Wrong("only every second position is checked", merge_blocks,
              "A pair may begin at any index. Move by two only after a hit, otherwise by one.")),
    hints=("You need an index of your own, since you sometimes move by one and sometimes by two.",
           "At index i, look at ids[i] and ids[i + 1], if there is one. A hit appends `new`.",
           "hit = (ids[i], ids[i + 1]) == pair; append new or ids[i]; i += 2 if hit else 1.")))


GPT2_CUT = r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s" # as GPT-2 cuts, for the texts below

def train_strings(text, n_merges):
    "Byte-pair encoding on Python's own strings, in which a character stands for a token"
    words = [w.encode().decode("latin-1") for w in re.findall(GPT2_CUT, text)]
    merges = []
    while len(merges) < n_merges:
        pairs = sorted(w[i:i + 2] for w in words for i in range(len(w) - 1))
        if not pairs: break
        best = max(dict.fromkeys(pairs), key=Counter(pairs).get) # of equals, the first in order
        merges.append(tuple(map(ord, best)))
        words = [w.replace(best, chr(255 + len(merges))) for w in words]
    return merges

def count_apart(ids):
    "Pairs as `str.count` counts them: without overlap"
    out, i = Counter(), {}
    for at, p in enumerate(zip(ids, ids[1:])):
        if i.get(p, -2) < at - 1: out[p], i[p] = out[p] + 1, at
    return out

def train_variant(cut=GPT2_CUT, letters=str.encode, weigh=True, recount=True, tie=lambda p: p,
                  sign=-1, pairs=lambda ids: Counter(zip(ids, ids[1:])), stop=True):
    "Mistaken training; the switches make the mistakes"
    def fn(text, n_merges):
        words = Counter(re.findall(cut, text, re.S))
        words = [(list(letters(w)), n if weigh else 1) for w, n in words.items()]
        merges, counts = [], {}
        for new in range(256, 256 + n_merges):
            if recount or not counts:
                counts = Counter()
                for ids, n in words:
                    for p, m in pairs(ids).items(): counts[p] += n * m
            left = {p: n for p, n in counts.items() if p not in merges}
            if not left and stop: break
            best = min(left, key=lambda p: (sign * left[p], tie(p)))
            merges.append(best)
            words = [(merge_variant()(ids, best, new), n) for ids, n in words]
        return merges
    return fn


def train_unmerged(text, n_merges):
    "Records the most frequent pair, but merges it nowhere"
    return train_variant()(text, min(n_merges, 1)) * n_merges

def pairs_once(ids): return Counter(set(zip(ids, ids[1:])))

def train_inputs(seed):
    "Few words and many ties; commas, digits and letters outside ASCII; one runs out of pairs"
    rng = np.random.default_rng(seed)
    a, b, c, d, e = map(str, rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5, replace=False))
    word = lambda n: "".join(map(str, rng.choice([a, b, c, d], n)))
    some = " ".join(word(int(n)) for n in rng.integers(2, 6, size=12))
    common = " ".join([a + b] * 6 + [c + d, c + d + a, c + d + b, c + d + e, e + c + d])
    ties = f"{max(a, b)}{min(a, b)} {max(c, d)}{min(c, d)} {min(a, b)}{max(a, b)}"
    overlap = " ".join([a + b + c] * 4 + [b + c + d] * 2 + [a + b + e])
    runs = f"{a * 4} {a * 4}" + f" {b + c}" * 5
    again = (a + b) * 4 + f" {c + d}" * 3
    commas = f"{a + b}, {c + b}, {d + b}, {e + b}, {a + c} {a + c} {a + c}, {b}1611 {c}1623 16"
    wide = "naïve 王王 café 👑 " + " ".join(f"{x}é" for x in (a, b, c)) + " 👑👑 naïve, café"
    return [(some, 6), (common, 3), (ties, 2), (overlap, 4), (runs, 3), (commas, 4), (wide, 7),
            (again, 2), (f"{a}{b}", 5), (a, 5)]

reverse = lambda p: (-p[0], -p[1])

register(Exercise(
    "tokenizer.train_bpe", "01", "The list of n_merges merged pairs, most frequent first, with "
    "ties broken by the smallest pair; the words come from split_words, their bytes from UTF-8, "
    "and pair i becomes id 256 + i. If the text runs out of pairs, the list is shorter.",
    inputs=train_inputs, oracle=train_strings,
    package="gpt2_course.tokenizer:train_bpe",
    wrongs=(
        Wrong("merges cross word boundaries", train_variant(cut=".+"),
              "The vocabulary fills with ends of words joined to the beginnings of the next. Cut "
              "the text with split_words first."),
        Wrong("the text is cut with split(), so the spaces are lost", train_variant(cut=r"\S+"),
              "The space before a word belongs to the word. Without it, decode would give back a "
              "text without spaces: use split_words."),
        Wrong("punctuation and digits are joined to the words", train_variant(cut=r" ?\S+|\s"),
              "`king,` and `king.` would become tokens beside `king`. split_words cuts letters, "
              "digits and punctuation apart, as GPT-2 does."),
        Wrong("the characters are merged, not the bytes of UTF-8",
              train_variant(letters=lambda w: map(ord, w)),
              "ord gives the code point of a character, which may be above 255, where the ids of "
              "the merges lie. list(word.encode()) gives bytes: the same for ASCII, but two for "
              "é."),
        Wrong("every distinct word counts once", train_variant(weigh=False),
              "A word that occurs a thousand times must count a thousand times, or rare names fill "
              "the vocabulary."),
        Wrong("a pair counts once in each word, however often the word holds it",
              train_variant(pairs=pairs_once),
              "A set forgets repetitions: banana holds the pair an twice. Count every place, times "
              "the word's frequency."),
        Wrong("a pair counts once in each distinct word",
              train_variant(pairs=pairs_once, weigh=False),
              "Count every place where the pair occurs, times the word's frequency: a common word "
              "must count more than a rare name."),
        Wrong("nothing is ever merged", train_unmerged,
              "Each round then finds the same pair. After a pair is recorded, merge it in every "
              "word, and keep the new lists: `merge` returns a list and does not change its "
              "argument."),
        Wrong("the pairs are counted once and never again", train_variant(recount=False),
              "A merge uses up its neighbours' pairs and makes new ones. Without a new count no "
              "pair contains a merged token, and no token is longer than two bytes."),
        Wrong("a run of equal bytes is counted without overlap",
              train_variant(pairs=count_apart),
              "zip(ids, ids[1:]) finds the pair (a, a) three times in aaaa, and every BPE program "
              "counts it so; str.count finds it twice. Only equal counts give equal tokenizers."),
        Wrong("the rarest pair is merged, not the most frequent", train_variant(sign=1),
              "With min, the key must begin with minus the count: (-counts[p], p). Merging rare "
              "pairs hardly shortens the text."),
        Wrong("a tie goes to the largest pair", train_variant(tie=reverse),
              "That gives a tokenizer as good as ours, but a different one: two programs must "
              "break ties alike to agree. Of several pairs with the highest count, take the "
              "smallest."),
        Wrong("a tie goes to the pair that was seen first", train_variant(tie=lambda p: 0),
              "Counter.most_common does so. The merges then depend on the order of the text, and "
              "shuffled documents give another tokenizer."),
        Wrong("it does not stop when no pair is left", train_variant(stop=False),
              "A short text runs out of pairs before n_merges is reached. Return the merges that "
              "were found until then.")),
    hints=("Counter(split_words(text)) gives each distinct word and how often it occurs. "
           "list(word.encode()) gives its bytes.",
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
    "Words with merges that compete for them; one word has more than ASCII, one is a single byte"
    rng = np.random.default_rng(seed)
    w, x, y, z = map(int, rng.choice(np.arange(97, 123), 4, replace=False))
    pairs = [(x, y), (w, x), (y, z), (256, z), (257, 257), (w, 256)]
    ranks = {p: 256 + i for i, p in enumerate(pairs)}
    draw = lambda n: bytes(map(int, rng.choice([w, x, y, z], n)))
    fixed = bytes([w, x, y, z, w, w, x, w, x, z, z, x, y, z, w, x, y, x, w, y, z, x])
    wide = {(195, 169): 256, (102, 256): 257, (97, 102): 258}
    return [(draw(14), ranks), (fixed, ranks), (fixed[1:9], ranks), (bytes([x]), ranks),
            (bytes([w, x]), ranks), ("café, fée, afé".encode(), wide)]


def by_choice(choose, most=10**9):
    "A mistaken encoder: `choose` picks which of the known pairs is merged next, wherever it occurs"
    def fn(word, ranks):
        ids, done = list(word), 0
        while done < most:
            known = [p for p in zip(ids, ids[1:]) if p in ranks]
            if not known: break
            pair = choose(known, ranks.get)
            ids, done = merge_chars(ids, pair, ranks[pair]), done + 1
        return ids
    return fn

def merge_in_turn(pairs, start=list):
    "Merge some pairs, one after the other, each wherever it occurs"
    def fn(word, ranks):
        ids = list(start(word))
        for p in pairs(ranks): ids = merge_chars(ids, p, ranks[p])
        return ids
    return fn

def one_pass(word, ranks):
    "From left to right, once"
    out = []
    for t in word:
        pair = tuple(out[-1:] + [t])
        out[-1:] = [ranks[pair]] if pair in ranks else list(pair)
    return out

def unknown_first(word, ranks):
    "A pair that is not in ranks counts as the one learned first: then it stops"
    ids = list(word)
    while len(ids) > 1:
        pair = min(zip(ids, ids[1:]), key=lambda p: ranks.get(p, 0))
        if pair not in ranks: break
        ids = merge_chars(ids, pair, ranks[pair])
    return ids

def longest_first(word, ranks):
    "Take the longest token that fits, again and again"
    table, out = {b: i for i, b in enumerate(token_bytes(ranks))}, []
    while word:
        n = next(n for n in range(len(word), 0, -1) if word[:n] in table)
        out, word = out + [table[word[:n]]], word[n:]
    return out

by_age = lambda ranks: sorted(ranks, key=ranks.get)

register(Exercise(
    "tokenizer.encode_word", "01", "The tokens of one word, given as bytes: of the known pairs in "
    "it, merge the one learned first, until none is left.", inputs=encode_inputs,
    oracle=encode_tiktoken, package="gpt2_course.tokenizer:encode_word",
    wrongs=(
        Wrong("the leftmost pair is merged, not the one learned first",
              by_choice(lambda known, rank: known[0]),
              "Nothing is lost, so a round trip passes; but these are not the tokens that the "
              "model was trained on. Take the pair with the smallest id first."),
        Wrong("it stops after the first merge",
              by_choice(lambda known, rank: min(known, key=rank), 1),
              "A merge makes new pairs, which may be merged in turn: repeat it in a loop, and look "
              "for the best pair anew in every round. A loop that keeps the first round's pair "
              "finds nothing more to merge."),
        Wrong("the merge learned last is applied first",
              by_choice(lambda known, rank: max(known, key=rank)),
              "Later merges were learned on text in which the earlier ones had been applied: "
              "take min, not max."),
        Wrong("the longest token that fits is taken", longest_first,
              "That is the rule of WordPiece, BERT's tokenizer. Byte-pair encoding goes by the "
              "order in which pairs were learned, not by length."),
        Wrong("a single pass from left to right merges every pair that it meets", one_pass,
              "The pair learned first may stand further right. Search the whole word for it, merge "
              "it, and search again."),
        Wrong("the merges are applied in the order of the pairs, not of their ids",
              merge_in_turn(sorted),
              "sorted(ranks) sorts by the bytes of the pairs. The order of learning is that of the "
              "ids that pairs merge to: sorted(ranks, key=ranks.get)."),
        Wrong("no pair is merged", lambda word, ranks: list(word),
              "Each byte stays a token of its own. `ranks` is a dict whose keys are tuples: is the "
              "pair that you look up a tuple of two integers?"),
        Wrong("it stops as soon as some pair is unknown", unknown_first,
              "A pair that is not in `ranks` must come after all others, so its id counts as "
              "infinite: ranks.get(p, float('inf')). With 0 it would win."),
        Wrong("the word is treated as characters, not as bytes",
              merge_in_turn(by_age, lambda word: map(ord, word.decode())),
              "é is one character and two bytes, 195 and 169, and `ranks` was learned on bytes. "
              "list(word) is all that is needed.")),
    hints=("Start with list(word): the bytes. Which of the neighbouring pairs are in `ranks`?",
           "A smaller id was learned earlier. For a pair that is not in `ranks`, the id counts as "
           "infinite.",
           "pair = min(zip(ids, ids[1:]), key=lambda p: ranks.get(p, inf)); stop if it is not in "
           "ranks; else merge it and look again.")))


PIECES = 512 # tokens that the challenge allows, besides the 256 single bytes

def fewest_tokens(text, pieces):
    "Tokens of the shortest cut of `text` (bytes) into pieces and single bytes: a shortest path"
    lengths = sorted({len(p) for p in pieces} | {1})
    need = [0] # tokens for the first i bytes
    for end in range(1, len(text) + 1):
        need.append(1 + min(need[end - n] for n in lengths if n <= end
                            and (n == 1 or text[end - n:end] in pieces)))
    return need[-1]

def pieces_score(fn, seconds):
    "Bytes per token on Macbeth, with pieces that were chosen from the other works"
    files = sorted(packaged("shakespeare").glob("*.txt"))
    texts = {f.stem: f.read_text("utf-8") for f in files}
    held_out = texts.pop("macbeth").encode()
    found = fn("".join(texts.values()))
    if not isinstance(found, (list, tuple, set, frozenset)) or not all(
            isinstance(p, bytes) and p for p in found):
        raise ValueError("return a list of byte strings that are not empty")
    if len(set(found)) > PIECES:
        raise ValueError(f"these are {len(set(found))} pieces; at most {PIECES} are allowed")
    return len(held_out) / fewest_tokens(held_out, set(found))

def plain_pieces(text):
    "The tokens of byte-pair encoding"
    ranks = {p: 256 + i for i, p in enumerate(train_bpe(text, PIECES))}
    return token_bytes(ranks)[256:]

set_challenge(Challenge(
    "tokenizer.macbeth", "01", "From `text`, all of Shakespeare but Macbeth, choose a list of at "
    f"most {PIECES} byte strings. Together with the 256 single bytes they form a vocabulary, and "
    "Macbeth is cut into as few of its tokens as possible.",
    pieces_score, plain_pieces, to_beat=2.176, unit="bytes per token on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", lower=False, seconds=60))
