"""Standstill: gradients that are clipped before they are unscaled."""

import math

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import length, normal, stream, tiny


def ready(
    grads,          # list of tensors: gradients of scale x loss
    scale:float,    # of the loss, as GradScaler has it
    max_norm:float, # longest gradient allowed
) -> list:          # tensors for the optimiser
    "Unscale, then clip all together"
    grads = [g / scale for g in grads]
    return clip(grads, max_norm)

def clip(grads, max_norm): # all shortened by one factor, if they are too long together
    total = math.sqrt(sum(float((g**2).sum()) for g in grads))
    factor = min(1.0, max_norm / max(total, 1e-12)) # all of them may be 0
    return [g * factor for g in grads]

def clip_first(grads, scale, max_norm): return [g / scale for g in clip(grads, max_norm)]

def standstill() -> dict:
    "Losses and logged norms of a run with a scaled loss, and how far the weights came"
    model, loader, start = tiny(), stream(), tiny()
    out = dict(losses=[], norms=[])
    for s in range(60):
        model.zero_grad()
        loss = model(*loader.next())
        (loss * 2.0**16).backward()
        params = list(model.parameters())
        out["losses"].append(loss.item())
        out["norms"].append(length([p.grad for p in params]))
        with torch.no_grad():
            for p, g in zip(params, clip_first([p.grad for p in params], 2.0**16, 1.0)):
                p -= 0.5 * g
    moved = [a.detach() - b.detach() for a, b in zip(model.parameters(), start.parameters())]
    return dict(out, moved=length(moved), weights=length(start.parameters()))

def scaled_gradients(seed):
    "Gradients longer than max_norm, shorter, just as long, and 0, all of a scaled loss"
    draw = normal(seed)
    return [([draw(3, 2) * s, draw(4) * s], float(s), m)
            for s, m in ((1024, 1.0), (65536, 0.5), (256, 50.0), (2, 1.0))] + [
        ([draw(3, 2), draw(4)], 4.0, 50.0), ([torch.zeros(3), torch.zeros(1, 2)], 8.0, 1.0),
        ([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 1.0, 5.0)]

def ready_numpy(grads, scale, max_norm):
    "One long vector in float64"
    v = np.concatenate([g.double().numpy().ravel() for g in grads]) / scale
    v *= min(1.0, max_norm / max(np.linalg.norm(v), 1e-300))
    parts = np.split(v, np.cumsum([g.numel() for g in grads])[:-1])
    return [torch.from_numpy(p).float().view(g.shape) for p, g in zip(parts, grads)]

lab("standstill", "gradients clipped before they are unscaled",
    "a flat loss beside an enormous gradient norm", "gradient norm, and the way the weights went",
    "medium/12_optim.ipynb", "https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
    standstill, (
        ("the gradient is clipped while it is still scaled, then unscaled",
         "its length becomes 1 / 65536 after unscaling: the weights move, by next to nothing"),
        ("the gradients explode", "divided by the scale of 65536 their norm is an ordinary one"),
        ("the scaler finds infinities and skips every step",
         "then the weights would not have moved at all; they did, a little"),
        ("the learning rate is too small",
         "0.5 times an ordinary gradient of length 1 would move the weights visibly in one step")),
    answer="ready",
    task="Gradients for the optimiser, as a list: those of a loss that was multiplied by `scale`, "
         "unscaled, then all shortened by one factor if together they are longer than max_norm.",
    inputs=scaled_gradients, oracle=ready_numpy, atol=1e-8,
    wrongs=(
        Wrong("clipped first, unscaled afterwards", clip_first,
              "The scaled norm is always above the limit: every gradient is cut to max_norm / "
              "scale, and nothing moves. AdamW hides it, descent stands still."),
        Wrong("never unscaled", lambda g, s, m: clip(g, m),
              "The direction is right, the length is max_norm at every step, however small the "
              "gradient was."),
        Wrong("each tensor is clipped by itself",
              lambda g, s, m: [clip([t / s], m)[0] for t in g],
              "The gradient's direction changes: long tensors are cut, short ones are not."),
        Wrong("never clipped", lambda g, s, m: [t / s for t in g],
              "One bad batch then makes one enormous step, and the run may not recover from it."),
        Wrong("short gradients are lengthened, too",
              lambda g, s, m: [t / s * (m / max(length(g) / s, 1e-12)) for t in g],
              "Every step has the full length max_norm, also where the gradient has almost "
              "vanished: the factor must not exceed 1."),
        Wrong("each entry is clipped to max_norm",
              lambda g, s, m: [(t / s).clamp(-m, m) for t in g],
              "That is clipping by value: large entries are cut, small ones are not, and the "
              "gradient points elsewhere.")),
    hints=("In which units is max_norm: those of the loss, or of scale x loss?",
           "Divide every tensor by scale before you measure anything.",
           "One factor for all: min(1, max_norm / length of all together)."),
    excused={"gradient": "these are gradients: nothing is differentiated a second time"})
