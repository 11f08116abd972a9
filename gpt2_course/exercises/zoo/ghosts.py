"""Ghosts: gradients too small for float16, and no scaler."""

import numpy as np
import torch
import torch.nn.functional as F

from ...check import Wrong
from .common import lab
from .small import normal, stream, trained


def through_half(
    grads,       # list of float32 gradients
    scale:float, # a power of two
):               # (list of float32 gradients, whether the step must be skipped)
    "Scale, cast to float16, look for infinities, unscale in float32"
    half = [(g * scale).half() for g in grads]
    skip = not all(bool(h.isfinite().all()) for h in half)
    return [h.float() / scale for h in half], skip

def unscaled_half(grads, scale): return through_half(grads, 1.0)

def ghosts() -> str:
    "Share of the logits' gradient that is exactly 0, by size of the batch and by type"
    model, told = trained(), []
    for B in (4, 16, 64, 256):
        x, y = stream(B, split=2).next()
        z = model(x).detach().requires_grad_()
        loss = F.cross_entropy(z.flatten(0, 1), y.flatten())
        loss.backward()
        (half,), _ = unscaled_half([z.grad], 1.0)
        zeros = [(g == 0).float().mean() for g in (z.grad, half)]
        told.append(f"{B:3} rows: loss {loss.item():.3f}   zeros in float32 {zeros[0]:5.1%}, "
                    f"in float16 {zeros[1]:5.1%}")
    return "\n".join(told)

def faint_gradients(seed):
    "Gradients that float16 cannot hold unscaled, ordinary ones, and some that overflow scaled"
    draw = normal(seed)
    return [([draw(4, 3) * 1e-8, draw(5) * 1e-6], 65536.0),
            ([draw(6).sign() * 10, draw(2)], 65536.0), ([draw(3) * 1e-7], 1024.0),
            ([draw(2, 2).sign() * 1e5], 0.0625), ([draw(4)], 1.0)]

def half_numpy(grads, scale):
    "NumPy's float16"
    with np.errstate(over="ignore"): half = [(g.numpy() * np.float32(scale)).astype(np.float16)
                                             for g in grads]
    return ([torch.from_numpy(h.astype(np.float32) / np.float32(scale)) for h in half],
            not all(np.isfinite(h).all() for h in half))

def cast_first(grads, scale):
    "Mistaken: what is scaled has lost its digits already"
    half = [g.half() * scale for g in grads]
    return [h.float() / scale for h in half], not all(bool(h.isfinite().all()) for h in half)

def unscaled_as_half(grads, scale):
    "Mistaken: divided before it is float32 again"
    half = [(g * scale).half() for g in grads]
    return [(h / scale).float() for h in half], not all(bool(h.isfinite().all()) for h in half)

def unless_skipped(result, *args):
    "Gradients that a skipped step would have used do not matter"
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], bool):
        return dict(skip=result[1], gradients=[] if result[1] else result[0])
    return result

lab("ghosts", "float16 without a gradient scaler", "gradients that are exactly 0, more of them the "
    "larger the batch", "share of zeros in the gradient", "medium/13_training.ipynb",
    "https://github.com/karpathy/nanoGPT/issues/167", ghosts, (
        ("the numbers are too small for float16, which ends near 0.00000006",
         "float32 holds the same gradients without a zero; more rows divide them further"),
        ("the model has converged", "the loss is far from 0, and in float32 no gradient is 0"),
        ("dead units: their inputs are negative", "logits have no nonlinearity behind them, and "
         "the type of the numbers would not matter"),
        ("those targets are ignored", "then float32 would show the same zeros")),
    answer="through_half",
    task="What is left of float32 gradients that travel as float16 times `scale`: (the list, "
         "unscaled in float32; True if any of them overflowed, so that the step must be skipped "
         "and the list is not used).",
    inputs=faint_gradients, oracle=half_numpy, atol=0.0, read=unless_skipped,
    wrongs=(
        Wrong("no scale is used", unscaled_half,
              "What is smaller than 6e-8 becomes 0, without a warning: training flattens early."),
        Wrong("the result is not unscaled", lambda g, s: ([t * s for t in through_half(g, s)[0]],
                                                         through_half(g, s)[1]),
              "The optimiser gets gradients that are 65536 times too long; AdamW hides it, "
              "clipping does not."),
        Wrong("infinities are not noticed", lambda g, s: (through_half(g, s)[0], False),
              "One overflow, one step with it, and every weight is NaN."),
        Wrong("infinities are cut to the largest number",
              lambda g, s: ([torch.nan_to_num(t, posinf=65504 / s, neginf=-65504 / s)
                             for t in through_half(g, s)[0]], False),
              "The step is taken with a wrong direction; a scaler skips it and halves the scale."),
        Wrong("they are scaled after the cast", cast_first,
              "What became 0 in float16 stays 0, whatever it is multiplied by: scale first."),
        Wrong("they are unscaled while still in float16", unscaled_as_half,
              "The division makes them too small for the type a second time: all that the scale "
              "saved is lost at the last moment.")),
    hints=("Multiply first, in float32; then .half().",
           "isfinite on the halves tells whether to skip.", "Back to float32 before dividing."),
    excused={"gradient": "these are gradients: nothing is differentiated a second time"})
