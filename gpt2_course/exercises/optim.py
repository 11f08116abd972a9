"""The catalogue of chapter 12: what to write, oracles from torch.optim, torch.nn.utils and NumPy,
the classic mistakes with their names, and two short runs to steer."""

import functools

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..compare import kind
from ..config import GPTConfig, packaged
from ..model import GPT
from ..optim import adamw, cosine_lr
from ..tokenizer import CharTokenizer


def weights_and_state(
    seed:int,
) -> list: # of (p, g, m, v, t, lr, beta1, beta2, decay, eps)
    "A first step, later ones, a gradient as small as eps, none at all, and large numbers"
    rng = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape or (3, 4), generator=rng, dtype=torch.float64)
    zero = lambda *shape: torch.zeros(shape or (3, 4), dtype=torch.float64)
    return [(new(), new(), zero(), zero(), 1, 0.1, 0.9, 0.95, 0.1, 1e-8),
            (new(), new(), new(), new()**2, 7 + seed % 9, 0.05, 0.9, 0.999, 0.5, 1e-8),
            (new(), new() * 1e-8, zero(), zero(), 1, 0.1, 0.9, 0.95, 0.0, 1e-8),
            (new(), zero(), zero(), zero(), 2, 0.1, 0.9, 0.95, 0.2, 1e-8),
            (new(2, 3, 4), new(2, 3, 4), new(2, 3, 4), new(2, 3, 4)**2, 3, 0.1, 0.8, 0.99, 0.3,
             0.1),
            (new(1, 5) * 2000, new(1, 5) * 2000, zero(1, 5), zero(1, 5), 1, 3.0, 0.9, 0.999, 0.1,
             1e-8)]

def adamw_torch(p, g, m, v, t, lr, beta1, beta2, decay, eps):
    "PyTorch's own, started in the middle of a run"
    p = nn.Parameter(p)
    p.grad = g
    opt = torch.optim.AdamW([p], lr=lr, betas=(beta1, beta2), weight_decay=decay, eps=eps)
    opt.state[p] = dict(step=torch.tensor(t - 1.0), exp_avg=m, exp_avg_sq=v)
    opt.step()
    return p.detach(), m, v

def adam(correct="mv", l2=False, eps_at="outside", scaled=True, square=True, root=True, late=False,
         swapped=False, from_zero=False, hats=False, weighted=True, sign=1, old=False):
    "A mistaken AdamW: one thing is done in another way"
    def fn(p, g, m, v, t, lr, beta1, beta2, decay, eps):
        if swapped: beta1, beta2 = beta2, beta1
        if l2: g = g + decay * p
        new_m = beta1 * m + ((1 - beta1) if weighted else 1) * g
        new_v = beta2 * v + ((1 - beta2) if weighted else 1) * (g**2 if square else g.abs())
        used_m, used_v = (m, v) if old else (new_m, new_v)
        t = torch.tensor(t - 1.0 if from_zero else float(t), dtype=torch.float64)
        c1 = 1 - beta1**t if "m" in correct else 1.0
        c2 = 1 - beta2**t if "v" in correct else 1.0
        m_hat, v_hat = used_m / c1, used_v / c2
        size = (v_hat + (eps if eps_at == "inside" else 0.0))**(0.5 if root else 1.0)
        size = size + (eps if eps_at == "outside" else 0.0)
        if eps_at == "early": size = (used_v.sqrt() + eps) / c2**0.5
        kept, step = 1 if l2 else 1 - decay * (lr if scaled else 1), sign * lr * m_hat / size
        moved = (p - step) * kept if late else p * kept - step
        return (moved, m_hat, v_hat) if hats else (moved, new_m, new_v)
    return fn


register(Exercise(
    "optim.adamw_step", "12", "One step of AdamW on a tensor: the new p, m and v, from p, g, m, v, "
    "t (1 at the first step), lr, beta1, beta2, decay and eps.",
    inputs=weights_and_state, oracle=adamw_torch, package="gpt2_course.optim:adamw_step",
    wrongs=(
        Wrong("the means are not corrected for their start at zero", adam(correct=""),
              "The first steps have the wrong size: with betas of 0.9 and 0.999 they are three "
              "times too large, just when v is least reliable."),
        Wrong("only m is corrected, v is not", adam(correct="m"),
              "v is far too small at first, with a beta2 of 0.999 by a factor of a thousand, and "
              "the first step is 1 / sqrt(1 - beta2) learning rates long."),
        Wrong("only v is corrected, m is not", adam(correct="v"),
              "m is too small at first: with a beta1 of 0.9 the first step is a tenth of a "
              "learning rate long. That acts like a short, unintended warm-up."),
        Wrong("the step is made with the old m and v", adam(old=True),
              "The newest gradient comes a step too late, and in the first step both means are "
              "still zero: nothing moves."),
        Wrong("the corrected means are returned in place of m and v", adam(hats=True),
              "The next step starts from means that have been corrected already, and corrects "
              "them again. The correction is for this step alone; m and v are kept without it."),
        Wrong("the correction counts steps from 0", adam(from_zero=True),
              "beta**0 is 1, so the first step divides by 1 - 1 = 0: every weight becomes NaN."),
        Wrong("the betas are swapped", adam(swapped=True),
              "The gradient is then averaged over hundreds of steps, and its square over ten: the "
              "direction lags behind, and the size of the steps is noisy."),
        Wrong("the new gradient is not weighted by 1 - beta", adam(weighted=False),
              "beta * m + g is a sum, not a mean, as in SGD with momentum. m and v grow by "
              "different factors, so the step has the wrong size."),
        Wrong("the root of v is missing", adam(root=False),
              "A gradient divided by its square is 1 / gradient: small gradients make huge steps. "
              "The root gives v the same unit as m."),
        Wrong("eps stands inside the root", adam(eps_at="inside"),
              "The root of 1e-8 is 1e-4: weights with small gradients, such as the embeddings of "
              "rare tokens, stop learning."),
        Wrong("eps is added before v is corrected", adam(eps_at="early"),
              "Then the correction enlarges eps as well. Kingma and Ba show this shorter form too, "
              "but with a different eps; PyTorch adds eps to the corrected root."),
        Wrong("eps is left out", adam(eps_at="nowhere"),
              "A weight without any gradient, such as the embedding of a token that did not occur, "
              "moves by 0/0, which is NaN."),
        Wrong("v is the mean of |g|, not of its square", adam(square=False),
              "m over the root of |g| still depends on the scale of the gradient, which the "
              "division should remove."),
        Wrong("decay is added to the gradient (L2), not taken from the weight", adam(l2=True),
              "The root of v divides the decay as well: weights with large gradients are hardly "
              "decayed. This is Adam with L2 regularisation, the problem that AdamW was invented "
              "to solve."),
        Wrong("the decay is not multiplied by the learning rate", adam(scaled=False),
              "A tenth of every weight is gone after one step; the model forgets faster than it "
              "learns."),
        Wrong("the decay shrinks the weight after the step, not before", adam(late=True),
              "The step itself is then decayed as well. AdamW subtracts lr * decay times the old "
              "weight; the difference is small, but enough for two runs to drift apart."),
        Wrong("the step is added, not subtracted", adam(sign=-1),
              "The gradient points uphill: the loss rises with every step.")),
    hints=("m is a running mean of g, v of g squared: beta times the old value plus (1 - beta) "
           "times the new one.",
           "Divide m by `1 - beta1**t` and v by `1 - beta2**t`, in copies: return m and v "
           "uncorrected.",
           "`p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)`"),
    excused=dict(gradient="An optimiser's step is never differentiated; it runs under no_grad")))


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

class Mixed(nn.Module):
    "Parameters of no, one, two and three dimensions"
    def __init__(self, seed):
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 3, 2), nn.Linear(3, 4)
        self.ln_f, self.gain = nn.LayerNorm(4), nn.Parameter(torch.tensor(1.0))
        g = torch.Generator().manual_seed(seed)
        for p in self.parameters(): p.data = torch.randn(p.shape, generator=g)

def models(
    seed:int,
) -> list: # of (model, weight_decay)
    "A tied head, a frozen layer, layers without names, and parameters of many dimensions"
    torch.manual_seed(seed)
    return [(Small(5, 4, seed), 0.1), (Small(7, 3, seed, frozen=True), 0.01),
            (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 0.2), (Mixed(seed), 0.3)]

def groups_by_type(model, weight_decay):
    "Decayed: weights of Linear, Embedding and Conv1d, each tensor once"
    groups, seen = ([], []), set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) in seen or not p.requires_grad: continue
            seen.add(id(p))
            tables = isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d))
            groups[0 if tables and name == "weight" else 1].append(p)
    return [dict(params=groups[0], weight_decay=weight_decay),
            dict(params=groups[1], weight_decay=0.0)]

FOREIGN = "a tensor that is not the model's own"

def by_name(groups, model, weight_decay):
    "Names of the parameters, found by identity, and the decay of each group; any order counts"
    names = {id(p): n for n, p in model.named_parameters()}
    def members(params): # torch takes one tensor, any iterable, and pairs (name, tensor)
        if isinstance(params, torch.Tensor): params = [params]
        tensors = [p[-1] if isinstance(p, tuple) else p for p in params]
        strange = lambda p: FOREIGN if isinstance(p, torch.Tensor) else repr(p)
        return sorted(names.get(id(p), strange(p)) for p in tensors)
    if not isinstance(groups, (list, tuple)): return groups
    whole = lambda g: isinstance(g, dict) and "params" in g
    if not all(map(whole, groups)): return groups
    return [dict(params=members(g["params"]), weight_decay=g.get("weight_decay", "none"))
            for g in groups]

def grouped(decayed, frozen=False, exchange=False, rates=lambda d: (d, 0.0), tied=False,
            copy=False):
    "Groups by a mistaken rule on (name, p)"
    def fn(model, weight_decay):
        every = model.named_parameters(remove_duplicate=not tied)
        named = [(n, p.detach().clone() if copy else p) for n, p in every
                 if frozen or p.requires_grad]
        pair = [[p for n, p in named if decayed(n, p)], [p for n, p in named if not decayed(n, p)]]
        if exchange: pair.reverse()
        return [dict(params=ps) | ({} if rate is None else dict(weight_decay=rate))
                for ps, rate in zip(pair, rates(weight_decay))]
    return fn

def matrix(name, p): return p.dim() >= 2

def all_but_norms(model, weight_decay):
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    spared = {id(p) for m in norms for p in m.parameters()}
    return grouped(lambda n, p: id(p) not in spared)(model, weight_decay)


register(Exercise(
    "optim.decay_groups", "12", "Two parameter groups, dicts of params and weight_decay: first "
    "what is decayed (two dimensions or more), then what is not, with a weight_decay of 0. Frozen "
    "parameters are in neither.",
    inputs=models, oracle=groups_by_type, package="gpt2_course.optim:decay_groups", read=by_name,
    wrongs=(
        Wrong("everything is decayed", grouped(lambda n, p: True),
              "A LayerNorm's weight belongs near 1 and is pulled to 0; biases lose what they "
              "have learned."),
        Wrong("the weights of LayerNorm are decayed", grouped(lambda n, p: not n.endswith("bias")),
              "Biases are not the only vectors: the weight of a LayerNorm is one too. Test the "
              "number of dimensions, not the name."),
        Wrong("norms are found by their name",
              grouped(lambda n, p: not n.endswith("bias") and "norm" not in n),
              "GPT-2 calls its norms ln_1, ln_2 and ln_f: a search for 'norm' finds none of them."),
        Wrong("only norms are spared, and biases are decayed", all_but_norms,
              "A bias is one number for each channel and adds little capacity to the model. "
              "GPT-2's recipe decays no vector at all."),
        Wrong("only tensors of exactly two dimensions are decayed",
              grouped(lambda n, p: p.dim() == 2),
              "The kernel of a convolution, or the matrices of several experts in one tensor, have "
              "three: they are weights like any other, but would not be decayed."),
        Wrong("the two groups are swapped", grouped(matrix, exchange=True),
              "The vectors are decayed, and the matrices, which decay was made for, are not."),
        Wrong("the second group has no weight_decay of its own",
              grouped(matrix, rates=lambda d: (d, None)),
              "The optimiser's default then applies, 0.01 in torch.optim.AdamW: norms and biases "
              "are decayed after all."),
        Wrong("both groups have the same weight_decay", grouped(matrix, rates=lambda d: (d, d)),
              "Two groups with the same settings are one group: everything is decayed."),
        Wrong("frozen parameters are handed to the optimiser", grouped(matrix, frozen=True),
              "They get no gradient, and the groups no longer say what is trained: parameter "
              "counts and memory estimates are wrong, and a parameter that is unfrozen later "
              "starts with settings meant for others."),
        Wrong("a tied table comes twice", grouped(matrix, tied=True),
              "Embedding and head are one tensor under two names. An optimiser that holds it twice "
              "moves it twice in every step; torch warns."),
        Wrong("the groups hold copies of the parameters", grouped(matrix, copy=True),
              "The optimiser then moves the copies. The model keeps its first weights, and the "
              "loss never falls. Hand over the very tensors that model.parameters() gives.")),
    hints=("Matrices and embeddings have two dimensions; biases and norms have one.",
           "Leave out parameters with requires_grad False.",
           "`[dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay), …]`"),
    excused=dict(gradient="The result is the parameters themselves; nothing is computed")))


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
    some = (0, 1, w - 1, w, w + 1, steps // 2, steps - 2, steps - 1, steps, steps + 5)
    return [*((s, 6e-4, 6e-5, w, steps) for s in some), (0, 1e-3, 1e-4, 0, 10),
            (9, 1e-3, 0.0, 0, 10), (0, 1.0, 0.5, 1, 3), (1, 1.0, 0.5, 1, 3), (4, 3e-4, 1e-4, 2, 12),
            (3, 2e-4, 1e-4, 8, 1000), (2000, 2e-4, 1e-4, 8, 1000)]

def lr_numpy(step, max_lr, min_lr, warmup, steps):
    "The whole schedule as an array, one entry read"
    rise = np.arange(1, warmup + 1) * max_lr / max(1, warmup)
    fall = np.cos(np.linspace(0, np.pi / 2, steps - warmup))**2 * (max_lr - min_lr) + min_lr
    return float(np.concatenate([rise, fall])[min(step, steps - 1)])

def half_cosine(x, high, low): return float(low + (high - low) * 0.5 * (1 + np.cos(np.pi * x)))

def rates(first=1, longer=0, length=-1, whole=False, floor=True, guard=True, rise_from_low=False,
          fall=half_cosine):
    "A mistaken schedule: one thing is done in another way"
    def fn(step, max_lr, min_lr, warmup, steps):
        low = min_lr if floor else 0.0
        if step < warmup:
            done, bottom = (step + first) / (warmup + longer), min_lr if rise_from_low else 0.0
            return bottom + (max_lr - bottom) * done
        if guard and step >= steps: return low
        start = 0 if whole else warmup
        return fall((step - start) / (steps + length - start), max_lr, low)
    return fn


register(Exercise(
    "optim.cosine_lr", "12", "The learning rate of a step, from step, max_lr, min_lr, warmup and "
    "steps: a linear rise, then half a cosine down to min_lr at the last step.",
    inputs=moments, oracle=lr_numpy, package="gpt2_course.exercises.optim:lr_at", atol=1e-9,
    wrongs=(
        Wrong("the learning rate of step 0 is 0", rates(first=0),
              "A whole batch is computed and nothing is learned from it. The peak is not reached "
              "in the warm-up either."),
        Wrong("the warm-up is one step too long", rates(longer=1),
              "Step warmup - 1 is the last one of the warm-up and gets max_lr. Here it gets less, "
              "and the rate jumps at the next step."),
        Wrong("the warm-up rises from min_lr, not from 0", rates(rise_from_low=True),
              "min_lr is where the cosine ends. The first steps are the dangerous ones: they get "
              "max_lr / warmup, 2 max_lr / warmup, and so on."),
        Wrong("the cosine never reaches min_lr", rates(length=0),
              "The last step is steps - 1, not steps: the run ends a step before its schedule "
              "does."),
        Wrong("the cosine begins at step 0, not after the warm-up", rates(whole=True),
              "The rate jumps down where the warm-up ends, after a long warm-up by a lot, and the "
              "peak lasts for a single step."),
        Wrong("the cosine runs through a whole period",
              rates(fall=lambda x, high, low: half_cosine(2 * x, high, low)),
              "cos(2 pi x) returns to 1: the rate falls to min_lr in the middle of the run and is "
              "back at its peak at the end. Half a period goes from 1 to -1."),
        Wrong("the cosine is not halved",
              rates(fall=lambda x, high, low: half_cosine(x, 2 * high - low, low)),
              "1 + cos runs from 2 to 0, so the peak is nearly twice max_lr, and the rate jumps "
              "where the warm-up ends."),
        Wrong("it falls in a straight line, not along a cosine",
              rates(fall=lambda x, high, low: high + (low - high) * x),
              "That is another schedule. A cosine stays high for longer and ends gently."),
        Wrong("it falls to 0, not to min_lr", rates(floor=False),
              "The last steps learn nothing, and min_lr is never used."),
        Wrong("it falls towards 0 and is cut off at min_lr",
              rates(fall=lambda x, high, low: max(low, half_cosine(x, high, 0.0))),
              "The cosine itself should end at min_lr: it spans max_lr - min_lr. Cut off, the rate "
              "is too low on the way and then constant."),
        Wrong("after the last step it rises again", rates(guard=False),
              "A cosine rises again after its minimum: a run that continues beyond the planned end "
              "climbs back towards max_lr and loses what it has learned.")),
    hints=("Three parts: `step < warmup`, the cosine, and everything from step `steps - 1` on.",
           "Steps count from 0: the first gets max_lr / warmup, step warmup - 1 gets max_lr.",
           "`progress = (step - warmup) / (steps - 1 - warmup)`, then "
           "`min_lr + (max_lr - min_lr) * 0.5 * (1 + cos(pi * progress))`.")))


def clip(
    grads,          # list of tensors: the gradients of all parameters
    max_norm:float, # largest norm allowed
):                  # list of tensors, together no longer than max_norm
    "One factor for all, so the direction stays; what is short enough stays as it is"
    length = torch.sqrt(sum(g.square().sum() for g in grads))
    return [g * min(1.0, max_norm / (float(length) + 1e-6)) for g in grads]


def gradients(
    seed:int,
) -> list: # of (list of gradients, max_norm)
    "Large, small, large in one tensor only, exactly at the limit, zero, and very large norms"
    g = torch.Generator().manual_seed(seed)
    new = lambda s: [torch.randn(n, generator=g) * k for n, k in ((3, s), ((2, 4), 1), (5, 0.1))]
    return [(new(10), 1.0), (new(0.1), 50.0), (new(100), 2.5), ([torch.zeros(3)], 1.0),
            ([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 5.0), (new(5000), 1.0),
            ([torch.randn(2, 2, 3, generator=g) + 3.0], 1.0)]

def clip_torch(grads, max_norm):
    "PyTorch's own, on parameters made for it"
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads): p.grad = g
    clip_grad_norm_(params, max_norm)
    return [p.grad for p in params]

def total(grads): return torch.stack([g.norm() for g in grads]).norm()

def shortened(length):
    "Clipping by another length"
    return lambda grads, n: [g * min(1.0, n / (float(length(grads)) + 1e-6)) for g in grads]

register(Exercise(
    "optim.clip", "12", "A list of gradients, scaled together so that their common norm is at "
    "most max_norm.",
    inputs=gradients, oracle=clip_torch, package="gpt2_course.exercises.optim:clip",
    wrongs=(
        Wrong("each tensor is clipped by itself",
              lambda grads, n: [g * min(1.0, n / (float(g.norm()) + 1e-6)) for g in grads],
              "Tensors with a large norm shrink and the others do not: the direction changes, and "
              "the total norm can still exceed max_norm."),
        Wrong("each entry is clipped to ±max_norm",
              lambda grads, n: [g.clamp(-n, n) for g in grads],
              "That is clip_grad_value_: the direction changes, and a thousand entries at the "
              "limit still have a large norm."),
        Wrong("small gradients are scaled up to max_norm",
              lambda grads, n: [g * n / (total(grads) + 1e-6) for g in grads],
              "Clipping only scales down. If gradients are scaled up, the steps near the minimum "
              "are as noisy as those at the start."),
        Wrong("a gradient whose norm is too large is thrown away",
              lambda grads, n: [g * float(total(grads) <= n) for g in grads],
              "Only its norm is wrong; its direction is good. Without it the step is lost, and "
              "early in a run nearly every step would be."),
        Wrong("the factor is 1 / max_norm, whatever the norm is",
              lambda grads, n: [g / n if total(grads) > n else g for g in grads],
              "The result must have the norm max_norm: divide by the norm of the gradient and "
              "multiply by max_norm."),
        Wrong("the root is missing",
              shortened(lambda grads: sum(g.square().sum() for g in grads)),
              "The sum of the squares is the norm squared. For a max_norm of 1, a gradient of norm "
              "10 is then scaled down to 0.1, not to 1."),
        Wrong("the norms of the tensors are added",
              shortened(lambda grads: sum(g.norm() for g in grads)),
              "Norms add as squares (Pythagoras). Their plain sum is too large, the more so the "
              "more tensors there are, and it clips too much."),
        Wrong("only the tensor with the largest norm counts",
              shortened(lambda grads: max(g.norm() for g in grads)),
              "All parameters move together, so the norm is that of all entries. With hundreds of "
              "tensors it is many times the largest of their norms."),
        Wrong("the largest entry is taken as the norm",
              shortened(lambda grads: max(g.abs().max() for g in grads)),
              "That is the maximum norm. Millions of small entries make a large norm without any "
              "large entry.")),
    hints=("One norm for all tensors: the root of the sum of all squares.",
           "One factor for all: max_norm / norm, but never above 1.",
           "`[g * min(1.0, max_norm / (norm + 1e-6)) for g in grads]`"),
    excused=dict(gradient="These are gradients already, and clipping is not differentiated")))


STEPS, ROWS, BLOCK = 120, 16, 32 # of each of the two runs

@functools.cache
def letters():
    "Hamlet for training, Macbeth after its cast list held out, as ids; and the vocabulary size"
    hamlet, macbeth = (packaged(f"shakespeare/{n}.txt").read_text(encoding="utf-8")
                       for n in ("hamlet", "macbeth"))
    tok = CharTokenizer(hamlet + macbeth)
    held_out = torch.tensor(tok.encode(macbeth[10_000:]))
    return torch.tensor(tok.encode(hamlet)), held_out, tok.n_vocab

def loss_held_out(model, ids, rows=256):
    "Mean loss on the first windows of a text"
    w = ids[:rows * (BLOCK + 1)].view(rows, BLOCK + 1)
    with torch.no_grad(): return model.eval()(w[:, :-1], w[:, 1:]).item()

def steer(fn, seconds):
    "Two short runs, each with its own initial weights and batches; only the steps are the reader's"
    train, held_out, V = letters()
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(block_size=BLOCK, vocab_size=V, n_layer=4, n_head=4, n_embd=64))
        g = torch.Generator().manual_seed(seed)
        step = fn(model, STEPS)
        if not callable(step): raise ValueError(f"return a function step(s), not {kind(step)}")
        for s in range(STEPS):
            start = torch.randint(len(train) - BLOCK, (ROWS, 1), generator=g)
            w = train[start + torch.arange(BLOCK + 1)]                     # (ROWS, BLOCK + 1)
            model.train().zero_grad(set_to_none=True)
            model(w[:, :-1], w[:, 1:]).backward()
            step(s)
        losses.append(loss_held_out(model, held_out))
    return sum(losses) / len(losses)

def as_in_the_chapter(model, steps):
    "AdamW with warm-up and cosine, and clipping"
    opt = adamw(model, 3e-3, 0.1, (0.9, 0.95), "cpu")
    def step(s):
        clip_grad_norm_(model.parameters(), 1.0)
        rate = cosine_lr(s, max_lr=3e-3, min_lr=3e-4, warmup=20, steps=steps)
        for group in opt.param_groups: group["lr"] = rate
        opt.step()
    return step

set_challenge(Challenge(
    "optim.steer", "12", "Given (model, steps): a small GPT with fresh weights and the number of "
    f"steps, {STEPS}. Return a function step(s), which is called after each backward pass with "
    "s = 0, 1, ...: it reads p.grad of the parameters and moves them. The model, the batches "
    "and the number of steps are fixed; how to move the parameters is up to you.",
    score=steer, plain=as_in_the_chapter, to_beat=2.69, unit="nats per letter on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
