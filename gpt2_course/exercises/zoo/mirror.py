"""The mirror: best weights that are a reference, not a copy."""

import math

import numpy as np
import torch

from ...check import Wrong
from ...compare import short
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

class Layer(torch.nn.Linear):
    "A layer that equals another with the same weights: the check compares what became of it"
    __hash__ = torch.nn.Linear.__hash__
    def __init__(self, weight):
        super().__init__(*weight.shape[::-1], bias=False)
        self.weight.data = weight
    def __repr__(self): return f"Layer({short(self.weight, 60)})"
    def __eq__(self, other):
        mine, theirs = self.weight.detach(), getattr(other, "weight", None)
        return theirs is not None and torch.allclose(mine, theirs.detach(), rtol=1e-4, atol=1e-5)

def layers_and_changes(seed):
    "A layer and its epochs; the best is neither the first nor the last"
    draw = normal(seed)
    return [(Layer(draw(2, 2)), [(draw(2, 2), v) for v in losses]) for losses in
            ((3.0, 2.0, 1.5, 1.8, 2.5), (2.0, 1.0, 3.0), (2.5, 2.4, 2.2, 2.3), (30.0, 12.0, 25.0))]

def best_numpy(model, epochs):
    return kept_at(model, epochs, int(np.argmin([v for _, v in epochs])))

def kept_at(model, epochs, best):
    "Running sums in float64; the weights after epoch `best`, which may be -1: before the first"
    moves = np.cumsum([c.double().numpy() for c, _ in epochs], 0)
    w = model.weight.detach().double().numpy()
    kept = w + moves[best] if best >= 0 else w
    with torch.no_grad(): model.weight.copy_(torch.from_numpy(w + moves[-1]))
    return dict(weight=torch.from_numpy(kept).float())

def kept_by(pick): # a mistaken version: weights of the epoch that pick(losses) gives
    return lambda model, epochs: kept_at(model, epochs, int(pick([v for _, v in epochs])))

def put_back(model, epochs):
    "Mistaken: the model itself goes back to its best weights"
    kept = best_weights(model, epochs)
    model.load_state_dict(kept)
    return kept

lab("mirror", "the best weights are a reference, not a copy",
    "the best checkpoint is the last", "digests of best and last", "tough/19_checkpoint.ipynb",
    "https://github.com/pytorch/tutorials/pull/188", mirror, (
        ("state_dict() holds the live tensors: what was kept went on training",
         "the best has the very digest of the last weights"),
        ("the last weights are the best", "the log says otherwise, by a wide margin"),
        ("the comparison is the wrong way round", "the marks \"best so far\" stand at falling "
         "losses"),
        ("load_state_dict did nothing", "it copied the tensors onto themselves")),
    answer="best_weights", changes=("model",),
    task="Apply each change to model.weight in place; return the state_dict of the moment with the "
         "lowest validation loss, as it was then.",
    inputs=layers_and_changes, oracle=best_numpy,
    wrongs=(
        Wrong("it is a reference to the live weights", best_reference,
              "state_dict() does not copy: the best weights train on, and early stopping returns "
              "the overfitted model. dict(...) and .copy() copy the names only."),
        Wrong("the highest loss is kept", kept_by(np.argmax),
              "A > from the days when it was an accuracy."),
        Wrong("the first is kept", kept_by(lambda v: 0),
              "The best value is never updated: every later comparison is with the first."),
        Wrong("the weights are copied before the change", kept_by(lambda v: np.argmin(v) - 1),
              "The loss belongs to the weights after the change: what is kept is one epoch old."),
        Wrong("the model is put back to its best weights", put_back,
              "The right weights are returned, but the model's own last state is lost: whoever "
              "trains on begins elsewhere.")),
    hints=("What do the tensors of a state_dict share with the model?",
           "{k: v.clone() for k, v in model.state_dict().items()}, or copy.deepcopy."))
