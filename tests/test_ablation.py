"""The ablation harness: it goes on where it stopped, reports what failed, refuses what is unfair, and its numbers are those of the runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpt2_course.ablation import analyse, best_rate, by_rate, interval, report, run_all, steps_to, verdict
from gpt2_course.config import TrainConfig, UserError, from_dict

from conftest import REPO, offline_env
from runs import metrics, refused

TINY = (
    "--steps 8 --batch-tokens 256 --micro-batch 8 --eval-every 4 --eval-tokens 512 --device cpu --dtype float32 --jobs 2"
    " --model.block-size 16 --model.n-layer 1 --model.n-head 2 --model.n-embd 128 --arms gpt2 rmsnorm --lrs 1e-3 1e-2 --seeds 1 2"
).split()


def ends(out):
    return {c["name"]: (c["status"], c["val"][-1][2] if c["val"] else None) for c in json.loads((out / "results.json").read_text())["cells"]}


@pytest.fixture(scope="module")
def whole(run, data, tmp_path_factory):
    "An undisturbed ablation of eight runs, and what it printed"
    out = tmp_path_factory.mktemp("ablation") / "whole"
    return out, run(["-m", "gpt2_course.ablation", out, "--data", data, *TINY]).stdout


def test_matrix_is_complete(whole):
    "Eight finished runs; the report's numbers are means of the runs' own last losses; the picture is there"
    out, said = whole
    assert len(ends(out)) == 8 and all(how == "finished" for how, _ in ends(out).values())
    last = {name: metrics(out / name, "val")[-1]["loss"] for name in ends(out)}
    assert {name: pytest.approx(loss, abs=1e-4) for name, loss in last.items()} == {name: loss for name, (_, loss) in ends(out).items()}
    mean = np.mean([loss for name, loss in last.items() if name.startswith("gpt2_lr0.01")])
    assert f"{mean:.3f}" in said and (out / "ablation.png").exists() and not [*out.glob("*.log"), *out.glob("*.exit")]


def test_again_trains_nothing(run, data, whole):
    out, said = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}
    assert run(["-m", "gpt2_course.ablation", out, "--data", data, *TINY]).stdout == said
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}


def test_killed_it_goes_on(run, data, whole, tmp_path):
    "SIGKILL in the middle of the last four cells: the cells end too; the same command then reaches the undisturbed losses"
    out = shutil.copytree(whole[0], tmp_path / "killed")
    for cell in out.glob("*_seed2"):
        shutil.rmtree(cell)
    command = [sys.executable, "-m", "gpt2_course.ablation", str(out), "--data", str(data), *TINY]
    p = subprocess.Popen(command, env=offline_env(), cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and len(list(out.glob("*_seed2/metrics.jsonl"))) < 2:
        time.sleep(0.05)
    assert p.poll() is None, "it was finished before it could be killed"
    workers = subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    p.send_signal(signal.SIGKILL)
    p.wait()
    deadline = time.time() + 30
    alive = lambda: [w for w in workers if os.path.exists(f"/proc/{w}/stat") and " Z " not in Path(f"/proc/{w}/stat").read_text()]
    while alive() and time.time() < deadline:
        time.sleep(0.2)
    assert not alive(), "a worker outlives its ablation"
    run(command[1:])
    assert ends(out) == ends(whole[0])


def test_what_was_trained_otherwise_is_not_taken_for_done(whole, tmp_path):
    "A notebook calls run_all without the command's checks: other steps, or another rate under the same name"
    name = "gpt2_lr0.01_seed1"
    shutil.copytree(whole[0] / name, tmp_path / name)
    then = from_dict(TrainConfig, json.loads((tmp_path / name / "config.json").read_text()))
    assert run_all(tmp_path, {name: then}) == {name: "finished"}
    for other in (replace(then, steps=9), replace(then, optim=replace(then.optim, lr=0.02)), replace(then, model=replace(then.model, n_layer=2))):
        with pytest.raises(UserError, match="was trained with another (steps|optim|model): delete it"):
            run_all(tmp_path, {name: other})


def test_failed_runs_are_reported(run, data, whole, tmp_path):
    "A run that dies of its own is kept and named; the others are compared without it"
    out = tmp_path / "failed"
    shutil.copytree(whole[0], out)
    bad = out / "rmsnorm_lr0.01_seed2"
    shutil.rmtree(bad)
    bad.mkdir()
    (bad / "checkpoints").write_text("a file where a directory should be")
    said = run(["-m", "gpt2_course.ablation", out, "--data", data, *TINY]).stdout
    assert "rmsnorm_lr0.01_seed2: failed" in said
    assert ends(out)["rmsnorm_lr0.01_seed2"][0] == "failed" and (bad / "failed.txt").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        (["--arms", "gpt2", "gqa"], "--arms gqa is no fair opponent of gpt2"),
        (["--arms", "gpt2", "swigloo"], "did you mean swiglu?"),
        (["--arms", "rmsnorm"], "--baseline gpt2 is not among"),
        (["--seeds", "1", "1"], "each once"),
        (["--steps", "9"], "another steps"),
        (["--lrs", "0"], "--lrs"),
        (["--arms", "gpt2+adam"], "only muon is known"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_refusals(run, data, whole, change, says):
    before = sorted(os.listdir(whole[0]))
    assert says in refused(run(["-m", "gpt2_course.ablation", whole[0], "--data", data, *TINY, *change], status=2))
    assert sorted(os.listdir(whole[0])) == before


def made_up(shift, noise, lrs=(1e-3, 1e-2), n=3):
    "Results of two arms, of which the second is better by `shift`"
    rng, found = np.random.default_rng(0), []
    for arm, gain in (("gpt2", 0.0), ("llama", shift)):
        for lr in lrs:
            for seed in range(n):
                end = 4 - gain + 0.3 * (lr != lrs[-1]) + noise * rng.normal()
                val = [[s, s, float(end + 3 * (1 - s / 100))] for s in (0, 50, 100)]
                found.append(dict(name=f"{arm}{lr}{seed}", arm=arm, lr=lr, seed=seed, status="finished", val=val, words=[]))
    config = dict(arms=["gpt2", "llama"], baseline="gpt2", lrs=list(lrs), steps=100, batch_tokens=1)
    return dict(config=config, cells=found, sizes={})


def test_verdicts():
    "A clear gain is called one, noise is not, one seed proves nothing, the sweep's edge is said"
    say = lambda r: verdict("llama", analyse(r)["llama"], "gpt2")
    assert "better than gpt2 by 0.3" in say(made_up(0.3, 0.001)) and "at the edge" in say(made_up(0.3, 0.001))
    assert "worse than gpt2" in say(made_up(-0.3, 0.001))
    assert "no difference" in say(made_up(0.01, 0.2))
    assert "proves nothing" in say(made_up(0.3, 0.0, n=1))
    share, half = analyse(made_up(0.3, 0.0))["llama"]["share_of_steps"]
    assert share == pytest.approx(0.9, abs=1e-6) and half == pytest.approx(0, abs=1e-6)


def test_divergence_loses_a_sweep():
    "A rate at which one run diverged is not the best one, and the report says so"
    r = made_up(0.0, 0.01)
    r["cells"][5].update(status="diverged", val=[])  # gpt2 at its best rate, last seed
    assert best_rate(by_rate(r, "gpt2")) == 1e-3
    assert "diverged" in report(r)


def test_interval_covers():
    "The interval of three seeds misses the true mean about one time in twenty"
    rng = np.random.default_rng(0)
    missed = sum(abs(m) > h for m, h in (interval(rng.normal(size=3)) for _ in range(2000)))
    assert 70 < missed < 130


def test_steps_to_is_none_where_never():
    assert steps_to([0, 10], [5.0, 4.0], 3.9) is None and steps_to([0, 10], [5.0, 4.0], 4.5) == 5.0
