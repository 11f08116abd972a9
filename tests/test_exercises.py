"""Every exercise judges what a reader writes, as a reader runs it: through `check`, with fresh seeds of the full range.

Each rule below is applied to every exercise. Where a rule does not fit, the exercise says so itself in `excused`, with the
reason. `python tests/exercise_rules.py NAME … --seeds 200` prints what the rules find for some exercises.
"""

import os

import pytest
from gpt2_course import check

from exercise_rules import RULES, SEEDS, find_faults

check.load_all()
EXERCISES = sorted(check.REGISTRY)
SEEDS_HERE = int(os.environ.get("EXERCISE_SEEDS", SEEDS))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    "progress.json is written where the reader is"
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("rule", RULES)
def test_rule(name, rule):
    seeds = max(2, SEEDS_HERE // 10) if rule == "mistakes" else SEEDS_HERE  # 1,300 mistakes; make soak tries more
    faults = find_faults(name, rule, seeds)
    assert not faults, "\n".join(faults)


def test_the_catalogue_is_large():
    assert sum(len(e.wrongs) for e in check.REGISTRY.values()) >= 1200


def test_excuses_name_rules_and_give_reasons():
    for e in check.REGISTRY.values():
        names = check.names_of(e, check.answer(e.name), len(e.inputs(0)[0]))
        allowed = {"wide", "row", "equal", "batch", "text", "border", "gradient", *(f"ignore {n}" for n in names)}
        assert set(e.excused) <= allowed and all(len(why) > 20 for why in e.excused.values()), (e.name, e.excused)


def test_anything_else_differs():
    verdict = check.judge("attention.causal_mask", lambda T, S: 7)
    assert verdict.state == "differs" and "hint(" in verdict.message and "seed=" in verdict.message


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
