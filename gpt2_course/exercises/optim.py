"""The catalogue of chapter 12: what to write, oracles from torch.optim, torch.nn.utils and NumPy,
and the classic mistakes with their names."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from ..check import Exercise, Wrong, register
from ..optim import cosine_lr


def weights_and_state(
    seed:int,
) -> list: # of (p, g, m, v, t, lr, beta1, beta2, decay, eps)
    "A first step, a later one, a gradient as small as eps, and no gradient at all"
    rng = torch.Generator().manual_seed(seed)
    new = lambda: torch.randn(3, 4, generator=rng, dtype=torch.float64)
    zero = lambda: torch.zeros(3, 4, dtype=torch.float64)
    return [(new(), new(), zero(), zero(), 1, 0.1, 0.9, 0.95, 0.1, 1e-8),
            (new(), new(), new(), new()**2, 7 + seed % 9, 0.05, 0.9, 0.999, 0.5, 1e-8),
            (new(), new() * 1e-8, zero(), zero(), 1, 0.1, 0.9, 0.95, 0.0, 1e-8),
            (new(), zero(), zero(), zero(), 2, 0.1, 0.9, 0.95, 0.2, 1e-8)]

def adamw_torch(p, g, m, v, t, lr, beta1, beta2, decay, eps):
    "PyTorch's own, started in the middle of a run"
    p = nn.Parameter(p)
    p.grad = g
    opt = torch.optim.AdamW([p], lr=lr, betas=(beta1, beta2), weight_decay=decay, eps=eps)
    opt.state[p] = dict(step=torch.tensor(t - 1.0), exp_avg=m, exp_avg_sq=v)
    opt.step()
    return p.detach(), m, v

def adam(correct=True, l2=False, inside=False, scaled=True, square=True):
    "A mistaken AdamW: one thing is done in another way"
    def fn(p, g, m, v, t, lr, beta1, beta2, decay, eps):
        if l2: g = g + decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g**2 if square else g.abs())
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if correct else (1, 1)
        root = (v / c2 + eps).sqrt() if inside else (v / c2).sqrt() + eps
        kept = 1 if l2 else 1 - decay * (lr if scaled else 1)
        return p * kept - lr * m / c1 / root, m, v
    return fn


register(Exercise(
    "optim.adamw_step", "12", "One step of AdamW on a tensor: p, g, m, v, t (1 at the first step), "
    "lr, beta1, beta2, decay, eps give the new p, m, v.",
    inputs=weights_and_state, oracle=adamw_torch, package="gpt2_course.optim:adamw_step",
    wrongs=(
        Wrong("the means are not corrected for their start at zero", adam(correct=False),
              "The first steps have the wrong length: with betas 0.9 and 0.999 three times too "
              "long, just when v knows least."),
        Wrong("decay is added to the gradient (L2), not taken from the weight", adam(l2=True),
              "The root of v divides the decay as well: weights with large gradients are hardly "
              "decayed. This is Adam with L2, and the paper that gave the W its name is about "
              "it."),
        Wrong("eps stands inside the root", adam(inside=True),
              "Its root is 1e-4, not 1e-8: weights with small gradients, such as the embeddings of "
              "rare tokens, stop learning."),
        Wrong("the decay is not multiplied by the learning rate", adam(scaled=False),
              "A tenth of every weight is gone after one step; the model forgets faster than it "
              "learns."),
        Wrong("v is the mean of |g|, not of its square", adam(square=False),
              "m over the root of |g| still depends on the scale of the gradient, and that was to "
              "be divided out.")),
    hints=("m remembers g, v remembers g squared: beta times the old, (1 - beta) times the new.",
           "Divide m by 1 - beta1**t and v by 1 - beta2**t, in copies: return them uncorrected.",
           "p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)")))


class Small(nn.Module):
    "Two norms with different names, a tied head, and perhaps a frozen layer"
    def __init__(self, V, C, seed, frozen=False):
        super().__init__()
        self.wte, self.ln_1, self.norm = nn.Embedding(V, C), nn.LayerNorm(C), nn.LayerNorm(C)
        self.c_fc, self.lm_head = nn.Linear(C, 2 * C), nn.Linear(C, V, bias=False)
        self.lm_head.weight = self.wte.weight
        g = torch.Generator().manual_seed(seed)
        for p in self.parameters(): p.data = torch.randn(p.shape, generator=g)
        if frozen: self.c_fc.requires_grad_(False)

def groups_by_type(model, weight_decay):
    "Decayed: weights of Linear and Embedding, each tensor once"
    groups, seen = ([], []), set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) in seen or not p.requires_grad: continue
            seen.add(id(p))
            table = isinstance(module, (nn.Linear, nn.Embedding)) and name == "weight"
            groups[0 if table else 1].append(p)
    return [dict(params=groups[0], weight_decay=weight_decay),
            dict(params=groups[1], weight_decay=0.0)]

def grouped(decayed, frozen=False):
    "Groups by a mistaken rule on (name, p)"
    def fn(model, weight_decay):
        named = [(n, p) for n, p in model.named_parameters() if frozen or p.requires_grad]
        return [dict(params=[p for n, p in named if decayed(n, p)], weight_decay=weight_decay),
                dict(params=[p for n, p in named if not decayed(n, p)], weight_decay=0.0)]
    return fn


register(Exercise(
    "optim.decay_groups", "12", "Two parameter groups, dicts of params and weight_decay: first "
    "what is decayed, then what is not.",
    inputs=lambda seed: [(Small(5, 4, seed), 0.1), (Small(7, 3, seed, frozen=True), 0.01),
                         (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 0.2)],
    oracle=groups_by_type, package="gpt2_course.optim:decay_groups",
    wrongs=(
        Wrong("everything is decayed", grouped(lambda n, p: True),
              "A LayerNorm's weight belongs near 1 and is pulled to 0; biases lose what they "
              "learnt."),
        Wrong("the weights of LayerNorm are decayed", grouped(lambda n, p: not n.endswith("bias")),
              "Biases are not the only vectors. Ask for the number of dimensions, not the name."),
        Wrong("norms are found by their name",
              grouped(lambda n, p: not n.endswith("bias") and "norm" not in n),
              "GPT-2 calls its norms ln_1, ln_2 and ln_f: a search for 'norm' finds none of them."),
        Wrong("frozen parameters are handed to the optimiser",
              grouped(lambda n, p: p.dim() >= 2, frozen=True),
              "They get no gradient, and the groups no longer say what is trained: counts and "
              "plans are wrong, and what is unfrozen later starts with another's settings.")),
    hints=("Matrices and embeddings have two dimensions; biases and norms have one.",
           "Leave out parameters with requires_grad False.",
           "[dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay), …]")))


def lr_at(
    step,   # 0 … steps - 1, or beyond
    max_lr, min_lr, warmup, steps,
) -> float: # the learning rate of this step
    "`gpt2_course.optim.cosine_lr` with its settings in order"
    return cosine_lr(step, max_lr=max_lr, min_lr=min_lr, warmup=warmup, steps=steps)


def moments(
    seed:int,
) -> list: # of (step, max_lr, min_lr, warmup, steps)
    "First step, both ends of the warm-up, the middle, the last step, beyond it, and no warm-up"
    w, steps = 4 + seed % 4, 20 + seed % 5
    some = (0, 1, w - 1, w, w + 1, steps // 2, steps - 2, steps - 1, steps + 5)
    return [*((s, 6e-4, 6e-5, w, steps) for s in some), (0, 1e-3, 1e-4, 0, 10),
            (9, 1e-3, 0.0, 0, 10)]

def lr_numpy(step, max_lr, min_lr, warmup, steps):
    "The whole schedule as an array, one entry read"
    rise = np.arange(1, warmup + 1) * max_lr / max(1, warmup)
    fall = np.cos(np.linspace(0, np.pi / 2, steps - warmup))**2 * (max_lr - min_lr) + min_lr
    return float(np.concatenate([rise, fall])[min(step, steps - 1)])

def rates(first=1, length=-1, whole=False, floor=True, guard=True):
    "A mistaken schedule: one thing is done in another way"
    def fn(step, max_lr, min_lr, warmup, steps):
        low = min_lr if floor else 0.0
        if step < warmup: return max_lr * (step + first) / warmup
        if guard and step >= steps: return low
        start = 0 if whole else warmup
        x = (step - start) / (steps + length - start)
        return float(low + (max_lr - low) * 0.5 * (1 + np.cos(np.pi * x)))
    return fn


register(Exercise(
    "optim.cosine_lr", "12", "The learning rate of a step, from step, max_lr, min_lr, warmup and "
    "steps: linear rise, then half a cosine to min_lr at the last step.",
    inputs=moments, oracle=lr_numpy, package="gpt2_course.exercises.optim:lr_at", atol=1e-9,
    wrongs=(
        Wrong("the learning rate of step 0 is 0", rates(first=0),
              "A whole batch is computed and nothing is learnt from it; with one step of warm-up "
              "in a short run it shows."),
        Wrong("the cosine never reaches min_lr", rates(length=0),
              "The last step is steps - 1, not steps: the run ends a step before its schedule "
              "does."),
        Wrong("the cosine begins at step 0, not after the warm-up", rates(whole=True),
              "Where the warm-up ends the rate jumps down, in a long warm-up by a lot, and the "
              "peak is held for a single step."),
        Wrong("it falls to 0, not to min_lr", rates(floor=False),
              "The last steps learn nothing, and min_lr is read by nobody."),
        Wrong("after the last step it rises again", rates(guard=False),
              "A cosine comes back: whoever trains on beyond the planned end climbs towards max_lr "
              "and unlearns.")),
    hints=("Three parts: step < warmup, the cosine, and everything from step steps - 1 on.",
           "Steps count from 0: the first gets max_lr / warmup, step warmup - 1 gets max_lr.",
           "progress = (step - warmup) / (steps - 1 - warmup); min_lr + (max_lr - min_lr) * "
           "0.5 * (1 + cos(pi * progress))")))


def clip(
    grads,          # list of tensors: the gradients of all parameters
    max_norm:float, # longest length allowed
):                  # list of tensors, together no longer than max_norm
    "One factor for all, so the direction stays; what is short enough stays as it is"
    length = torch.sqrt(sum(g.square().sum() for g in grads))
    return [g * min(1.0, max_norm / (float(length) + 1e-6)) for g in grads]


def gradients(
    seed:int,
) -> list: # of (list of gradients, max_norm)
    "Long, short, long in one tensor only, and zero"
    g = torch.Generator().manual_seed(seed)
    new = lambda s: [torch.randn(n, generator=g) * k for n, k in ((3, s), ((2, 4), 1), (5, 0.1))]
    return [(new(10), 1.0), (new(0.1), 50.0), (new(100), 2.5), ([torch.zeros(3)], 1.0)]

def clip_torch(grads, max_norm):
    "PyTorch's own, on parameters made for it"
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads): p.grad = g
    clip_grad_norm_(params, max_norm)
    return [p.grad for p in params]

def total(grads): return torch.stack([g.norm() for g in grads]).norm()

register(Exercise(
    "optim.clip", "12", "A list of gradients, scaled together so that their common length is at "
    "most max_norm.",
    inputs=gradients, oracle=clip_torch, package="gpt2_course.exercises.optim:clip",
    wrongs=(
        Wrong("each tensor is clipped by itself",
              lambda grads, n: [g * min(1.0, n / (float(g.norm()) + 1e-6)) for g in grads],
              "Long tensors shrink and short ones do not: the direction turns, and the whole can "
              "still be longer than max_norm."),
        Wrong("each number is clipped to ±max_norm",
              lambda grads, n: [g.clamp(-n, n) for g in grads],
              "That is clip_grad_value_: the direction turns towards a corner, and a thousand "
              "numbers at the limit are still a long gradient."),
        Wrong("short gradients are stretched to max_norm",
              lambda grads, n: [g * n / (total(grads) + 1e-6) for g in grads],
              "Clipping has an upper end only. Stretched, the steps near the goal are as noisy as "
              "those at the start."),
        Wrong("the lengths of the tensors are added",
              lambda grads, n: [g * min(1.0, n / float(sum(h.norm() for h in grads) + 1e-6))
                                for g in grads],
              "Lengths add up as squares (Pythagoras). This norm is too long, the more the more "
              "tensors there are, and it clips too much.")),
    hints=("One length for all tensors: the root of the sum of all squares.",
           "One factor for all: max_norm / length, but never above 1.",
           "[g * min(1.0, max_norm / (length + 1e-6)) for g in grads]")))
