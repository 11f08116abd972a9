"""The catalogue of chapter 21: what to write, oracles in plain Python, and the classic mistakes
with their names."""

from itertools import islice

import numpy as np

from ..check import Exercise, Wrong, register


class Flaky:
    "A source of documents whose connection drops; called with n it sends document n, n + 1 …"
    def __init__(self, documents, drops):
        self.all, self.drops = documents, list(drops) # drops: documents in front of which it drops

    def __call__(self, n):
        for i in range(n, len(self.all)):
            if i in self.drops:
                self.drops.remove(i)
                raise ConnectionError(f"the connection was lost in front of document {i}")
            yield self.all[i]

def fetch(
    open_at,   # function of n: yields document n, n + 1 …, and may raise ConnectionError
) -> list:     # every document once, in order
    "Go on behind the last document that arrived, as often as it takes"
    out = []
    while True:
        try:
            for text in open_at(len(out)): out.append(text)
            return out
        except ConnectionError: pass

def fetch_from(where, once=False):
    "Mistaken: goes on at document where(those received)"
    def mistaken(open_at):
        out, at = [], 0
        while True:
            try:
                for text in open_at(at): out.append(text)
                return out
            except ConnectionError: at = max(0, where(len(out)))
            if once: return out
    return mistaken

def flaky_inputs(seed):
    "Drops in the middle, twice in front of one document, and a quiet connection"
    rng = np.random.default_rng(seed)
    texts = [f"text {i}" for i in rng.permutation(90)[:10]]
    a, b = sorted(int(i) for i in rng.choice(np.arange(2, 8), 2, replace=False))
    return [(Flaky(texts, [a]),), (Flaky(texts, [a, b, b]),), (Flaky(texts, []),)]

register(Exercise(
    "prepare.fetch", "21", "All documents of a source whose connection drops, each once, in order: "
    "open_at(n) yields document n, n + 1 … and may raise ConnectionError at any moment.",
    inputs=flaky_inputs, oracle=lambda source: list(source.all),
    package="gpt2_course.exercises.prepare:fetch",
    wrongs=(
        Wrong("it starts again from the beginning", fetch_from(lambda n: 0),
              "Each drop doubles what was read before; the model sees those texts many times and "
              "nobody notices but the disk."),
        Wrong("it goes on one document too late", fetch_from(lambda n: n + 1),
              "Having n documents, the next one has the number n, since they count from 0: one is "
              "lost at every drop."),
        Wrong("the last document is read again", fetch_from(lambda n: n - 1),
              "It had arrived: the drop came in front of the next one. A text is doubled at every "
              "drop."),
        Wrong("a drop counts as the end", fetch_from(lambda n: n, once=True),
              "A loop that ends on any error makes a small corpus out of a large one, and says "
              "that it is done.")),
    hints=("Remember how many documents have arrived: that number is also the next document's.",
           "try: for text in open_at(len(out)): out.append(text), and return behind the loop.",
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

def with_end(tok, texts, encode=None, first=False, last=True, keep=lambda n: n):
    "One token after the other; the switches make the mistakes"
    out = []
    for text in texts:
        ids = [keep(i) for i in (encode or tok.encode_ordinary)(text)]
        end = [keep(tok.eot_token)]
        out.append(np.array(end * first + ids + end * last, np.int64))
    return out

def encode_inputs(seed):
    "A vocabulary that fits 16 bits, one that does not, and a text with the special words in it"
    rng = np.random.default_rng(seed)
    words = lambda n: " ".join(rng.choice(["to", "be", "or", "not"], n))
    return [(Bytes(0), [words(3), "", words(2)]),
            (Bytes(int(rng.integers(70_000, 90_000))), [words(2), words(4)]),
            (Bytes(10), [words(1) + "<|endoftext|>" + words(1), words(2)])]

register(Exercise(
    "prepare.encode_documents", "21", "A list with the tokens of each document, as an array of "
    "integers, the last of them tok.eot_token; text that looks like a special token stays text.",
    inputs=encode_inputs, oracle=with_end, package="gpt2_course.prepare:encode_documents",
    wrongs=(
        Wrong("nothing ends a document", lambda tok, texts: with_end(tok, texts, last=False),
              "A recipe runs on into a sonnet; the model never learns to stop, and nobody can find "
              "the borders again."),
        Wrong("<|endoftext|> stands in front", lambda tok, texts: with_end(tok, texts, first=True,
                                                                           last=False),
              "Nearly the same in a long stream; but the last document has no end and the first "
              "begins with the end of nothing."),
        Wrong("the words <|endoftext|> in a text become the special token",
              lambda tok, texts: with_end(tok, texts, encode=tok.encode),
              "Whoever writes them into a web page cuts your documents in two, and tiktoken's "
              "`encode` raises on them: take encode_ordinary."),
        Wrong("ids above 65,535 are kept in 16 bits",
              lambda tok, texts: with_end(tok, texts, keep=lambda i: i % 2**16),
              "NumPy wraps them round without a word: token 65,536 becomes token 0. It shows only "
              "when you decode.")),
    hints=("tok.encode_ordinary(text) knows no special tokens.",
           "np.array(ids + [tok.eot_token], dtype) for each text.",
           "The type: np.uint16 where tok.n_vocab <= 2**16, else np.uint32.")))


class Future:
    "Stands for a chunk that a worker has: result() waits for it"
    def __init__(self, chunk, air, slow):
        self.chunk, self.air, self.slow = chunk, air, slow
        air["now"] += 1
        air["most"] = max(air["most"], air["now"])

    def done(self): return not self.slow

    def result(self):
        self.air["now"] -= 1
        return self.chunk ** 2

def watched(
    fn, # in_order(submit, chunks, ahead), a generator
):      # function of (number of chunks, ahead, slow ones) -> (what it yields, most in the air)
    "Watch how `fn` deals with chunks"
    def look(n, ahead, slow):
        air = dict(now=0, most=0)
        out = fn(lambda c: Future(c, air, c in slow), range(n), ahead)
        return None if out is None else ([list(pair) for pair in out], air["most"])
    return look

def in_order_watched(n, ahead, slow):
    "The package's generator, watched"
    from gpt2_course.prepare import in_order
    return watched(in_order)(n, ahead, slow)

def as_finished(submit, chunks, ahead):
    "Mistaken: whoever is ready first"
    air = []
    chunks = iter(chunks)
    while True:
        air += [(c, submit(c)) for c in islice(chunks, ahead - len(air))]
        if not air: return
        i = next((i for i, (_, f) in enumerate(air) if f.done()), 0)
        chunk, future = air.pop(i)
        yield chunk, future.result()

def one_by_one(submit, chunks, ahead):
    "Mistaken: waits at once"
    for c in chunks: yield c, submit(c).result()

def all_at_once(submit, chunks, ahead):
    "Mistaken: reads the whole source first"
    for c, future in [(c, submit(c)) for c in chunks]: yield c, future.result()

def not_drained(submit, chunks, ahead):
    "Mistaken: the rest stays in the air"
    air = []
    for c in chunks:
        air.append((c, submit(c)))
        if len(air) == ahead:
            chunk, future = air.pop(0)
            yield chunk, future.result()

def order_inputs(seed):
    "More chunks than may be in the air, and fewer; some of them slow"
    rng = np.random.default_rng(seed)
    n = int(rng.integers(9, 20))
    return [(n, 3, {0, 4}), (n + 1, 5, {2, 3}), (3, 8, {0})]

register(Exercise(
    "prepare.in_order", "21", "A generator of (chunk, result) in the order of the chunks, with at "
    "most `ahead` chunks submitted and not yet waited for.",
    inputs=order_inputs,
    oracle=lambda n, ahead, slow: ([[c, c * c] for c in range(n)], min(n, ahead)),
    package="gpt2_course.exercises.prepare:in_order_watched",
    wrongs=(
        Wrong("results come as they are finished", watched(as_finished),
              "The shards then depend on which process was faster: no two runs are alike, and an "
              "interrupted one cannot say where it was."),
        Wrong("each chunk is waited for at once", watched(one_by_one),
              "All processes but one are idle: the order is right, the speed is that of one."),
        Wrong("everything is submitted first", watched(all_at_once),
              "The source is read into memory as fast as it comes: right on a sample, killed for "
              "lack of memory on the corpus."),
        Wrong("the last chunks are never yielded", watched(not_drained),
              "When the source ends some chunks are still in the air: the corpus loses its end.")),
    hints=("A deque of (chunk, future): append on the right, popleft on the left.",
           "After each submit: if the deque is as long as `ahead`, take one out and wait for it.",
           "Behind the loop, empty the deque in the same way.")))


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

def shards_plain(documents, shard_tokens):
    "All tokens in one list, cut up"
    flat = [int(i) for d in documents for i in d]
    return [np.array(flat[i:i + shard_tokens]) for i in range(0, len(flat), shard_tokens)]

def rest_lost(documents, shard_tokens, most=0):
    "Mistaken: of a document that does not fit, no more than `most` tokens go on in the next shard"
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

def shard_inputs(seed):
    "Short documents, one of several shards, and an end that fills no shard"
    rng = np.random.default_rng(seed)
    size = int(rng.integers(6, 12))
    def some(*lengths): return [rng.integers(0, 50_000, n) for n in lengths]
    return [(some(3, size, 2, 3 * size, size + 2), size),
            (some(size - 1, 4, 4 * size + 1, 2), size)]

register(Exercise(
    "prepare.shards_of", "21", "Cut documents (arrays of tokens) into shards of shard_tokens "
    "tokens each; a document may go on in the next shard, and the last shard may be shorter.",
    inputs=shard_inputs, oracle=shards_plain, package="gpt2_course.exercises.prepare:shards_of",
    wrongs=(
        Wrong("the rest of a cut document is lost", rest_lost,
              "What no longer fits must go into the next shard: else each border costs the end of "
              "a text."),
        Wrong("a document longer than a shard loses its tail",
              lambda docs, n: rest_lost(docs, n, most=n - 1),
              "The rest may itself be longer than a shard: it takes a loop, not an if. Some "
              "programs crash there, after hours."),
        Wrong("the short last shard is thrown away",
              lambda docs, n: [s for s in shards_plain(docs, n) if len(s) == n],
              "With 100 million tokens a shard that may be a large part of a small corpus."),
        Wrong("a shard ends only where a document ends", at_borders,
              "Then no shard has the size that was asked for, and one long document makes one huge "
              "shard.")),
    hints=("How many tokens still fit into the open shard? Take that many, then look again.",
           "while at < len(tokens): part = tokens[at:at + shard_tokens - count]",
           "When count reaches shard_tokens, concatenate what is held; do it once more at the end "
           "if something is left.")))
