"""Checkpoints piece by piece: random states come back, digests see every change, a save is whole or absent, the newest whole one is found, pruning spares what is named."""

import errno
import hashlib
import json
import os
import random
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_course import checkpoint, pretrained, tokenizer
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import GPT
from gpt2_course.optim import adamw
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
CFG = GPTConfig(block_size=8, vocab_size=20, n_layer=1, n_head=2, n_embd=8)
META = dict(position=3, best="step_00000001", val_loss=1.5, config=dict(model=vars(CFG), variant="gpt2"))


def trained(seed=0):
    torch.manual_seed(seed)
    model = GPT(CFG)
    opt = adamw(model, 0.01, 0.1, (0.9, 0.95), "cpu")
    x = torch.randint(20, (2, 8))
    model(x, x).backward()
    opt.step()
    return model, opt


def saved(run, *steps, seed=0):
    model, opt = trained(seed)
    return [checkpoint.save(run, step, model, opt, [checkpoint.rng_state(CPU)], META) for step in steps]


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)


@pytest.mark.parametrize("odd", [False, True])
def test_every_random_generator_comes_back(odd):
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    if odd:
        np.random.randn(), random.gauss(0, 1)  # both keep a second number for later
    state = checkpoint.rng_state(CPU)
    assert set(state) == {"torch", "numpy", "numpy_rest", "python", "python_rest"} and all(isinstance(v, torch.Tensor) for v in state.values())
    want = draws()
    draws(), np.random.randn()
    checkpoint.set_rng_state(state, CPU)
    assert draws() == want


def test_a_gpus_generator_is_one_more(monkeypatch):
    gpu, put = torch.device("cuda", 1), []
    monkeypatch.setattr(checkpoint.torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index]))
    monkeypatch.setattr(checkpoint.torch.cuda, "set_rng_state", lambda state, device: put.append((state.tolist(), device)))
    state = checkpoint.rng_state(gpu)
    assert state["cuda"].tolist() == [1]
    checkpoint.set_rng_state(state, gpu)
    assert put == [([1], gpu)]
    checkpoint.set_rng_state(state, CPU), checkpoint.set_rng_state(checkpoint.rng_state(CPU), gpu)  # resumed on another device
    assert len(put) == 1


def test_write_text_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "last"
    path.write_text("old")
    synced = []
    monkeypatch.setattr(checkpoint, "fsync", lambda part: synced.append((part.name, part.read_text("utf-8"), path.read_text())))
    checkpoint.write_text(str(path), "näher")
    assert synced == [(".last.part", "näher", "old")]
    assert path.read_bytes() == "näher".encode() and [p.name for p in tmp_path.iterdir()] == ["last"]


def test_fsync_takes_files_and_folders(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoint.os, "fsync", lambda fd: synced.append(fd))
    (tmp_path / "a").write_text("a")
    checkpoint.fsync(tmp_path / "a"), checkpoint.fsync(tmp_path)
    assert len(synced) == 2
    for fd in synced:
        with pytest.raises(OSError):
            checkpoint.os.fstat(fd)  # closed again


@pytest.mark.parametrize("system, how", [("posix", os.O_RDONLY), ("nt", os.O_RDWR)])
def test_fsync_on_windows_opens_files_for_writing_and_leaves_folders(tmp_path, monkeypatch, system, how):
    opened = []
    fake = types.SimpleNamespace(name=system, O_RDWR=os.O_RDWR, O_RDONLY=os.O_RDONLY, fsync=os.fsync, close=os.close)
    fake.open = lambda path, flags: opened.append((path, flags)) or os.open(path, flags)
    monkeypatch.setattr(checkpoint, "os", fake)
    (tmp_path / "a").write_text("a")
    checkpoint.fsync(tmp_path / "a"), checkpoint.fsync(tmp_path)
    assert opened == [(tmp_path / "a", how), (tmp_path, how)][: 1 if system == "nt" else 2]


def test_untied_and_without_wrappers():
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    state = {"module.a": weight, "_orig_mod.b": weight.t(), "lm_head.weight": weight, "module._orig_mod.lm_head.weight": weight, "c._orig_mod.d": weight}
    out = checkpoint.untied(state)
    assert list(out) == ["a", "b", "c.d"] and out["b"].is_contiguous() and not out["a"].requires_grad
    assert torch.equal(out["b"], weight.detach().t())


def test_sealed_carries_its_own_digest():
    text = checkpoint.sealed(dict(step=1, sha256={"a": "0" * 63 + "1"}))
    meta = json.loads(text)
    own = meta["sha256"]["meta.json"]
    assert list(meta) == ["step", "sha256"] and meta["sha256"]["a"] == "0" * 63 + "1" and text.endswith("\n")
    assert text.startswith('{\n "step": 1,\n "sha256": {\n  "a"')  # to be read by people too
    assert own == hashlib.sha256(text.replace(own, "0" * 64).encode()).hexdigest()


def test_tensor_bytes():
    four = torch.zeros(4)
    assert checkpoint.tensor_bytes({"a": [four, {"b": four.double()}], "c": 3, "d": "x"}) == 16 + 32


def test_make_room(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda where: free)
    checkpoint.make_room(tmp_path, 100)
    with pytest.raises(OSError) as full:
        checkpoint.make_room(tmp_path, 101)
    assert full.value.errno == errno.ENOSPC


def test_save_writes_everything_and_nothing_else(tmp_path):
    (path,) = saved(tmp_path, 250)
    assert path == tmp_path / "checkpoints" / "step_00000250"
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "state.pt", "meta.json"} and [p.name for p in path.parent.iterdir()] == [path.name]
    meta = json.loads((path / "meta.json").read_text())
    assert meta["format"] == checkpoint.FORMAT and meta["step"] == 250 and meta["torch"] == torch.__version__ and meta["position"] == 3
    assert set(meta["sha256"]) == {"model.safetensors", "state.pt", "meta.json"} and checkpoint.is_whole(path)
    model, _ = trained()
    weights = load_file(path / "model.safetensors")
    assert set(weights) == set(model.state_dict()) - {"lm_head.weight"} and all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())


def test_save_replaces_what_was_there_and_clears_leftovers(tmp_path):
    where = tmp_path / "checkpoints"
    for name in (".step_00000001.part", ".step_00000001.old.part"):
        (where / name).mkdir(parents=True)
        (where / name / "junk").write_text("junk")
    saved(tmp_path, 1, seed=0)
    first = load_file(where / "step_00000001" / "model.safetensors")
    saved(tmp_path, 1, seed=1)
    second = load_file(where / "step_00000001" / "model.safetensors")
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert [p.name for p in where.iterdir()] == ["step_00000001"] and checkpoint.is_whole(where / "step_00000001")


def test_everything_is_forced_to_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    real = checkpoint.fsync
    monkeypatch.setattr(checkpoint, "fsync", lambda path: order.append(checkpoint.Path(path).name) or real(path))
    saved(tmp_path, 7)
    assert set(order[:3]) == {"model.safetensors", "state.pt", "meta.json"} and order[3:] == [".step_00000007.part", "checkpoints"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), RuntimeError("PytorchStreamWriter failed"), RuntimeError("CUDA error")])
def test_a_failed_save_leaves_the_others_and_no_rubbish(tmp_path, monkeypatch, error):
    saved(tmp_path, 1)

    def fails(*args, **more):
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", fails)
    with pytest.raises(RuntimeError if "CUDA" in str(error) else UserError) as told:
        saved(tmp_path, 2)
    if "CUDA" not in str(error):
        assert "checkpoint of step 2 not written" in str(told.value) and "--resume" in str(told.value)
        assert ("Input/output error" if isinstance(error, OSError) and error.strerror != "I/O error" else error.args[-1]) in str(told.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"] and checkpoint.is_whole(tmp_path / "checkpoints" / "step_00000001")


def test_a_failed_save_says_why(tmp_path, monkeypatch):
    def fails(*args):
        raise error

    monkeypatch.setattr(checkpoint, "make_room", fails)
    for error, why in ((OSError(errno.EIO, "a broken disk"), "a broken disk"), (checkpoint.SafetensorError("odd header"), "odd header"), (OSError("no number"), "no number")):
        with pytest.raises(UserError, match=f"checkpoints: {why}; the checkpoints before it are kept"):
            saved(tmp_path, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"not written to {tmp_path / 'file'}.*: Not a directory"):
        saved(tmp_path / "file", 2)


@pytest.mark.parametrize("left, raised", [(0, RuntimeError), (-1, UserError)])
def test_an_error_of_torchs_is_a_full_disks_if_the_disk_is_full(tmp_path, monkeypatch, left, raised):
    model, opt = trained()
    rngs, usage = [checkpoint.rng_state(CPU)], shutil.disk_usage(tmp_path)
    room = [checkpoint.tensor_bytes([checkpoint.untied(model.state_dict()), opt.state_dict(), rngs])]
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda where: usage._replace(free=room[0]))

    def fails(*args):  # others wrote meanwhile
        room[0] += left
        raise RuntimeError("enforce fail")

    monkeypatch.setattr(checkpoint.torch, "save", fails)
    with pytest.raises(raised, match="enforce fail" if raised is RuntimeError else "No space left on device") as told:
        checkpoint.save(tmp_path, 1, model, opt, rngs, META)
    assert told.type is raised and list((tmp_path / "checkpoints").iterdir()) == []


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    free = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda where: free)
    with pytest.raises(UserError, match="No space left on device"):
        saved(tmp_path, 2)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
def test_any_changed_byte_and_any_missing_file_is_seen(tmp_path, name):
    (path,) = saved(tmp_path, 1)
    raw = (path / name).read_bytes()
    for at in (0, len(raw) // 2, len(raw) - 2):
        (path / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert not checkpoint.is_whole(path)
    (path / name).write_bytes(raw)
    assert checkpoint.is_whole(path)
    (path / name).unlink()
    assert not checkpoint.is_whole(path)


def test_a_published_checkpoint_may_lack_its_own_digest_but_not_all(tmp_path):
    (path,) = saved(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"]["meta.json"]
    (path / "meta.json").write_text(json.dumps(meta))
    assert checkpoint.is_whole(path)
    for name in ("model.safetensors", "state.pt"):
        (path / "meta.json").write_text(json.dumps({**meta, "sha256": {name: meta["sha256"][name]}}))
        assert checkpoint.is_whole(path)  # what it does not name may differ
    (path / "meta.json").write_text(checkpoint.sealed({**meta, "sha256": {}}))
    assert not checkpoint.is_whole(path)  # it promises nothing but itself
    for sha256 in ({}, None, [], {"model.safetensors": "0" * 64}):
        (path / "meta.json").write_text(json.dumps({**meta, "sha256": sha256}))
        assert not checkpoint.is_whole(path)
    (path / "meta.json").write_text(json.dumps({"step": 1}))
    assert not checkpoint.is_whole(path)
    (path / "meta.json").write_bytes(b"\xff\xfe")
    assert not checkpoint.is_whole(path) and checkpoint.is_whole(tmp_path / "nowhere") is False


def test_steps_are_sorted_by_number_and_nothing_else_counts(tmp_path):
    for name in ("step_2", "step_00000010", "step_9", "step_x", "step_1.part", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step_2", "step_9", "step_00000010"]
    assert checkpoint.step_of(tmp_path / "step_00000250") == 250 and checkpoint.steps(tmp_path / "nowhere") == []


def test_newest_falls_back_and_says_so(tmp_path):
    paths = saved(tmp_path, 1, 2, 3)
    assert checkpoint.newest(tmp_path, say=pytest.fail) == paths[2]
    for path in paths[1:]:
        (path / "state.pt").write_bytes(b"")
    said = []
    assert checkpoint.newest(tmp_path, said.append) == paths[0]
    assert [line.split()[1] for line in said] == ["step_00000003", "step_00000002"]
    shutil.rmtree(paths[0])
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.newest(tmp_path, said.append)


def test_find(tmp_path):
    a, b = saved(tmp_path, 1, 2)
    assert checkpoint.find(tmp_path) == b  # no pointer yet
    (tmp_path / "checkpoints" / "best").write_text("step_00000001\n")
    (tmp_path / "checkpoints" / "last").write_text("step_00000002")
    assert checkpoint.find(tmp_path) == a and checkpoint.find(tmp_path, "last") == b and checkpoint.find(a) == a
    (tmp_path / "checkpoints" / "last").write_bytes(b"\xff\xfe")
    assert checkpoint.find(tmp_path, "last") == b
    (a / "state.pt").write_bytes(b"")
    assert checkpoint.find(tmp_path) == b
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.find(a)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../../other/checkpoints/step_00000009", "/etc", "..", "step_00000001/../../../other/checkpoints/step_00000009", "step_1x"])
def test_a_pointer_leads_nowhere_else(tmp_path, name):
    "best and last name a checkpoint of their own run, or are damaged: the newest whole one is taken"
    (b,) = saved(tmp_path / "run", 2)
    saved(tmp_path / "other", 9)
    for which in ("best", "last"):
        (tmp_path / "run" / "checkpoints" / which).write_text(name)
        assert checkpoint.find(tmp_path / "run", which) == b


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "a/../../x", "", ".."])
def test_a_checkpoint_is_not_made_of_files_elsewhere(tmp_path, name):
    "Names in meta.json are those of files beside it, however right their digests are"
    (step,) = saved(tmp_path, 1)
    shutil.copy(step / "model.safetensors", step.parent / "model.safetensors")
    meta = json.loads((step / "meta.json").read_text())
    digests = {k: v for k, v in meta.pop("sha256").items() if k != "meta.json"}
    digests[name] = digests["model.safetensors"]
    (step / "meta.json").write_text(checkpoint.sealed(meta | dict(sha256=digests)))
    assert not checkpoint.is_whole(step)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path, umask):
    "safetensors alone would let nobody else read them"
    before = os.umask(umask)
    try:
        (step,) = saved(tmp_path, 1)
        pretrained.to_hf(GPT(CFG), tmp_path / "hf")
        pretrained.to_hf(GPT(CFG), tmp_path / "hf")  # over an earlier one
    finally:
        os.umask(before)
    files = [p for p in (*step.iterdir(), *(tmp_path / "hf").iterdir())]
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files} == {p.name: oct(0o666 & ~umask) for p in files}


def test_load_model_and_state(tmp_path):
    (path,) = saved(tmp_path, 5)
    model, opt = trained()
    loaded = checkpoint.load_model(tmp_path)
    assert not loaded.training and loaded.cfg == CFG
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    fresh = adamw(GPT(CFG), 9.0, 0.1, (0.9, 0.95), "cpu")
    meta, rngs = checkpoint.load_state(path, fresh)
    assert meta["step"] == 5 and len(rngs) == 1 and fresh.param_groups[0]["lr"] == 0.01
    for mine, theirs in zip(fresh.state.values(), opt.state.values()):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"]) and mine["step"] == theirs["step"]


def test_load_model_takes_the_checkpoint_and_the_device_that_are_asked_for(tmp_path):
    a, b = saved(tmp_path, 1, seed=1) + saved(tmp_path, 2, seed=2)
    (tmp_path / "checkpoints" / "best").write_text(a.name)
    (tmp_path / "checkpoints" / "last").write_text(b.name)
    tokenizer.save(tokenizer.CharTokenizer("abc"), tmp_path / "tokenizer.json")
    for path, asked in ((a, {}), (a, dict(which="best")), (b, dict(which="last"))):
        for model in (checkpoint.load_model(tmp_path, **asked), checkpoint.open_model(tmp_path, **asked)[0]):
            assert torch.equal(model.state_dict()["transformer.wpe.weight"], load_file(path / "model.safetensors")["transformer.wpe.weight"])
            assert next(model.parameters()).device == CPU
    assert {p.device.type for p in checkpoint.load_model(tmp_path, device="meta").parameters()} == {"meta"}
    assert {p.device.type for p in checkpoint.open_model(tmp_path, device="meta")[0].parameters()} == {"meta"}


def test_a_choice_that_does_not_exist_is_named_with_its_file(tmp_path):
    (path,) = saved(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    meta["config"]["model"]["n_heads"] = 2
    (path / "meta.json").write_text(checkpoint.sealed(meta))
    with pytest.raises(UserError, match="step_00000001/meta.json.*n_heads"):
        checkpoint.load_model(tmp_path)


class Armed:
    "Unpickled, it makes a file"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_state_that_would_run_code_is_not_run(tmp_path):
    (path,) = saved(tmp_path, 1)
    torch.save(dict(optimizer=trained()[1].state_dict(), rngs=[], more=Armed(tmp_path / "ran")), path / "state.pt")
    with pytest.raises(UserError, match="nothing in it was run .[^(]*[Ww]eights"):
        checkpoint.load_state(path, trained()[1])
    assert not (tmp_path / "ran").exists()


def test_a_state_beside_a_description_that_is_not_ours(tmp_path):
    (path,) = saved(tmp_path, 1)
    (path / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="meta.json names no config"):
        checkpoint.load_state(path, trained()[1])


@pytest.mark.parametrize("error, why", [(RuntimeError("one line\nanother"), "one line"), (EOFError(), "EOFError")])
def test_a_state_that_cannot_be_read_says_why_in_one_line(tmp_path, monkeypatch, error, why):
    def fails(*args, **more):
        raise error

    monkeypatch.setattr(checkpoint.torch, "load", fails)
    with pytest.raises(UserError, match=rf"nothing in it was run \({why}\): use another checkpoint$"):
        checkpoint.load_state(tmp_path, trained()[1])


def test_states_are_loaded_on_the_cpu(tmp_path, monkeypatch):
    (path,) = saved(tmp_path, 1)
    asked, load = [], torch.load
    monkeypatch.setattr(checkpoint.torch, "load", lambda *args, **more: asked.append(more["map_location"]) or load(*args, **more))
    checkpoint.load_state(path, trained()[1])
    assert list(map(torch.device, asked)) == [CPU]


def test_variant_is_rebuilt_by_its_name(tmp_path):
    from gpt2_course.variants import make_gpt

    torch.manual_seed(0)
    llama = make_gpt(CFG, "llama")
    opt = adamw(llama, 0.01, 0.1, (0.9, 0.95), "cpu")
    checkpoint.save(tmp_path, 1, llama, opt, [], dict(config=dict(model=vars(CFG), variant="llama")))
    assert set(checkpoint.load_model(tmp_path).state_dict()) == set(llama.state_dict()) != set(GPT(CFG).state_dict())
    (old,) = saved(tmp_path / "old", 1)
    meta = json.loads((old / "meta.json").read_text())
    del meta["config"]["variant"], meta["sha256"]["meta.json"]
    (old / "meta.json").write_text(json.dumps(meta))
    assert set(checkpoint.load_model(tmp_path / "old").state_dict()) == set(GPT(CFG).state_dict())


def test_what_is_not_ours_is_refused(tmp_path):
    (path,) = saved(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    for wrong, says in (([], "names no config"), ({**meta, "config": 3}, "names no config"), ({**meta, "config": {}}, "names no config"), ({**meta, "format": 2}, "has format 2")):
        (path / "meta.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=says):
            checkpoint.read_description(path)
    with pytest.raises(UserError, match="does not fit the model"):
        checkpoint.load_weights(path, GPT(GPTConfig(**{**vars(CFG), "n_embd": 16})))
    state = load_file(path / "model.safetensors")
    del state["transformer.ln_f.bias"]
    save_file(state, path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit the model: Missing key.*ln_f.bias"):
        checkpoint.load_weights(path, GPT(CFG))
    (path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_weights(path, GPT(CFG))
    for content in (b"nonsense", b""):
        (path / "state.pt").write_bytes(content)
        with pytest.raises(UserError, match="is not a state that this package wrote"):
            checkpoint.load_state(path, trained()[1])
    torch.save(dict(optimizer={}), path / "state.pt")
    with pytest.raises(UserError, match="is not a state"):
        checkpoint.load_state(path, trained()[1])


def test_find_tokenizer(tmp_path):
    tok = tokenizer.CharTokenizer("abc")
    run = tmp_path / "run"
    step = run / "checkpoints" / "step_00000001"
    step.mkdir(parents=True)
    tokenizer.save(tokenizer.CharTokenizer("a"), tmp_path / "tokenizer.json")  # of something else: it is not the run's
    assert checkpoint.find_tokenizer(step) is None
    tokenizer.save(tok, run / "tokenizer.json")
    assert checkpoint.find_tokenizer(run).n_vocab == checkpoint.find_tokenizer(step).n_vocab == tok.n_vocab
    tokenizer.save(tokenizer.CharTokenizer("abcdef"), run / pretrained.OURS)
    assert checkpoint.find_tokenizer(run).n_vocab == 7


def test_open_model(tmp_path, monkeypatch):
    saved(tmp_path, 1, seed=0)
    with pytest.raises(UserError, match="has no tokenizer.json"):
        checkpoint.open_model(tmp_path)
    tokenizer.save(tokenizer.CharTokenizer("abc"), tmp_path / "tokenizer.json")
    model, tok = checkpoint.open_model(tmp_path)
    assert model.cfg == CFG and tok.n_vocab == 4 and checkpoint.open_model(tmp_path / "checkpoints" / "step_00000001")[1].n_vocab == 4
    for nowhere in (tmp_path / "nowhere", "no/such/run", "no-such-model"):
        with pytest.raises(UserError, match="does not exist"):
            checkpoint.open_model(nowhere)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        checkpoint.open_model(tmp_path / "empty")
    asked = []
    monkeypatch.setattr(checkpoint, "from_hf", lambda source: asked.append(source) or GPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4)))
    for hub in ("gpt2", "gpt2-medium", "someone/model"):
        assert checkpoint.open_model(hub)[1].n_vocab == 50257
    assert asked == ["gpt2", "gpt2-medium", "someone/model"]
    monkeypatch.chdir(tmp_path)
    for typo in ("checkpoints/step_9", "empty/model", "gpt3", "a/b/c", "gpt2-"):  # none is on the hub: the folder is here, or the name is none
        with pytest.raises(UserError, match=f"{typo} does not exist"):
            checkpoint.open_model(typo)


@pytest.mark.parametrize("vocab_size, own, n", [(50257, False, 50257), (50257, True, 3), (20, True, 3), (20, False, None), (50258, False, None)])
def test_open_model_of_an_exported_folder(tmp_path, monkeypatch, vocab_size, own, n):
    (tmp_path / "config.json").write_text("{}")
    tokenizer.save(tokenizer.CharTokenizer("abcdefg"), tmp_path / "tokenizer.json")  # transformers' own is no file of ours
    if own:
        tokenizer.save(tokenizer.CharTokenizer("ab"), tmp_path / pretrained.OURS)
    model = GPT(GPTConfig(**{**vars(CFG), "vocab_size": vocab_size}))
    monkeypatch.setattr(checkpoint, "from_hf", lambda source: model)
    if n is None:
        with pytest.raises(UserError, match="has no tokenizer.json"):
            checkpoint.open_model(tmp_path)
    else:
        opened, tok = checkpoint.open_model(tmp_path)
        assert opened is model and tok.n_vocab == n
    assert next(model.parameters()).device == CPU


@pytest.mark.parametrize(
    "keep, best, every, step, left",
    [
        (2, "step_00000010", 0, None, [10, 40, 50]),
        (1, "", 0, None, [50]),
        (1, "", 20, None, [20, 40, 50]),
        (9, "", 0, None, [10, 20, 30, 40, 50]),
        (2, "", 0, 30, [20, 30, 40, 50]),  # what lies beyond the latest was damaged: it is left for somebody to look at
    ],
)
def test_prune(tmp_path, keep, best, every, step, left):
    where = tmp_path / "checkpoints"
    for n in (10, 20, 30, 40, 50):
        (where / f"step_{n:08d}").mkdir(parents=True)
        (where / f"step_{n:08d}" / "model.safetensors").write_text("x")
    (where / ".step_00000060.part").mkdir()
    (where / ".step_00000060.part" / "x").write_text("x")
    checkpoint.prune(tmp_path, keep, best, every, step)
    assert sorted(p.name for p in where.iterdir()) == [f"step_{n:08d}" for n in left]


def test_prune_by_default_keeps_the_newest_and_the_best(tmp_path):
    where = tmp_path / "checkpoints"
    for n in range(1, 6):
        (where / f"step_{n:08d}").mkdir(parents=True)
    checkpoint.prune(tmp_path, 2, "step_00000001")
    assert sorted(p.name for p in where.iterdir()) == [f"step_{n:08d}" for n in (1, 4, 5)]


def test_a_tied_head_is_written_once_and_comes_back(tmp_path):
    (path,) = saved(tmp_path, 1)
    state = load_file(path / "model.safetensors")
    save_file({**state, "transformer.wte.weight": state["transformer.wte.weight"] + 1}, path / "model.safetensors")
    model = GPT(CFG)
    checkpoint.load_weights(path, model)
    assert model.lm_head.weight is model.transformer.wte.weight and torch.equal(model.lm_head.weight[:20], state["transformer.wte.weight"] + 1)
