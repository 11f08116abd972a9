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
    d, e = (dict(n_layer=int(r.integers(2, 9)), lr=float(r.uniform(0, 1)), bias=b, name=name)
            for b, name in ((True, "nano"), (False, "größer")))
    return [(d, [f"--n_layer={r.integers(10, 20)}", "--bias=false", f"--lr={r.uniform(1, 2):.4f}"]),
            (d, ["--warmpu=100", "--name=big", "--bias=False"]), (e, ["--bias=true", "--lr=7"]),
            (e, ["--name=lr=0.1,é", "--n_layer=12", "--Lr=3", "--bias=True"]), (d, [])]

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
    for n, v in (a[2:].split("=", 1) for a in args):
        if n in defaults: config[n] = value(defaults[n], v)
        elif strangers: unknown.append(n)
    return config, unknown

def of_its_type(default, text): # as it should be
    return text.lower() == "true" if isinstance(default, bool) else type(default)(text)

def by_its_looks(default, text): # mistaken: 7 is an int, whatever the default is
    return text if isinstance(default, str) else json.loads(text.lower())

def let_in(defaults, args):
    "A mistaken parser: an unknown name becomes a setting"
    config, unknown = parse_with_json(defaults, args)
    extra = dict(a[2:].split("=", 1) for a in args)
    return {**config, **{n: extra[n] for n in unknown}}, []

def with_types(result, *args):
    "The answer, and the type of every setting: 7 and 7.0 are told apart"
    if not (isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[0], dict)):
        return result
    config, unknown = result
    return {n: f"{v!r}, {type(v).__name__}" for n, v in config.items()}, unknown

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
    task="Defaults with the values of \"--name=value\" arguments, each of its default's type (of a "
         "bool the texts are true and false, in any case), and the list of names that the "
         "defaults do not know.",
    inputs=orders, oracle=parse_with_json, read=with_types,
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
              lambda d, a: each_flag(d, a, of_its_type, strangers=False),
              "A misspelt flag changes nothing, and nobody is told: --warmpu=100 trains without a "
              "warm-up."),
        Wrong("unknown names are taken in as settings", let_in,
              "The misspelt setting stands in the config beside the one that was meant, and "
              "nothing ever reads it."),
        Wrong("a value ends at its second equals sign",
              lambda d, a: override(d, ["=".join(x.split("=")[:2]) for x in a]),
              "split(\"=\") cuts at every sign: half of a file name or of a query is lost. Cut at "
              "the first one only, with split(\"=\", 1) or partition."),
        Wrong("only the lower-case text counts as true",
              lambda d, a: each_flag(d, a, lambda old, v: v == "true" if isinstance(
                  old, bool) else type(old)(v)),
              "str(True) is \"True\", and many scripts pass it so: --bias=True would turn the bias "
              "off."),
        Wrong("the type follows from the text, not from the default",
              lambda d, a: each_flag(d, a, by_its_looks),
              "--lr=7 makes the learning rate an int: a later // or a check of types fails, for "
              "some values only.")),
    hints=("type(default)(text) makes the value, for all types but one.",
           "For a bool, compare the text with \"true\".",
           "Collect every name that is not in defaults."))
