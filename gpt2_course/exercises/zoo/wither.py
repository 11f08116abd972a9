"""Withering: LayerNorm weights that weight decay shrinks, for want of the right name."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import learn, stream, tiny


def decayed(
    shapes:dict, # name of a parameter -> its shape
) -> list:       # sorted names of those that weight decay shrinks
    "Matrices and embeddings; never a LayerNorm, never a bias"
    return sorted(n for n, s in shapes.items() if len(s) >= 2)

def by_name(shapes): return sorted(n for n in shapes if "norm" not in n and "bias" not in n)

def wither() -> dict:
    "The mean of each LayerNorm's weight through a run with weight decay"
    model, loader = tiny(), stream()
    params = dict(model.named_parameters())
    hit = set(by_name({n: p.shape for n, p in params.items()}))
    groups = [dict(params=[p for n, p in params.items() if n in hit], weight_decay=3.0),
              dict(params=[p for n, p in params.items() if n not in hit], weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=3e-3)
    out = {n: [] for n in params if "ln_" in n and n.endswith("weight")}
    def note(model):
        for n in out: out[n].append(params[n].mean().item())
    losses, _ = learn(model, 150, lambda s: loader.next(), opt, before=note)
    return dict(means=out, loss=losses[-1])

def shapes_of(seed):
    "Names and shapes of small models, in GPT-2's names and in another's"
    r = np.random.default_rng(seed)
    C, V, out = int(r.integers(2, 9)), int(r.integers(10, 99)), []
    for ln, lin in (("ln_1", "attn.c_attn"), ("norm1", "mlp.c_fc")):
        out.append(({"wte.weight": (V, C), f"h.0.{ln}.weight": (C,), f"h.0.{ln}.bias": (C,),
                     f"h.0.{lin}.weight": (3 * C, C), f"h.0.{lin}.bias": (3 * C,),
                     "h.1.experts": (4, C, C), "wpe.weight": (1, C), "ln_f.weight": (C,)},))
    return out

lab("wither", "LayerNorm weights decayed", "LayerNorm weights shrink together, step by step",
    "means of parameters by step", "medium/12_optim.ipynb",
    "https://github.com/karpathy/minGPT/pull/16", wither, (
        ("weight decay pulls them to 0: the rule that should spare them looks for another name",
         "it looks for \"norm\", and they are called ln_1, ln_2 and ln_f: all of them sink"),
        ("the gradients vanish", "a weight without a gradient stays where it is; these move every "
         "step"),
        ("the learning rate is too high", "then they would jump about, not sink smoothly"),
        ("the loss wants small activations", "then they would sink while it helps and come to "
         "rest; these sink from the very first step, and go on")),
    answer="decayed",
    task="The sorted names of the parameters that weight decay shall shrink, from a dict of names "
         "and shapes: matrices, stacks of matrices and embeddings.",
    inputs=shapes_of, oracle=lambda shapes: sorted(k for k in shapes if len(shapes[k]) > 1),
    wrongs=(
        Wrong("a LayerNorm is known by \"norm\" in its name", by_name,
              "GPT-2 calls them ln_1, ln_2, ln_f: they are decayed like matrices, their gain "
              "sinks, and the next layers must make up for it."),
        Wrong("everything is decayed", lambda s: sorted(s),
              "Biases and gains have no reason to be near 0."),
        Wrong("only biases are spared", lambda s: sorted(n for n in s if "bias" not in n),
              "The weights of LayerNorms are vectors too."),
        Wrong("embeddings are spared too",
              lambda s: sorted(n for n in decayed(s) if not n.startswith("w")),
              "A choice some make; GPT-2's tied table is a matrix like the others."),
        Wrong("only parameters with exactly two dimensions are decayed",
              lambda s: sorted(n for n in s if len(s[n]) == 2),
              "A stack of experts' matrices has three and is left out: what is to be spared has "
              "one dimension."),
        Wrong("the names are not sorted", lambda s: [n for n in s if len(s[n]) >= 2],
              "Their order then depends on how the model was built: two lists of the same names "
              "cannot be compared."),
        Wrong("the ones that are spared are listed",
              lambda s: sorted(n for n in s if len(s[n]) < 2),
              "The two groups are exchanged: LayerNorms and biases shrink, and the matrices do "
              "not.")),
    hints=("Names differ from model to model. What do gains and biases have in common?",
           "They have one dimension: keep what has two or more."))
