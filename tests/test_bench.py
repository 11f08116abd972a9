"""The contest: parity before any time, turns, ratios pair by pair, and one line for whatever cannot be."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from gpt2_course import bench, tokenizer
from gpt2_course.config import GPTConfig, UserError

from conftest import REPO
from runs import refused

QUICKLY = ["--threads", 1, "--seconds", 0.001, "--rounds", 2, "--model.n-layer", 1, "--rows", 2]
CPU = torch.device("cpu")

NANOGPT = """
import torch
from dataclasses import dataclass
from torch.nn import functional as F
from gpt2_course.config import GPTConfig as Shape
from gpt2_course.model import GPT as Ours

@dataclass
class GPTConfig:
    block_size: int = 8
    vocab_size: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    dropout: float = 0.0
    bias: bool = True

class GPT(Ours):
    def __init__(self, config):
        super().__init__(Shape(**vars(config)))
        print("a peer may print")

    def forward(self, idx, targets=None):
        logits = super().forward(idx) * SCALE
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    @torch.no_grad()
    def generate(self, idx, n, top_k=None):
        assert top_k == 1
        for _ in range(n):
            idx = torch.cat([idx, self(idx)[0][:, -1:].argmax(-1)], 1)
        return idx

    def configure_optimizers(self, decay, lr, betas, kind):
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas)
"""
TRAIN = """
raise SystemExit("this would train")
def get_batch(split):
    data = np.memmap(os.path.join(data_dir, split + ".bin"), dtype=np.uint16, mode="r")
    at = torch.randint(len(data) - block_size, (batch_size,)).tolist()
    return tuple(torch.from_numpy(np.stack([data[i + k : i + k + block_size].astype(np.int64) for i in at])) for k in (0, 1))
"""
BOOK = """
import torch, torch.nn as nn, torch.nn.functional as F

class Norm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
    def forward(self, x): return F.layer_norm(x, x.shape[-1:], self.scale, self.shift)

class Att(nn.Module):
    def __init__(self, C, n):
        super().__init__()
        self.W_query, self.W_key, self.W_value, self.out_proj = (nn.Linear(C, C) for _ in range(4))
        self.n = n
    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.n, -1)).transpose(1, 2) for f in (self.W_query, self.W_key, self.W_value))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

class FF(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(approximate="tanh"), nn.Linear(4 * C, C))
    def forward(self, x): return self.layers(x)

class Block(nn.Module):
    def __init__(self, C, n):
        super().__init__()
        self.att, self.ff, self.norm1, self.norm2 = Att(C, n), FF(C), Norm(C), Norm(C)
    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))

class GPTModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C = cfg["emb_dim"]
        self.tok_emb, self.pos_emb = nn.Embedding(cfg["vocab_size"], C), nn.Embedding(cfg["context_length"], C)
        self.trf_blocks = nn.Sequential(*[Block(C, cfg["n_heads"]) for _ in range(cfg["n_layers"])])
        self.final_norm, self.out_head = Norm(C), nn.Linear(C, cfg["vocab_size"], bias=False)
    def forward(self, idx): return self.out_head(self.final_norm(self.trf_blocks(self.tok_emb(idx) + self.pos_emb.weight[: idx.size(1)])))

@torch.no_grad()
def generate_text_simple(model, idx, n, context_size):
    for _ in range(n):
        idx = torch.cat([idx, model(idx[:, -context_size:])[:, -1:].argmax(-1)], 1)
    return idx

def generate_text_simple_cached(model, idx, n, context_size): return generate_text_simple(model, idx, n, context_size)
"""


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    "Directories that look like the clones, with code of our own in them"
    root = tmp_path_factory.mktemp("peers")
    files = {
        "nano/model.py": NANOGPT.replace("SCALE", "1"),
        "nano/train.py": "import os, numpy as np, torch\nfrom no_such_package import anything\n" + TRAIN,
        "wrong/model.py": NANOGPT.replace("SCALE", "1.1"),
        "broken/model.py": "raise RuntimeError('no such thing here')\n",
        "build/train_gpt2.py": NANOGPT.replace("SCALE", "1").replace("kind):", "kind, *more):").replace("decay, lr, betas", "decay, lr")
        .replace("betas=betas", "betas=(0.9, 0.95)").replace("    bias: bool = True\n", "").replace("    dropout: float = 0.0\n", "")
        + "\nraise SystemExit('this would train')\n",
        "book/" + bench.LLMS["plain"]: BOOK,
        "book/" + bench.LLMS["cached"]: BOOK,
        "book/pkg/llms_from_scratch/__init__.py": "",
        "empty/readme": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def everybody(peers):
    return ["--nanogpt", peers / "nano", "--build-nanogpt", peers / "build", "--llms-from-scratch", peers / "book"]


def test_training_beside_four_peers(run, peers, tmp_path):
    "Types, compilation, losses; a report that says where it comes from and names no directory"
    pytest.importorskip("transformers")
    out = tmp_path / "train.json"
    ours = ["--ours", "dtype=float32,keep=False", "dtype=bfloat16,attention=manual,loss=chunked"]
    more = ["--theirs", "compile=False,dtype=float32", "--out", out]
    done = run(["-m", "gpt2_course.bench", "train", *QUICKLY, *everybody(peers), *ours, *more])
    text = out.read_text("utf-8")
    r = json.loads(text)
    assert str(peers) not in text and "--nanogpt NANOGPT" in r["command"] and r["command"].startswith("python -m gpt2_course.bench train")
    assert [c["name"].split(" (")[0] for c in r["contenders"]] == ["ours", "ours", "Hugging Face", "nanoGPT", "build-nanogpt", "LLMs-from-scratch"]
    assert [c["facts"]["dtype"] for c in r["contenders"]] == ["float32", "bfloat16"] + ["float32"] * 4
    assert all(len(c["seconds"]) == 2 and c["per_second"] > 0 and c["peak_bytes"] > 1e7 for c in r["contenders"])
    assert r["contenders"][0]["unit"] == 2 * 64 and r["contenders"][1]["facts"]["loss"] == "chunked"
    assert len(r["ratios"]) == 2 * 5 and all(p["low"] <= p["median"] <= p["high"] for p in r["ratios"])
    assert r["machine"]["packages"]["torch"] == torch.__version__ and r["shape"]["model"]["n_layer"] == 1 and len(r["date"]) == 10
    assert "nanoGPT (compile=False,dtype=float32): as ours (dtype=float32,keep=False), within rounding" in r["parity"]
    assert "the same result, checked first" in done.stdout and "a peer may print" not in done.stdout
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_generation_beside_four_peers(run, peers, tmp_path):
    "Float32 writes the same tokens, whoever writes; fewer bits say how far they agree"
    pytest.importorskip("transformers")
    out = tmp_path / "generate.json"
    ours = ["--ours", "", "weights=int8", "cache=False,quick=False", "--theirs", "dtype=float32", "--out", out]
    run(["-m", "gpt2_course.bench", "generate", *QUICKLY, *everybody(peers), *ours])
    r = json.loads(out.read_text("utf-8"))
    agree = {c["name"]: c["same_tokens"] for c in r["contenders"]}
    assert len(agree) == 8 and "LLMs-from-scratch, KV cache (dtype=float32)" in agree
    assert all(share == 1 for name, share in agree.items() if "int8" not in name) and 0 <= agree["ours (weights=int8)"] <= 1
    assert r["per"] == "tokens" and r["contenders"][0]["unit"] == 2 * r["shape"]["new"] == 48
    assert "ours (weights=int8): as ours, within rounding" in r["parity"] and "Hugging Face (dtype=float32): as ours" in r["parity"]


@pytest.mark.parametrize("work", ["train", "generate"])
def test_another_result_is_never_timed(run, peers, tmp_path, work):
    "A peer whose logits are a tenth larger"
    out = tmp_path / "no.json"
    theirs = "dtype=float32,compile=False" if work == "train" else "dtype=float32"
    args = ["--no-hf", "--nanogpt", peers / "wrong", "--theirs", theirs, "--ours", "", "--out", out]
    done = run(["-m", "gpt2_course.bench", work, *QUICKLY, *args], status=2)
    line = refused(done)
    assert f"parity: nanoGPT ({theirs}) against ours" in line and "nothing was timed" in line
    assert not out.exists() and not done.stdout


@pytest.mark.parametrize(
    "args,told",
    [
        ([], "no WORK given: choose from train, generate"),
        (["--rounds", "2"], "no WORK given"),
        (["trian"], "WORK 'trian' is unknown (did you mean train?)"),
        (["train", "--preset", "nanoo"], "--preset 'nanoo' is unknown (did you mean nano?)"),
        (["train", "--rounds", "0"], "--rounds is 0"),
        (["train", "--seconds", "0"], "--seconds is 0"),
        (["train", "--ours", "atention=sdpa"], "--ours 'atention=sdpa': unknown option 'atention' (did you mean attention?)"),
        (["train", "--ours", "compile"], "'compile' is not KEY=VALUE"),
        (["train", "--theirs", "dtype=bf16"], "--theirs 'dtype=bf16': dtype 'bf16' is unknown (did you mean bfloat16?)"),
        (["generate", "--ours", "weights=int4"], "weights 'int4' is unknown"),
        (["generate", "--new-tokens", "1000"], "do not fit into --model.block-size 64"),
        (["generate", "--run", "nowhere"], "nowhere does not exist"),
        (["tokenize", "--text", "nowhere.txt"], "--text nowhere.txt cannot be read"),
        (["tokenize", "--ours", "workers=two"], "workers is a number"),
        (["load", "--out", "report.txt"], "--out report.txt: give a .json file"),
        (["load", "--out", "no/such/report.json"], "in a directory that exists"),
        (["train", "--nanogpt", "."], "--nanogpt . has no model.py: give a clone of nanoGPT"),
        (["train", "--device", "tpu"], "--device 'tpu' is unknown"),
        (["train", "--model.n-head", "3"], "not divisible"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, args, told):
    line = refused(run(["-m", "gpt2_course.bench", *args], status=2, cwd=tmp_path))
    assert told in line
    assert not list(tmp_path.iterdir())


def test_a_peer_that_fails_is_named(run, peers):
    line = refused(run(["-m", "gpt2_course.bench", "train", *QUICKLY, "--no-hf", "--nanogpt", peers / "broken"], status=2))
    assert line == "error: nanoGPT failed (RuntimeError: no such thing here): mend it, or leave it out"


def test_a_process_that_is_killed_is_named(tmp_path):
    job = bench.Contender(dict(name="theirs", threads=1, device="cpu", work="none"))
    job.process.kill()
    with pytest.raises(UserError, match="theirs failed \\(killed by signal 9: was memory short"):
        job.ask("ready")
    job.close()


def test_without_transformers_one_line_says_so(monkeypatch):
    monkeypatch.setattr(bench, "hugging_face", lambda: False)
    said = []
    assert bench.peers_of(bench.BenchConfig("train"), said.append) == []
    assert said == ["Hugging Face does not take part: pip install 'gpt2_course[hf]'"]


def test_help_says_everything(run):
    told = run(["-m", "gpt2_course.bench", "--help"], COLUMNS="80").stdout
    for f in dataclasses.fields(bench.BenchConfig):
        assert f.name == "work" or "--" + f.name.replace("_", "-") in told, f.name


def test_turns_are_taken():
    "A B, then B A; each as often in a turn as it needs"
    order = []

    class Fake:
        def __init__(self, name, seconds):
            self.name, self.seconds, self.times = name, seconds, []

        def ask(self, what, n):
            order.append(self.name)
            return self.seconds * n

    field = [Fake("a", 0.1), Fake("b", 0.4)]
    bench.compete(field, dataclasses.replace(bench.BenchConfig("load"), rounds=3, seconds=1.0), pause=0)
    assert "".join(order[2:]) == "abbaab" and [c.n for c in field] == [10, 3]
    assert field[0].times == pytest.approx([0.1] * 3) and field[1].times == pytest.approx([0.4] * 3)
    assert bench.ratios([1.0, 2.0], [2.0, 2.0]) == dict(median=1.5, low=1.0, high=2.0)


@pytest.mark.parametrize(
    "work,a,b,exact,told",
    [
        ("train", dict(losses=[1.0, 2.0]), dict(losses=[1.0, 2.001]), True, "losses of three steps differ by 0.001"),
        ("train", dict(losses=[1.0], norms=[1.0]), dict(losses=[1.001], norms=[1.01]), False, None),
        ("train", dict(losses=[1.0], norms=[1.0]), dict(losses=[1.0], norms=[1.01]), True, "gradients of three steps differ in length by 0.01"),
        ("train", dict(losses=[1.0]), dict(losses=[float("nan")]), False, "losses of three steps differ by nan"),
        ("generate", dict(scores=[[1.0]], tokens=[[1, 2]]), dict(scores=[[1.0]], tokens=[[1, 3]]), True, "other tokens"),
        ("generate", dict(scores=[[1.0]], tokens=[[1, 2]]), dict(scores=[[1.01]], tokens=[[1, 3]]), False, None),
        ("generate", dict(scores=[[1.0]], tokens=[[1, 2]]), dict(scores=[[1.1]], tokens=[[1, 2]]), False, "scores differ by 0.1 of the largest"),
        ("evaluate", dict(answers=[0] * 100), dict(answers=[0] * 99 + [1]), True, None),
        ("evaluate", dict(answers=[0] * 100), dict(answers=[0] * 98 + [1, 2]), True, "2 of 100 answers differ"),
        ("tokenize", dict(ids="a"), dict(ids="b"), True, "other token ids"),
    ],
)
def test_what_counts_as_the_same(work, a, b, exact, told):
    assert bench.differs(work, a, b, exact) == told


def job_of(tmp_path, work, **kw):
    "What `bench` hands to a process"
    cfg = bench.stage(bench.BenchConfig(work, hf=False, rows=3, model=GPTConfig(16, 320, 1, 2, 16), **kw), tmp_path)
    return dict(dataclasses.asdict(cfg), folder=str(tmp_path))


def test_tokenizers_agree_on_any_text(tmp_path):
    "Ours alone and in processes, tiktoken, Hugging Face's: also on what looks like a special token"
    text = "Ünïcode 🎭, 1234567, <|endoftext|> in the text,\n\n   and    blanks \t" + "".join(map(chr, range(0x300, 0x420)))
    file = tmp_path / "text.txt"
    file.write_text(text, "utf-8")
    job = job_of(tmp_path, "tokenize", text=str(file))
    made = [bench.tokenize_ours(job, {}, CPU), bench.tokenize_ours(job, dict(workers=2), CPU), bench.tokenize_tiktoken(job, {}, CPU)]
    want = bench.digest(np.array(tokenizer.gpt2().encode_ordinary(text)))
    assert all(c["same"]() == dict(ids=want) and c["unit"] == len(text.encode()) for c in made)
    pytest.importorskip("tokenizers")
    plain = text.replace("<|endoftext|>", "")
    file.write_text(plain, "utf-8")
    theirs = bench.tokenize_hf(job, {}, CPU)["same"]()
    assert theirs == dict(ids=bench.digest(np.array(tokenizer.gpt2().encode_ordinary(plain))))


def test_batches_are_compared_at_the_same_offsets(tmp_path, peers):
    "Their get_batch comes out of a script that would train"
    job = job_of(tmp_path, "load", nanogpt=str(peers / "nano"))
    ours, theirs = (make(job, {}, CPU) for make in (bench.load_ours, bench.load_nanogpt))
    assert ours["same"]() == theirs["same"]() and ours["unit"] == theirs["unit"] == 3 * 16
    x, y = theirs["work"]()
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_answers_agree(tmp_path):
    job = job_of(tmp_path, "evaluate", examples=30)
    a, b = (make(job, {}, CPU)["same"]()["answers"] for make in (bench.evaluate_ours, bench.evaluate_plain))
    assert a == b and len(a) == 30 and len(set(a)) > 1


HELD = """
import torch
from gpt2_course import bench
cpu = torch.device("cpu")
held = torch.ones(2**27)
high = bench.peak_memory(cpu)
del held
bench.forget_peak(cpu)
print(high - bench.peak_memory(cpu))
"""


def test_memory_is_that_of_the_work(run):
    "Half a gigabyte that was held before the work began is not counted (in a process of its own: a trainer in this one keeps its memory)"
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("Linux forgets a peak on request")
    assert int(run(["-c", HELD]).stdout) > 2**28


def test_options_become_a_contender_each():
    cfg = bench.BenchConfig("train", ours=("", "compile=False"), theirs=("", "dtype=bfloat16"))
    assert [c["name"] for c in bench.field_of(cfg, ["nanogpt"])] == ["ours", "ours (compile=False)", "nanoGPT", "nanoGPT (dtype=bfloat16)"]
    assert bench.read_options(["generate", "--preset", "gpt2-124m"]).model == GPTConfig()
    assert bench.read_options(["train", "--preset", "gpt2-124m"]).model.vocab_size == 50304
    assert bench.parse_spec("loss=chunked,keep=false", bench.TRAINS, "--ours") == dict(loss="chunked", keep=False)


def test_the_summary_names_the_fastest_other(tmp_path):
    "Ours by speed, each beside the fastest of the others; the step that a loader is compared with is no contender"
    row = lambda name, speed, peak: dict(name=name, per_second=speed, peak_bytes=peak)
    pair = lambda ours, other, x: dict(ours=ours, other=other, median=x, low=x - 0.5, high=x + 0.5)
    rows = [row("ours", 10.0, 300), row("ours (weights=int8)", 30.0, 100), row("A", 2.0, 50), row("B", 5.0, 400), row(bench.STEP, 99.0, 1)]
    pairs = [pair(o, b, x) for o, b, x in (("ours", "A", 5.0), ("ours", "B", 2.0), ("ours (weights=int8)", "A", 15.0), ("ours (weights=int8)", "B", 6.0))]
    (tmp_path / "generate.json").write_text(json.dumps(dict(per="tokens", contenders=rows, ratios=pairs)))
    (tmp_path / "ladder-cpu.json").write_text(json.dumps(dict(rungs=[])))
    found = bench.reports(tmp_path)
    assert list(found) == ["generate"]
    lines = bench.summary(found).splitlines()
    said = ["generate: the fastest other is B", "weights=int8 30 tokens/s 6.00 x (5.50-6.50), memory 0.25 x", "default 10 tokens/s 2.00 x (1.50-2.50), memory 0.75 x"]
    assert [" ".join(line.split()) for line in lines] == said
    assert bench.summary(found, every=False).splitlines() == lines[:2]


def test_the_summary_of_what_is_committed_fits_a_page():
    "The site's column holds some 90 letters; longer lines would break in the middle"
    lines = bench.summary(bench.reports(REPO / "assets/bench")).splitlines()
    assert len(lines) > 7 and max(map(len, lines)) <= 90


def test_the_committed_reports_say_where_they_come_from():
    for path in sorted((REPO / "assets/bench").glob("*.json")):
        r = json.loads(path.read_text("utf-8"))
        if path.name.startswith("ladder-"):
            assert {"date", "device", "torch", "model", "rows", "rounds"} <= set(r) and r["command"].startswith("python -m gpt2_course.speed "), path
            assert all(len(rung["ms"]) == r["rounds"] and rung["losses"] for rung in r["rungs"]), path
            continue
        assert {"date", "command", "machine", "shape", "parity", "contenders", "ratios"} <= set(r), path
        assert r["command"].startswith("python -m gpt2_course.bench ") and r["machine"]["packages"]["torch"], path
        assert path.with_suffix(".png").exists() and all(len(c["seconds"]) == r["rounds"] for c in r["contenders"]), path


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("work", ["train", "generate"])
def test_a_contest_on_a_gpu(run, tmp_path, work):
    pytest.importorskip("transformers")
    out = tmp_path / "gpu.json"
    run(["-m", "gpt2_course.bench", work, "--device", "cuda", "--rounds", 2, "--seconds", 0.05, "--theirs", "dtype=bfloat16", "--out", out])
    r = json.loads(out.read_text("utf-8"))
    assert r["machine"]["device"] == torch.cuda.get_device_name() and len(r["contenders"]) == 2
