"""The fast path of training: blocked attention, the loss in chunks and kept memory give the plain path's numbers, and the ladder measures them."""

import json
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from gpt2_course import plan, speed
from gpt2_course.attention import attend, sdpa
from gpt2_course.config import CHOICES, GPTConfig, UserError
from gpt2_course.generation import generate
from gpt2_course.model import GPT, crop_block_size, full_loss
from gpt2_course.optim import adamw
from gpt2_course.speed import ChunkedLoss, LadderConfig, Rung, Worker, agree, attention_of, blocked, climb, ladder, loss_of, pairwise, table
from gpt2_course.trainer import pick_attention, pick_loss
from gpt2_course.variants import VARIANTS, make_gpt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from conftest import REPO, offline_env
from runs import TINY, losses, refused, torchrun
from test_plan import kept_by_autograd

CFG = GPTConfig(block_size=48, vocab_size=300, n_layer=2, n_head=2, n_embd=32)
CPU = torch.device("cpu")
SHAPES = [(256, 256), (300, 300), (7, 40), (1, 33), (130, 200)]


def with_gradients(f, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = f(*leaves)
    out.backward(torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out))
    return [out.detach(), *(x.grad for x in leaves)]


def twins(**parts):
    "A plain GPT and one with other parts, the same weights"
    torch.manual_seed(0)
    plain, fast = GPT(CFG, attend), GPT(CFG, **parts)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def batch(ignored=True):
    x, y = torch.randint(CFG.vocab_size, (2, 3, CFG.block_size), generator=torch.Generator().manual_seed(1))
    if ignored:
        y[0, 5:30] = -1
    return x, y


# --- blocked attention ---


@pytest.mark.parametrize("block", [1, 16, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocked_equals_the_kernel(shape, block):
    "Output and gradients, whole blocks and ragged ones, with and without a past"
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, n, 8) for n in (shape[0], shape[1], shape[1])]
    ours, theirs = with_gradients(lambda *x: blocked(*x, block=block), inputs), with_gradients(sdpa, inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_blocked_skips_the_future():
    "Operations of the keys up to each block's last query, by PyTorch's counter"
    with FlopCounterMode(display=False) as counter:
        blocked(*(torch.randn(1, 1, n, 4) for n in (10, 13, 13)), block=4)
    assert speed.spans(10, 13, 4) == [(0, 4, 7), (4, 8, 11), (8, 10, 13)]
    assert counter.get_total_flops() == 2 * 2 * 4 * (4 * 7 + 4 * 11 + 2 * 13)


def test_blocked_drops_out():
    "As attend: shares are dropped, the others raised; nothing at 0"
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 200, 4)
    v = torch.ones(1, 1, 200, 4)
    out = blocked(q, q, v, 0.5)[..., -1, 0]
    many = torch.stack([blocked(q, q, v, 0.5)[0, 0, -1, 0] for _ in range(200)])
    assert out != 1 and many.mean() == pytest.approx(1, abs=0.03) and many.std() == pytest.approx(math.sqrt(1 / 200), rel=0.3)
    torch.testing.assert_close(blocked(q, q, v, 0.0), v)


def test_blocked_generates_the_same_tokens():
    "Cached and uncached, through a GPT"
    plain, fast = twins(attention=lambda *x: blocked(*x, block=16))
    prompt = torch.randint(300, (2, 20))
    a, b, c = (generate(m.eval(), prompt, 20, temperature=0, use_cache=u) for m, u in ((plain, False), (fast, False), (fast, True)))
    assert torch.equal(a, b) and torch.equal(a, c)


def test_names():
    assert attention_of("blocked") is blocked and loss_of("full", CPU) is full_loss
    assert all(map(callable, map(attention_of, CHOICES["attention"])))
    assert all(callable(loss_of(name, CPU)) for name in CHOICES["loss"])


# --- the loss in chunks ---


@pytest.mark.parametrize("ignore", [-1, -100])
@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_loss_and_gradients_in_float64(chunk, ignore):
    "Against F.cross_entropy of the whole product, with padding rows, ignored targets and an upstream gradient"
    torch.manual_seed(0)
    x, head = torch.randn(2, 17, 8, dtype=torch.float64), torch.nn.Linear(8, 40, bias=False, dtype=torch.float64)
    y = torch.randint(37, (2, 17))
    y[1, 3:9] = ignore
    found = []
    for f in (
        lambda x: ChunkedLoss(chunk, ignore_index=ignore)(x, head, y, 37),
        lambda x: F.cross_entropy(head(x)[..., :37].flatten(0, 1), y.flatten(), ignore_index=ignore),
    ):
        leaf, head.weight.grad = x.clone().requires_grad_(), None
        loss = f(leaf)
        (0.3 * loss).backward()
        with torch.no_grad():
            torch.testing.assert_close(f(x), loss.detach())  # no gradient wanted: the same number
        found.append((loss.detach(), leaf.grad, head.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)
    assert not found[0][2][37:].any()  # padding has no gradient


@pytest.mark.parametrize("up", [1.0, 0.125, 65536.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_inside_a_model(dtype, up):
    "1e-6 in float32; in bf16 both are as far from the float64 truth"
    plain, fast = twins(loss=ChunkedLoss(40))
    x, y = batch()
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    found = []
    for m in (plain, fast):
        with cast:
            loss = m(x, y)
        (loss * up).backward()
        found.append((loss.detach(), m.transformer.wte.weight.grad / up, m.transformer.h[0].mlp.c_fc.weight.grad / up))
    tolerance = dict(atol=2e-7, rtol=1e-6) if dtype == "float32" else dict(atol=2e-4, rtol=2e-2)
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4 if dtype == "bfloat16" else 0, rtol=1e-6)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_float16_keeps_small_gradients():
    "As under a gradient scaler: float16 products, an upstream gradient of 2**16"
    plain, fast = twins(loss=ChunkedLoss(40))
    x, y = batch()
    for m in (plain, fast):
        with torch.autocast("cpu", torch.float16):
            loss = m(x, y)
        (loss * 2.0**16).backward()
    for p, q in zip(plain.parameters(), fast.parameters()):
        assert q.grad.isfinite().all()
        torch.testing.assert_close(q.grad, p.grad, atol=float(p.grad.abs().max()) * 2e-2, rtol=2e-2)


def test_nothing_counts():
    "A batch without a target is 0 / 0, as in PyTorch"
    plain, fast = twins(loss=ChunkedLoss(40))
    x, y = batch()
    assert plain(x, y * 0 - 1).isnan() and fast(x, y * 0 - 1).isnan()


def test_a_second_backward_is_refused():
    "Gradients are scaled in place: using them twice must not be silent"
    _, fast = twins(loss=ChunkedLoss(40))
    loss = fast(*batch())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Largest(TorchDispatchMode):
    "Numbers of the largest tensor that an operation returns"

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def test_logits_are_never_held():
    "No tensor is larger than chunk x V or the table; the plain loss makes N x V"
    m = GPTConfig(block_size=64, vocab_size=1024, n_layer=1, n_head=2, n_embd=16)
    x, y = torch.randint(1024, (2, 8, 64))

    def largest(loss, grad=True):
        model = GPT(m, loss=loss)
        with Largest() as seen, nullcontext() if grad else torch.no_grad():
            out = model(x, y)
            if grad:
                out.backward()
        return seen.most

    assert largest(full_loss) == 8 * 64 * 1024
    for chunk in (32, 64):
        assert largest(ChunkedLoss(chunk)) == largest(ChunkedLoss(chunk), grad=False) == chunk * 1024


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_the_fast_parts(name):
    plain = make_gpt(CFG, name)
    fast = make_gpt(CFG, name, blocked, ChunkedLoss(50))
    fast.load_state_dict(plain.state_dict())
    x, y = batch()
    a, b = plain(x, y), fast(x, y)
    a.backward(), b.backward()
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for p, q in zip(plain.parameters(), fast.parameters()):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-3)
    assert fast.parts["loss"] is crop_block_size(fast, 16).parts["loss"]


def test_wrong_chunk():
    with pytest.raises(UserError, match="chunk is 0"):
        ChunkedLoss(0)


# --- together ---


def curve(dtype, steps=100, **parts):
    "Losses of a tiny GPT on a text that it can learn"
    torch.manual_seed(0)
    source = GPT(CFG, attend)
    model = GPT(CFG, **parts)
    model.load_state_dict(source.state_dict())
    optimizer, found = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu"), []
    draw = torch.Generator().manual_seed(2)
    text = torch.randint(300, (400,), generator=draw)
    for _ in range(steps):
        at = torch.randint(400 - CFG.block_size - 1, (4,), generator=draw)
        rows = torch.stack([text[a : a + CFG.block_size + 1] for a in at])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("bfloat16", 1e-3)])
def test_curves_agree(dtype, within):
    "100 steps of the fast and of the plain path, while the loss falls"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = curve(dtype, attention=attend)
        fast = curve(dtype, attention=lambda *x: blocked(*x, block=16), loss=ChunkedLoss(50))
    finally:
        torch.set_num_threads(threads)
    assert plain[-1] < plain[0] - 0.5
    assert float((plain - fast).abs().max()) < within


FAST = ["--attention", "blocked", "--loss", "chunked"]


def test_trainer_takes_the_fast_path(run, data, one, tmp_path):
    "The same run within 1e-5, accumulated; taken up again, validated alone"
    out = tmp_path / "fast"
    done = run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, *FAST], OMP_NUM_THREADS="1")
    assert "attention blocked, loss chunked" in done.stdout
    for split in ("train", "val"):
        torch.testing.assert_close(torch.tensor(losses(out, split)), torch.tensor(losses(one, split)), atol=1e-5, rtol=0)
    found = json.loads(run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, *FAST, "--eval-only"]).stdout)
    assert found["loss"] == pytest.approx(losses(out, "val")[-1], rel=1e-6)
    again = run(["-m", "gpt2_course.train", "--data", data, "--out", out, "--resume", "--steps", "12"])
    assert "loss chunked" in again.stdout and len(losses(out)) == 12


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes(run, data, one, tmp_path, parallel):
    out = tmp_path / parallel
    run(torchrun(2, "-m", "gpt2_course.train", *TINY, "--data", data, "--out", out, *FAST, "--parallel", parallel), OMP_NUM_THREADS="1")
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(one)), atol=1e-5, rtol=0)


def test_auto_takes_the_faster_part():
    "The kernel on a GPU and in float32; on a CPU in bf16 the plain form for one block, blocks beyond; chunks only where they save much"
    gpu, b, f = torch.device("cuda"), torch.bfloat16, torch.float32
    assert [pick_attention("auto", d, t, n) for d, t, n in ((CPU, b, 64), (CPU, b, 256), (CPU, f, 256), (gpu, b, 64), (gpu, b, 1024))] == ["manual", "blocked", "sdpa", "sdpa", "sdpa"]
    assert [pick_loss("auto", d, 4 * 1024 * V) for d, V in ((CPU, 50304), (CPU, 1024), (gpu, 50304))] == ["chunked", "full", "full"]
    assert pick_loss("full", CPU, 2**40) == "full" and pick_attention("sdpa", CPU, b, 1024) == "sdpa"


def test_unknown_names(run, data, tmp_path):
    for flags, says in ((["--loss", "chunkd"], "--loss 'chunkd' is unknown"), (["--attention", "block"], "did you mean blocked?")):
        assert says in refused(run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "x", *flags], status=2))


def test_plan_leaves_the_logits_out(run):
    "Less memory by what the plain loss holds; the table says so"
    m = GPTConfig()
    full, chunked = (plan.memory(m, 16, "bfloat16", loss=name) for name in ("full", "chunked"))
    logits = 3 * 4 * 16 * 1024 * 50257
    assert full["logits"] == logits and chunked["logits"] == 0
    assert 0.8 * logits < full["peak"] - chunked["peak"] < logits
    told = run(["-m", "gpt2_course.plan", "--gpus", "1", "--loss", "chunked"]).stdout
    assert "loss chunked" in told
    assert "choose from auto, full, chunked" in refused(run(["-m", "gpt2_course.plan", "--loss", "half"], status=2))


@pytest.mark.parametrize("attention", ["sdpa", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_activations_are_what_autograd_keeps(dtype, attention):
    m = GPTConfig(block_size=300, vocab_size=500, n_layer=2, n_head=4, n_embd=64)
    theirs, loss = kept_by_autograd(GPT(m, attention_of(attention), loss=ChunkedLoss()), 4, dtype)
    ours = sum(plan.saved_bytes(m, 4, dtype.itemsize, attention, "chunked").values())
    assert ours == pytest.approx(theirs, rel=0.005) and loss.isfinite()


@pytest.mark.skipif(not speed.can_compile(CPU), reason="torch.compile wants a C++ compiler")
def test_compiled():
    "One break around the loss, and the same numbers"
    plain, fast = twins(attention=blocked, loss=ChunkedLoss(50, compile=True))
    x, y = batch()
    a, b = plain(x, y), torch.compile(fast)(x, y)
    a.backward(), b.backward()
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for p, q in zip(plain.parameters(), fast.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-3)


# --- memory that stays ---

KEPT = """
import platform, sys
from gpt2_course.speed import keep_memory, resident
import torch
def left():
    before = resident("VmRSS")
    torch.ones(2**25)
    return resident("VmRSS") - before
print(left())
print(keep_memory(), sys.platform == "linux" and platform.libc_ver()[0] == "glibc")
print(left())
keep_memory(False)
left()
print(left())
"""


def test_memory_is_kept(run):
    "Of 128 MB that were used and freed, the process keeps all, or nothing as glibc starts; the user's own MALLOC_ settings stay"
    assert run(["-c", KEPT], MALLOC_TOP_PAD_="").stdout.split()[1] == "False"
    first, kept, glibc, stays, goes = run(["-c", "import os; os.environ.pop('MALLOC_TOP_PAD_', 0)\n" + KEPT]).stdout.split()
    assert kept == glibc
    if glibc == "True":
        assert max(int(first), int(goes)) < 30e6 and int(stays) > 100e6


# --- the ladder ---

SMALL = GPTConfig(block_size=32, vocab_size=50, n_layer=1, n_head=2, n_embd=16)


def test_each_rung_changes_one_thing():
    "From plain to everything: the flags of the rungs below stay"
    rungs = climb()
    assert rungs[0] == Rung("plain") and len({r.name for r in rungs}) == len(rungs) == 9
    for low, high in zip(rungs, rungs[1:]):
        changed = {k for k in vars(low) if k != "name" and getattr(low, k) != getattr(high, k)}
        assert len(changed) == 1 and all(getattr(high, k) for k in changed)


@pytest.mark.parametrize("rung", climb()[:8], ids=lambda r: r.name)
def test_every_rung_makes_the_same_step(rung):
    "Losses of a few steps against the foot; the padded table has rows that the plain one lacks"
    keep = dict(vars(rung), keep=False)  # the process of the tests stays as it is
    plain, mine = (speed.training_step(r, SMALL, 2, CPU) for r in (climb()[0], Rung(**keep)))
    losses = [[float(s(i)) for i in range(6)] for s in (plain, mine)]
    assert losses[0][4] < losses[0][0]
    assert agree([Rung("plain"), Rung("x", dtype=rung.dtype)], losses)[1] < (1e-5 if rung.dtype == "float32" else 2e-2)


def test_no_time_without_parity():
    rungs = climb()[:4]
    same = [[4.0, 3.0]] * 4
    assert agree(rungs, same) == [0.0] * 4
    for off, who in (([4.0, 3.001], "SDPA"), ([4.0, math.nan], "SDPA")):
        with pytest.raises(RuntimeError, match=f"{who}: its loss is"):
            agree(rungs, [same[0], off, *same[2:]])
    with pytest.raises(RuntimeError, match="from the first rung in bfloat16"):
        agree(rungs, [*same[:3], [4.0, 3.02]])


def test_ratios_are_made_within_a_round():
    assert pairwise([10, 1000, 12], [5, 500, 6]) == 2
    assert pairwise([1, 2, 3], [1, 2, 3]) == 1


def test_ladder(tmp_path, monkeypatch):
    "Two rungs in turns: rows, table, JSON"
    monkeypatch.setenv("PYTHONPATH", offline_env()["PYTHONPATH"])
    cfg = LadderConfig("x.json", rows=2, rounds=3, steps=1, warmup=2, threads=1, device="cpu", rungs=("plain", "chunked loss", "compiled"), compile=False, model=SMALL)
    found = json.loads(json.dumps(ladder(cfg, say=lambda *a: None)))
    assert [r["name"] for r in found["rungs"]] == ["plain", "chunked loss"] and found["skipped"] == {"compiled": "left out"}
    assert all(len(r["ms"]) == 3 and min(r["ms"]) > 0 and len(r["losses"]) == 2 for r in found["rungs"])
    assert found["rungs"][0]["times"] == 1 and found["model"]["n_embd"] == 16 and found["torch"] == torch.__version__
    assert set(found) >= {"date", "command", "device", "threads", "python", "rows", "rounds"}
    told = table(found)
    assert "chunked loss" in told and "left out" in told and len(told.splitlines()) == 5


def test_a_worker_that_dies_is_named(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", offline_env()["PYTHONPATH"])
    rung = dict(vars(Rung("odd", attention="nope")))
    worker = Worker(rung=rung, model=vars(SMALL), rows=1, warmup=1, device="cpu", threads=1)
    with pytest.raises(RuntimeError, match="the rung odd ended with status 1"):
        worker.answer()
    worker.end()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["no/such/dir/x.json"], "give a file in a directory that exists"),
        (["x.json", "--rounds", "0"], "--rounds is 0"),
        (["x.json", "--rungs", "plane"], "did you mean plain?"),
        (["x.json", "--model.n-head", "7"], "not divisible"),
        ([], "OUT.json"),
    ],
)
def test_ladder_command_refuses(run, tmp_path, flags, says):
    assert says in refused(run(["-m", "gpt2_course.speed", *flags], status=2, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_committed_ladders():
    "What the chapter shows says where it comes from, and agrees with its own parity"
    for path in sorted((REPO / "assets" / "bench").glob("ladder-*.json")):
        found = json.loads(path.read_text())
        assert found["command"].startswith("python -m gpt2_course.speed ") and found["date"] and found["torch"]
        rungs = [Rung(**{k: r[k] for k in vars(Rung(""))}) for r in found["rungs"]]
        agree(rungs, [r["losses"] for r in found["rungs"]])
        for before, r in zip(found["rungs"], found["rungs"][1:]):
            assert r["times"] == pytest.approx(pairwise(before["ms"], r["ms"]))
