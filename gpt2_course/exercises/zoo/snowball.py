"""The snowball: gradients of old steps that are never cleared."""

import torch
import torch.nn.functional as F

from ...check import Wrong
from .common import lab
from .small import learn, normal, stream, tiny


def descend(
    w,        # (D,) weights, requires_grad; changed in place, as an optimizer does
    batches,  # list of x (n, D), y (n,)
    lr:float,
):            # (D,) weights after one step of gradient descent on each batch's F.mse_loss(x @ w, y)
    "A step for each batch, each by its own gradient"
    for x, y in batches:
        w.grad = None
        F.mse_loss(x @ w, y).backward()
        with torch.no_grad(): w -= lr * w.grad
    return w.detach()

def snowball_descend(w, batches, lr):
    for x, y in batches:
        F.mse_loss(x @ w, y).backward()
        with torch.no_grad(): w -= lr * w.grad
    return w.detach()

def snowball() -> dict:
    "Loss and gradient norm of three runs: the bug at two learning rates, and last week's code"
    out = {}
    for name, lr, clear in (("lr 0.003", 3e-3, False), ("lr 0.0003", 3e-4, False),
                            ("last week's code, lr 0.003", 3e-3, True)):
        model, loader = tiny(), stream()
        opt = torch.optim.AdamW(model.parameters(), lr=lr)
        out[name] = learn(model, 90, lambda s: loader.next(), opt, clear=clear)
    return out

def lines_of_points(seed):
    "Weights and batches of a linear model, a step size"
    draw, out = normal(seed), []
    for w, n, k, lr in ((draw(3), 4, 3, 0.05), (draw(2), 5, 4, 0.1), (draw(4), 1, 2, 0.05),
                        (torch.full((3,), 0.5), 4, 2, 0.02), (1000 * draw(2).sign(), 3, 2, 0.05)):
        batches = [(draw(n, len(w)), draw(n)) for _ in range(k)]
        out.append((w.requires_grad_(), batches, lr))
    return out

def descend_numpy(w, batches, lr):
    "By the formula of the gradient, in float64"
    now = w.detach().double().numpy()
    for x, y in batches:
        x, y = x.double().numpy(), y.double().numpy()
        now = now - lr * 2 / len(y) * x.T @ (x @ now - y)
    with torch.no_grad(): w.copy_(torch.from_numpy(now))
    return w.detach()

def elsewhere(w, batches, lr):
    "Mistaken: a copy learns, and the caller's weights stay"
    return descend(w.detach().clone().requires_grad_(), batches, lr)

def from_the_start(w, batches, lr):
    "Mistaken: every gradient is computed where the first one was"
    grads = [torch.autograd.grad(F.mse_loss(x @ w, y), w)[0] for x, y in batches]
    with torch.no_grad(): w -= lr * sum(grads)
    return w.detach()

def one_big_step(w, batches, lr):
    return descend(w, [tuple(torch.cat(t) for t in zip(*batches))], lr)

lab("snowball", "optimizer.zero_grad() is missing",
    "the gradient norm grows with the steps while the loss stops falling", "gradient norm by step",
    "medium/13_training.ipynb", "https://github.com/karpathy/llm.c/pull/548", snowball, (
        ("the gradients of old steps are never cleared and add up",
         "each step follows the sum of all gradients so far: the norm grows with their number, at "
         "any learning rate"),
        ("the learning rate is too high",
         "a tenth of it shows the same growing norm; and last week's code liked the higher one"),
        ("the gradients explode because the network is deep",
         "two blocks are not deep, and an explosion is there at the first step, not after eighty"),
        ("the batches become harder", "last week's code read the same ones")),
    answer="descend", changes=("w",),
    task="Change w in place by one step of plain gradient descent for each batch, w -= lr * "
         "gradient of F.mse_loss(x @ w, y), as an optimizer does, and return w.detach().",
    inputs=lines_of_points, oracle=descend_numpy, atol=1e-3,
    wrongs=(
        Wrong("the old gradient is never cleared", snowball_descend,
              "backward adds into .grad: step 100 follows the sum of a hundred gradients."),
        Wrong("it is cleared between backward and the step", lambda w, b, lr: w.detach(),
              "Nothing is left to follow: the weights never move."),
        Wrong("all batches make one step", one_big_step,
              "That is accumulation: right if you want it, but here each batch gets a step."),
        Wrong("all gradients are taken at the first weights", from_the_start,
              "The second batch has to be read with the weights that the first one left: otherwise "
              "the loop makes one long step."),
        Wrong("a copy is trained, and w stays", elsewhere,
              "The result is right, but the model that holds w has learnt nothing: w - lr * g is a "
              "new tensor; w -= lr * g under no_grad changes the one that is there.")),
    hints=("What is in w.grad when the second backward begins?",
           "w.grad = None (or optimizer.zero_grad()) once a step, ahead of backward."),
    excused={"batch": "w is a vector: the batches are in the list"})
