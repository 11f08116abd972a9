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
    "Weights, gradients of some steps, a step size, an interval; equal weights, large ones"
    draw = normal(seed)
    return [(w, [draw(len(w)) for _ in range(n)], lr, every) for w, n, lr, every in
            ((draw(3), 7, 0.1, 3), (draw(3), 6, 0.5, 2), (draw(2), 1, 0.1, 5),
             (torch.ones(4), 3, 0.2, 1), (1000 * draw(3).sign(), 4, 50.0, 3))]

def by_sums(w, grads, lr, every):
    "Weights after s steps are w - lr times the sum of s gradients, in float64"
    g = np.stack([t.double().numpy() for t in grads]).cumsum(0)
    at = {*range(every, len(grads) + 1, every), len(grads)}
    return {s: torch.from_numpy(w.double().numpy() - lr * g[s - 1]).float() for s in sorted(at)}

def counted_from_0(w, grads, lr, every):
    "Mistaken: the index of a step is taken for the number of updates"
    saved = {}
    for s, g in enumerate(grads):
        w = w - lr * g
        if s % every == 0 or s == len(grads) - 1: saved[s] = w.clone()
    return saved

def one_tensor(w, grads, lr, every):
    "Mistaken: what is saved is the live tensor, which is the caller's, too"
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
              "All checkpoints are the last one; and the caller's w has been changed."),
        Wrong("one tensor is changed in place, and every name points to it",
              lambda w, g, lr, every: one_tensor(w.clone(), g, lr, every),
              "All checkpoints are the last one: saved[s] = w stores no numbers but the tensor, "
              "and w -= … changes it. Save w.clone()."),
        Wrong("the end is not saved",
              lambda w, g, lr, every: {s: v for s, v in by_sums(w, g, lr, every).items()
                                       if s % every == 0},
              "Up to every - 1 steps of work are thrown away when the run ends well."),
        Wrong("updates are counted from 0", counted_from_0,
              "In enumerate(grads) the index is 0 when one update is done: every name is one too "
              "small, and a resume repeats a step."),
        Wrong("the weights at the start are saved as well",
              lambda w, g, lr, every: {0: w.clone(), **by_sums(w, g, lr, every)},
              "0 is a multiple of `every`, but no update is done yet: there is nothing to save "
              "that initialising could not give again.")),
    hints=("First the update, then the question whether to save.",
           "s % every == 0 or s == len(grads); save w.clone() unless w is never changed in place."),
    excused={"gradient": "a checkpoint is a copy: nothing is differentiated through it",
             "batch": "w is a vector: the gradients are in the list"})
