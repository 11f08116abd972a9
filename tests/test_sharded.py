"""Sharded training: what each process holds, and that everything a run does and leaves behind is that of a run which is not sharded."""

import json
import shutil

import pytest
import torch
from gpt2_course import checkpoint
from gpt2_course.speed import can_compile
from safetensors import safe_open

from runs import TINY, WORKER, WORKERS, losses, metrics, moments, refused, torchrun, weights

RANK = WORKERS / "sharded_rank.py"
FSDP = ("--parallel", "fsdp")


@pytest.fixture(scope="module")
def ask(run, data, tmp_path_factory):
    "ask(n, function, flags…) -> what the function of the worker returned in each rank"

    def ask(n, name, *flags, machine=0):
        out = tmp_path_factory.mktemp(name) / "run"
        done = run(torchrun(n, RANK, name, machine, *TINY, *FSDP, "--data", data, "--out", out, *flags), OMP_NUM_THREADS="1")
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(found) == n
        return found

    return ask


@pytest.fixture(scope="module")
def train(run, data):
    "train(n, out, flags…): a run of n processes"

    def train(n, out, *flags, worker=WORKER, **more):
        launch = torchrun(n, worker) if n > 1 else ["-m", "gpt2_course.train"]
        return run([*launch, *TINY, "--data", data, "--out", out, *flags], OMP_NUM_THREADS="1", **more)

    return train


# --- what a process holds ---


def test_a_rank_holds_its_share_and_nothing_else(ask):
    "Weights, gradients and both moments: 16/n bytes a parameter, counted on the live objects of four processes; no tensor as large as the model"
    ranks = ask(4, "held", "--model.n-embd", "64", "--model.n-layer", "4")
    for r in ranks:
        share = 4 * r["parameters"] / 4
        for part, size in (("weights", share), ("gradients", share), ("moments", 2 * share)):
            rounding = r["row_bytes"] * (2 if part == "moments" else 1)  # a tensor is cut between rows
            assert size - rounding <= r[part] <= size + rounding, (part, r)
        state = r["weights"] + r["gradients"] + r["moments"]
        whole = 4 * r["parameters"]
        assert r["kinds"] == ["torch.float32"]
        assert r["built"] < whole / 4 + 1000 and r["alive"] < state + 3000  # beyond the state: batches, random states, numbers of steps
        assert r["after"] < state - r["gradients"] + 3000  # a validation, a sample and a save leave nothing behind
        assert max(r["biggest"], r["biggest_after"]) < whole / 16  # a quarter of a block; there are four, and the table
        assert state < r["between"] < state + whole  # one exchange a step has this price: a whole gradient inside the step
    for part in ("weights", "gradients", "moments"):
        assert sum(r[part] for r in ranks) == ranks[0]["parameters"] * (8 if part == "moments" else 4)


@pytest.mark.parametrize("n", [3, 4])
def test_the_first_weights_are_those_of_an_unsharded_build(ask, n):
    "To the last bit, for every variant, in sizes that do not divide; and the generator has moved as far"
    assert all(same for found in ask(n, "first") for same in found.values())


def test_bf16_inside_float32_outside_and_one_exchange_a_step(ask):
    "Weights are gathered in bf16, the residual stream and the gradients stay float32; two micro-batches need one reduce-scatter for each block and one for the root"
    for r in ask(2, "traffic", "--dtype", "bfloat16"):
        assert r["batches"] == 2 and r["seen"] == [["torch.bfloat16", "torch.bfloat16"], ["torch.float32", "torch.float32"]]
        assert r["gradients"] == ["torch.float32"]
        for counts in r["counts"]:
            groups = r["blocks"] + 1
            assert counts["_reduce_scatter_base_"] == groups
            assert counts["_allgather_base_"] == 2 * (2 * groups - 1)  # forward and backward of each; the root is gathered once for both
    for r in ask(2, "traffic", "--no-reshard-after-forward"):
        assert r["seen"][0] == ["torch.float32", "torch.float32"]
        assert [c["_allgather_base_"] for c in r["counts"]] == [r["blocks"] + 1] * 2 == [c["_reduce_scatter_base_"] for c in r["counts"]]


def test_what_looks_at_the_model_sees_the_same(ask):
    "Validation, endings, last words and samples, with unequal work in the ranks: as one whole model has them"
    for r in ask(4, "looks", "--optim.warmup", "0"):
        for name in ("validation", "choices", "one choice", "last words"):
            ours, theirs = map(torch.tensor, r[name])
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        assert r["sample"][0] == r["sample"][1] and r["training"]


def test_rows_of_another_shape_are_refused(ask):
    assert all("have the shape" in r["said"] for r in ask(2, "misfit"))


# --- the same losses ---


@pytest.mark.parametrize("variant", ["llama", "moe"])
def test_variants_lose_what_ddp_loses(train, tmp_path, variant):
    for parallel in ("ddp", "fsdp"):
        train(2, tmp_path / parallel, "--parallel", parallel, "--variant", variant, "--steps", "5")
    for split in ("train", "val"):
        ours, theirs = (torch.tensor(losses(tmp_path / p, split)) for p in ("fsdp", "ddp"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_slices_in_machines_replicas_across(run, data, two, tmp_path):
    "hsdp: two machines of two; DDP's losses, replicas that are compared, and a resume to the bit; one machine is refused"
    flags = [*TINY, "--data", data, "--parallel", "hsdp", "--micro-batch", "2", "--model.dropout", "0"]
    run(torchrun(4, WORKER, *flags, "--out", tmp_path / "run"), OMP_NUM_THREADS="1", MACHINE="2")
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "run")), torch.tensor(losses(two[0])), rtol=1e-5, atol=0)
    rows = metrics(tmp_path / "run", "val")
    assert all(len(r["digests"]) == 4 and r["digests"][:2] == r["digests"][2:] and r["digests"][0] != r["digests"][1] for r in rows)
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000010")
    run(torchrun(4, WORKER, *flags, "--out", tmp_path / "cut", "--resume"), OMP_NUM_THREADS="1", MACHINE="2")
    a, b = (weights(tmp_path / o) for o in ("run", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    done = run(["-m", "gpt2_course.train", *flags, "--out", tmp_path / "one"], status=2)
    assert "here is one: use --parallel fsdp" in refused(done)


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="torch.compile wants a C++ compiler")
def test_compiled_block_by_block(run, data, tmp_path):
    for how in ("--compile", "--no-compile"):
        flags = [*TINY, "--data", data, "--out", tmp_path / how, *FSDP, "--model.dropout", "0", "--steps", "4", how]
        done = run(torchrun(2, "-m", "gpt2_course.train", *flags), OMP_NUM_THREADS="1")
        assert ("not compiled" in done.stdout) == (how == "--no-compile")
    for split in ("train", "val"):
        ours, theirs = (torch.tensor(losses(tmp_path / how, split)) for how in ("--compile", "--no-compile"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


# --- checkpoints in parts ---

STILL = ("--model.dropout", "0")
FOUR = (*FSDP, *STILL, "--micro-batch", "2", "--save-every", "2", "--keep", "9")


@pytest.fixture(scope="module")
def four(train, tmp_path_factory):
    "Ten steps of four processes in slices, a checkpoint at 2, 4 … 10"
    out = tmp_path_factory.mktemp("four") / "run"
    train(4, out, *FOUR)
    return out


def cut(run, to, step):
    "A copy of a run that knows nothing of what came after a step"
    shutil.copytree(run, to)
    for path in checkpoint.steps(to):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)
    return to


def test_a_checkpoint_in_parts(four):
    "Tensors, JSON and a small state: each rank's own rows, a digest of every file, and torch's own reader finds what ours does"
    import torch.distributed.checkpoint as dcp

    path = four / "checkpoints" / "step_00000010"
    names = sorted(p.name for p in path.iterdir())
    assert names == ["meta.json", *(f"shard-{i:05d}-model-00001-of-00001.safetensors" for i in range(1, 5)), "state.pt"]
    meta = json.loads((path / "meta.json").read_text())
    assert meta["parts"] == 4 and set(meta["sha256"]) == set(names) and checkpoint.is_whole(path)
    sizes = [p.stat().st_size for p in path.glob("*.safetensors")]
    assert max(sizes) < 1.1 * min(sizes) and set(torch.load(path / "state.pt", weights_only=True)) == {"rngs", "groups", "moments"}
    ours, state = weights(four), moments(four)
    with safe_open(next(path.glob("*.safetensors")), "pt") as f:
        assert {k.removeprefix("model.") for k in f.keys() if k.startswith("model.")} == set(ours)
    theirs = {f"model.{k}": torch.zeros(128 if "wte" in k else len(v), *v.shape[1:]) for k, v in ours.items()}
    theirs |= {f"optim.{k}": torch.zeros_like(v) for k, v in state.items() if v.dim()}
    dcp.load(theirs, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(theirs[f"model.{k}"][: len(v)], v) for k, v in ours.items())
    assert all(torch.equal(theirs[f"optim.{k}"], v) for k, v in state.items() if v.dim())


def test_any_number_of_processes_goes_on(train, four, tmp_path):
    "Saved by 4, taken up by 2, 1 and 3, in slices and whole: the losses of the undisturbed run; and four again: to the bit"
    out = cut(four, tmp_path / "two", 2)
    train(2, out, "--resume", *FOUR)
    train(1, cut(out, tmp_path / "one", 4), "--resume", *FOUR)
    train(3, cut(tmp_path / "one", tmp_path / "three", 6), "--resume", *FOUR, "--batch-tokens", "576", "--steps", "7")
    train(2, cut(tmp_path / "three", tmp_path / "ddp", 6), "--resume", *FOUR, "--parallel", "ddp")
    want = torch.tensor(losses(four))
    for name, n in (("two", 10), ("one", 10), ("three", 6), ("ddp", 10)):
        assert len(losses(tmp_path / name)) == max(n, 7)
        torch.testing.assert_close(torch.tensor(losses(tmp_path / name))[:n], want[:n], rtol=1e-6, atol=0)
    for kind in (weights, moments):  # what three processes wrote, from what one had written
        a, b = kind(tmp_path / "three", 6), kind(tmp_path / "one", 6)
        assert all(torch.equal(a[k], b[k]) for k in a)
    same = cut(four, tmp_path / "same", 4)
    train(4, same, "--resume", *FOUR)
    assert losses(same) == losses(four)
    for kind in (weights, moments):
        a, b = kind(four), kind(same)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_whole_checkpoint_goes_on_in_slices(train, one, tmp_path):
    "Saved by one process, taken up by two in slices: losses, and the moments that were read"
    out = cut(one, tmp_path / "run", 5)
    train(2, out, "--resume", *FSDP)
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(one)), rtol=1e-5, atol=0)
    ours, theirs = moments(out, 5), moments(one, 5)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_commands_read_both_forms(run, data, train, four, one, tmp_path):
    "sample, evaluate, export and --init-from (in slices, too, with a shorter block) of a checkpoint in parts"
    assert run(["-m", "gpt2_course.sample", four, "--num-samples", "1", "--max-new-tokens", "5"]).stdout
    said = json.loads(run(["-m", "gpt2_course.evaluate", four, "--task", "val", "--data", data, "--limit", "64"]).stdout)
    assert said["loss"] == pytest.approx(min(losses(four, "val")), rel=1e-5)
    run(["-m", "gpt2_course.export", four, tmp_path / "hf"])
    again = json.loads(run(["-m", "gpt2_course.evaluate", tmp_path / "hf", "--task", "val", "--data", data, "--limit", "64"]).stdout)
    assert again["loss"] == pytest.approx(said["loss"], rel=1e-6)
    found = run([*torchrun(2, "-m", "gpt2_course.train"), *TINY, "--data", data, "--out", four, *FSDP, "--eval-only"]).stdout
    assert json.loads(found)["loss"] == pytest.approx(said["loss"], rel=1e-5)
    for source in (four, one):
        start = min(losses(source, "val"))
        for n, more in ((1, ()), (2, FSDP)):
            out = tmp_path / f"{source.parent.name}{n}"
            train(n, out, "--init-from", source, *more, "--steps", "3")
            assert losses(out, "val")[0] == pytest.approx(start, rel=1e-5)
        train(2, tmp_path / f"{source.parent.name}short", "--init-from", source, *FSDP, "--steps", "3", "--model.block-size", "16")
        assert weights(tmp_path / f"{source.parent.name}short", 3)["transformer.wpe.weight"].shape == (16, 32)


def test_damage_in_any_part_is_found(train, four, tmp_path):
    "By one reader, and by ranks that each hash a share: the one before it is taken by all"
    out = cut(four, tmp_path / "run", 6)
    path = out / "checkpoints" / "step_00000006"
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        for at in (0, len(raw) // 2, len(raw) - 2):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            assert not checkpoint.is_whole(path)
            shares = [checkpoint.is_whole(path, r, 4) for r in range(4)]
            assert sum(shares) == (0 if file.name == "meta.json" else 3), file
        file.write_bytes(raw)
    assert checkpoint.is_whole(path)
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    done = train(4, out, "--resume", *FOUR)
    assert done.stdout.count("rank ") == 4 and losses(out) == losses(four)


def test_a_killed_save_leaves_the_one_before(run, data, tmp_path):
    out = tmp_path / "run"
    done = run(torchrun(2, RANK, "killed", 0, *TINY, *FSDP, "--data", data, "--out", out), OMP_NUM_THREADS="1", status=None)
    assert done.returncode == 9
    assert [p.name for p in checkpoint.steps(out)] == ["step_00000001"] == [checkpoint.newest(out).name]
    run(torchrun(2, WORKER, *TINY, *FSDP, "--data", data, "--out", out, "--resume"), OMP_NUM_THREADS="1")
    assert len(losses(out)) == 9 and not list((out / "checkpoints").glob(".step*"))  # step 1 was not logged


@pytest.mark.parametrize("how", [(), ("--async-save",)], ids=["at once", "in the background"])
def test_no_room_in_one_rank_is_said_by_all(ask, how):
    "One line, nothing left behind, the old one kept; and with room, the next save is made"
    for r in ask(2, "full", *how):
        assert "checkpoint of step 2 not written" in r["said"] and "No space left on device" in r["said"]
        assert r["left"] == ["best", "last", "step_00000001"]
        assert r["then"] == ["best", "last", "step_00000001", "step_00000002"]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_saved_in_the_background(train, one, two, four, tmp_path, n):
    "The same checkpoints, file for file but for the clock; none too many, the last one complete"
    whole, flags = {1: (one, ()), 2: (two[0], ()), 4: (four, FOUR)}[n]
    train(n, tmp_path / "run", *flags, "--async-save")
    theirs = {p.name: p for p in checkpoint.steps(whole)}
    assert {p.name for p in checkpoint.steps(tmp_path / "run")} == set(theirs)
    for path in checkpoint.steps(tmp_path / "run"):
        step = checkpoint.step_of(path)
        assert checkpoint.is_whole(path)
        for kind in (weights, moments):
            a, b = kind(tmp_path / "run", step), kind(whole, step)
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for pointer in ("last", "best"):
        assert (tmp_path / "run/checkpoints" / pointer).read_text() == (whole / "checkpoints" / pointer).read_text()
    assert losses(tmp_path / "run") == losses(whole)


# --- larger than one process may be ---


def test_a_model_for_which_one_process_has_no_room(run, data, tmp_path):
    "38 million parameters, 16 bytes each, where a process may reserve 500 MB: four train, save and resume; one cannot begin; the result is exported"
    large = ["--data", data, "--preset", "nano-char", "--device", "cpu", "--dtype", "float32", "--no-compile", "--batch-tokens", "128", "--micro-batch", "1"]
    large += ["--model.block-size", "32", "--model.n-layer", "12", "--model.n-head", "8", "--model.n-embd", "512", "--optim.warmup", "1"]
    large += ["--eval-tokens", "128", "--eval-every", "2", "--save-every", "1", "--log-every", "1", "--sample-tokens", "1", "--steps", "2"]
    limited = [WORKERS / "train_limited.py", "500", *large]
    alone = run([*limited, "--out", tmp_path / "one"], OMP_NUM_THREADS="1", status=None)
    assert alone.returncode not in (0, 2) and "allocate" in alone.stderr
    out = tmp_path / "run"
    run(torchrun(4, *limited, *FSDP, "--out", out), OMP_NUM_THREADS="1")
    undisturbed = losses(out)
    shutil.rmtree(out / "checkpoints/step_00000002")
    run(torchrun(4, *limited, *FSDP, "--out", out, "--resume"), OMP_NUM_THREADS="1")
    assert losses(out) == undisturbed and len(undisturbed) == 2
    sizes = [p.stat().st_size for p in (out / "checkpoints/step_00000002").glob("*.safetensors")]
    assert sum(sizes) > 12 * 37e6 and max(sizes) < sum(sizes) / 3.5
    run(["-m", "gpt2_course.export", out, tmp_path / "hf"])
    assert (tmp_path / "hf/model.safetensors").stat().st_size > 4 * 37e6
