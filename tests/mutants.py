"""Mutation testing: change the code in small ways and see which changes no test notices.

    python tests/mutants.py                  every core module with its own tests
    python tests/mutants.py optim data       some of them
    python tests/mutants.py optim --show     print the mutants that survive
    python tests/mutants.py optim --sample 40 --seed 1

A mutant flips a comparison, moves a constant, exchanges an operator, drops a statement or returns nothing. It lives in a process of its own, forked from
one that has imported what the tests import besides the package; the module's source on disk is never touched. A mutant that a test fails on, or that does
not end, is caught; EXPLAINED says which of the others are known, and why. Processes that a test starts anew, rather than forks, run the code as it is.
"""

import argparse
import ast
import copy
import gc
import importlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = {  # module -> the tests that are to notice
    "attention": ["test_attention.py"],
    "blocks": ["test_model.py"],
    "model": ["test_model.py"],
    "generation": ["test_generation.py"],
    "optim": ["test_optim.py"],
    "data": ["test_data.py"],
    "checkpoint": ["test_checkpoint.py"],
    "evals": ["test_evals_unit.py"],
    "distributed": ["test_distributed.py"],
}
PRELOAD = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.nn.parallel", "torch.testing", "torch.utils.serialization", "numpy"]
PRELOAD += ["filelock", "hypothesis", "multiprocessing.forkserver", "pytest", "regex", "safetensors.torch", "tiktoken", "tiktoken_ext.openai_public", "tyro"]
PATIENCE = 10  # a mutant that takes so many times as long as the tests do with the code as it is, and five seconds, is taken for an endless loop
EXPLAINED = {  # module -> (a part of the line, the change, why no unit test can notice)
    "attention": [("if 1 < T < S", "Lt -> LtE", "a single query sees every key: the mask would be all True")],
    "optim": [("if step >= steps - 1", "GtE -> Gt", "of wsd_lr: what follows gives min_lr at the last step as well")],
    "data": [
        ("else (0, 0)", "0 -> 1", "of no tokens at all: 1 fits every dtype as 0 does"),
        ('("reserved", "V8")', "'reserved' -> 'XX'", "nobody asks for the filling by its name"),
        ("self.cached = (-1, None)", "1 -> 2", "no epoch has a number below 0"),
    ],
    "checkpoint": [("gauss or 0.0", "0.0 -> 1.0", "stands for a number that is not there and is not read")],
    "generation": [("top_k < logits.size(-1)", "Lt -> LtE", "the best V of V tokens are all of them")],
    "evals": [
        ("B_tokens:int=8192", "8192 -> 8193", "the size of a batch changes speed and memory, no result"),
        ("default=1), B_tokens", "1 -> 2", "of no examples at all: no batch is made"),
        ("or [[0]])", "0 -> 1", "of no examples at all: nothing is compared with it"),
    ],
}
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
COMPARE |= {ast.In: ast.NotIn, ast.NotIn: ast.In}
BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult}
BINARY |= {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}


def places(tree):
    "Nodes that are run: not docstrings, annotations, imports or the texts of errors"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("require", "UserError"):
            yield from places(ast.Module([ast.Expr(a) for a in node.args[:1] if not isinstance(a, ast.Constant)], []))
            continue
        yield node
        if isinstance(node, ast.arg):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
            node = copy.copy(node)
            for part in ("returns", "annotation"):
                if hasattr(node, part):
                    setattr(node, part, None)
        yield from places(node)


def changes(node):
    "(what is done, the change as a function that undoes itself) for one node"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield f"{type(node.ops[0]).__name__} -> {COMPARE[type(node.ops[0])].__name__}", "ops", [COMPARE[type(node.ops[0])](), *node.ops[1:]]
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in BINARY:
        yield f"{type(node.op).__name__} -> {BINARY[type(node.op)].__name__}", "op", BINARY[type(node.op)]()
    if isinstance(node, ast.BoolOp):
        yield "and <-> or", "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", "value", not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield f"{node.value} -> {node.value + 1}", "value", node.value + 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield f"{node.value!r} -> 'XX'", "value", "XX"
    if isinstance(node, ast.Return) and node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield "return -> return None", "value", ast.Constant(None)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not x -> not not x", "operand", ast.UnaryOp(ast.Not(), node.operand)
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "if x -> if not x", "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, (ast.FunctionDef, ast.For, ast.While, ast.If, ast.With, ast.Try)):
        for i, line in enumerate(node.body):
            droppable = isinstance(line, (ast.Expr, ast.AugAssign)) and not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            if droppable or isinstance(line, ast.Assign) and not isinstance(line.targets[0], ast.Name):
                yield f"without {ast.unparse(line)[:60]}", "body", [*node.body[:i], ast.Pass(lineno=line.lineno, col_offset=0), *node.body[i + 1 :]]


def mutants(source: str):
    "(line, what was changed, the changed source) of every mutant"
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")]
    for node in list(places(tree)):
        for said, part, new in list(changes(node)):
            old = getattr(node, part)
            setattr(node, part, new)
            yield getattr(node, "lineno", 0), said, ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
            setattr(node, part, old)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Imports one module from a text"

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self, origin="mutant") if name == self.name else None

    def exec_module(self, module):
        module.__file__ = str(ROOT / "gpt2_course" / f"{self.name.split('.')[1]}.py")
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)


def caught(module: str, source: str, seconds: float) -> bool:
    "Whether the module's tests fail with this source, in a forked process, or take longer than that"
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        import pytest

        sys.meta_path.insert(0, Replaced(f"gpt2_course.{module}", source))
        try:
            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not network", *(str(ROOT / "tests" / name) for name in SUITE[module])])
        except BaseException:
            status = 1
        os._exit(0 if status == 0 else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def explained(module: str, line: str, said: str):
    "The entry of EXPLAINED for a mutant, if there is one"
    return next((entry for entry in EXPLAINED.get(module, ()) if entry[0] in line and said.startswith(entry[1])), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(SUITE)}")
    parser.add_argument("--show", action="store_true", help="print the mutants that survive")
    parser.add_argument("--sample", type=int, default=0, help="try only so many, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    for name in PRELOAD:
        if importlib.util.find_spec(name.split(".")[0]):
            importlib.import_module(name)
    gc.freeze()
    for module in chosen.modules or SUITE:
        source = (ROOT / "gpt2_course" / f"{module}.py").read_text("utf-8")
        began = time.monotonic()
        assert not caught(module, source, 600), f"the tests of {module} fail as it is"
        seconds = 5 + PATIENCE * (time.monotonic() - began)
        everything = list(mutants(source))
        if chosen.sample and chosen.sample < len(everything):
            everything = random.Random(chosen.seed).sample(everything, chosen.sample)
        alive, met = 0, []
        for number, said, changed in everything:
            if caught(module, changed, seconds):
                continue
            line = source.splitlines()[number - 1].strip()
            entry = explained(module, line, said)
            alive, met = alive + 1, met + [entry] * bool(entry)
            if chosen.show:
                print(f"  {'explained' if entry else 'survives'}: {module}.py:{number}: {said}    {line[:90]}", flush=True)
        n = len(everything)
        print(f"{module:12} {n - alive:4} of {n:4} mutants caught: {100 * (n - alive) / max(1, n):.1f} %; of {alive} survivors {len(met)} are explained", flush=True)
        for entry in EXPLAINED.get(module, ()) if not chosen.sample else ():
            if entry not in met:
                print(f"  out of date in EXPLAINED: {entry[:2]} is caught", flush=True)


if __name__ == "__main__":
    main()
