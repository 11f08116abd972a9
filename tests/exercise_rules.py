"""Rules that every exercise obeys, each a function (exercise, seeds) -> faults; test_exercises.py and soak.py run them.

    python tests/exercise_rules.py                       all exercises, all rules, 20 fresh seeds
    python tests/exercise_rules.py attention loss.softmax   some of them (a chapter's module, or one exercise)
    python tests/exercise_rules.py --seeds 200 --only right mistakes

A rule that does not fit an exercise is named in its `excused`, with the reason.
"""

import argparse
import ast
import copy
import inspect
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gpt2_course import check
from gpt2_course.compare import numbers

SEEDS = 20  # fresh ones of the full range, for each exercise
EXTREME = (0, 1, 2**31 - 1)
SLOWEST: dict[str, float] = {}  # what was judged -> seconds of its slowest verdict


def fresh(n: int) -> list[int]:
    "Seeds as `judge` draws them"
    return [int(np.random.SeedSequence().entropy % 2**31) for _ in range(n)]


def verdict(e, fn, seed, what="right"):
    "By the reader's entry point; the time of the slowest is kept"
    began = time.perf_counter()
    found = check.check(e.name, fn, seed)
    seconds = time.perf_counter() - began
    SLOWEST[f"{e.name}: {what}"] = max(seconds, SLOWEST.get(f"{e.name}: {what}", 0.0))
    return found


def cases(e, seed=0) -> list[tuple]:
    with check.guarded(seed):
        return [tuple(args) for args in e.inputs(seed)]


def names_of(e) -> list[str]:
    return check.names_of(e, check.answer(e.name), len(cases(e)[0]))


# --- the reader's road ---


def right(e, seeds):
    "The package's own answer is right, with fresh seeds and with the ends of their range, each within ten seconds"
    faults = []
    for seed in (None, *EXTREME, *fresh(seeds)):
        began = time.perf_counter()
        found = verdict(e, check.answer(e.name), seed)
        if found.state != "right":
            faults.append(f"seed {seed}: {found.message}")
        if time.perf_counter() - began > check.SECONDS:
            faults.append(f"seed {seed}: {time.perf_counter() - began:.0f} seconds")
    return faults


def mistakes(e, seeds):
    "Every mistake of the catalogue is called by its own name"
    faults = []
    for w in e.wrongs:
        for seed in (0, 2**31 - 1, *fresh(seeds)):
            found = verdict(e, w.fn, seed, w.name)
            if found.state != "mistake" or f"classic mistake: {w.name}. {w.why}" not in found.message:
                faults.append(f"{w.name}: seed {seed}: {found.message}")
                break
    return faults


def nothing(e, seeds):
    "A stub is not attempted yet; a forgotten return is told"

    def stub(*args): ...

    def raises(*args):
        raise NotImplementedError

    def forgot(*args):
        result = check.answer(e.name)(*args)
        del result

    *stubs, last = (check.judge(e.name, f) for f in (stub, raises, forgot))
    told = last.state == "nothing" or "returns nothing for" in last.message  # where None can be right
    return [] if told and all(s.state == "open" for s in stubs) else [f"{s.state}: {s.message}" for s in (*stubs, last)]


def memory(e, seeds):
    "No verdict needs a gigabyte, whatever the seed"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in EXTREME:
        verdict(e, check.answer(e.name), seed)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**10 if sys.platform == "linux" else 2**20)
    return [f"{more:.0f} MB more"] if more > 1024 else []


# --- mutants ---


def arguments(e, seeds):
    "No argument may be ignored: replaced by its value in the first case, it must be noticed"
    faults, seed = [], fresh(1)[0]
    first, answer = cases(e, seed)[0], check.answer(e.name)
    for i, name in enumerate(names_of(e)):
        if f"ignore {name}" in e.excused:
            continue

        def ignores(*args, i=i):
            return answer(*args[:i], copy.deepcopy(first[i]), *args[i + 1 :])

        if verdict(e, ignores, seed, f"{name} ignored"):
            faults.append(f"right although {name} is always taken from the first case")
    return faults


def damage(x) -> bool:
    "Change one entry of an argument in place; whether there was any"
    if isinstance(x, torch.nn.Module):
        return any(damage(p.data) for p in x.parameters())
    if isinstance(x, (torch.Tensor, np.ndarray)) and not getattr(x, "is_leaf", True):
        return False
    if isinstance(x, torch.Tensor) and x.numel():
        with torch.no_grad():
            first = (0,) * x.ndim
            x[first] = ~x[first] if x.dtype == torch.bool else 1 if x[first] == 0 or not torch.isfinite(x[first]) else 0
        return True
    if isinstance(x, np.ndarray) and x.size and x.dtype.kind in "biufc" and x.flags.writeable:
        x.flat[0] = not x.flat[0] if x.dtype.kind == "b" else 1 if x.flat[0] == 0 else 0
        return True
    if isinstance(x, dict) and x:
        return any(damage(v) for v in x.values()) or bool(x.pop(next(iter(x))) or True)
    if isinstance(x, list):
        if any(damage(v) for v in x):
            return True
        x.append(x[0] if x else 0)
        return True
    return isinstance(x, tuple) and any(damage(v) for v in x)


def inputs_kept(e, seeds):
    "A function that writes into its argument is told so, although its result is right"
    faults, names = [], names_of(e)
    mutable = [i for i, a in enumerate(cases(e)[0]) if names[i] not in e.changes and damage(copy.deepcopy(a))]
    for i in mutable:

        def spoils(*args, i=i):
            result = check.answer(e.name)(*copy.deepcopy(args)) if e.read is None else check.answer(e.name)(*args)
            damage(args[i])
            return result

        found = check.judge(e.name, spoils)
        told = found.state == "changes" and names[i] in found.message or found.state in ("differs", "mistake")
        if found.state == "right" or not told:
            faults.append(f"{names[i]} was changed in place, and the verdict was: {found.message}")
    return faults


def float_tensors(x) -> bool:
    if isinstance(x, torch.nn.Module):
        return any(p.is_floating_point() for p in x.parameters())
    if isinstance(x, (list, tuple)):
        return any(map(float_tensors, x))
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def gradient(e, seeds):
    "A piece of a network is differentiated: no_grad, detach and numpy are noticed"
    answer, args = check.answer(e.name), cases(e)[0]
    if not e.gradient:
        if "gradient" in e.excused or not any(map(float_tensors, args)):
            return []
        try:
            arriving = check.gradients(answer, args, names_of(e))
        except Exception:
            return []
        reached = [n for n, g in arriving.items() if g is not None and bool(g.abs().max() > 0)]
        return [f"gradients reach {reached}, but they are not compared: gradient=True, or an excuse"] if reached else []

    def detached(x):
        if isinstance(x, torch.Tensor):
            return x.detach()
        return type(x)(map(detached, x)) if type(x) in (list, tuple) else {k: detached(v) for k, v in x.items()} if isinstance(x, dict) else x

    def numpy_only(*args):
        if any(a.requires_grad for a in args if isinstance(a, torch.Tensor)):
            args[0].numpy()
        return answer(*args)

    mutants = dict(no_grad=torch.no_grad()(answer), detach=lambda *args: detached(answer(*args)))
    if any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args[:1]):
        mutants["numpy"] = numpy_only
    return [f"{n} passes" for n, f in mutants.items() if check.judge(e.name, f).state != "gradient"]


def containers(e, seeds):
    "A list, an array and a tensor of the same numbers are the same answer, unless the task names the type"
    if e.exact or e.read is not None or e.gradient or e.changes:
        return []
    answer = check.answer(e.name)
    sample = [answer(*copy.deepcopy(args)) for args in cases(e)]
    if not all(isinstance(s, (torch.Tensor, np.ndarray)) for s in sample):
        return []
    forms = dict(list=lambda x: x.tolist(), array=lambda x: numbers(x), tensor=lambda x: torch.as_tensor(np.array(numbers(x))))
    states = {n: check.judge(e.name, lambda *args, f=f: f(answer(*args))) for n, f in forms.items()}
    return [f"refused as {n}: {v.message}" for n, v in states.items() if not v]


# --- what the inputs hold ---


def float_arrays(args) -> list[np.ndarray]:
    found = [numbers(a) for a in args if isinstance(a, (torch.Tensor, np.ndarray))]
    return [a for a in found if a is not None and a.dtype.kind == "f" and a.ndim]


def inputs_numeric(e, seeds):
    "Numerical tasks see a wide spread, a single row, equal entries and a batch of more than two dimensions"
    drawn = [a for args in cases(e, fresh(1)[0]) for a in float_arrays(args)]
    if not drawn or not float_arrays(cases(e)[0]):
        return []
    have = dict(
        wide=any(np.isfinite(a).any() and np.abs(a[np.isfinite(a)]).max() >= 1000 for a in drawn),
        row=any(a.ndim == 1 or 1 in a.shape[:-1] for a in drawn),
        equal=any(a.shape[-1] > 1 and (a == a[..., :1]).all(-1).any() for a in drawn),
        batch=any(a.ndim >= 3 for a in drawn),
    )
    said = dict(wide="numbers of a thousand", row="a single row", equal="a row of equal entries", batch="a batch (3-D)")
    return [f"no case has {said[k]}" for k, ok in have.items() if not ok and k not in e.excused]


def inputs_text(e, seeds):
    "Texts hold more than ASCII"

    def texts(x):
        if isinstance(x, str):
            return [x]
        if isinstance(x, dict):
            x = [*x.keys(), *x.values()]
        return [t for y in x for t in texts(y)] if isinstance(x, (list, tuple)) else []

    found = [t for args in cases(e) for t in texts(args)]
    prose = any(" " in t for t in found)
    return ["all its texts are ASCII"] if prose and all(t.isascii() for t in found) and "text" not in e.excused else []


def inputs_size(e, seeds):
    "The size of the inputs does not come from the seed: it is only drawn from, or taken modulo a small number"
    module = sys.modules[inspect.unwrap(e.inputs).__module__]
    tree, faults = ast.parse(inspect.getsource(module)), []
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "seed" and isinstance(node.ctx, ast.Load):
            up = parents[node]
            inside = node
            while isinstance(up, ast.BinOp) and not isinstance(up.op, ast.Mod):
                inside, up = up, parents[up]
            if inside is not node and not (isinstance(up, ast.Call) or isinstance(up, (ast.List, ast.Tuple)) and isinstance(parents[up], ast.Call)):
                faults.append(f"{Path(module.__file__).name}:{node.lineno}: arithmetic on the seed outside of a call that draws")
    totals = [sum(check.size(args) for args in cases(e, seed)) for seed in EXTREME]
    return faults + ([f"sizes {totals} for the seeds {EXTREME}"] if max(totals) > 4 * min(totals) + 100 else [])


# --- the form ---


def form(e, seeds):
    "Several inputs, hints, at least two mistakes with reasons, a task that is a sentence"
    ok = {
        "two inputs or more": len(cases(e)) >= 2,
        "two hints or more": len(e.hints) >= 2,
        "two mistakes or more": len(e.wrongs) >= 2,
        "a task that is a sentence": e.task.endswith("."),
        "reasons": all(w.why.endswith((".", "?")) and len(w.why) > 20 for w in e.wrongs),
        "mistakes with names of their own": len({w.name for w in e.wrongs}) == len(e.wrongs),
    }
    return [f"it lacks {what}" for what, there in ok.items() if not there]


RULES = {
    rule.__name__: rule
    for rule in (right, mistakes, nothing, memory, arguments, inputs_kept, gradient, containers, inputs_numeric, inputs_text, inputs_size, form)
}


def find_faults(name: str, rule: str, seeds: int = SEEDS) -> list[str]:
    "What a rule finds wrong with an exercise"
    return RULES[rule](check.find(name), seeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="exercises, or modules of gpt2_course.exercises (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="fresh seeds for each exercise")
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES), metavar="RULE", help=", ".join(RULES))
    chosen = parser.parse_args()
    check.load_all()
    names = [n for n in sorted(check.REGISTRY) if not chosen.names or n in chosen.names or n.split(".")[0] in chosen.names]
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for progress.json
        for name in names:
            for rule in chosen.only:
                for fault in find_faults(name, rule, chosen.seeds):
                    bad += 1
                    print(f"{name}: {rule}: {fault}", flush=True)
        os.chdir("/")
    mistakes_in_all = sum(len(check.find(n).wrongs) for n in names)
    slow = sorted(SLOWEST.items(), key=lambda row: -row[1])[:3]
    print(f"{len(names)} exercises, {mistakes_in_all} mistakes, {chosen.seeds} seeds: {bad} faults")
    print("slowest verdicts: " + "; ".join(f"{what} {seconds:.2f} s" for what, seconds in slow))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
