"""A tiny model, its letters and batches, a plain loop, and what measures them."""

import hashlib, math
from functools import cache

import torch

from ...attention import sdpa
from ...config import GPTConfig
from ...data import TokenLoader
from ...model import GPT
from ..plays import letters


def tiny(
    seed:int=0, dropout:float=0.0, attention=sdpa, V:int | None=None, C:int=32, L:int=2,
) -> GPT:
    "A small GPT, the same for the same seed"
    torch.manual_seed(seed)
    return GPT(GPTConfig(32, V or letters()[0].n_vocab, L, 2, C, dropout), attention)

def stream(B:int=16, seed:int=0, split:int=1, **kw) -> TokenLoader:
    "Windows of 32 letters of Hamlet (1) or Macbeth (2)"
    return TokenLoader([letters()[split]], B, 32, seed, **kw)

def learn(
    model, steps:int, batch, # batch: function step -> (x, y)
    optimizer=None, before=lambda model: None, # before: called ahead of every update
    clear:bool=True, # forget the last step's gradient
) -> tuple[list, list]: # losses, gradient norms
    "A plain loop"
    opt = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, norms = [], []
    for s in range(steps):
        if clear: opt.zero_grad()
        loss = model(*batch(s))
        loss.backward()
        norms.append(length([p.grad for p in model.parameters()]))
        losses.append(loss.item())
        before(model)
        opt.step()
    return losses, norms

def length(grads) -> float: # Euclidean length of a list of tensors taken together
    return math.sqrt(sum(float((g.detach().double()**2).sum()) for g in grads if g is not None))

def digest(*tensors) -> str: # eight letters that change if a single bit does
    raw = b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)
    return hashlib.sha256(raw).hexdigest()[:8]

def weights_of(model) -> str: # digest of what a checkpoint of this model would hold
    return digest(*model.state_dict().values())

@cache
@torch.enable_grad()
def trained() -> GPT: # a model that has learnt a little, in eval mode; do not change it
    model, loader = tiny(), stream(32)
    learn(model, 150, lambda s: loader.next())
    return model.eval()

def normal(seed:int): # function (*shape) -> float32 tensor of random numbers
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g)
