"""The mirror: best weights that are a reference, not a copy."""

import math

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import learn, normal, stream, tiny, weights_of


def best_weights(
    model,  # a module
    epochs, # list of (change of its weight, validation loss after that change)
) -> dict:  # state_dict with the lowest validation loss
    "A copy, taken when it was the best"
    best, kept = math.inf, None
    for change, loss in epochs:
        with torch.no_grad(): model.weight += change
        if loss < best: best, kept = loss, {k: v.clone() for k, v in model.state_dict().items()}
    return kept

def best_reference(model, epochs):
    best, kept = math.inf, None
    for change, loss in epochs:
        with torch.no_grad(): model.weight += change
        if loss < best: best, kept = loss, model.state_dict()
    return kept

def mirror() -> str:
    "Overfit eight rows, keep the best weights in memory, load them at the end"
    model, batch = tiny(), stream(8).next()
    val, told, best, kept = stream(64, split=2).next(), [], math.inf, None
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for s in range(8, 97, 8):
        learn(model, 8, lambda s: batch, opt)
        with torch.no_grad(): loss = model(*val).item()
        if loss < best: best, kept = loss, model.state_dict()
        told.append(f"step {s:3}   validation {loss:.4f}" + "   best so far" * (loss == best))
    last = weights_of(model)
    model.load_state_dict(kept)
    with torch.no_grad(): loss = model(*val).item()
    return "\n".join([*told, f"the best, loaded: validation {loss:.4f}, weights "
                             f"{weights_of(model)}; the last had {last}"])

def layers_and_changes(seed):
    "A layer and its epochs; the best is neither the first nor the last"
    draw = normal(seed)
    def layer():
        m = torch.nn.Linear(2, 2, bias=False)
        m.weight.data = draw(2, 2)
        return m
    return [(layer(), [(draw(2, 2), v) for v in losses])
            for losses in ((3.0, 2.0, 1.5, 1.8, 2.5), (2.0, 1.0, 3.0), (2.5, 2.4, 2.2, 2.3))]

def best_numpy(model, epochs):
    "Running sums in float64"
    moves = np.cumsum([c.double().numpy() for c, _ in epochs], 0)
    w = model.weight.detach().double().numpy() + moves[np.argmin([v for _, v in epochs])]
    return dict(weight=torch.from_numpy(w).float())

def last_of(pick): # a mistaken version: weights where pick(losses) points
    return lambda model, epochs: best_numpy(model, [(c, -(i == pick([v for _, v in epochs])))
                                                    for i, (c, _) in enumerate(epochs)])

lab("mirror", "the best weights are a reference, not a copy",
    "the best checkpoint is the last", "digests of best and last", "tough/19_checkpoint.ipynb",
    "https://github.com/pytorch/tutorials/pull/188", mirror, (
        ("state_dict() holds the live tensors: what was kept went on training",
         "the best has the very digest of the last weights"),
        ("the last weights are the best", "the log says otherwise, by a wide margin"),
        ("the comparison is the wrong way round", "the marks \"best so far\" stand at falling "
         "losses"),
        ("load_state_dict did nothing", "it copied the tensors onto themselves")),
    answer="best_weights",
    task="Apply each change to model.weight in place; return the state_dict of the moment with the "
         "lowest validation loss, as it was then.",
    inputs=layers_and_changes, oracle=best_numpy,
    wrongs=(
        Wrong("it is a reference to the live weights", best_reference,
              "state_dict() does not copy: the best weights train on, and early stopping returns "
              "the overfitted model. dict(...) and .copy() copy the names only."),
        Wrong("the highest loss is kept", last_of(lambda v: int(np.argmax(v))),
              "A > from the days when it was an accuracy."),
        Wrong("the first is kept", last_of(lambda v: 0),
              "The best value is never updated: every later comparison is with the first.")),
    hints=("What do the tensors of a state_dict share with the model?",
           "{k: v.clone() for k, v in model.state_dict().items()}, or copy.deepcopy."))
