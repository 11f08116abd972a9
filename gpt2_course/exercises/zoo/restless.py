"""The restless: fused attention that keeps dropping in eval mode."""

import numpy as np
import torch

from ...attention import sdpa
from ...check import Wrong
from .common import lab
from .small import learn, stream, tiny


def rate_of_dropout(
    p:float,       # of the config
    training:bool, # of the module
) -> float:        # what to hand to scaled_dot_product_attention as dropout_p
    "The kernel drops whatever it is told: it knows no eval mode"
    return p if training else 0.0

def restless() -> dict:
    "Ten evaluations of one model in eval mode on one batch"
    model = tiny(dropout=0.2, attention=lambda q, k, v, dropout: sdpa(q, k, v, 0.5))
    loader, val = stream(), stream(32, split=2).next()
    learn(model, 100, lambda s: loader.next())
    model.eval()
    with torch.no_grad(): again = [model(*val).item() for _ in range(10)]
    return dict(losses=again, training=model.training)

def rates(seed):
    "Rates in training and in eval mode"
    p = [float(v) for v in np.random.default_rng(seed).uniform(0.05, 0.45, 2)]
    return [(p[0], True), (p[0], False), (0.0, True), (p[1], False), (p[1], True), (0.0, False)]

def as_rate(result, *args): # False and 0 are the rate 0.0, too
    return float(result) if isinstance(result, (bool, int)) else result

lab("restless", "the fused attention keeps dropping in eval mode",
    "another validation loss each time it is asked", "evaluating twice",
    "medium/07_attention.ipynb", "https://github.com/karpathy/nanoGPT/pull/240", restless, (
        ("attention goes on dropping: the kernel is a function and has no eval mode",
         "the model says that it is not training, and still its answer is random; what else could "
         "draw a number here?"),
        ("model.eval() was forgotten", "the model says training: False"),
        ("the validation batches differ", "it is one batch, ten times"),
        ("the kernel is not deterministic", "on one core the same sums give the same bits; and the "
         "losses differ in the fourth digit, not the last")),
    answer="rate_of_dropout",
    task="The dropout_p to hand to F.scaled_dot_product_attention, from the config's p and the "
         "module's `training`.",
    inputs=rates,
    oracle=lambda p, training: p * int(training), read=as_rate,
    wrongs=(
        Wrong("p is handed over as it is", lambda p, training: p,
              "Evaluation and samples are random, and validation looks worse than it is."),
        Wrong("it is the share kept", lambda p, training: 1 - p if training else 1.0,
              "Other libraries ask for the probability of keeping; this one drops almost all."),
        Wrong("nothing is ever dropped", lambda p, training: 0.0,
              "The kernel is right in eval mode, and training lost its dropout."),
        Wrong("training and eval are exchanged", lambda p, training: 0.0 if training else p,
              "Dropout only where it hurts."),
        Wrong("everything is dropped in eval mode", lambda p, training: p if training else 1.0,
              "A rate of 1 drops all, and the output of every head is 0: what is to be dropped in "
              "eval mode is nothing, 0.0."),
        Wrong("the flag is handed over", lambda p, training: float(training),
              "True is 1: in training every weight is dropped, whatever p the config has.")),
    hints=("F.dropout has an argument `training`; scaled_dot_product_attention has none.",
           "p if training else 0.0"))
