"""The ward: many short runs, some healthy, some with a bug of the zoo, known by their logs only."""

import copy, math
from functools import cache

import numpy as np

from ...challenge import Challenge, set_challenge
from .small import letters


SICK = ("brass_band", "heartbeat", "high_tide", "parrot", "restless", "snowball", "standstill",
        "tide")
STEPS, WIDTH = 96, 12 # of a run; numbers of a letter's vector

def short_run(
    name:str, # "healthy", or one of SICK
    rng,      # draws the settings of the run, its weights and its data
) -> list:    # rows as in metrics.jsonl: step, split, loss and, of training, grad_norm
    "Train a bigram of two small matrices on Hamlet, with a bug or without"
    tok, ids, val = letters()
    V, micro, k = tok.n_vocab, int(rng.choice([16, 32, 64])), int(rng.choice([2, 4]))
    epoch = int(rng.choice([18, 22, 26])) # micro-batches of the training set
    adam, lr, std = rng.random() < 0.5, *np.exp(rng.uniform((-1, -4), (1, -1.5)))
    ids = ids[int(rng.integers(80_000)):][:epoch * micro * 3 // 2 + 1].astype(int)
    order = np.arange(len(ids) - 1)
    if name == "tide": # three unlike shards, one after the other
        third = len(ids) // 3
        ids = np.concatenate([ids[:third], np.sort(ids[third:2 * third]), ids[2 * third:] // 2])
    else: rng.shuffle(order)
    place = int(rng.integers(len(val) - 600))
    seen = val[place:place + 513].astype(int)
    if name == "high_tide": std = math.exp(rng.uniform(-0.7, 0.2))
    weights = [rng.normal(0, std, s).astype(np.float32) for s in ((V, WIDTH), (WIDTH, V))]
    mean, square = ([np.zeros_like(w) for w in weights] for _ in range(2))
    held, rows, at = [np.zeros_like(w) for w in weights], [], 0
    for step in range(1, STEPS + 1):
        parts = k
        if name == "heartbeat" and step % (epoch // k) == 1 and step > 1: parts += epoch % k or 1
        take = order[np.arange(at, at + parts * micro) % len(order)]
        at += parts * micro
        x, y = ids[take], ids[take if name == "parrot" else take + 1]
        loss, grads = bigram(weights, x, y)
        scale = parts if name == "brass_band" else parts / k
        grads = [g * scale for g in grads]
        if name == "snowball": grads = held = [h + g for h, g in zip(held, grads)]
        if name == "standstill": grads = [g * 2.0**10 for g in grads]
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        rows.append(dict(step=step, split="train", loss=round(loss, 4), grad_norm=round(norm, 4)))
        if step % 8 == 0:
            drop = rng.random((len(seen) - 1, WIDTH)) < 0.3 if name == "restless" else None
            y = seen[:-1] if name == "parrot" else seen[1:]
            held_out = bigram(weights, seen[:-1], y, drop)[0]
            rows.append(dict(step=step, split="val", loss=round(held_out, 4)))
        grads = [g * min(1.0, 1 / norm) for g in grads]
        if name == "standstill": grads = [g / 2.0**10 for g in grads]
        for i, g in enumerate(grads):
            mean[i], square[i] = 0.9 * mean[i] + 0.1 * g, 0.95 * square[i] + 0.05 * g**2
            small = 1e-2 if name == "standstill" else 1e-8 # AdamW would hide this bug
            adapted = mean[i] / (np.sqrt(square[i]) + small)
            weights[i] -= 0.02 * lr * adapted if adam else lr * g
    return rows

def bigram(weights, x, y, drop=None):
    "Loss of a batch, gradients of both matrices"
    h = weights[0][x]
    if drop is not None: h = np.where(drop, 0, h / 0.7)
    z = h @ weights[1]
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    loss = -float(np.log(p[np.arange(len(y)), y] + 1e-30).mean())
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    letter = np.eye(len(weights[0]), dtype=np.float32)[x]
    return loss, [letter.T @ (p @ weights[1].T), h.T @ p]

@cache
def runs(seed, each): # (rows, name) of so many runs of every kind, in random order
    rng = np.random.default_rng(seed)
    found = [(short_run(name, rng), name) for name in ("healthy", *SICK) for _ in range(each)]
    return [found[i] for i in rng.permutation(len(found))]

def share_right(fn, seconds):
    "What fraction of 180 unseen runs get their right name, after 90 with their names"
    known, unseen = copy.deepcopy((runs(26, 10), runs(2026, 20)))
    said = fn(known, [rows for rows, _ in unseen])
    try: said = list(said)
    except TypeError: raise ValueError("your function has to give a list of names") from None
    if len(said) != len(unseen):
        raise ValueError(f"your function gives {len(said)} names for {len(unseen)} runs")
    strange = [s for s in said if s not in ("healthy", *SICK)]
    if strange: raise ValueError(f"{strange[0]!r} is neither \"healthy\" nor the name of a cage")
    return float(np.mean([s == name for s, (_, name) in zip(said, unseen)]))

def by_rules(known, patients):
    "The plain solution: a question for each cage, in turn; no threshold is fitted to `known`"
    return [asked_in_turn(rows) for rows in patients]

def asked_in_turn(rows):
    loss, norm = np.array([(r["loss"], r["grad_norm"]) for r in rows if r["split"] == "train"]).T
    val = np.array([r["loss"] for r in rows if r["split"] == "val"])
    late = norm[-16:].mean()
    if loss[0] > 4.35: return "high_tide"             # ln V is 4.25
    if late > 1.5: return "standstill" if loss[-16:].mean() > 4.2 else "snowball"
    if loss[-16:].mean() < 2: return "parrot"         # no bigram gets there
    if late > 0.6: return "brass_band"
    if np.abs(np.diff(loss)).mean() > 0.3: return "tide"
    if norm[-48:].max() > 1.5 * np.median(norm[-48:]): return "heartbeat"
    if np.abs(np.diff(val, 2))[-6:].mean() > 0.05: return "restless"
    return "healthy"

set_challenge(Challenge(
    name="zoo.triage", chapter="26",
    task="Your function gets `known`, a list of 90 pairs (rows, name), and `patients`, a list of "
         "rows of 180 other runs; it returns the list of the patients' names: \"healthy\", or the "
         "cage whose bug the run has (ten known runs and twenty patients of each).",
    score=share_right, plain=by_rules, to_beat=0.6778, unit="of the patients named correctly",
    measured="two cores of an AMD EPYC, one thread, November 2026", lower=False, seconds=30,
    fixed=True))
