"""The catalogue of chapter 11: what to write, oracles in NumPy float64 and plain Python, and the
classic mistakes with their names."""

import numpy as np
import torch
import torch.nn.functional as F

from ..check import Exercise, Wrong, register


def scores_and_dials(
    seed:int,
) -> list: # of (logits (B, V), temperature, top_k, top_p)
    "Random scores: each dial alone, all together, greedy, and a top-p that one token fills"
    g = torch.Generator().manual_seed(seed)
    new = lambda V: torch.randn(3, V, generator=g) * 2
    return [(new(6), 0.5, None, None), (new(7), 1.0, 3, None), (new(9), 1.0, None, 0.8),
            (new(16), 2.5, 14, 0.7), (new(5), 0.0, 2, 0.9), (new(8), 1.0, 1, 0.001)]

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


def dials(hot=False, strict=False, late=False, early=False, whole=True, ordered=True):
    "Mistaken dials: one thing is done in another way"
    def fn(logits, temperature, top_k, top_p):
        if temperature == 0: return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
        z = logits * temperature if hot else logits / temperature
        if top_k is not None:
            kth = z.topk(top_k).values[:, -1:]
            z = z.masked_fill(z <= kth if strict else z < kth, -torch.inf)
        p = z.softmax(-1)
        if top_p is None: return p
        best, order = (logits.softmax(-1) if early else p).sort(-1, descending=True)
        drop = best.cumsum(-1) - (0 if late else best) >= top_p
        best = p.gather(-1, order).masked_fill(drop, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, best) if ordered else best
        return p / p.sum(-1, keepdim=True) if whole else p
    return fn


register(Exercise(
    "generation.shape_probs", "11", "Probabilities (B, V) from logits, temperature, top_k and "
    "top_p, in this order; None switches a dial off, temperature 0 is greedy.",
    inputs=scores_and_dials, oracle=shape_numpy, package="gpt2_course.generation:shape_probs",
    wrongs=(
        Wrong("the temperature multiplies the logits", dials(hot=True),
              "The dial works backwards: 0.5 makes the text wilder, and 2 makes it dull."),
        Wrong("top-k hides the k-th best token too", dials(strict=True),
              "k - 1 tokens remain. With top_k 1 none does: the softmax of nothing is NaN."),
        Wrong("top-p drops the token that crosses the threshold", dials(late=True),
              "What remains has less than p. Where the favourite alone has more than p nothing "
              "remains, and the draw fails just where the model is sure."),
        Wrong("top-p looks at the probabilities before temperature and top-k", dials(early=True),
              "It keeps the same tokens at every temperature: a hot die can no longer reach far "
              "and a cold one still does."),
        Wrong("what remains is not divided by its sum", dials(whole=False),
              "multinomial hides it, because it divides by itself. Whoever reads the numbers as "
              "probabilities is misled."),
        Wrong("the probabilities stay in sorted order", dials(ordered=False),
              "Place 0 is the favourite, not token 0: the model writes only the first ids of the "
              "vocabulary, and it looks like an untrained one.")),
    hints=("Temperature 0 first, as a case of its own: F.one_hot of the argmax.",
           "top-k: the k-th best score of a row is logits.topk(k).values[:, -1:]; what is below "
           "it becomes minus infinity.",
           "top-p: sort, and for each token add up the mass of the better ones: cumsum minus "
           "itself. Drop where this is already p, scatter back, divide by the sum.")))


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
    "Counts from a fair die, from a loaded one, and from a coin that never shows a side"
    rng = np.random.default_rng(seed)
    def pair(n, V, loaded):
        p = rng.dirichlet(np.full(V, 5.0))
        seen = rng.multinomial(n, rng.dirichlet(np.full(V, 5.0)) if loaded else p)
        return torch.from_numpy(seen), torch.from_numpy(p)
    return [pair(500, 4, False), pair(300, 6, True),
            (torch.tensor([20 + seed % 7, 0]), torch.tensor([0.9, 0.1]))]

register(Exercise(
    "generation.chi_squared", "11", "The chi-squared statistic, a float, of counts (V,) against "
    "probabilities (V,).",
    inputs=draws, package="gpt2_course.exercises.generation:chi_squared",
    oracle=lambda seen, probs: float(np.sum(seen.double().numpy()**2 / probs.double().numpy())
                                     / seen.sum().item() - seen.sum().item()),
    wrongs=(
        Wrong("shares are compared, not counts",
              lambda seen, probs: float(((seen / seen.sum() - probs)**2 / probs).sum()),
              "The statistic must grow with the number of draws: a small bias is invisible in "
              "twenty draws and certain in a million. This one is n times too small, so every "
              "sampler passes."),
        Wrong("the differences are not squared",
              lambda seen, probs: float(((seen - probs * seen.sum()) / (probs * seen.sum())).sum()),
              "What is too much here is missing there: the terms cancel."),
        Wrong("it is divided by what was seen",
              lambda seen, probs: float(((seen - probs * seen.sum())**2 / seen).sum()),
              "An outcome that never came divides by zero: infinite, although it may be rare."),
        Wrong("it is not divided at all",
              lambda seen, probs: float(((seen - probs * seen.sum())**2).sum()),
              "Frequent outcomes vary more. Undivided, they drown the rare ones, and no table of "
              "thresholds fits.")),
    hints=("Expected counts: each probability times the number of draws.",
           "Square each difference and divide it by the expected count, then sum.",
           "e = probs * seen.sum(); ((seen - e)**2 / e).sum()")))


def to_feed(
    idx,    # (B, t) all tokens so far
    cached, # how many of them the cache holds; 0 without a cache
    size,   # the model's block_size
):          # (B, n) tokens to feed and (n,) the positions that they get
    "The newest ones go on where the cache ends; beyond the block all of the last `size` start anew"
    t = idx.size(1)
    if t > size: return idx[:, -size:], torch.arange(size)
    return idx[:, cached:], torch.arange(cached, t)


def prompts(
    seed:int,
) -> list: # of (idx (B, t), cached, size)
    "A prompt, one new token after it, several, a full block, and one token too many"
    g = torch.Generator().manual_seed(seed)
    new = lambda t: torch.randint(1000, (2, t), generator=g)
    return [(new(5), 0, 8), (new(6), 5, 8), (new(7), 4, 8), (new(8), 7, 8), (new(9), 8, 8),
            (new(11 + seed % 3), 0, 8)]

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


register(Exercise(
    "generation.to_feed", "11", "From idx (B, t), the number of cached tokens and the block size: "
    "the tokens (B, n) to feed and the positions (n,) they get.",
    inputs=prompts, oracle=feed_python, package="gpt2_course.exercises.generation:to_feed",
    wrongs=(
        Wrong("positions start at 0 although a cache holds the past", start_at_zero,
              "Every new token believes that it opens the text. Nothing fails; the samples get "
              "worse with each word, and only with the cache."),
        Wrong("the newest tokens are cut off, not the oldest", oldest,
              "Beyond the block the model sees the same window for ever and writes the same token "
              "again and again."),
        Wrong("beyond the block the tokens keep their old positions", old_places,
              "There are block_size positions and no more: wpe raises an index error, on a GPU as "
              "a device-side assert."),
        Wrong("a full cache is used beyond the block", stale,
              "Its keys and values belong to positions that have moved: cached and uncached text "
              "part ways where the window begins to slide.")),
    hints=("Two cases: the text fits into the block, or it does not.",
           "If it fits, feed what the cache lacks, idx[:, cached:], at positions cached to t - 1.",
           "If not, no cached key is valid: feed the last size tokens, at positions 0 to "
           "size - 1.")))
