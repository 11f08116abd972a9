"""The judge itself: what it says to a forgotten return, a crash, an endless loop, `exit()`, a changed input, and that it can be replayed."""

import random
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from gpt2_course import challenge, check
from gpt2_course.compare import difference, gradient_difference, gradients, unchanged

from conftest import REPO, offline_env


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


NAME = "attention.split_heads"


def right(x, nh):
    return check.answer(NAME)(x, nh)


# --- the reader's entry point ---


def test_the_first_exercise_of_the_course_as_a_reader_runs_it(tmp_path):
    "A new process with two gigabytes: right, soon after the import of torch"
    program = (
        "import math, time, torch\n"
        "began = time.perf_counter()\n"
        "from gpt2_course.check import check\n"
        "print(check('start.uniform_loss', math.log))\n"
        "print(check('start.step_tokens', lambda rows, T, passes, world: rows * T * passes * world))\n"
        "print('seconds', time.perf_counter() - began)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))
    done = subprocess.run([sys.executable, "-"], input=program, env=offline_env(), cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert "✓ start.uniform_loss: right." in done.stdout and "✓ start.step_tokens: right." in done.stdout


def test_a_verdict_can_be_replayed():
    def wrong(x, nh):
        return x.reshape(x.size(0), nh, x.size(1), -1) * 2

    first = check.judge(NAME, wrong)
    seed = int(first.message.split("seed=")[1].split(")")[0])
    assert check.judge(NAME, wrong, seed).message == first.message
    assert check.check(NAME, wrong, seed=seed).message == first.message


def test_seeds_are_drawn_from_the_full_range(monkeypatch):
    seen = []
    e = check.find(NAME)
    monkeypatch.setitem(check.REGISTRY, NAME, check.Exercise(**{**vars(e), "inputs": lambda seed: seen.append(seed) or e.inputs(seed)}))
    for _ in range(20):
        check.check(NAME, right)
    assert len(set(seen)) == 20 and max(seen) > 2**30 and max(seen) < 2**31


def test_the_reader_s_random_generators_are_left_alone():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    want = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    check.check(NAME, right)
    assert want == (torch.rand(1), np.random.rand(), random.random())


# --- what it says ---


def test_forgotten_return():
    def forgot(x, nh):
        y = right(x, nh)
        y.sum()

    said = check.judge(NAME, forgot)
    assert said.state == "nothing" and "`return`" in said.message


def test_stubs_are_not_attempted_yet():
    def dots(x, nh): ...

    def begun(x, nh):
        B, T, C = x.shape
        ...  # your code

    def docstring(x, nh):
        "Nothing yet"

    def refuses(x, nh):
        raise NotImplementedError

    for stub in (dots, begun, docstring, refuses, lambda x, nh: None):
        assert check.judge(NAME, stub).state == "open"


def test_an_operation_that_torch_lacks_is_an_error_not_a_stub():
    said = check.judge(NAME, lambda x, nh: x & 1)
    assert said.state == "raised" and "not implemented for" in said.message


def test_one_branch_without_a_return():
    def sometimes(x, nh):
        if nh == 3:
            return right(x, nh)

    assert "returns nothing for" in check.judge(NAME, sometimes).message


def test_the_line_that_raised_is_shown():
    def crashes(x, nh):
        y = x.view(2, 2)
        return y

    said = check.judge(NAME, crashes)
    assert said.state == "raised" and "`y = x.view(2, 2)`" in said.message and "x of shape (" in said.message


def test_arguments_have_names_and_small_inputs_are_printed():
    said = check.judge("tokenizer.merge", lambda ids, pair, new: [])
    assert said.state != "right"
    said = check.judge("attention.causal_mask", lambda T, S: 7)
    assert "T = " in said.message and "your result" in said.message and "right" in said.message and "an int, not a Tensor of numbers" in said.message


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.5)

    def endless(x, nh):
        while True:
            pass

    def stubborn(x, nh):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                pass

    for fn in (endless, stubborn):
        began = time.monotonic()
        said = check.judge(NAME, fn)
        assert said.state == "slow" and "never ends" in said.message and "while True" in said.message or "time.sleep" in said.message
        assert time.monotonic() - began < 30


def test_an_endless_loop_in_another_thread_is_reported(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.5)
    stop = threading.Event()

    def waits(x, nh):
        stop.wait(60)

    found = []
    thread = threading.Thread(target=lambda: found.append(check.judge(NAME, waits)))
    thread.start()
    thread.join(30)
    stop.set()
    assert found and found[0].state == "slow"


def test_an_endless_generator_is_cut(monkeypatch):
    monkeypatch.setattr(check, "MOST", 1000)

    def numbers(x, nh):
        while True:
            yield 1

    assert check.judge(NAME, numbers).state == "differs"


def test_exit_is_caught():
    for leave in (sys.exit, lambda: exit(), quit):
        said = check.judge(NAME, lambda x, nh, leave=leave: leave())
        assert said.state == "raised" and "exit()" in said.message


def test_ctrl_c_is_the_readers():
    def interrupted(x, nh):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.judge(NAME, interrupted)


def test_a_value_in_place_of_a_function():
    said = check.check(NAME, torch.zeros(3))
    assert said.state == "raised" and "the function itself" in said.message


def test_changed_input_and_lost_gradient():
    def in_place(x, nh):
        y = right(x.clone(), nh)
        x.zero_()
        return y

    said = check.judge(NAME, in_place)
    assert said.state == "changes" and "changes its input x" in said.message
    lost = check.judge(NAME, torch.no_grad()(right))
    assert lost.state == "gradient" and "no gradient arrives at x" in lost.message
    raised = check.judge(NAME, lambda x, nh: right(torch.from_numpy(x.numpy()), nh))
    assert raised.state == "gradient" and "numpy" in raised.message


def test_a_mistake_that_explains_one_case_only_is_not_named():
    e = check.find(NAME)
    first = e.inputs(5)[0][0].shape

    def half_wrong(x, nh):
        return (e.wrongs[0].fn if x.shape == first else lambda x, nh: right(x, nh) + 1)(x, nh)

    assert check.judge(NAME, half_wrong, 5).state == "differs"


def test_two_mistakes_that_explain_alike_are_not_named(monkeypatch):
    e = check.find(NAME)
    twin = check.Wrong("a twin", e.wrongs[0].fn, "The same by another name, for this test.")
    monkeypatch.setitem(check.REGISTRY, NAME, check.Exercise(**{**vars(e), "wrongs": (*e.wrongs, twin)}))
    assert check.judge(NAME, e.wrongs[0].fn).state == "differs"


# --- comparing ---


@pytest.mark.parametrize(
    "got, want, said",
    [
        ([1, 2], torch.tensor([1, 2]), None),
        ((1.0, 2.0), np.array([1.0, 2.0]), None),
        (np.float32(2), 2.0, None),
        (torch.tensor([2.0]), 2.0, None),
        (torch.tensor(3), 3, None),
        ([torch.tensor(1.0), torch.tensor(2.0)], torch.tensor([1.0, 2.0]), None),
        (torch.zeros(3), torch.zeros(2, 3), "shape (3,)"),
        ([[1], [1, 2]], torch.zeros(2, 2), "not a Tensor of numbers"),
        ("3.5", 3.5, "a str, not a number"),
        (True, 1.0, "a bool, not a number"),
        (True, 1, "True"),
        ([1, 2], torch.tensor([1.0, 2.0]), "integer numbers"),
        (torch.tensor([True]), torch.tensor([1.0]), "bool numbers"),
        (float("nan"), float("nan"), None),
        (None, 3, "None"),
        ({"a": 1}, {"b": 1}, "the keys ['a']"),
        ({1, 2}, [1, 2], "a set, not a list"),
        (2**62 + 1, 2**62, "is right"),
        (torch.tensor([2**62 + 1]), torch.tensor([2**62]), "1 of 1 entries differs"),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2), None),
        (range(3), torch.tensor([0, 1, 2]), None),
        (range(3), [0, 1, 2], None),
        (np.array([]), torch.zeros(0, dtype=torch.long), None),
    ],
)
def test_difference(got, want, said):
    found = difference(got, want)
    assert found is None if said is None else said in found


def test_exact_types():
    assert "int32, not int64" in difference(np.ones(2, np.int32), np.ones(2, np.int64), exact=True)
    assert "a list, not a Tensor" in difference([1], torch.tensor([1]), exact=True)


def test_unchanged_sees_deep_changes_and_nan():
    nan = torch.tensor([float("nan"), 1.0])
    assert unchanged(nan, nan.clone()) and not unchanged(nan, torch.tensor([0.0, 1.0]))
    layer = torch.nn.Linear(2, 2)
    assert unchanged(layer, layer) and not unchanged(layer, torch.nn.Linear(2, 2))
    assert not unchanged({"a": [1]}, {"a": [2]}) and unchanged([1, "a", None, float("nan")], [1, "a", None, float("nan")])
    assert difference(layer, layer) is None and "entries" in difference(layer, torch.nn.Linear(2, 2))


def test_gradients_through_modules_and_lists():
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    found = gradients(lambda xs, f: f(xs[0]) + xs[1], ([x, x.clone()], layer), ["xs", "f"])
    assert set(found) == {"xs[0]", "xs[1]", "f.weight", "f.bias"} and all(g is not None for g in found.values())
    less = gradients(lambda xs, f: f(xs[0].detach()) + xs[1], ([x, x.clone()], layer), ["xs", "f"])
    assert gradient_difference(less, found) == "no gradient arrives at xs[0]"


# --- open challenges ---

CHALLENGES = sorted(challenge.CHALLENGES) if not check.load_all() else []


@pytest.mark.parametrize("name", CHALLENGES)
def test_challenge(name, monkeypatch):
    "What is asked is said; the plain solution gets a score in a short budget; a stub is open; nonsense is one line; no record is kept"
    c = challenge.CHALLENGES[name]
    assert c.name.split(".")[0] in sys.modules[c.score.__module__].__name__ and 1 <= c.seconds <= 60 and len(c.measured) > 10
    asked = challenge.challenge(name)
    assert asked.state == "open" and c.unit in asked.message and f"{c.to_beat:.4g}" in asked.message
    assert challenge.challenge(name, lambda *args: None).state == "open"
    nonsense = challenge.challenge(name, lambda *args, **more: object(), seconds=1)
    assert nonsense.state == "raised" and "Traceback" not in nonsense.message and nonsense.message.count("\n") == 0, nonsense.message
    if not c.fixed:
        monkeypatch.setattr(challenge, "within", lambda seconds, call: check.within(10 * seconds, call))  # a busy machine is no mistake
        ours = challenge.challenge(name, ours=True, seconds=min(2, c.seconds))
        assert ours.state == "measured", ours.message
    assert not check.read_tally()["challenges"]


def test_a_record_is_kept_and_only_beaten_by_a_better_score(monkeypatch):
    toy = challenge.Challenge("toy.one", "00", "A number near one.", lambda fn, seconds: abs(fn() - 1), lambda: 2, 1.0, "from one", "paper", seconds=1)
    monkeypatch.setitem(challenge.CHALLENGES, "toy.one", toy)
    number = lambda x: lambda: x + 0 * time.time()
    said = [challenge.challenge("toy.one", number(x)) for x in (4, 1.5, 3)]
    assert [s.better for s in said] == [False, True, False] and check.read_tally()["challenges"]["toy.one"] == dict(tries=3, best=0.5)
    assert "Your record is 0.5" in said[2].message and "0.5" in challenge.challenge("toy.one").message


def test_every_chapter_has_a_challenge():
    chapters = {e.chapter for e in check.REGISTRY.values()}
    named = {p.name for level in ("easy", "medium", "tough") for p in (REPO / "nbs" / level).glob("*.ipynb") if 'challenge(\\"' in p.read_text("utf-8")}
    assert {c.chapter for c in challenge.CHALLENGES.values()} == chapters and len(named) == len(CHALLENGES)
