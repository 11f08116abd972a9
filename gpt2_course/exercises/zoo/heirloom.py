"""The heirloom: a config pickled with its class into the checkpoint."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import tiny


@dataclass
class OldModel:
    "A config of a model, nested in the other one"
    n_layer: int = 2
    betas: tuple = (0.9, 0.95)

@dataclass
class OldConfig:
    "A config as scripts have it"
    name: str = "nano"
    out: Path = Path("runs")
    lr: float = 3e-3
    model: OldModel = None
    files: tuple = (Path("data")/"train.bin", Path("data")/"größer.bin")

def portable(
    config, # a dataclass: fields are numbers, texts, Paths, tuples and other dataclasses
) -> dict:  # the same of dicts, lists, texts and numbers only
    "What every program can read"
    def plain(v):
        if isinstance(v, dict): return {k: plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)): return [plain(x) for x in v]
        return v.as_posix() if isinstance(v, Path) else v
    return plain(asdict(config))

def essence(message): # the line that names a class, without addresses of this machine
    lines = [line for line in message.splitlines() if "OldConfig" in line] or [message]
    return lines[0].strip().split(" on <")[0].split(" by default")[0][:140]

def heirloom() -> str:
    "Save a checkpoint with its config; load it safely, and after the class was renamed"
    told = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"model.pt"
        torch.save(dict(model=tiny().state_dict(), config=OldConfig(model=OldModel())), path)
        cls = globals().pop("OldConfig") # next month the class has another name
        for safely in (True, False):
            try: said = str(torch.load(path, weights_only=safely)["config"])
            except Exception as e: said = f"{type(e).__name__}: {essence(str(e))}"
            told.append(f"torch.load(weights_only={safely}):\n   {said}")
        globals()["OldConfig"] = cls
    return "\n".join(told)

def old_configs(seed):
    "Configs with and without an inner one"
    r = np.random.default_rng(seed)
    return [(OldConfig("a", Path("runs")/"a", r.uniform(), OldModel(int(r.integers(2, 9)))),),
            (OldConfig("b", Path("x"), 0.1, OldModel(), ()),)]

def shallow(config): # mistaken: Paths are looked for in dicts, not in tuples
    walk = lambda v: ({k: walk(x) for k, x in v.items()} if isinstance(v, dict)
                      else list(v) if isinstance(v, tuple) else as_text(v))
    return walk(asdict(config))

def tuples_kept(config): # mistaken: what a tuple holds is converted, the tuple stays
    walk = lambda v: ({k: walk(x) for k, x in v.items()} if isinstance(v, dict)
                      else tuple(map(walk, v)) if isinstance(v, tuple) else as_text(v))
    return walk(asdict(config))

def as_text(v): return v.as_posix() if isinstance(v, Path) else v

lab("heirloom", "a pickled config class in the checkpoint", "a checkpoint that loads on no other "
    "day, in no other program", "loading elsewhere, with weights_only", "tough/19_checkpoint.ipynb",
    "https://github.com/pytorch/pytorch/issues/112944", heirloom, (
        ("the file holds an object of a class, and needs that class to be read",
         "the safe way refuses unknown classes, the other one looks for a name that is gone"),
        ("the file is damaged", "both messages name a class; a damaged file gives no names"),
        ("the file comes from another version of torch", "it was written a moment ago"),
        ("the weights are of a type that torch does not know", "weights are tensors: the messages "
         "speak of a config")),
    answer="portable",
    task="A dataclass as dicts, lists, texts and numbers: nested dataclasses become dicts, tuples "
         "lists, Paths texts with forward slashes.",
    inputs=old_configs, exact=True,
    oracle=lambda c: dict(name=c.name, out=str(c.out).replace("\\", "/"), lr=c.lr,
                          model=dict(n_layer=c.model.n_layer, betas=[*c.model.betas]),
                          files=["/".join(f.parts) for f in c.files]),
    wrongs=(
        Wrong("the object itself is saved", lambda c: c,
              "Whoever loads it needs the same class under the same name, and runs whatever the "
              "file says."),
        Wrong("only the outer one is taken apart",
              lambda c: dict(vars(c), out=c.out.as_posix(), files=[f.as_posix() for f in c.files]),
              "The inner config is still an object of a class."),
        Wrong("Paths stay Paths", lambda c: asdict(c),
              "A Path is a class too: weights_only refuses it, and one written on Windows does not "
              "load on Linux."),
        Wrong("it is saved as its repr", lambda c: repr(c),
              "Readable for people; a program would have to evaluate it."),
        Wrong("Paths inside of tuples are missed", shallow,
              "One class that is left anywhere is enough for weights_only to refuse the file: walk "
              "through lists and tuples as well as through dicts."),
        Wrong("tuples stay tuples", tuples_kept,
              "JSON and many other formats know lists only: what is read back no longer equals "
              "what was written."),
        Wrong("numbers become texts",
              lambda c: {k: v if isinstance(v, (dict, list)) else str(v)
                         for k, v in portable(c).items()},
              "\"0.003\" is no number: the program that reads it has to guess the types again.")),
    hints=("asdict takes nested dataclasses apart.", "What is left are Paths and tuples: walk "
           "through dicts and lists once."))
