"""The catalogue of chapter 11: what to write, oracles in NumPy float64 and plain Python, the
classic mistakes with their names, and a race against the package's own `generate`."""

import copy
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..generation import generate, new_cache, next_logits

STEEP = [2.3, 0.6, 0.1, -0.4, -0.6, -0.8, -1.9, -2.0, -2.9] # each order of dials keeps other ids


def clear(
    logits,                    # (B, V)
    temperature, top_k, top_p,
) -> bool:
    "Whether nothing is near a border, so that rounding cannot decide what is kept"
    best = logits.double().sort(-1, descending=True).values
    if (best[:, :-1] - best[:, 1:]).min() < 1e-3: return False
    if temperature == 0 or top_p is None: return True
    mass = (best[:, :top_k] / temperature).softmax(-1).cumsum(-1)
    return bool((mass - top_p).abs().min() > 1e-3)

def scores_and_dials(
    seed:int,
) -> list: # of (logits (B, V), temperature, top_k, top_p)
    "Each dial alone, all together, greedy, a top-p that one token fills, and dials at their ends"
    g = torch.Generator().manual_seed(seed)
    def new(B, V, *dials):
        while True:
            logits = torch.randn(B, V, generator=g) * 2
            if clear(logits, *dials): return logits, *dials
    shuffled = lambda z: z[torch.stack([torch.randperm(len(z), generator=g) for _ in range(3)])]
    equal = torch.full((2, 5), 1.5)
    return [new(3, 6, 0.5, None, None), new(4, 7, 1.0, 3, None), new(3, 9, 1.0, None, 0.8),
            (shuffled(torch.tensor(STEEP)), 2.0, 6, 0.8), new(3, 16, 2.5, 14, 0.7),
            new(3, 5, 0.0, 2, 0.9), new(1, 6, 0.0, None, None), new(3, 8, 1.0, 1, 0.001),
            (shuffled(torch.arange(-4, 5) * 250.0), 1.0, 4, 0.9), (equal, 0.7, 5, 1.0)]

def shape_numpy(logits, temperature, top_k, top_p):
    "Row by row and token by token, best first"
    out = np.zeros(logits.shape)
    for row, z in zip(out, logits.double().numpy()):
        best = np.argsort(-z)[:1 if temperature == 0 else top_k]
        p = np.exp((z[best] - z.max()) / (temperature or 1))
        p, mass = p / p.sum(), 0.0
        for token, share in zip(best, p):
            if mass < (top_p or 2): row[token] = share
            mass += share
        row /= row.sum()
    return torch.from_numpy(out).float()


def best_k(z, k, strict=False, hidden=-torch.inf):
    "The k best scores of each row; the others are hidden"
    if k is None: return z
    kth = z.topk(k).values[:, -1:]
    return z.masked_fill(z <= kth if strict else z < kth, hidden)

def best_p(p, top_p, late=False, ranked_by=None, ordered=True, whole=True, sort=True):
    "Top-p on probabilities; every argument that follows is a way to get it wrong"
    if top_p is None: return p
    ranking = p if ranked_by is None else ranked_by
    best, order = ranking.sort(-1, descending=True)
    if not sort: best, order = ranking, torch.arange(p.size(-1)).expand_as(p)
    drop = best.cumsum(-1) - (0 if late else best) >= top_p
    best = p.gather(-1, order).masked_fill(drop, 0.0)
    kept = torch.zeros_like(p).scatter(-1, order, best) if ordered else best
    return kept / kept.sum(-1, keepdim=True) if whole else kept

def dials(fn):
    "Temperature 0 first, as a case of its own; the rest is done by `fn`"
    def with_greedy(z, temperature, top_k, top_p):
        if temperature == 0: return F.one_hot(z.argmax(-1), z.size(-1)).float()
        return fn(z, temperature, top_k, top_p)
    return with_greedy

def in_order(z, t, k, p): return best_p(best_k(z / t, k).softmax(-1), p)

def temperature_last(z, t, k, p):
    kept = best_p(best_k(z, k).softmax(-1), p) > 0
    return (z / t).masked_fill(~kept, -torch.inf).softmax(-1)

def top_p_first(z, t, k, p):
    kept = best_p((z / t).softmax(-1), p)
    kept = best_k(kept, k, hidden=0.0)
    return kept / kept.sum(-1, keepdim=True)

def one_by_one(z, t, k, p):
    probs = best_k(z / t, k).softmax(-1)
    kept = probs if p is None else probs.masked_fill(probs < p, 0.0)
    return kept / kept.sum(-1, keepdim=True)


register(Exercise(
    "generation.shape_probs", "11", "Probabilities (B, V) from logits, temperature, top_k and "
    "top_p, in this order; None switches a dial off, temperature 0 is greedy.",
    inputs=scores_and_dials, oracle=shape_numpy, package="gpt2_course.generation:shape_probs",
    wrongs=(
        Wrong("the temperature multiplies the logits",
              dials(lambda z, t, k, p: best_p(best_k(z * t, k).softmax(-1), p)),
              "The dial works backwards: 0.5 makes the text wilder, and 2 makes it dull."),
        Wrong("the temperature comes last, after top-k and top-p", dials(temperature_last),
              "Top-p then measures probabilities that are not the ones drawn from. A high "
              "temperature should let more tokens in; here it only flattens those that were kept."),
        Wrong("top-p comes before top-k", dials(top_p_first),
              "Top-p measures the mass of tokens that top-k removes afterwards. The order is a "
              "convention; the other order keeps other tokens, so samples cannot be compared with "
              "those of another library."),
        Wrong("temperature 0 is not a case of its own", in_order,
              "Dividing by 0 gives infinite logits, and a softmax of infinities is NaN. No token "
              "can be drawn from it."),
        Wrong("top-k hides the k-th best token too",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k, strict=True).softmax(-1), p)),
              "k - 1 tokens remain. With a top_k of 1 none remains, and the softmax of nothing is "
              "NaN."),
        Wrong("top-k sets hidden logits to 0, not to minus infinity",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k, hidden=0.0).softmax(-1), p)),
              "A logit of 0 is an ordinary score: exp(0) is 1. The hidden tokens can still be "
              "drawn, and some of them more often than before."),
        Wrong("top-p drops the token that crosses the threshold",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(-1), p, late=True)),
              "The tokens that remain have less than p together. Where the best token alone has "
              "more than p, none remains, and sampling fails just where the model is confident."),
        Wrong("top-p is applied without sorting",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(-1), p, sort=False)),
              "The sum runs in the vocabulary's order: the tokens with the smallest ids are kept, "
              "whatever their probability, and the best token may be dropped."),
        Wrong("top-p compares each token's own probability with p", dials(one_by_one),
              "The cumulative probability has to reach p, not that of one token alone. Only a "
              "token with more than p survives, and where there is none the row is 0/0: NaN."),
        Wrong("top-p looks at the probabilities before temperature and top-k",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(-1), p,
                                              ranked_by=z.softmax(-1))),
              "It keeps the same tokens at every temperature: a high temperature cannot keep more "
              "tokens, and a low one cannot drop any."),
        Wrong("what remains is not divided by its sum",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(-1), p, whole=False)),
              "torch.multinomial hides the mistake, because it divides by the sum itself. Any "
              "other code that reads the result as probabilities is misled."),
        Wrong("the probabilities stay in sorted order",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(-1), p, ordered=False)),
              "Position 0 then holds the best token, not token 0: the model writes only the first "
              "ids of the vocabulary, and its text looks like that of an untrained one."),
        Wrong("the softmax runs over the rows of the batch",
              dials(lambda z, t, k, p: best_p(best_k(z / t, k).softmax(0), p)),
              "Each row is a text of its own. Over dimension 0 the texts compete with each other "
              "for every token, and with a single row everything has probability 1.")),
    hints=("Temperature 0 first, as a case of its own: `F.one_hot` of the argmax.",
           "top-k: the k-th best score of each row is `logits.topk(k).values[:, -1:]`; scores "
           "below it become minus infinity.",
           "top-p: sort, and compute for each token the total probability of the better ones, "
           "cumsum minus its own. Drop the token where this is already p, scatter back, divide by "
           "the sum."),
    excused=dict(batch="Logits are (B, V): one row of scores for each text, and no more dimensions",
                 gradient="The next token is drawn from these, and a draw is not differentiated")))


def chi_squared(
    seen,    # (V,) how often each outcome was drawn
    probs,   # (V,) what was promised, all above 0
) -> float:  # near V - 1 if the promise is kept, much larger if not
    "Pearson's statistic: squared surprise over what was expected"
    expected = probs.double() * seen.sum()
    return float(((seen - expected)**2 / expected).sum())


def draws(
    seed:int,
) -> list: # of (counts (V,), promised probabilities (V,))
    "Counts from a fair die, from loaded ones, and from a coin that never shows one side"
    rng = np.random.default_rng(seed)
    def pair(n, p, loaded=False):
        p = np.array(p)
        drawn_from = rng.dirichlet(np.full(len(p), 5.0)) if loaded else p
        return torch.from_numpy(rng.multinomial(n, drawn_from)), torch.from_numpy(p)
    some = lambda V: rng.dirichlet(np.full(V, 5.0))
    return [pair(500, some(4)), pair(300, some(6), loaded=True), pair(9000, np.full(6, 1 / 6)),
            (torch.tensor([20 + seed % 7, 0]), torch.tensor([0.9, 0.1]))]

def chi(change):
    "A mistaken statistic of the counts and of what was expected"
    return lambda seen, probs: float(change(seen.double(), probs * seen.sum(), len(probs)))

register(Exercise(
    "generation.chi_squared", "11", "The chi-squared statistic, a float, of counts (V,) against "
    "probabilities (V,).",
    inputs=draws, package="gpt2_course.exercises.generation:chi_squared",
    oracle=lambda seen, probs: float(np.sum(seen.double().numpy()**2 / probs.double().numpy())
                                     / seen.sum().item() - seen.sum().item()),
    wrongs=(
        Wrong("relative frequencies are compared, not counts",
              lambda seen, probs: float(((seen / seen.sum() - probs)**2 / probs).sum()),
              "The statistic must grow with the number of draws: a small bias is invisible in "
              "twenty draws and certain in a million. This one is n times too small, so every "
              "sampler passes."),
        Wrong("counts are compared with probabilities",
              lambda seen, probs: float(((seen - probs)**2 / probs).sum()),
              "What is expected is a count too: the probability times the number of draws. Here "
              "every sampler fails, and the more you draw, the worse it gets."),
        Wrong("every outcome is expected equally often",
              chi(lambda o, e, V: ((o - o.sum() / V)**2 / (o.sum() / V)).sum()),
              "That tests whether the die is fair, not whether it keeps the promised "
              "probabilities."),
        Wrong("the differences are not squared", chi(lambda o, e, V: ((o - e) / e).sum()),
              "An excess of one outcome is a deficit of another, so the terms cancel."),
        Wrong("absolute differences are taken, not squares",
              chi(lambda o, e, V: ((o - e).abs() / e).sum()),
              "Only the sum of squares over the expected counts follows the chi-squared "
              "distribution; for any other sum the threshold means nothing."),
        Wrong("it is divided by the observed counts, not by the expected ones",
              chi(lambda o, e, V: ((o - e)**2 / o).sum()),
              "An outcome that was never drawn divides by zero: the statistic is infinite, "
              "although the outcome may just be rare."),
        Wrong("it is not divided at all", chi(lambda o, e, V: ((o - e)**2).sum()),
              "Frequent outcomes vary more. Undivided, they drown out the rare ones, and no table "
              "of thresholds applies."),
        Wrong("the mean over the outcomes is taken, not the sum",
              chi(lambda o, e, V: ((o - e)**2 / e).mean()),
              "The statistic is V times too small, and the threshold for V - 1 degrees of freedom "
              "lets nearly everything pass."),
        Wrong("it is divided by the degrees of freedom",
              chi(lambda o, e, V: ((o - e)**2 / e).sum() / (V - 1)),
              "That is the reduced chi-squared, which should be near 1. The threshold of this "
              "chapter belongs to the sum itself.")),
    hints=("Expected counts: each probability times the number of draws.",
           "Square each difference, divide it by the expected count, then sum.",
           "`e = probs * seen.sum(); ((seen - e)**2 / e).sum()`"),
    excused=dict(wide="Probabilities are at most 1; the counts go into the thousands",
                 batch="The counts of one experiment are a vector (V,), and the result is one "
                 "number")))


def to_feed(
    idx,    # (B, t) all tokens so far
    cached, # how many of them the cache holds; 0 without a cache
    size,   # the model's block_size
):          # (B, n) tokens to feed and (n,) the positions that they get
    "What the cache lacks, at the places that follow; beyond the block, the last `size` from 0"
    t = idx.size(1)
    if t > size: return idx[:, -size:], torch.arange(size)
    return idx[:, cached:], torch.arange(cached, t)


def prompts(
    seed:int,
) -> list: # of (idx (B, t), cached, size)
    "A prompt, one new token after it, several, a full block, and one token too many"
    g = torch.Generator().manual_seed(seed)
    new = lambda t, B=2: torch.randint(1000, (B, t), generator=g)
    return [(new(5), 0, 8), (new(6), 5, 8), (new(7), 4, 8), (new(8), 7, 8), (new(9), 8, 8),
            (new(8), 0, 8), (new(11 + seed % 3), 0, 8), (new(6, 1), 5, 6), (new(4, 3), 2, 16),
            (new(6, 1), 0, 5), (new(1, 1), 0, 4)]

def feed_python(idx, cached, size):
    "Position by position"
    rows, t = idx.tolist(), idx.size(1)
    first = cached if t <= size else t - size
    tokens = [[row[i] for i in range(first, t)] for row in rows]
    return torch.tensor(tokens), torch.tensor([i - (first if t > size else 0)
                                               for i in range(first, t)])

def start_at_zero(idx, cached, size):
    new = to_feed(idx, cached, size)[0]
    return new, torch.arange(new.size(1))

def oldest(idx, cached, size):
    return (idx[:, :size], torch.arange(size)) if idx.size(1) > size else to_feed(idx, cached, size)

def old_places(idx, cached, size):
    new = to_feed(idx, cached, size)[0]
    return new, torch.arange(idx.size(1) - new.size(1), idx.size(1))

def stale(idx, cached, size):
    kept = min(cached, size - 1)
    return (idx[:, cached:], torch.arange(kept, kept + idx.size(1) - cached)) if cached else \
        to_feed(idx, cached, size)

def early(idx, cached, size):
    if idx.size(1) >= size: return idx[:, -size:], torch.arange(size)
    return to_feed(idx, cached, size)

def one_late(idx, cached, size):
    if idx.size(1) == size + 1: return idx[:, cached:], torch.arange(cached, size + 1)
    return to_feed(idx, cached, size)

def never_slides(idx, cached, size): return idx[:, cached:], torch.arange(cached, idx.size(1))
def no_cache(idx, cached, size): return to_feed(idx, 0, size)

def newest(idx, cached, size):
    t = idx.size(1)
    return to_feed(idx, cached, size) if t > size else (idx[:, -1:], torch.arange(t - 1, t))

def places_off(idx, cached, size):
    new, places = to_feed(idx, cached, size)
    return new, places + 1 if cached and idx.size(1) <= size else places


register(Exercise(
    "generation.to_feed", "11", "From idx (B, t), the number of cached tokens and the block size: "
    "the tokens (B, n) to feed and the positions (n,) they get.",
    inputs=prompts, oracle=feed_python, package="gpt2_course.exercises.generation:to_feed",
    wrongs=(
        Wrong("positions start at 0 although a cache holds the past", start_at_zero,
              "Every new token is treated as the first of the text. No error is raised; the "
              "samples get worse with each word, but only with the cache."),
        Wrong("positions after the cache are one too large", places_off,
              "Positions count from 0: the first token after the cached ones gets position cached. "
              "Here one position stays empty, and the last one lies outside the block."),
        Wrong("all tokens are fed again, although the cache knows most of them", no_cache,
              "With a cache the model treats them as new text after the old, so everything appears "
              "twice. Without a cache this would be right, but slow."),
        Wrong("only the newest token is fed", newest,
              "That is right once the cache holds all the others. A prompt that the model has not "
              "read yet must be fed as a whole, or the model continues a text of one token."),
        Wrong("the newest tokens are cut off, not the oldest", oldest,
              "Beyond the block the model sees the same window for ever and writes the same token "
              "again and again."),
        Wrong("beyond the block the tokens keep their old positions", old_places,
              "There are block_size positions and no more: wpe raises an index error, which on a "
              "GPU is a device-side assert."),
        Wrong("the window never slides", never_slides,
              "The first token beyond the block gets position block_size, which does not exist: "
              "wpe raises an index error just there, and never in a short test."),
        Wrong("one token too many is still taken to fit", one_late,
              "Positions run from 0 to block_size - 1, so a block holds block_size tokens. A text "
              "of block_size + 1 tokens has to slide."),
        Wrong("a text that just fills the block is fed anew", early,
              "It still fits, and the cache is still valid: a whole pass is wasted, and a cache "
              "that holds those tokens already has no room for them."),
        Wrong("a full cache is used beyond the block", stale,
              "Its keys and values belong to positions that have moved: the text with a cache "
              "differs from that without as soon as the window slides.")),
    hints=("Two cases: the text fits into the block, or it does not.",
           "If it fits, feed what the cache lacks, `idx[:, cached:]`, at positions cached to "
           "t - 1.",
           "If not, no cached key is valid: feed the last size tokens, at positions 0 to "
           "size - 1.")))


def subject():
    "The small Shakespeare model of this course, and its tokenizer"
    from ..checkpoint import load_model
    from ..tokenizer import load
    here = Path(__file__).resolve().parents[2] / "assets", Path("../assets"), Path("assets")
    found = [a / "runs" / "look-inside" for a in here if (a / "runs" / "look-inside").exists()]
    if not found: raise ValueError("the trained model assets/runs/look-inside is not here: open "
                                   "this chapter in a checkout of the course")
    return load_model(found[0]).eval(), load(found[0] / "tokenizer.json")

PROMPT, NEW, ROUNDS = 32, 96, 9 # letters given, letters to write, prompts that are timed

@torch.no_grad()
def check_greedy(model, idx, out):
    "Refuse anything but the greedy continuation; equal scores may fall either way"
    want = (1, PROMPT + NEW)
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != want or out.is_floating_point():
        raise ValueError(f"return token ids of shape {want}: the prompt and what follows it")
    if not torch.equal(out[:, :PROMPT], idx): raise ValueError("the prompt comes back changed")
    V = model.cfg.vocab_size
    if int(out.min()) < 0 or int(out.max()) >= V: raise ValueError(f"ids lie from 0 to {V - 1}")
    scores = model(out[:, :-1])[0, PROMPT - 1:]                            # (NEW, V)
    chosen = scores.gather(-1, out[0, PROMPT:, None])[:, 0]
    wrong = (scores.max(-1).values - chosen > 1e-3).nonzero()
    if len(wrong): raise ValueError(f"new token {int(wrong[0])} is not the model's best one: the "
                                    "text must be the greedy one, whatever its speed")

def times_faster(fn, seconds):
    "Both write the same prompts in turns; the median of the ratios of their times"
    model, tok = subject()
    theirs, text = copy.deepcopy(model), packaged("shakespeare/alls_well_that_ends_well.txt")
    ids = torch.tensor(tok.encode_ordinary(text.read_text(encoding="utf-8")))
    starts = torch.randint(20_000, len(ids) - PROMPT, (ROUNDS + 1,))
    ours = lambda idx: generate(model, idx, NEW, temperature=0)
    mine = lambda idx: fn(theirs, idx, NEW)
    ratios = []
    for i, start in enumerate(starts.tolist()):
        idx, took = ids[None, start:start + PROMPT], {}
        for who in ((ours, mine), (mine, ours))[i % 2]:
            given, began = idx.clone(), time.perf_counter()
            out = who(given)
            took[who] = time.perf_counter() - began
            if who is mine: check_greedy(model, idx, out)
        ratios.append(took[ours] / took[mine])
    return statistics.median(ratios[1:])                                   # the first one warms up

@torch.no_grad()
def straight(model, idx, n):
    "The cache and the argmax of the package, without its dials, stops and ragged prompts"
    cache, out = new_cache(model, len(idx), idx.size(1) + n), idx
    for _ in range(n):
        best = next_logits(model, out, cache).argmax(-1, keepdim=True)
        out = torch.cat([out, best], dim=1)
    return out

set_challenge(Challenge(
    "generation.faster", "11", "Given (model, idx, n): a trained GPT, a prompt (1, 32) of letters "
    "and n = 96, return (1, 32 + n) token ids, the prompt and its greedy continuation. All 128 "
    "fit into the model's block.",
    score=times_faster, plain=straight, to_beat=1.13, # the best of five runs
    unit="times the speed of the package's `generate`",
    measured="two cores of an AMD EPYC, one thread, November 2026", lower=False, seconds=30))
