"""The plan against real models, optimisers and processes; the doctor against runs that were made ill."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_course import doctor, plan
from gpt2_course.attention import ATTENTION
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import GPT
from gpt2_course.optim import adamw
from gpt2_course.trainer import DTYPES

from conftest import REPO
from runs import TINY, refused, torchrun

SHAPES = [
    GPTConfig(block_size=32, vocab_size=200, n_layer=2, n_head=4, n_embd=64),
    GPTConfig(block_size=16, vocab_size=384, n_layer=3, n_head=2, n_embd=32, bias=False),
]


@pytest.mark.parametrize("m", SHAPES, ids=["biases", "no biases"])
def test_weights_and_optimiser_are_exact(m):
    "Bytes of the parameters and of AdamW's state after a step"
    model = GPT(m)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    x = torch.randint(m.vocab_size, (2, m.block_size))
    model(x, x).backward()
    optimizer.step()
    mem, p = plan.memory(m, 2), plan.parameters(m)
    size = lambda tensors: sum(t.nbytes for t in tensors)
    assert mem["weights"] == size(model.parameters()) and mem["gradients"] == size(q.grad for q in model.parameters())
    assert mem["optimizer"] == size(t for s in optimizer.state.values() for t in s.values())
    assert p["total"] == sum(t.numel() for k, t in model.state_dict().items() if k != "lm_head.weight")
    assert p["total"] == p["wte"] + p["wpe"] + p["attention"] + p["mlp"] + p["norms"]


def kept_by_autograd(model, B, dtype):
    "Bytes that are put away for the backward pass, each storage once, weights left out; the loss"
    seen, keep = {}, []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        keep.append(t)
        return t

    x, y = (torch.randint(model.cfg.vocab_size, (B, model.cfg.block_size)) for _ in "xy")
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), cast:
        loss = model(x, y)
    return sum(n for k, n in seen.items() if k not in own), loss


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype, attention):
    "Every tensor that is put away for the backward pass, each storage once"
    m = SHAPES[0]
    theirs, loss = kept_by_autograd(GPT(m, ATTENTION[attention]), 4, DTYPES[dtype])
    ours = plan.saved_bytes(m, 4, 2 if dtype == "bfloat16" else 4, attention)
    assert sum(ours.values()) == pytest.approx(theirs, rel=0.005) and loss.isfinite()


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of resident memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_a_process(run, dtype):
    "Resident memory of two steps above the imports: within 10 %"
    m = GPTConfig(block_size=256, vocab_size=5000, n_layer=6, n_head=6, n_embd=384)
    spec = dict(model=asdict(m), B=12, dtype=dtype, attention="sdpa")
    done = run(["tests/workers/peak_rss.py", json.dumps(spec)], MALLOC_MMAP_THRESHOLD_="65536")
    ours = plan.memory(m, 12, dtype)
    assert ours["activations"] > 0.25e9 and ours["peak"] > 0.6e9
    assert ours["peak"] == pytest.approx(json.loads(done.stdout)["peak"], rel=0.10)


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of resident memory")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_peak_memory_of_a_process_that_holds_a_slice(run, accumulation):
    "Resident memory of two steps in each of four processes: within 10 %"
    m = GPTConfig(block_size=128, vocab_size=5000, n_layer=10, n_head=8, n_embd=512)
    spec = dict(model=asdict(m), B=2, dtype="float32", attention="sdpa", accumulation=accumulation)
    done = run(torchrun(4, "tests/workers/peak_rss.py", json.dumps(spec)), MALLOC_MMAP_THRESHOLD_="65536", OMP_NUM_THREADS="1")
    peaks = [json.loads(line)["peak"] for line in done.stdout.splitlines()]
    ours = plan.memory(m, 2, accumulation=accumulation, gpus=4, shards=4)
    assert len(peaks) == 4 and ours["weights"] + ours["gradients"] + ours["optimizer"] == pytest.approx(4 * plan.parameters(m)["live"], rel=0.01)
    assert ours["peak"] == pytest.approx(max(peaks), rel=0.10), (ours, peaks)


def test_what_fits_depends_on_how_it_is_shared_out(run):
    "1558M on four cards of 24 GB: not whole in each; in slices it fits; the table says which and what is gathered; hsdp wants several machines"
    ask = ["-m", "gpt2_course.plan", "--preset", "gpt2-1558m", "--gpus", "4", "--gpu", "4090", "--micro-batch", "1"]
    of = lambda *more: json.loads(run([*ask, *more, "--json"]).stdout)
    whole, cut = of(), of("--parallel", "fsdp")
    state = lambda e: sum(e["memory"][k] for k in ("weights", "gradients", "optimizer"))
    assert state(whole) == pytest.approx(16 * whole["parameters"]["live"], rel=1e-4)
    assert state(cut) == pytest.approx(state(whole) / 4, rel=0.01) and not whole["memory"]["gathered"]
    assert cut["memory"]["peak"] < whole["memory"]["peak"] and (whole["fits"], cut["fits"]) == (False, True)
    assert cut["speed"]["allreduce_s"] > whole["speed"]["allreduce_s"], "weights travel for each micro-batch"
    assert "or try --parallel fsdp" in run(ask).stdout
    told = run([*ask, "--parallel", "fsdp"]).stdout
    assert "24 GB: fits (bfloat16, attention sdpa, fsdp, eager" in told and "gathered" in told
    assert "are one machine of 8: use --parallel fsdp" in refused(run([*ask, "--parallel", "hsdp"], status=2))
    boxes = of("--parallel", "hsdp", "--gpus", "16")
    assert boxes["memory"]["weights"] == of("--parallel", "fsdp", "--gpus", "8")["memory"]["weights"]
    assert "'fsdb' is unknown: choose from ddp, fsdp, hsdp" in refused(run([*ask, "--parallel", "fsdb"], status=2))


def test_ring_and_scaling():
    "2 (n - 1) / n of the bytes over the link; efficiency falls as GPUs are added; a batch cannot have less than a row a GPU"
    c = plan.PlanConfig(link="100", overlap=0.0)
    seconds = 2 * 7 / 8 * 1e9 / (100e9 * plan.REACHED)
    hops = math.ceil(1e9 / plan.BUCKET) * 2 * 3 * plan.HOP
    assert plan.traffic(c, int(1e9), 8) == pytest.approx(seconds + hops)
    rows = plan.estimate(plan.PlanConfig(micro_batch=64))["scaling"]
    efficiency = [r["efficiency"] for r in rows]
    assert efficiency[0] == 1 and efficiency == sorted(efficiency, reverse=True)
    assert not rows[-2]["batch_grew"] and rows[-1]["batch_grew"] and rows[-1]["batch_tokens"] == 1024 * 1024


def test_a_machine_sends_by_all_its_network_cards(run):
    "Eight rails of a DGX H100 carry an eighth each: 64 GPUs lose little to the network; through one card they lose half; the table says what it assumed"
    ask = ["-m", "gpt2_course.plan", "--gpu", "h200", "--gpus", "64"]
    of = lambda *more: json.loads(run([*ask, *more, "--json"]).stdout)["speed"]
    assert of()["efficiency"] == pytest.approx(0.988, abs=0.001)
    assert of("--node-nics", "1")["efficiency"] == pytest.approx(0.522, abs=0.001)
    assert of("--node-nics", "1", "--network", "400")["efficiency"] == of("--network", "50")["efficiency"]
    c = plan.PlanConfig(network="50", link="450")
    assert plan.traffic(c, int(1e9), 8) == plan.traffic(plan.PlanConfig(network="1", link="450"), int(1e9), 8), "inside a machine"
    narrow = plan.PlanConfig(network="50", link="10")
    assert plan.traffic(narrow, int(1e9), 16) > plan.traffic(c, int(1e9), 16), "the slower of the two counts"
    assert plan.traffic(plan.PlanConfig(node_gpus=4), int(1e9), 8) > plan.traffic(plan.PlanConfig(), int(1e9), 8)
    told = run([*ask, "--node-nics", "2", "--network", "ib-200", "--overlap", "0.5"]).stdout
    for said in ("989 TFLOP/s a GPU (data sheet NVIDIA H200, 2024)", "8 GPUs a machine, joined by nvlink4 (450 GB/s each way)",
                 "2 network cards a machine, each ib-200 (25 GB/s each way)", "reaches 80% of these", "under 50% of a backward pass", "25 MiB"):
        assert said in told, told
    for bad, says in ((["--node-nics", "0"], "--node-nics is 0"), (["--node-gpus", "-1"], "--node-gpus is -1")):
        assert says in refused(run([*ask, *bad], status=2))


def test_checkpoint_size_is_right(one):
    "The plan's bytes of a checkpoint against the files of a run: headers and JSON are all that differs"
    model = json.loads((one / "config.json").read_text())["model"]
    c = plan.PlanConfig(preset="nano-char", model=GPTConfig(**model))
    files = sum(p.stat().st_size for p in (one / "checkpoints" / "step_00000010").iterdir() if p.name != "meta.json")
    promised = plan.disk(c, plan.parameters(c.model), 10, 1000)["checkpoint"]
    assert 0 <= files - promised < 60_000


def test_a_measured_speed_takes_the_place_of_a_guess(run, tmp_path):
    "The fastest of ours, as FLOP/s, for another shape; one process of that kind"
    shape = dict(block_size=64, vocab_size=320, n_layer=2, n_head=2, n_embd=64)
    rows = [dict(name="ours", per_second=900.0), dict(name="ours (compile=True)", per_second=1000.0), dict(name="nanoGPT", per_second=5000.0)]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(dict(work="train", contenders=rows, shape=dict(model=shape))))
    cost = lambda m: plan.flops_per_token(plan.bare_model(m), m.block_size)
    want = 1000 * cost(GPTConfig(**shape))
    assert plan.reached(str(file)) == want
    args = ["-m", "gpt2_course.plan", "--gpus", "1", "--gpu", "cpu", "--measured", file]
    assert json.loads(run([*args, "--json"]).stdout)["speed"]["tokens_per_s"] == pytest.approx(want / cost(GPTConfig()))
    assert "at the FLOP/s of train.json" in run(args).stdout
    for text, says in (("{", "is no report of gpt2_course.bench train"), ('{"work": "load"}', "is no report"), (None, "cannot be read")):
        file.unlink() if text is None else file.write_text(text)
        assert says in refused(run(args, status=2))


def test_plan_command(run, tmp_path):
    "A table, one JSON object, and one line for bad input"
    ask = ["-m", "gpt2_course.plan", "--preset", "gpt2-124m", "--gpus", "8", "--gpu", "h200", "--tokens", "10e9"]
    told = run(ask, cwd=tmp_path).stdout
    assert "124,439,808 parameters" in told and "1024 " in told
    e = json.loads(run([*ask, "--json", "--mfu", "0.5"], cwd=tmp_path).stdout)
    assert e["steps"] == math.ceil(10e9 / 2**19) and e["accumulation"] == 1 and e["fits"]
    assert e["seconds"] == pytest.approx(10e9 / e["speed"]["tokens_per_s"])
    for bad, says in ((["--gpu", "h2000"], "did you mean h200?"), (["--mfu", "2"], "--mfu is 2"), (["--gpus", "7"], "not a multiple")):
        assert says in refused(run([*ask, *bad], status=2, cwd=tmp_path))
    assert "unknown: give --peak-flops" in run(["-m", "gpt2_course.plan", "--gpu", "cpu", "--gpus", "1"], cwd=tmp_path).stdout


# --- doctor ---


def write(out: Path, loss, config=None, val=(), status=None, **columns) -> Path:
    "A run directory with a row each ten steps"
    out.mkdir(exist_ok=True)
    rows = []
    for i, x in enumerate(loss):
        row = dict(step=10 * (i + 1), tokens=5120 * (i + 1), split="train", loss=float(x), lr=1e-3, grad_norm=1.0, tokens_per_s=1000.0)
        rows.append({**row, **{k: v[i] for k, v in columns.items()}})
    rows += [dict(step=s, split="val", loss=float(x)) for s, x in val]
    (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, content in (("config", config), ("status", status)):
        if content:
            (out / f"{name}.json").write_text(json.dumps(content))
    return out


def names(out) -> set:
    return {f["name"] for f in doctor.diagnose(doctor.read_run(out))}


def fall(n=120, noise=0.05, low=3.5):
    "A healthy curve"
    return low + 6 * np.exp(-np.arange(n) / 15) + np.random.default_rng(0).normal(0, noise, n)


BIG = {"model": {"vocab_size": 50257}}
AT = np.arange(120)
SICK = {
    "healthy": (dict(loss=fall()), set()),
    "nan": (dict(loss=[*fall()[:50], math.nan]), {"nan"}),
    "ln V": (dict(loss=np.random.default_rng(1).normal(10.8, 0.02, 60), config=BIG), {"ln_v"}),
    "plateau": (dict(loss=fall(low=7.5), config=BIG), {"plateau"}),
    "spike": (dict(loss=fall() + 3 * (AT == 80)), {"spike"}),
    "periodic": (dict(loss=fall() + 0.2 * np.sin(AT * 2 * math.pi / 15)), {"periodic"}),
    "divergence": (dict(loss=fall() + np.maximum(0, AT - 70) * 0.05), {"divergence"}),
    "desync": (dict(loss=fall(), digests=[["a", "a"]] * 60 + [["a", "b"]] * 60), {"desync"}),
    "small batch": (dict(loss=fall(), config={**BIG, "preset": "gpt2-124m", "batch_tokens": 2**16}), {"small_batch"}),
    "gradient": (dict(loss=fall(), grad_norm=[1.0] * 90 + [50.0] * 2 + [1.0] * 28), {"gradient"}),
    "overfit": (dict(loss=fall() - AT * 0.01, val=[(0, 9), (300, 4.0), (700, 4.1), (1000, 4.3), (1200, 4.5)]), {"overfit"}),
    "slow": (dict(loss=fall(), tokens_per_s=[1000.0] * 90 + [400.0] * 30), {"slow"}),
    "unfinished": (dict(loss=fall(), status={"state": "running", "step": 0, "steps": 5000}), {"unfinished"}),
}


@pytest.mark.parametrize("kind", SICK)
def test_each_symptom_and_no_other(kind, tmp_path):
    made, expected = SICK[kind]
    assert names(write(tmp_path / "run", **made)) == expected


def test_every_symptom_is_tried():
    assert set().union(*(expected for _, expected in SICK.values())) == set(doctor.CHAPTERS) == set(doctor.ADVICE)


def test_chapters_exist():
    listed = (REPO / "nbs" / "sidebar.yml").read_text()
    for chapter in doctor.CHAPTERS.values():
        assert f"- {chapter}\n" in listed and (REPO / "nbs" / chapter).exists()


REAL = {
    "nan": ["--optim.lr", "1e30", "--optim.warmup", "0", "--optim.grad-clip", "0", "--eval-every", "1"],
    "ln_v": ["--steps", "20", "--optim.lr", "1e-9", "--optim.min-lr", "1e-9"],
    "small_batch": [],  # 512 tokens a step, 2,048 in the preset
}


@pytest.mark.parametrize("kind", REAL)
def test_runs_that_are_really_ill(run, data, tmp_path, kind):
    out = tmp_path / "run"
    done = run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, "--sample-every", "0", *REAL[kind]], status=None)
    assert done.returncode in (0, 2)
    assert kind in names(out)


def test_doctor_command(run, tmp_path):
    "Sentences, JSON, a picture; findings are no failure, bad input is"
    well, ill = write(tmp_path / "well", fall()), write(tmp_path / "ill", SICK["divergence"][0]["loss"])
    told = run(["-m", "gpt2_course.doctor", well, ill, "--plot", tmp_path / "p.png"]).stdout
    assert "healthy" in told and "divergence" in told and "read: nbs/medium/12_optim.ipynb" in told
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in run(["-m", "gpt2_course.doctor", well, ill, "--json"]).stdout.splitlines()]
    assert [r["healthy"] for r in rows] == [True, False] and rows[1]["findings"][0]["step"] > 700
    (tmp_path / "empty").mkdir()
    for bad in ("no/such/run", tmp_path / "empty", tmp_path / "p.png"):
        refused(run(["-m", "gpt2_course.doctor", bad], status=2))
    (ill / "metrics.jsonl").write_text("garbage\n" + (ill / "metrics.jsonl").read_text())
    assert "line 1 is no row" in refused(run(["-m", "gpt2_course.doctor", ill], status=2))
    assert "--plot" in refused(run(["-m", "gpt2_course.doctor", well, "--plot", tmp_path / "no" / "p.png"], status=2))


def test_reference_lines_only_where_comparable(tmp_path):
    "3.29 stands for GPT-2 124M on FineWeb-Edu with GPT-2's vocabulary, nowhere else"
    web = write(tmp_path / "web", fall(), {"data": "data/cache/fineweb-edu", "model": {"vocab_size": 50257}})
    other = write(tmp_path / "other", fall(), {"data": "data/cache/shakespeare", "model": {"vocab_size": 50257}})
    assert doctor.comparable(doctor.read_run(web)) and not doctor.comparable(doctor.read_run(other))
    with pytest.raises(UserError, match="cannot be written"):
        doctor.plot_runs([doctor.read_run(web)], tmp_path / "p.nonsense")
