"""The catalogue of chapter 21: what to write, oracles in plain Python, the classic mistakes with
their names, and the challenge of choosing a training text."""

import math
from array import array
from collections import Counter, deque
from itertools import islice

import numpy as np

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged


class Flaky:
    "A source of documents whose connection drops; called with n it sends document n, n + 1 …"
    def __init__(self, documents, drops):
        self.all, self.drops = documents, list(drops) # drops: documents before which it drops
        self.told = ", ".join(map(str, drops)) or "none"
        self.sent = 0

    def __call__(self, n):
        for i in range(n, len(self.all) + 1):
            if i in self.drops:
                self.drops.remove(i)
                raise ConnectionError(f"the connection was lost before document {i}")
            if i < len(self.all):
                self.sent += 1
                yield self.all[i]

    def __repr__(self): return f"{len(self.all)} documents, drops before {self.told}"

def fetch(
    open_at,   # function of n: yields documents n, n + 1 …; may raise ConnectionError
) -> list:     # every document once, in order
    "Continue after the last document that arrived, as often as necessary"
    out = []
    while True:
        try:
            for text in open_at(len(out)): out.append(text)
            return out
        except ConnectionError: pass

def fetch_from(where, once=False):
    "Mistaken: goes on at document where(all received, those of this connection)"
    def mistaken(open_at):
        out, at = [], 0
        while True:
            before = len(out)
            try:
                for text in open_at(at): out.append(text)
                return out
            except ConnectionError: at = max(0, where(len(out), len(out) - before))
            if once: return out
    return mistaken

def fetch_anew(open_at):
    "Mistaken: starts again with an empty list"
    while True:
        try: return list(open_at(0))
        except ConnectionError: pass

def fetch_twice(open_at):
    "Mistaken: is prepared for one drop"
    out = []
    try:
        for text in open_at(0): out.append(text)
    except ConnectionError:
        for text in open_at(len(out)): out.append(text)
    return out

def fetch_slowly(source):
    "The oracle: asks for each document until it has come"
    out = []
    for i in range(len(source.all)):
        arrived = []
        while not arrived:
            try: arrived = list(islice(source(i), 1))
            except ConnectionError: pass
        out += arrived
    return out

def flaky_inputs(seed):
    "Drops in the middle, twice before one document, at both ends, and a stable connection"
    rng = np.random.default_rng(seed)
    texts = [f"№ {i}, naïve" for i in rng.permutation(90)[:10]]
    a, b = sorted(int(i) for i in rng.choice(np.arange(2, 8), 2, replace=False))
    return [(Flaky(texts, [a]),), (Flaky(texts, [a, b, b]),), (Flaky(texts, []),),
            (Flaky(texts, [0, 10]),)]

register(Exercise(
    "prepare.fetch", "21", "A list of all documents of a source whose connection drops, each once, "
    "in order; none may be sent twice. open_at(n) yields documents n, n + 1 … and may raise "
    "ConnectionError at any moment.",
    inputs=flaky_inputs, oracle=fetch_slowly, package="gpt2_course.exercises.prepare:fetch",
    read=lambda result, source: {"documents": result, "documents that were sent": source.sent},
    wrongs=(
        Wrong("it starts again from the beginning", fetch_from(lambda n, new: 0),
              "Each drop duplicates what was read before; the model sees those texts many times, "
              "and no error reports it."),
        Wrong("everything is sent again after a drop", fetch_anew,
              "The list is right, but what had arrived is not used: if the source drops once an "
              "hour, this never gets further than one hour of documents."),
        Wrong("it continues one document too late", fetch_from(lambda n, new: n + 1),
              "After n documents the next one is number n, since they count from 0: one document "
              "is lost at every drop."),
        Wrong("the last document is read again", fetch_from(lambda n, new: n - 1),
              "It had arrived: the drop came before the next one. One text is duplicated at every "
              "drop."),
        Wrong("only the documents of the last connection are counted",
              fetch_from(lambda n, new: new),
              "open_at counts from the beginning of the source. After the second drop the count of "
              "one connection points back to documents that arrived long ago."),
        Wrong("a drop counts as the end", fetch_from(lambda n, new: n, once=True),
              "A loop that stops at any error makes a small corpus out of a large one, and reports "
              "success."),
        Wrong("a second drop is not caught", fetch_twice,
              "The second opening is outside the `try`. A stream that takes hours drops more than "
              "once, so a loop is needed."),
        Wrong("no drop is caught", lambda open_at: list(open_at(0)),
              "The first ConnectionError ends the program, perhaps after hours.")),
    hints=("Remember how many documents have arrived: that number is also the next document's.",
           "try: for text in open_at(len(out)): out.append(text), and return after the loop.",
           "Put it into `while True:` with `except ConnectionError: pass` (a real program waits "
           "there, longer each time).")))


class Bytes:
    "A tokenizer with tiktoken's methods, whose tokens are bytes from `base` on"
    def __init__(self, base):
        self.base, self.eot_token, self.n_vocab = base, base + 256, base + 257

    def encode_ordinary(self, text): return [self.base + b for b in text.encode()]

    def encode(self, text): # with special tokens: the words <|endoftext|> become one
        out = []
        for i, part in enumerate(text.split("<|endoftext|>")):
            out += [self.eot_token] * (i > 0) + self.encode_ordinary(part)
        return out

    def __repr__(self): return f"a tokenizer of {self.n_vocab} tokens, eot_token {self.eot_token}"

def with_end(tok, texts, encode=None, first=False, last=True, keep=lambda n: n, end=None):
    "One token after the other; the switches make the mistakes"
    out = []
    for text in texts:
        ids = [keep(i) for i in (encode or tok.encode_ordinary)(text)]
        ends = [keep(tok.eot_token) if end is None else end]
        out.append(np.array(ends * first + ids + ends * last, np.int64))
    return out

def only_between(tok, texts): # each but the last one has its end token
    parts = with_end(tok, texts)
    return [*parts[:-1], parts[-1][:-1]]

def sixteen_bits(tok, texts): # raises OverflowError, as NumPy does from version 2 on
    return [np.array(array("H", [*tok.encode_ordinary(t), tok.eot_token])) for t in texts]

def encode_inputs(seed):
    "Ids that fit 16 bits, that just do, that just do not; special words in a text, an empty text"
    rng = np.random.default_rng(seed)
    words = lambda n: " ".join(rng.choice(["to", "bé", "or", "nøt", "日本", "🙂"], n))
    return [(Bytes(0), [words(3), "", words(2) + " é"]),
            (Bytes(int(rng.integers(70_000, 90_000))), [words(2), words(4)]),
            (Bytes(10), [words(1) + "<|endoftext|>" + words(1), words(2)]),
            (Bytes(2**16 - 257), [words(1)]), (Bytes(2**16 - 256), [words(2)])]

register(Exercise(
    "prepare.encode_documents", "21", "A list with one array of integers per document: its tokens, "
    "then tok.eot_token. Text that looks like a special token stays text.",
    inputs=encode_inputs, oracle=with_end, package="gpt2_course.prepare:encode_documents",
    wrongs=(
        Wrong("nothing ends a document", lambda tok, texts: with_end(tok, texts, last=False),
              "A recipe runs on into a sonnet; the model never learns to stop, and the boundaries "
              "cannot be found again."),
        Wrong("<|endoftext|> comes before each document, not after "
              "it", lambda tok, texts: with_end(tok, texts, first=True,
                                                                           last=False),
              "In a long stream this is nearly the same, but the last document has no end token, "
              "and the first one begins with an end token that ends nothing."),
        Wrong("<|endoftext|> comes before and after each document",
              lambda tok, texts: with_end(tok, texts, first=True),
              "In the stream two of them meet at every boundary, and the model learns that a text "
              "may be empty."),
        Wrong("<|endoftext|> comes only between documents", only_between,
              "Documents come in chunks, so the last one here is not the last of the corpus: it "
              "would run on into the next chunk."),
        Wrong("GPT-2's end token is used, whatever the tokenizer",
              lambda tok, texts: with_end(tok, texts, end=50256),
              "50256 is <|endoftext|> in GPT-2's vocabulary only. In another it is an ordinary "
              "token, or no token at all: use tok.eot_token."),
        Wrong("the words <|endoftext|> in a text become the special token",
              lambda tok, texts: with_end(tok, texts, encode=tok.encode),
              "Anyone who writes them on a web page would cut your documents in two, and "
              "tiktoken's `encode` raises an error on them: use encode_ordinary."),
        Wrong("an empty document is left out",
              lambda tok, texts: with_end(tok, [t for t in texts if t]),
              "Then the arrays no longer correspond to the texts. Empty documents were left out "
              "earlier; here each text gets its array, even if it holds only the end token."),
        Wrong("all documents become one array",
              lambda tok, texts: np.concatenate(with_end(tok, texts)),
              "The writer has to know where a document ends: it counts documents, and keeps each "
              "one whole in one split."),
        Wrong("16 bits are used for every vocabulary", sixteen_bits,
              "They hold 65,536 ids. NumPy raises OverflowError for a Python integer that does not "
              "fit: check tok.n_vocab first."),
        Wrong("ids above 65,535 are kept in 16 bits",
              lambda tok, texts: with_end(tok, texts, keep=lambda i: i % 2**16),
              "astype wraps them round without a warning: token 65,536 becomes token 0. You notice "
              "it only when you decode.")),
    hints=("tok.encode_ordinary(text) knows no special tokens.",
           "np.array(ids + [tok.eot_token], dtype) for each text.",
           "The dtype is np.uint16 where tok.n_vocab <= 2**16, else np.uint32.")))


class Pool:
    "Stands for a pool of workers: called with a chunk it returns a future, and counts them"
    def __init__(self, slow):
        self.slow, self.now, self.seen = slow, 0, [] # seen: how many are in flight at each wait

    def __call__(self, chunk):
        self.now += 1
        return Future(chunk, self)

    def __repr__(self): return f"a pool in which chunks {sorted(self.slow)} take longer"

class Future:
    "Stands for a chunk that a worker has: result() waits for it"
    def __init__(self, chunk, pool):
        self.chunk, self.pool, self.waited = chunk, pool, False

    def done(self): return self.chunk not in self.pool.slow

    def result(self):
        if not self.waited: self.pool.seen.append(self.pool.now)
        self.pool.now -= not self.waited
        self.waited = True
        return self.chunk ** 2

    def __repr__(self): return f"the future of chunk {self.chunk}"

def as_finished(submit, chunks, ahead):
    "Mistaken: takes whichever is ready first"
    flying = []
    chunks = iter(chunks)
    while True:
        flying += [(c, submit(c)) for c in islice(chunks, ahead - len(flying))]
        if not flying: return
        i = next((i for i, (_, f) in enumerate(flying) if f.done()), 0)
        chunk, future = flying.pop(i)
        yield chunk, future.result()

def one_by_one(submit, chunks, ahead):
    "Mistaken: waits at once"
    for c in chunks: yield c, submit(c).result()

def all_at_once(submit, chunks, ahead):
    "Mistaken: reads the whole source first"
    for c, future in [(c, submit(c)) for c in chunks]: yield c, future.result()

def up_to(ahead_of, drain=True, batches=False, newest=False, results=False):
    "Waits when so many are in flight; the switches make the mistakes"
    def fn(submit, chunks, ahead):
        flying, most = deque(), ahead_of(ahead)
        def wait():
            chunk, future = flying.pop() if newest else flying.popleft()
            return future.result() if results else (chunk, future.result())
        for c in chunks:
            flying.append((c, submit(c)))
            full = len(flying) >= most
            while full and flying and (batches or len(flying) >= most): yield wait()
        while drain and flying: yield wait()
    return fn

def in_turns(submit, chunks, ahead):
    "The oracle: a window of `ahead` chunks moves over the list"
    futures = {}
    out = []
    for i, chunk in enumerate(chunks):
        for j, c in enumerate(chunks[:i + ahead]):
            if j not in futures: futures[j] = submit(c)
        out.append((chunk, futures[i].result()))
    return out

def order_inputs(seed):
    "More chunks than may be in flight, fewer, as many, and one at a time; some of them slow"
    rng = np.random.default_rng(seed)
    n = int(rng.integers(9, 20))
    return [(Pool({0, 4}), list(range(n)), 3), (Pool({2, 3}), list(range(n + 1)), 5),
            (Pool({0}), [0, 1, 2], 8), (Pool({1}), [0, 1, 2, 3], 4), (Pool({0}), [5, 6, 7], 1)]

register(Exercise(
    "prepare.in_order", "21", "A generator of (chunk, result) in the order of the chunks, which "
    "keeps `ahead` chunks in flight (submitted, not yet waited for), never more, and fewer only "
    "when the source has no more. submit(chunk) gives a future, future.result() waits for it.",
    inputs=order_inputs, oracle=in_turns, package="gpt2_course.prepare:in_order",
    read=lambda result, submit, chunks, ahead: {
        "results": result, "in flight at each wait": submit.seen, "left in flight": submit.now},
    wrongs=(
        Wrong("results are yielded as they finish", as_finished,
              "The shards then depend on which process was faster: no two runs are alike, and an "
              "interrupted one cannot tell where it was."),
        Wrong("the newest chunk is waited for first", up_to(lambda n: n, newest=True),
              "pop takes from the right, where the newest is. A deque's popleft, or a list's "
              "pop(0), takes the oldest."),
        Wrong("each chunk is waited for at once", one_by_one,
              "All processes but one are idle: the order is right, but the speed is that of a "
              "single process."),
        Wrong("the work is done in batches", up_to(lambda n: n, batches=True),
              "A whole batch is waited for before the next one is submitted: at the end of each "
              "batch most workers are idle."),
        Wrong("everything is submitted first", all_at_once,
              "The source is read into memory as fast as it comes: this works on a sample, but on "
              "the whole corpus the program runs out of memory."),
        Wrong("one chunk too many is in flight", up_to(lambda n: n + 1),
              "It waits when more than `ahead` have been submitted. Wait when there are `ahead` of "
              "them, so with >=, not with >."),
        Wrong("one chunk too few is in flight", up_to(lambda n: max(1, n - 1)),
              "It waits one chunk too early: with as many chunks as workers, one of them is "
              "always idle."),
        Wrong("the last chunks are never yielded", up_to(lambda n: n, drain=False),
              "When the source ends, some chunks are still in flight: the corpus loses its end."),
        Wrong("the results come without their chunks", up_to(lambda n: n, results=True),
              "The code that writes the results needs the positions of the documents, and they are "
              "in the chunk: yield both.")),
    hints=("A deque of (chunk, future): append on the right, popleft on the left.",
           "After each submit: if the deque is as long as `ahead`, take one out and wait for it.",
           "After the loop, empty the deque in the same way.")))


def shards_of(
    documents,        # arrays of tokens
    shard_tokens:int, # tokens in a shard
) -> list:            # arrays of that many tokens; the last may be shorter
    "Cut a stream of documents into shards"
    out, held, count = [], [], 0
    for tokens in documents:
        at = 0
        while at < len(tokens):
            part = tokens[at:at + shard_tokens - count]
            held, count, at = [*held, part], count + len(part), at + len(part)
            if count == shard_tokens: out, held, count = [*out, np.concatenate(held)], [], 0
    return out + ([np.concatenate(held)] if held else [])

def shards_plain(documents, shard_tokens, more=0, end=0):
    "All tokens in one list, cut up; `more` tokens too many, cuts up to `end` after the last token"
    flat = [int(i) for d in documents for i in d]
    n = shard_tokens
    return [np.array(flat[i:i + n + more], np.int64) for i in range(0, len(flat) + end, n)]

def rest_lost(documents, shard_tokens, most=0):
    "Mistaken: of a document that does not fit, no more than `most` tokens continue in the next "
    "shard"
    out, held = [], []
    for tokens in documents:
        room = shard_tokens - len(held)
        held += [int(i) for i in tokens[:room]]
        if len(held) == shard_tokens:
            out.append(np.array(held))
            held = [int(i) for i in tokens[room:room + most]]
    return out + ([np.array(held)] if held else [])

def at_borders(documents, shard_tokens):
    "Mistaken: a shard ends where a document ends"
    out, held = [], []
    for tokens in documents:
        held += [int(i) for i in tokens]
        if len(held) >= shard_tokens: out, held = [*out, np.array(held)], []
    return out + ([np.array(held)] if held else [])

def each_alone(documents, shard_tokens):
    "Mistaken: each document is cut by itself"
    return [s for d in documents for s in shards_plain([d], shard_tokens)]

def evenly(documents, shard_tokens):
    "Mistaken: as many shards as are needed, of nearly equal length"
    flat = np.concatenate([np.asarray(d) for d in documents])
    return np.array_split(flat, -(-len(flat) // shard_tokens))

def shard_inputs(seed):
    "Short documents, one of several shards, an end that fills no shard, and one that fills it"
    rng = np.random.default_rng(seed)
    size = int(rng.integers(6, 12))
    def some(*lengths): return [rng.integers(0, 50_000, n) for n in lengths]
    return [(some(3, size, 2, 3 * size, size + 2), size),
            (some(size, 2, 4 * size + 3, 1), size + 1), (some(size, 2, size + 2), size + 2)]

register(Exercise(
    "prepare.shards_of", "21", "Cut documents (arrays of tokens) into shards of shard_tokens "
    "tokens each; a document may continue in the next shard, and the last shard may be shorter.",
    inputs=shard_inputs, oracle=shards_plain, package="gpt2_course.exercises.prepare:shards_of",
    wrongs=(
        Wrong("the rest of a cut document is lost", rest_lost,
              "What no longer fits must go into the next shard; otherwise each shard boundary "
              "loses the end of a text."),
        Wrong("a document longer than a shard loses its tail",
              lambda docs, n: rest_lost(docs, n, most=n - 1),
              "The rest may itself be longer than a shard, so a loop is needed, not an if. Some "
              "programs crash there, after hours."),
        Wrong("the short last shard is thrown away",
              lambda docs, n: [s for s in shards_plain(docs, n) if len(s) == n],
              "With 100 million tokens per shard that may be a large part of a small corpus."),
        Wrong("an empty shard is written at the end",
              lambda docs, n: shards_plain(docs, n, end=1),
              "Where the last document exactly fills its shard, nothing is left. A loader that "
              "meets a shard of length 0 may fail."),
        Wrong("each shard repeats the first token of the next",
              lambda docs, n: shards_plain(docs, n, more=1),
              "A training window needs one token more than the model reads, but the loader takes "
              "care of that: here the token would be in the corpus twice."),
        Wrong("a shard ends only where a document ends", at_borders,
              "Then no shard has the size that was asked for, and one long document makes one huge "
              "shard."),
        Wrong("each document begins a new shard", each_alone,
              "A corpus has millions of short documents: that would be millions of files."),
        Wrong("the shards are made equally long", evenly,
              "All but the last have exactly shard_tokens tokens. And a stream cannot be divided "
              "evenly: its length is not known before the end.")),
    hints=("How many tokens still fit into the open shard? Take that many, then look again.",
           "while at < len(tokens): part = tokens[at:at + shard_tokens - count]",
           "When count reaches shard_tokens, concatenate what is held; do it once more at the end "
           "if something is left.")))


# --- the challenge: which text is worth reading?

LETTERS, SHORTEST = 200_000, 100 # in all; of a passage

def surprise(text, held, order=6, doubt=5.0):
    "Loss on `held` of letters counted in `text` after 0 to order - 1 others, in nats per letter"
    p = [1 / len(set(text + held))] * len(held) # each order is smoothed with the shorter one
    for k in range(order):
        seen = Counter(text[i:i + k + 1] for i in range(len(text) - k))
        context = Counter(text[i:i + k] for i in range(len(text) - k))
        for i in range(k, len(held)):
            gram = held[i - k:i + 1]
            p[i] = (seen[gram] + doubt * p[i]) / (context[gram[:-1]] + doubt)
    return -sum(map(math.log, p)) / len(held)

def worth_reading(fn, seconds):
    "Count letters in the chosen passages, and read Macbeth"
    files = sorted(packaged("shakespeare").glob("*.txt"))
    texts = {f.stem: f.read_text(encoding="utf-8") for f in files}
    held = texts.pop("macbeth")
    passages = fn(dict(texts), LETTERS)
    if not isinstance(passages, (list, tuple)) or not all(isinstance(p, str) for p in passages):
        raise ValueError("it must return a list of passages, each a str")
    total, everything = sum(map(len, passages)), "\0".join(texts.values())
    if total > LETTERS: raise ValueError(f"{total:,} letters were chosen, {LETTERS:,} are allowed")
    for p in passages:
        if len(p) < SHORTEST or p not in everything:
            raise ValueError(f"a passage must have at least {SHORTEST} letters and occur in one "
                             f"of the documents as it is: {p[:60]!r} …")
    return surprise("\n".join(passages), held)

def fair_parts(texts, letters):
    "The plain solution: the same number of letters from the front of every document"
    return [text[:letters // len(texts)] for text in texts.values()]

set_challenge(Challenge(
    "prepare.choice", "21", "Choose what is worth reading: from all of Shakespeare's works except "
    "Macbeth (a dict, name -> text), return a list of passages of at most 200,000 letters in all, "
    "each of at least 100 letters and copied verbatim. A model that counts letters after up to "
    "five others is built from them and evaluated on Macbeth.",
    score=worth_reading, plain=fair_parts, to_beat=2.023, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=30))
