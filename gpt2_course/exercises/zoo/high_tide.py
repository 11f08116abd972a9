"""High tide: matrices drawn too wide, and nothing scaled for the depth."""

import math

import numpy as np
import torch

from ...check import Wrong
from ...model import loss_at_init
from .common import lab
from .small import stream, tiny


def std_of(
    name:str,    # of a matrix: transformer.wte.weight, transformer.h.3.mlp.c_proj.weight …
    width:int,   # n_embd; GPT-2 does not ask for it
    n_layer:int, # blocks
) -> float:      # standard deviation at initialisation
    "GPT-2's: 0.02, and less by sqrt(2 n_layer) for what writes into the residual stream"
    return 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02

def wide_std(name, width, n_layer): return 1 / math.sqrt(width)

def redraw(model, std): # every matrix again, with std(name, width, n_layer)
    for name, p in model.named_parameters():
        if p.dim() > 1: torch.nn.init.normal_(p, std=std(name, model.cfg.n_embd, model.cfg.n_layer))
    return model

@torch.no_grad()
def spread(model, x) -> list: # standard deviation of the residual stream after each block
    h, out = model.transformer.wte(x) + model.transformer.wpe(torch.arange(x.size(1))), []
    for block in model.transformer.h:
        out.append(float(h.std()))
        h = block(h)
    return out + [float(h.std())]

def high_tide() -> dict:
    "Before training: the loss, what it should be, and the width of the stream by depth"
    model, (x, y) = redraw(tiny(C=64, L=8), wide_std), stream(64).next()
    with torch.no_grad(): losses = [model(x, y).item() for _ in range(2)]
    V = model.cfg.vocab_size
    return dict(losses=losses, ln_V=math.log(V), law=loss_at_init(V, 64),
                stream=spread(model, x), healthy=spread(tiny(C=64, L=8), x))

NAMES = ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight",
         "transformer.h.2.attn.c_proj.weight", "transformer.h.1.mlp.c_proj.weight",
         "transformer.h.1.mlp.c_fc.weight", "transformer.wpe.weight",
         "transformer.h.11.attn.c_proj.weight")

def matrices(seed):
    "Names of matrices, each in a model of another size"
    r = np.random.default_rng(seed)
    return [(n, 64 * int(r.integers(1, 8)), int(r.integers(3, 30))) for n in NAMES]

lab("high_tide", "initialised with 1/sqrt(width), residual projections not scaled",
    "the first loss lies above ln V", "loss at initialisation", "medium/09_model.ipynb",
    "https://github.com/huggingface/transformers/issues/47458", high_tide, (
        ("the matrices are drawn too wide, and nothing is scaled for the depth",
         "wide embeddings make confident guesses that are wrong, and every block adds to the "
         "stream at full size"),
        ("the vocabulary is larger than it should be",
         "ln V moves slowly: it would take half as many tokens again to lift the loss that far, "
         "and the stream would not grow with depth"),
        ("the targets are shifted wrongly",
         "to an untrained model any target is as good as another: it would still score ln V"),
        ("dropout is on during this evaluation",
         "then the two evaluations of the same batch would differ; they are equal")),
    answer="std_of",
    task="GPT-2's standard deviation for a matrix of this full name: 0.02, and 0.02 / "
         "sqrt(2 n_layer) for the projections that write into the residual stream.",
    inputs=matrices,
    oracle=lambda name, width, L: 0.02 * (0.5 / L)**0.5 if "c_proj" in name.split(".") else 0.02,
    wrongs=(
        Wrong("it is 1 / sqrt(width)", wide_std,
              "That suits a plain layer; on a tied embedding it makes logits of size 1, and the "
              "first loss is well above ln V."),
        Wrong("0.02 for all: the residual projections are not scaled", lambda n, w, L: 0.02,
              "The usual cause is a comparison of the full name with \"c_proj.weight\", which "
              "is never equal: the stream then grows with the depth."),
        Wrong("the depth is counted in blocks, not in residual writes",
              lambda n, w, L: 0.02 / math.sqrt(L) if n.endswith("c_proj.weight") else 0.02,
              "Each block writes twice: once from attention, once from the MLP."),
        Wrong("only the attention's projection is scaled",
              lambda n, w, L: 0.02 / math.sqrt(2 * L) if n.endswith("attn.c_proj.weight") else 0.02,
              "The MLP writes into the same stream."),
        Wrong("it is divided by 2 n_layer, without the square root",
              lambda n, w, L: 0.02 / (2 * L) if n.endswith("c_proj.weight") else 0.02,
              "Variances of independent numbers add up, not standard deviations: the blocks of a "
              "deep model would begin by writing next to nothing."),
        Wrong("every matrix of a block is scaled",
              lambda n, w, L: 0.02 / math.sqrt(2 * L) if ".h." in n else 0.02,
              "c_attn and c_fc read from the stream and do not write into it: their outputs do "
              "not add up with depth.")),
    hints=("The width does not enter.", "Which two matrices of a block write into the stream? Both "
           "are called c_proj.", "name.endswith(\"c_proj.weight\")"), rtol=1e-6, atol=1e-9,
    excused={"ignore width": "GPT-2's rule does not use the width: that is the point"})
