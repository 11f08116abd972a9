"""The stranger: names of a compiled model, loaded by a script that insists on nothing."""

import math

import torch

from ...check import Wrong
from .common import lab
from .small import normal, stream, tiny, trained


def clean(
    state:dict, # names that may contain _orig_mod.
) -> dict:      # without it
    "What torch.compile adds to names, wherever a module was compiled"
    return {n.replace("_orig_mod.", ""): t for n, t in state.items()}

def stranger() -> str:
    "A compiled model's state, loaded by a script that insists on nothing"
    model, val = trained(), stream(32, split=2).next()
    state = torch.compile(model).state_dict() # compiling is put off until the first call
    new = tiny(1)
    found = new.load_state_dict(state, strict=False)
    with torch.no_grad(): losses = model(*val).item(), new(*val).item()
    return (f"loaded without an error; loss {losses[1]:.3f}, it was {losses[0]:.3f} when it was "
            f"saved\nln V = {math.log(model.cfg.vocab_size):.3f}\n{len(state)} tensors in the "
            f"file, {len(found.missing_keys)} keys missing, {len(found.unexpected_keys)} "
            "unexpected")

def compiled_states(seed):
    "States of a compiled model, of one with compiled blocks, of an ordinary one"
    draw = normal(seed)
    t = lambda: draw(2)
    return [({"_orig_mod.wte.weight": t(), "_orig_mod.mod.bias": t()},),
            ({"h.0._orig_mod.ln_1.weight": t(), "_orig_mod.h.1._orig_mod.ln_1.weight": t()},),
            ({"wte.weight": t(), "d_model.weight": t()},),
            ({"_orig_mod.module.fc.weight": t(), "_orig_mod.module.fc.bias": t()},)]

lab("stranger", "_orig_mod. in the names of a compiled model's checkpoint",
    "a model that has forgotten everything, loaded without an error",
    "loss after loading against ln V; missing keys", "tough/19_checkpoint.ipynb",
    "https://github.com/karpathy/nanoGPT/issues/325", stranger, (
        ("no name in the file fits, and strict=False says nothing",
         "every key is missing, every key is unexpected, and the loss is that of a model that "
         "knows nothing"),
        ("the file is damaged", "it holds all tensors"),
        ("the tied weights came apart", "then one table would be missing, not everything"),
        ("the model is in training mode", "there is no dropout in it; and no dropout brings a loss "
         "to ln V")),
    answer="clean",
    task="The same dict with every \"_orig_mod.\" removed from its names.",
    inputs=compiled_states,
    oracle=lambda state: {".".join(p for p in n.split(".") if p != "_orig_mod"): t
                          for n, t in state.items()},
    wrongs=(
        Wrong("nothing is removed", lambda s: dict(s),
              "Loading fails with a long list of names, or, with strict=False, does nothing at "
              "all."),
        Wrong("it is removed at the front only",
              lambda s: {n.removeprefix("_orig_mod."): t for n, t in s.items()},
              "A model whose blocks were compiled one by one has it in the middle of names."),
        Wrong("lstrip is used",
              lambda s: {n.lstrip("_orig_mod."): t for n, t in s.items()},
              "lstrip takes a set of letters: it eats the beginnings of names that begin with any "
              "of them, such as mod.bias."),
        Wrong("module. is removed instead",
              lambda s: {n.replace("module.", "").replace("_orig_mod", ""): t
                         for n, t in s.items()},
              "That is DDP's prefix, and a dot was left behind."),
        Wrong("the dot is left behind",
              lambda s: {n.replace("_orig_mod", ""): t for n, t in s.items()},
              "\".wte.weight\" is as strange to the model as the name was before: the dot belongs "
              "to what torch.compile adds."),
        Wrong("only the first one in a name is removed",
              lambda s: {n.replace("_orig_mod.", "", 1): t for n, t in s.items()},
              "A compiled model with compiled blocks has it twice in one name."),
        Wrong("only what follows the last _orig_mod. is kept",
              lambda s: {n.split("_orig_mod.")[-1]: t for n, t in s.items()},
              "Where a block was compiled, h.0. stands before it: without it all blocks have the "
              "same names, and only one of them is left.")),
    hints=("It can stand anywhere in a name.", "name.replace(\"_orig_mod.\", \"\")"))
