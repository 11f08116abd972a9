"""The trainer as processes: several ranks equal one, a resumed run equals an undisturbed one, signals and faults end it in good order."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from gpt2_course import checkpoint
from gpt2_course.data import sha256_file
from gpt2_course.distributed import World
from gpt2_course.train import read_options
from gpt2_course.trainer import preflight
from safetensors.torch import load_file

from conftest import REPO, offline_env
from forked import free_port
from runs import TINY, WORKER, losses, metrics, refused, torchrun, weights


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


LONG = [*TINY, "--steps", "100000", "--eval-every", "100000", "--save-every", "100000", "--sample-every", "0"]


def begun(command, out, **more) -> subprocess.Popen:
    "Start a run and return when it has trained for some steps"
    process = subprocess.Popen(list(map(str, command)), env=offline_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **more)
    deadline = time.time() + 240  # torchrun and its processes import torch anew
    while time.time() < deadline and not ((out / "metrics.jsonl").exists() and len(metrics(out)) > 3):
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_request_to_stop_saves_at_a_step_boundary(data, run, tmp_path, name):
    "A run that is asked to stop writes a checkpoint, says how to go on, and goes on"
    out = tmp_path / "run"
    flags = ["-m", "gpt2_course.train", *LONG, "--data", data, "--out", out]
    process = begun([sys.executable, *flags], out)
    process.send_signal(getattr(signal, name))
    told, _ = process.communicate(timeout=60)
    status = json.loads((out / "status.json").read_text())
    assert process.returncode == 0 and status["state"] == "interrupted" and "--resume" in told
    step = int((out / "checkpoints" / "last").read_text().removeprefix("step_"))
    assert step == status["step"] > 3
    done = run([*flags, "--resume", "--steps", str(step + 5)])
    assert f"resumed from {out / 'checkpoints' / f'step_{step:08d}'} at step {step}" in done.stdout
    assert [row["step"] for row in metrics(out)] == list(range(1, step + 6))


def test_under_nohup_a_closed_terminal_changes_nothing(data, tmp_path):
    out = tmp_path / "run"
    process = begun(["nohup", sys.executable, "-m", "gpt2_course.train", *LONG, "--data", data, "--out", out], out, stdin=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    steps = len(metrics(out))
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None and len(metrics(out)) < steps + 5:
        time.sleep(0.1)
    assert process.poll() is None and len(metrics(out)) >= steps + 5
    process.terminate()
    process.communicate(timeout=60)
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"


# --- SLURM: the script of the repository, with stand-ins for what only a cluster has ---

SRUN = """#!/bin/bash
"$@" & task=$!
trap 'kill -USR1 $task' USR1
while kill -0 $task 2>/dev/null; do wait $task; status=$?; done
exit $status
"""


def batch_job(tmp_path, data, *flags) -> list[str]:
    "The command that SLURM would start: two processes on one machine, a tiny model; scontrol notes what it is asked"
    tools, script = tmp_path / "tools", (REPO / "assets" / "slurm" / "gpt2-124m.sh").read_text()
    tools.mkdir(exist_ok=True)
    scontrol = f"#!/bin/bash\necho $* >> {tmp_path}/asked\necho 127.0.0.1\n"
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in dict(srun=SRUN, scontrol=scontrol, torchrun=torchrun).items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    given = shlex.join(map(str, [*TINY, "--data", data, *flags]))
    for old, new in (("per-node 8", "per-node 2"), ("29500", str(free_port())), ("--preset gpt2-124m", given), ("runs/gpt2-124m", f"{tmp_path}/run")):
        assert old in script
        script = script.replace(old, new)
    slurm = dict(SLURM_JOB_NODELIST="a", SLURM_NNODES="1", SLURM_JOB_ID="7", PATH=f"{tools}:{os.environ['PATH']}")
    return ["env", *(f"{k}={v}" for k, v in slurm.items()), "bash", "-u", "-c", script]


@pytest.mark.skipif(not shutil.which("bash"), reason="a batch script is read by bash")
def test_slurm_warns_the_run_is_saved_and_queued_again(data, tmp_path):
    "USR1 to the batch shell alone: both processes save, the job is requeued; its next turn resumes, finishes and asks for no other"
    out, asked = tmp_path / "run", tmp_path / "asked"
    job = begun(batch_job(tmp_path, data, *LONG[len(TINY) :]), out)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=120)
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "interrupted" and asked.read_text().splitlines() == ["show hostnames a", "requeue 7"]
    assert (out / "checkpoints" / "last").read_text() == f"step_{status['step']:08d}"
    done = subprocess.run(batch_job(tmp_path, data, "--steps", str(status["step"] + 4)), env=offline_env(), capture_output=True, text=True)
    assert done.returncode == 0 and f"at step {status['step']}\n" in done.stdout, done.stderr[-2000:]
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    assert asked.read_text().splitlines()[2:] == ["show hostnames a"], "a finished run was queued again"


# --- what the user did not give ---


@pytest.mark.parametrize(
    "flags, warmup, says",
    [
        ("--steps 5", 1, "warm-up 1 steps, cosine to 0.0001 (nano-char's warm-up of 70, scaled to this run)"),
        ("--steps 700", 35, "warm-up 35 steps"),
        ("--steps 2000", 70, "rate    0.003, warm-up 70 steps, cosine to 0.0001\n"),
        ("--steps 90 --optim.warmup 70", 70, "rate    0.003, warm-up 70 steps, cosine to 0.0001\n"),
        ("--optim.lr 3e-5", 70, "rate    3e-05, warm-up 70 steps, cosine to 1e-06 (nano-char's last rate of 0.0001, scaled to this run)"),
    ],
)
def test_what_a_preset_says_of_its_own_length_is_scaled(run, data, tmp_path, flags, warmup, says):
    done = run(["-m", "gpt2_course.train", "--preset", "nano-char", "--data", data, "--out", tmp_path / "run", *flags.split(), "--check"])
    assert says in done.stdout


def test_a_warm_up_that_was_given_is_kept(run, data, tmp_path):
    "By a flag, by a file, or by the run that is resumed: too long is an error, and nothing is scaled"
    ask = ["-m", "gpt2_course.train", "--preset", "nano-char", "--data", data, "--check"]
    assert "--optim.warmup 9 is longer than --steps 5" in refused(run([*ask, "--steps", "5", "--optim.warmup=9"], status=2))
    (tmp_path / "c.json").write_text('{"steps": 5, "optim": {"warmup": 9}}')
    assert "--optim.warmup 9 is longer than --steps 5" in refused(run([*ask, "--config", tmp_path / "c.json"], status=2))
    (tmp_path / "c.json").write_text('{"steps": 5}')
    assert "warm-up 1 steps" in run([*ask, "--config", tmp_path / "c.json"]).stdout
    out = tmp_path / "run"
    run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, "--steps", "5"])
    told = run(["-m", "gpt2_course.train", "--out", out, "--resume", "--steps", "6", "--check"]).stdout
    assert "warm-up 3 steps" in told and "scaled" not in told.partition("rate")[2].partition("\n")[0]


# --- one process hashes ---


def test_each_rank_hashes_its_share_of_a_checkpoint(one, data, monkeypatch):
    "No file is read by two ranks, none is left out"
    read = []
    monkeypatch.setattr(checkpoint, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    cfg = read_options([*TINY, "--data", str(data), "--out", str(one), "--resume"])
    for rank in range(2):
        preflight(cfg, World(rank, rank, 2), lambda *a: None)
        assert len(read) == rank + 1
    assert sorted(read) == ["model.safetensors", "state.pt"]


def test_ranks_resume_from_what_each_found_whole(run, data, two, tmp_path):
    "The newest is damaged: both fall back, and the run ends as the undisturbed one"
    out = shutil.copytree(two[0], tmp_path / "run")
    newest = out / "checkpoints" / "step_00000010" / "meta.json"
    newest.write_text(newest.read_text()[:-20])
    done = run(torchrun(2, WORKER, *TINY, "--data", data, "--out", out, "--resume"), OMP_NUM_THREADS="1")
    digests = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("rank ")]
    ours, theirs = weights(out), weights(two[0])
    assert len(digests) == 2 and digests[0] == digests[1] and losses(out) == losses(two[0])
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs) and ours.keys() == theirs.keys()


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
