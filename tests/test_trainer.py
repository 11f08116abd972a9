"""The trainer as processes: several ranks equal one, a resumed run equals an undisturbed one, signals and faults end it in good order."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from conftest import REPO, offline_env
from runs import TINY, WORKER, losses, metrics, torchrun, weights


def test_run_directory(one):
    "Everything that DESIGN promises of a run directory is there"
    names = {p.relative_to(one).as_posix() for p in one.rglob("*") if p.is_file()}
    step = {f"checkpoints/step_00000010/{n}" for n in ("model.safetensors", "state.pt", "meta.json")}
    assert names >= step | {"config.json", "metrics.jsonl", "samples.jsonl", "loss.png", "tokenizer.json", "checkpoints/last", "checkpoints/best"}
    row = metrics(one)[-1]
    assert set(row) >= {"step", "tokens", "split", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "seconds"}
    assert row["tokens"] == 10 * 512 and len(metrics(one)) == 10
    samples = [json.loads(line) for line in (one / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [5, 10]
    assert json.loads((one / "status.json").read_text())["state"] == "finished"


def test_learning_rate_and_loss(one):
    "Step 0 learns, the last step has min_lr, the loss falls from ln V"
    rates = [row["lr"] for row in metrics(one)]
    assert rates[0] == pytest.approx(1e-2 / 3) and rates[2] == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-3)
    assert losses(one)[-1] < losses(one)[0] - 0.3


def test_two_ranks_end_equal(two):
    "Ten accumulated steps leave the same parameters in both ranks, to the bit"
    assert len(two[1]) == 2 and two[1][0] == two[1][1]


def test_two_ranks_equal_one_process(one, two):
    "Training and validation losses agree within 1e-6, relative"
    for split in ("train", "val"):
        assert len(losses(one, split)) == len(losses(two[0], split)) > 0
        torch.testing.assert_close(torch.tensor(losses(two[0], split)), torch.tensor(losses(one, split)), rtol=1e-6, atol=0)


@pytest.mark.alone
def test_tokens_per_second_counts_all_ranks_without_evaluation(two):
    "512 tokens a step whatever the ranks; `seconds` adds up the steps alone"
    for before, row in zip(metrics(two[0]), metrics(two[0])[1:]):
        assert row["tokens_per_s"] == pytest.approx(512 / (row["seconds"] - before["seconds"]), rel=0.35)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_bitwise(run, data, one, two, tmp_path, ranks):
    "Stopped after five of ten steps and taken up by new processes: the same weights, losses and optimiser, to the bit"
    out, whole = tmp_path / "run", one if ranks == 1 else two[0]
    launch = (lambda *a: ["-m", "gpt2_course.train", *a]) if ranks == 1 else (lambda *a: torchrun(2, WORKER, *a))
    flags = [*TINY, "--data", data, "--out", out]
    run(launch(*flags), OMP_NUM_THREADS="1")
    for name in ("step_00000010", "last"):
        target = out / "checkpoints" / name
        subprocess.run(["rm", "-r", str(target)], check=True)
    run(launch(*flags, "--resume"), OMP_NUM_THREADS="1")
    assert losses(out) == losses(whole) and losses(out, "val") == losses(whole, "val")
    ours, theirs = weights(out), weights(whole)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs) and ours.keys() == theirs.keys()
    states = [torch.load(o / "checkpoints" / "step_00000010" / "state.pt", weights_only=True)["optimizer"]["state"] for o in (out, whole)]
    assert all(torch.equal(states[0][i][k], states[1][i][k]) for i in states[1] for k in states[1][i])


def test_sigterm_saves_at_a_step_boundary(data, run, tmp_path):
    "A run that is asked to stop writes a checkpoint, says how to go on, and goes on"
    out = tmp_path / "run"
    flags = ["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, "--steps", "100000", "--eval-every", "100000", "--save-every", "100000"]
    flags += ["--sample-every", "0"]
    process = subprocess.Popen([sys.executable, *map(str, flags)], env=offline_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not ((out / "metrics.jsonl").exists() and len(metrics(out)) > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    status = json.loads((out / "status.json").read_text())
    assert process.returncode == 0 and status["state"] == "interrupted" and "--resume" in told
    step = int((out / "checkpoints" / "last").read_text().removeprefix("step_"))
    assert step == status["step"] > 3
    done = run([*flags, "--resume", "--steps", str(step + 5)])
    assert f"resumed from {out / 'checkpoints' / f'step_{step:08d}'} at step {step}" in done.stdout
    assert [row["step"] for row in metrics(out)] == list(range(1, step + 6))


def test_diverged_run_stops_and_keeps_its_checkpoint(data, run, tmp_path):
    "A loss that is no number ends the run with one line"
    out = tmp_path / "run"
    flags = [*TINY, "--data", data, "--out", out, "--optim.lr", "1e30", "--optim.warmup", "0", "--optim.grad-clip", "0", "--eval-every", "100"]
    done = run(["-m", "gpt2_course.train", *flags, "--save-every", "1", "--sample-every", "0"], status=2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: the loss is ")
    for path in (out / "checkpoints").glob("step_*"):
        assert all(t.isfinite().all() for t in load_file(path / "model.safetensors").values())


def test_compiled_training_leaves_plain_names(data, run, tmp_path):
    "torch.compile changes no name in a checkpoint, and the loss hardly at all"
    out = tmp_path / "run"
    flags = [f for f in TINY if f != "--no-compile"]
    run(["-m", "gpt2_course.train", *flags, "--data", data, "--out", out, "--steps", "3"], OMP_NUM_THREADS="1")
    assert not any("_orig_mod" in k for k in weights(out, 3))


def test_data_is_not_masked(data):
    "Every token of a window but its first is a target"
    from gpt2_course.data import TokenLoader, open_split

    x, y = TokenLoader(open_split(data, "train"), 4, 32).next()
    assert torch.equal(x[:, 1:], y[:, :-1]) and (y >= 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_trains_compiled_in_bf16(data, run, tmp_path):
    "The default path of a GPU: bf16 autocast, fused AdamW, compiled, resumed"
    out = tmp_path / "run"
    flags = [f for f in TINY if f not in ("--no-compile", "--device", "cpu", "--dtype", "float32")]
    run(["-m", "gpt2_course.train", *flags, "--data", data, "--out", out])
    run(["-m", "gpt2_course.train", *flags, "--data", data, "--out", out, "--resume", "--steps", "15"])
    assert len(metrics(out)) == 15 and losses(out)[-1] < losses(out)[0]


def test_environment_is_left_alone():
    "Importing the package sets no environment variable and starts no process group"
    code = "import os; before = dict(os.environ); import gpt2_course.train, gpt2_course.trainer, torch.distributed as d; "
    code += "assert dict(os.environ) == before and not d.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(REPO)})
