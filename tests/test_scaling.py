"""The scaling harness: the prediction is written before the run that tests it, and never changed; the fit finds laws that are known."""

import json
import shutil

import numpy as np
import pytest
from gpt2_course.scaling import PUBLISHED, bootstrap, fit, law, optimal

from runs import metrics, refused

TINY = (
    "--layers 1 1 2 --widths 16 24 32 --steps 4 8 --seeds 1 --held-layers 2 --held-width 64 --held-steps 12 --batch-tokens 128 --block-size 16"
    " --eval-tokens 512 --device cpu --dtype float32 --jobs 2"
).split()


@pytest.fixture(scope="module")
def held(run, data, tmp_path_factory):
    "A grid of six runs and its prediction, without the run that tests it"
    out = tmp_path_factory.mktemp("scaling") / "grid"
    return out, run(["-m", "gpt2_course.scaling", out, "--data", data, *TINY, "--hold"]).stdout


def test_prediction_comes_first_and_stays(run, data, held, tmp_path):
    "--hold stops before the run; without it the run is made, and neither the prediction nor the grid is touched"
    out, said = held
    note = json.loads((out / "prediction.json").read_text())
    assert "without --hold" in said and not (out / "held_out").exists() and note["low"] <= note["high"] and note["times_the_largest"] > 4
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    before = {p: p.read_bytes() for p in [whole / "prediction.json", *whole.glob("L*/metrics.jsonl")]}
    assert len(before) == 7
    for _ in range(2):
        told = run(["-m", "gpt2_course.scaling", whole, "--data", data, *TINY]).stdout
        assert {p: p.read_bytes() for p in before} == before
        results = json.loads((whole / "results.json").read_text())
        assert results["held"]["loss"] == pytest.approx(metrics(whole / "held_out", "val")[-1]["loss"], abs=1e-4)
        assert results["prediction"] == note and f"outcome: {results['held']['loss']:.3f}" in told
    assert all(p["loss"] == pytest.approx(metrics(whole / p["name"], "val")[-1]["loss"], abs=1e-4) for p in results["points"])


def test_a_run_without_a_prediction_is_refused(run, data, held, tmp_path):
    out = tmp_path / "late"
    shutil.copytree(held[0], out)
    (out / "prediction.json").rename(tmp_path / "prediction.json")
    shutil.copytree(next(out.glob("L1_C16*")), out / "held_out")
    assert "has begun without a prediction" in refused(run(["-m", "gpt2_course.scaling", out, "--data", data, *TINY], status=2))
    assert not (out / "prediction.json").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        (["--layers", "1", "2"], "one of each for every size"),
        (["--steps", "4"], "at least six runs"),
        (["--steps", "4", "9"], "another steps"),
        (["--held-steps", "0"], "--held-steps is 0"),
        (["--widths", "16", "24", "65"], "multiples of 32"),
        (["--data", "nowhere"], "nowhere"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_refusals(run, data, held, change, says):
    before = {p: p.stat().st_mtime_ns for p in held[0].rglob("*")}
    assert says in refused(run(["-m", "gpt2_course.scaling", held[0], "--data", data, *TINY, *change], status=2))
    assert {p: p.stat().st_mtime_ns for p in held[0].rglob("*")} == before


@pytest.mark.parametrize("theta", [*PUBLISHED.values(), (2.1, 60.0, 900.0, 0.35, 0.45)])
def test_known_laws_are_found(theta):
    "Exponents and a prediction ten times beyond the data, from exact losses and with one run gone wrong"
    N, D = np.repeat([1e6, 1e7, 1e8, 1e9], 4), np.tile([1e7, 1e8, 1e9, 1e10], 4)
    L = law(theta, N, D)
    assert fit(N, D, L)[3:] == pytest.approx(theta[3:], rel=0.01)
    L[6] *= 1.2
    assert law(fit(N, D, L), 1e10, 1e11) == pytest.approx(law(theta, 1e10, 1e11), rel=0.01)


def test_best_size_is_a_minimum():
    theta = PUBLISHED["Hoffmann et al. 2022"]
    N, D = optimal(theta, 1e20)
    assert 6 * N * D == pytest.approx(1e20)
    assert law(theta, N, D) < min(law(theta, N * s, D / s) for s in (0.9, 1.1))


def test_bootstrap_covers_the_noise():
    "With noisy runs most draws' intervals hold the truth; without noise they are narrow"
    truth, rng = (2.1, 60.0, 900.0, 0.35, 0.45), np.random.default_rng(0)
    N, D = np.repeat([6e4, 2e5, 6e5, 2e6], 4), np.tile([1e5, 3e5, 1e6, 3e6], 4)
    ask = lambda t: law(t, 5e6, 6e6)
    inside = 0
    for _ in range(6):
        low, high = np.percentile(bootstrap(N, D, law(truth, N, D) * np.exp(0.005 * rng.normal(size=16)), ask, draws=25), [2.5, 97.5])
        inside += low <= law(truth, 5e6, 6e6) <= high
    exact = bootstrap(N, D, law(truth, N, D), ask, draws=20)
    assert inside >= 3 and np.ptp(exact) < 0.01
