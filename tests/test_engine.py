"""What a lab would switch on: sharded training, fine-tuning, other optimisers and schedules, padded documents, loggers, several nodes, fp16."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from gpt2_course.data import TokenLoader, document_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import offline_env
from forked import free_port
from runs import TINY, WORKER, losses, metrics, moments, refused, torchrun, weights

TRAIN = ["-m", "gpt2_course.train", *TINY]


def test_fsdp_equals_ddp(run, data, two, tmp_path):
    "Two processes that hold half of the model each, stopped and taken up by DDP's two: losses and weights as DDP alone finds them"
    out = tmp_path / "run"
    flags = [*TINY, "--data", data, "--out", out]
    run(torchrun(2, WORKER, *flags, "--parallel", "fsdp"), OMP_NUM_THREADS="1")
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(two[0])), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(losses(out, "val")), torch.tensor(losses(two[0], "val")), rtol=1e-5, atol=0)
    ours, theirs = weights(out), weights(two[0])
    assert ours.keys() == theirs.keys()
    for k in theirs:
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-3, atol=1e-5)
    ours, theirs = moments(out), moments(two[0])
    assert ours.keys() == theirs.keys()
    for k in theirs:
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-3, atol=1e-5)


def test_fsdp_resumes(run, data, two, tmp_path):
    "A run in slices goes on from its checkpoint in new processes, to the bit"
    outs = [tmp_path / "whole", tmp_path / "cut"]
    for out in outs:
        run(torchrun(2, WORKER, *TINY, "--data", data, "--out", out, "--parallel", "fsdp"), OMP_NUM_THREADS="1")
    for name in ("step_00000010", "last"):
        subprocess.run(["rm", "-r", str(outs[1] / "checkpoints" / name)], check=True)
    run(torchrun(2, WORKER, *TINY, "--data", data, "--out", outs[1], "--resume"), OMP_NUM_THREADS="1")
    a, b = (weights(out) for out in outs)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_two_nodes_equal_one(data, two, tmp_path):
    "Two torchrun agents with one process each: the losses of one agent with two"
    out, port = tmp_path / "run", str(free_port())
    common = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    flags = [str(WORKER), *TINY, "--data", str(data), "--out", str(out)]
    env = offline_env(OMP_NUM_THREADS="1")
    nodes = [
        subprocess.Popen([sys.executable, *common, "--node-rank", str(r), *flags], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    for node in nodes:
        _, err = node.communicate(timeout=120)
        assert node.returncode == 0, err
    assert losses(out) == losses(two[0])


def test_fine_tuning_starts_from_the_given_weights(run, data, one, tmp_path):
    "The first validation of the new run is what --eval-only says of the old one; a shorter block crops"
    said = json.loads(run([*TRAIN, "--data", data, "--out", one, "--eval-only"]).stdout)
    assert said["loss"] == pytest.approx(min(losses(one, "val")), rel=1e-6) and said["perplexity"] == pytest.approx(math.exp(said["loss"]))
    out = tmp_path / "tuned"
    run([*TRAIN, "--data", data, "--out", out, "--init-from", one, "--optim.lr", "1e-3", "--optim.min-lr", "1e-4"])
    assert losses(out, "val")[0] == pytest.approx(said["loss"], rel=1e-6)
    assert losses(out, "val")[-1] < losses(out, "val")[0]
    run([*TRAIN, "--data", data, "--out", tmp_path / "short", "--init-from", one, "--model.block-size", "16", "--steps", "3"])
    assert weights(tmp_path / "short", 3)["transformer.wpe.weight"].shape == (16, 32)


def test_evaluation_only_writes_nothing(run, data, one):
    before = {p: p.stat().st_mtime_ns for p in one.rglob("*")}
    run([*TRAIN, "--data", data, "--out", one, "--eval-only"])
    assert {p: p.stat().st_mtime_ns for p in one.rglob("*")} == before


def test_another_tokenizer_is_refused(run, data, one, tmp_path):
    run(["-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "bpe:300", "--out", tmp_path / "bpe"])
    done = run([*TRAIN, "--data", tmp_path / "bpe", "--out", tmp_path / "run", "--init-from", one], status=2)
    assert "was trained with another tokenizer" in refused(done)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--optim.name", "adam"], "--optim.name 'adam' is unknown (did you mean adamw?)"),
        (["--optim.schedule", "cosin"], "did you mean cosine?"),
        (["--optim.cooldown", "0"], "--optim.cooldown is 0"),
        (["--parallel", "zero"], "--parallel 'zero' is unknown"),
        (["--parallel", "fsdp", "--optim.name", "muon"], "Muon needs whole matrices"),
        (["--parallel", "fsdp", "--dtype", "float16"], "not with float16"),
        (["--init-from", "no/such/run"], "no/such/run"),
        (["--hellaswag-every", "-1"], "--hellaswag-every is -1"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_bad_options(run, data, tmp_path, flags, says):
    assert says in refused(run([*TRAIN, "--data", data, "--out", tmp_path / "run", *flags], status=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_learns_and_resumes(run, data, one, tmp_path):
    "Muon for the blocks' matrices, AdamW for the rest: it learns, and resumes to the bit"
    flags = [*TRAIN, "--data", data, "--optim.name", "muon"]
    for out in ("whole", "cut"):
        run([*flags, "--out", tmp_path / out], OMP_NUM_THREADS="1")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.3 and losses(tmp_path / "whole") != losses(one)
    for name in ("step_00000010", "last"):
        subprocess.run(["rm", "-r", str(tmp_path / "cut" / "checkpoints" / name)], check=True)
    run([*flags, "--out", tmp_path / "cut", "--resume"], OMP_NUM_THREADS="1")
    a, b = (weights(tmp_path / out) for out in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_wsd_keeps_the_rate_then_cools_down(run, data, tmp_path):
    out = tmp_path / "run"
    run([*TRAIN, "--data", data, "--out", out, "--optim.schedule", "wsd", "--optim.cooldown", "0.3"])
    rates = [row["lr"] for row in metrics(out)]
    assert rates[2:7] == pytest.approx([1e-2] * 5) and rates[-1] == pytest.approx(1e-3) and rates[7] > rates[8] > rates[9]


def test_fp16_with_a_gradient_scaler(run, data, tmp_path):
    "The scaler's first, too large scales give gradients that are no numbers: steps are skipped, metrics stay valid JSON"
    out = tmp_path / "run"
    run([*TRAIN, "--data", data, "--out", out, "--dtype", "float16"], OMP_NUM_THREADS="1")
    rows = [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 10 and losses(out)[-1] < losses(out)[0]
    assert json.loads((out / "checkpoints/step_00000010/meta.json").read_text())["scaler"]["scale"] > 0


def test_padded_documents(run, data, tmp_path):
    "One document a row: two processes find what one finds, since every token of a step counts equally"
    flags = [*TINY, "--data", data, "--order", "documents"]
    run(["-m", "gpt2_course.train", *flags, "--out", tmp_path / "one"], OMP_NUM_THREADS="1")
    run(torchrun(2, WORKER, *flags, "--out", tmp_path / "two"), OMP_NUM_THREADS="1")
    found = [torch.tensor(losses(tmp_path / n)) for n in ("one", "two")]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)
    assert found[0][-1] < found[0][0] - 0.3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 3))
def test_every_token_of_a_document_is_a_target_once(shards, T, B):
    "0 ends a document: all targets of an epoch are all tokens but each document's first, the end of text among them"
    shards = [np.array(s, np.uint16) for s in shards]
    expected = []
    for s in shards:
        fresh = True
        for t in s.tolist():
            if not fresh:
                expected.append(t)
            fresh = t == 0
    rows = document_rows(shards, T, 0)
    assert rows[:, 2].sum() == len(expected) and (rows[:, 2] >= 1).all() and (rows[:, 2] <= T).all()
    if any(len(s) > T for s in shards) and len(rows):
        loader = TokenLoader(shards, 1, T, order="documents", eot=0)
        seen = [loader.next()[1] for _ in range(loader.W)]
        got = torch.cat([y[y >= 0] for y in seen]).tolist()
        assert sorted(got) == sorted(expected)


def test_wandb_offline(run, data, tmp_path):
    "--log wandb in offline mode leaves a run on the disk, without a network"
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    run([*TRAIN, "--data", data, "--out", out, "--log", "wandb", "tensorboard"], WANDB_MODE="offline")
    assert list((out / "wandb").glob("offline-run-*/*.wandb")) and list((out / "tensorboard").iterdir())


def test_ranks_agree_and_say_so(two):
    "Each validation of a distributed run writes a fingerprint of every rank's weights"
    assert all(len(row["digests"]) == 2 and len(set(row["digests"])) == 1 for row in metrics(two[0], "val"))


def test_ranks_that_drift_apart_stop_the_run(data, tmp_path):
    "A worker that spoils rank 1's weights after three steps: the next validation ends the run"
    worker = tmp_path / "spoil.py"
    worker.write_text(
        "import sys, torch\nfrom gpt2_course import config, trainer\nfrom gpt2_course.distributed import World, process_group\n"
        "from gpt2_course.train import read_options\nstep = trainer.one_step\n"
        "def spoil(run):\n    out = step(run)\n    if run.step == 3 and run.world.rank == 1:\n"
        "        with torch.no_grad(): run.raw.transformer.wpe.weight[0, 0] += 1e-3\n    return out\n"
        "def main():\n    trainer.one_step, world = spoil, World.from_env()\n"
        "    plan = trainer.preflight(read_options(sys.argv[1:]), world, print)\n"
        "    with process_group(world, plan.device): trainer.fit(plan, world, lambda *a: None)\n"
        "config.run(main)\n"
    )
    flags = [*TINY, "--data", str(data), "--out", str(tmp_path / "run")]
    args = [sys.executable, *torchrun(2, worker, *flags)]
    done = subprocess.run(args, env=offline_env(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "the ranks hold different weights at step 5" in done.stderr
    assert len(set(metrics(tmp_path / "run", "val")[-1]["digests"])) == 2


def test_diverged_is_in_the_status(run, data, tmp_path):
    flags = [*TINY, "--data", data, "--out", tmp_path / "run", "--optim.lr", "1e30", "--optim.warmup", "0", "--optim.grad-clip", "0", "--eval-every", "100"]
    run(["-m", "gpt2_course.train", *flags, "--sample-every", "0"], status=2)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "diverged"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("flags", [["--dtype", "float16"], ["--optim.name", "muon"], ["--order", "documents"]], ids=lambda f: f[-1])
def test_gpu_options(run, data, tmp_path, flags):
    "fp16, Muon and padded documents on a GPU: the loss falls"
    plain = [f for f in TINY if f not in ("--device", "cpu", "--dtype", "float32")]
    run(["-m", "gpt2_course.train", *plain, "--data", data, "--out", tmp_path / "run", *flags])
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 0.3


