"""Yesterday: a checkpoint that is written before the last update."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import learn, normal, stream, tiny, weights_of


def checkpoints(
    w,          # (D,) weights
    grads,      # list of (D,) gradients, one a step
    lr:float,
    every:int,
) -> dict:      # number of updates done -> (D,) weights then, at every multiple and at the end
    "Save after the update, and a copy"
    saved = {}
    for s, g in enumerate(grads, 1):
        w = w - lr * g
        if s % every == 0 or s == len(grads): saved[s] = w.clone()
    return saved

def early_checkpoints(w, grads, lr, every):
    saved = {}
    for s, g in enumerate(grads, 1):
        if s % every == 0 or s == len(grads): saved[s] = w.clone()
        w = w - lr * g
    return saved

def yesterday() -> str:
    "Train 30 steps, save at the end, load, compare"
    model, loader, kept = tiny(), stream(), {}
    val = stream(32, split=2).next()
    def save(model): kept.update({k: v.clone() for k, v in model.state_dict().items()})
    learn(model, 30, lambda s: loader.next(), before=save)
    new = tiny()
    new.load_state_dict(kept)
    again, loader = tiny(), stream()
    learn(again, 29, lambda s: loader.next())
    with torch.no_grad():
        return "\n".join(f"{name:28} weights {weights_of(m)}   validation loss {m(*val):.5f}"
                         for name, m in (("at the end, after 30 steps", model),
                                         ("checkpoint step 30, loaded", new),
                                         ("a second run, after 29 steps", again)))

def some_gradients(seed):
    "Weights, gradients of 7, 6 and 1 steps, a step size, an interval"
    draw = normal(seed)
    return [(draw(3), [draw(3) for _ in range(n)], 0.1, every) for n, every in
            ((7, 3), (6, 2), (1, 5))]

def by_sums(w, grads, lr, every):
    "Weights after s steps are w - lr times the sum of s gradients, in float64"
    g = np.stack([t.double().numpy() for t in grads]).cumsum(0)
    at = {*range(every, len(grads) + 1, every), len(grads)}
    return {s: torch.from_numpy(w.double().numpy() - lr * g[s - 1]).float() for s in sorted(at)}

def one_tensor(w, grads, lr, every):
    "Mistaken: what is saved is the live tensor"
    saved = {}
    for s, g in enumerate(grads, 1):
        w -= lr * g
        if s % every == 0 or s == len(grads): saved[s] = w
    return saved

lab("yesterday", "the checkpoint is written before the last update",
    "a loaded model that scores a little worse than the one that was saved",
    "digests before saving and after loading", "tough/19_checkpoint.ipynb",
    "https://github.com/snowflakedb/ArcticTraining/pull/323", yesterday, (
        ("it was saved before the last update",
         "its digest is that of the weights after 29 steps, to the last bit"),
        ("the file lost digits", "rounding would give weights of no step at all"),
        ("the model was left in training mode", "there is no dropout in it, and digests do not "
         "depend on modes"),
        ("an older file was loaded by mistake", "there is only this one")),
    answer="checkpoints",
    task="A dict from the number of updates to the weights after them, at each multiple of `every` "
         "and at the end; an update is w - lr * g.",
    inputs=some_gradients, oracle=by_sums,
    wrongs=(
        Wrong("it is saved before the update", early_checkpoints,
              "The name says step 30, the weights are those of step 29: a resume repeats an "
              "update, and the best loss belongs to no file."),
        Wrong("the live tensor is kept, not a copy", one_tensor,
              "All checkpoints are the last one."),
        Wrong("the end is not saved",
              lambda w, g, lr, every: {s: v for s, v in by_sums(w, g, lr, every).items()
                                       if s % every == 0},
              "Up to every - 1 steps of work are thrown away when the run ends well.")),
    hints=("First the update, then the question whether to save.",
           "s % every == 0 or s == len(grads); save w.clone() unless w is never changed in place."))
