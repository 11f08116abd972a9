"""Every exercise accepts the package's own answer, and tells each classic mistake by its own name."""

import pytest
from gpt2_course import check

check.load_all()
EXERCISES = sorted(check.REGISTRY)
MISTAKES = [(name, i) for name in EXERCISES for i in range(len(check.REGISTRY[name].wrongs))]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_exported_answer_is_right(name):
    for seed in range(10):
        verdict = check.judge(name, check.answer(name), seed)
        assert verdict.state == "right", verdict


@pytest.mark.parametrize("name, i", MISTAKES, ids=[f"{name}-{check.REGISTRY[name].wrongs[i].name}" for name, i in MISTAKES])
def test_a_mistake_is_called_by_its_name(name, i):
    wrong = check.REGISTRY[name].wrongs[i]
    for seed in range(5):
        verdict = check.judge(name, wrong.fn, seed)
        assert verdict.state == "mistake" and f"classic mistake: {wrong.name}. {wrong.why}" in verdict.message, verdict


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_no_mistake(name):
    def raises(*args):
        raise NotImplementedError

    assert check.judge(name, lambda *args: None).state == check.judge(name, raises).state == "open"


@pytest.mark.parametrize("name", EXERCISES)
def test_exercise_is_well_made(name):
    "Several inputs, hints, at least two mistakes with reasons, a task that is a sentence"
    e = check.REGISTRY[name]
    assert len(e.inputs(0)) >= 2 and len(e.hints) >= 2 and len(e.wrongs) >= 2 and e.task.endswith(".")
    assert all(w.why.endswith((".", "?")) and len(w.why) > 20 for w in e.wrongs)
    assert len({w.name for w in e.wrongs}) == len(e.wrongs)


def test_anything_else_differs():
    verdict = check.judge("attention.causal_mask", lambda T, S: 7)
    assert verdict.state == "differs" and "hint(" in verdict.message


def test_tally_is_kept_beside_the_levels(tmp_path, monkeypatch, capsys):
    "check counts tries, remembers what was right, hint moves on, progress shows it; a damaged file is no trouble"
    for level in ("easy", "medium"):
        (tmp_path / level).mkdir()
    monkeypatch.chdir(tmp_path / "easy")
    (tmp_path / "progress.json").write_text("garbage")
    name = "attention.causal_mask"
    assert not check.check(name, lambda T, S: 7) and check.check(name, check.answer(name))
    assert not check.check(name, lambda T, S: 7)
    row = check.read_tally()["checks"][name]
    assert (row["state"], row["tries"]) == ("right", 3) and (tmp_path / "progress.json").exists()
    for _ in range(len(check.REGISTRY[name].hints) + 1):
        check.hint(name)
    check.progress()
    told = capsys.readouterr().out
    assert "hint 1 of" in told and "no more hints" in told and "chapter 07" in told and "✓" in told


def test_guesses_are_kept_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check.predict("a loss", None)
    check.outcome("a loss", 3.0)
    check.predict("a loss", 6)
    check.outcome("a loss", 3.0)
    assert "Off by a factor of 2.00" in capsys.readouterr().out
