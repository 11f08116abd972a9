"""The deaf: a script that does not read its command line."""

import json

import numpy as np
import torch

from ...check import Wrong
from ...model import count_params
from .common import lab
from .small import learn, stream, tiny


def override(
    defaults:dict, # name -> value: an int, float, bool or str
    args:list,     # "--name=value"
) -> tuple[dict, list]: # the config, and the names that nothing knows
    "Defaults with what was asked for, each value of its default's type"
    config, strangers = dict(defaults), []
    for arg in args:
        name, _, value = arg.removeprefix("--").partition("=")
        if name not in defaults: strangers.append(name)
        elif isinstance(defaults[name], bool): config[name] = value.lower() in ("true", "1", "yes")
        else: config[name] = type(defaults[name])(value)
    return config, strangers

def deaf_to(defaults, args): return dict(defaults), []

def deaf() -> str:
    "Two launches of one script"
    told = []
    for args in (["--n_layer=2", "--lr=0.003"], ["--n_layer=6", "--lr=0.0001", "--warmpu=100"]):
        c, _ = deaf_to(dict(n_layer=2, lr=3e-3, bias=True), args)
        model, loader = tiny(L=c["n_layer"]), stream()
        opt = torch.optim.AdamW(model.parameters(), lr=c["lr"])
        losses, _ = learn(model, 4, lambda s: loader.next(), opt)
        told += [f"$ train {' '.join(args)}", f"{count_params(model):,} parameters",
                 "loss " + "  ".join(f"{v:.7f}" for v in losses), ""]
    return "\n".join(told[:-1])

def orders(seed):
    "Defaults and command lines"
    r = np.random.default_rng(seed)
    d = dict(n_layer=int(r.integers(2, 9)), lr=float(r.uniform(0, 1)), bias=True, name="nano")
    return [(d, [f"--n_layer={r.integers(10, 20)}", "--bias=false", f"--lr={r.uniform(1, 2):.4f}"]),
            (d, ["--warmpu=100", "--name=big", "--bias=False"]), (d, ["--bias=true", "--lr=7"])]

def parse_with_json(defaults, args):
    "The oracle: values read as JSON where the default is no text"
    config, unknown = {**defaults}, []
    for flag in (a[2:].split("=", 1) for a in args):
        if flag[0] not in config: unknown += flag[:1]
        elif isinstance(defaults[flag[0]], str): config[flag[0]] = flag[1]
        else: config[flag[0]] = type(defaults[flag[0]])(json.loads(flag[1].lower()))
    return config, unknown

def each_flag(defaults, args, value, strangers=True):
    "A mistaken parser: `value` makes a value of a default and a text"
    config, unknown = dict(defaults), []
    for n, v in (a[2:].split("=") for a in args):
        if n in defaults: config[n] = value(defaults[n], v)
        elif strangers: unknown.append(n)
    return config, unknown

lab("deaf", "command-line flags silently ignored", "two launches, one and the same run",
    "parameter count, and the first losses to the last digit", "tough/20_trainer.ipynb",
    "https://github.com/google-research/bert/issues/1272", deaf, (
        ("nothing reads the flags: the defaults run",
         "six layers would have more parameters than two, and a misspelt flag met no complaint"),
        ("the seed is fixed, so every run gives the same numbers",
         "a fixed seed repeats a run of the same settings; a deeper model has other parameters, "
         "and here even their number is the same"),
        ("the learning rates are too close to show after four steps",
         "they differ by a factor of 30; and the number of layers differs too"),
        ("both runs resumed from one checkpoint",
         "the first loss is that of an untrained model")),
    answer="override",
    task="Defaults with the values of \"--name=value\" arguments, each of its default's type, and "
         "the list of names that the defaults do not know.",
    inputs=orders, oracle=parse_with_json,
    wrongs=(
        Wrong("the arguments are not read", deaf_to,
              "Every run is the default run, whatever was asked for."),
        Wrong("bool(\"false\") is True",
              lambda d, a: each_flag(d, a, lambda old, v: type(old)(v)),
              "Any text that is not empty is true: the flag that should turn something off turns "
              "it on."),
        Wrong("the values stay text", lambda d, a: each_flag(d, a, lambda old, v: v),
              "\"0.1\" is no number; the failure comes later and elsewhere, or a comparison "
              "quietly goes wrong."),
        Wrong("unknown names are swallowed",
              lambda d, a: each_flag(d, a, lambda old, v: v.lower() == "true" if isinstance(
                  old, bool) else type(old)(v), strangers=False),
              "A misspelt flag changes nothing and nobody hears of it: --warmpu=100 trains "
              "without a warm-up.")),
    hints=("type(default)(text) makes the value, for all types but one.",
           "For a bool, compare the text with \"true\".",
           "Collect every name that is not in defaults."))
