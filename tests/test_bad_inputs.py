"""Bad input that other tests leave out: each command, in this process but through `config.run` as under `python -m`, ends with one line, status 2, and nothing written or lost.

Here are the data, the outputs, the configuration files, the checkpoints and the texts; misspelt flags and damaged shards are in test_commands.py, a loss that is no number in
test_trainer.py, half-written checkpoints and malicious pickles in test_reliability.py.
"""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from gpt2_course import config, trainer
from gpt2_course.config import UserError
from gpt2_course.data import HEADER, open_split, sha256_file, write_shard
from gpt2_course.evals import validation_sum
from gpt2_course.generation import generate

from conftest import REPO

SMALL = (
    "--preset nano-char --device cpu --dtype float32 --no-compile --steps 2 --batch-tokens 128 --micro-batch 4 --model.block-size 32 --model.n-layer 1"
    " --model.n-head 2 --model.n-embd 16 --optim.warmup 1 --eval-tokens 512 --sample-every 0"
).split()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Models this small are faster with one thread"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(monkeypatch, capsys):
    "command('train', '--steps', 0) -> exit status, stdout, stderr"

    def command(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            config.run(importlib.import_module(f"gpt2_course.{name}").main)
        return ended.value.code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A prepared corpus and a run of two steps on it"
    root, argv = tmp_path_factory.mktemp("made"), sys.argv
    for name, flags in (
        ("prepare", ["shakespeare", "--tokenizer", "char", "--out", root / "data"]),
        ("train", [*SMALL, "--data", root / "data", "--out", root / "run"]),
    ):
        sys.argv = [name, *map(str, flags)]
        importlib.import_module(f"gpt2_course.{name}").main()
    sys.argv = argv
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    "A directory of one's own with copies of both, to be spoilt; the current directory"
    shutil.copytree(made / "data", tmp_path / "data")
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(root):
    return {p: sha256_file(p) if p.is_file() else None for p in sorted(root.rglob("*"))}


def refused(command, place, name, *argv):
    "The one line of a command that must be refused and must leave everything as it was"
    before = snapshot(place)
    status, out, err = command(name, *argv)
    lines = [line for line in err.strip().splitlines() if not line.rstrip().endswith("/s]")]  # a progress bar may have begun
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in out, (status, out, err)
    after = snapshot(place)
    if name == "prepare":  # what it has begun may stay, if it cannot be taken for a prepared corpus
        assert not (place / "new" / "meta.json").exists()
        after = {p: digest for p, digest in after.items() if not p.is_relative_to(place / "new")}
    assert after == before, "something was written or lost"
    return lines[0]


def edit(path, **new):
    path.write_text(json.dumps({**json.loads(path.read_text()), **new}))


def forge(shard, ids, dtype):
    "A shard that has the right header and digest, and anything as its ids"
    write_shard(shard, np.zeros(len(ids), dtype), dtype)
    shard.write_bytes(shard.read_bytes()[: HEADER.itemsize] + np.ascontiguousarray(ids).tobytes())
    meta = json.loads((shard.parent / "meta.json").read_text())
    meta["shards"][shard.name]["sha256"] = sha256_file(shard)
    (shard.parent / "meta.json").write_text(json.dumps(meta))


def half_width(data):
    raw = bytearray((data / "train_000000.bin").read_bytes())
    head = np.frombuffer(raw[: HEADER.itemsize], HEADER).copy()
    head["itemsize"] = 4
    (data / "train_000000.bin").write_bytes(head.tobytes() + raw[HEADER.itemsize :])


def without_shards(data):
    meta = json.loads((data / "meta.json").read_text())
    edit(data / "meta.json", shards={n: s for n, s in meta["shards"].items() if n.startswith("val")})
    (data / "train_000000.bin").unlink()


def as_file(data):
    shutil.rmtree(data)
    data.write_text("not a directory")


DATA = {
    "no shard": (without_shards, "has no train shard"),
    "empty directory": (lambda d: [p.unlink() for p in d.iterdir()], "has no meta.json"),
    "a file": (as_file, "is a file, not a directory"),
    "uint16 read as uint32": (half_width, "is cut short or too long"),
    "float ids": (lambda d: forge(d / "train_000000.bin", np.linspace(0.5, 9, 2000, dtype=np.float32), "uint32"), "holds token"),
    "negative ids": (lambda d: forge(d / "train_000000.bin", np.full(2000, -1, np.int16), "uint16"), "holds token 65535"),
    "wide ids read as narrow": (lambda d: forge(d / "train_000000.bin", np.arange(2000, dtype=np.uint32)[:1000] + 2**16 - 500, "uint16"), ""),
    "meta.json is a list": (lambda d: (d / "meta.json").write_text("[]"), "is not what prepare writes"),
    "meta.json is not UTF-8": (lambda d: (d / "meta.json").write_bytes(b'"\xff\xfe"'), "is not valid JSON"),
    "tokenizer of another kind": (lambda d: (d / "tokenizer.json").write_text('{"kind": "words"}'), "is not a tokenizer of this package"),
    "validation is missing": (lambda d: (d / "val_000000.bin").unlink(), "is missing"),
}


@pytest.mark.parametrize("kind", DATA)
def test_data(command, place, kind):
    spoil, says = DATA[kind]
    spoil(place / "data")
    assert says in refused(command, place, "train", *SMALL, "--data", "data", "--out", "new")


@pytest.mark.parametrize("ids, says", [([1.5, 2.0], "not float64"), ([3, -1], "ids from -1 to 3"), ([70_000], "do not fit uint16"), ([True], "not bool")])
def test_a_shard_holds_ids_or_is_not_written(tmp_path, ids, says):
    with pytest.raises(UserError, match=says):
        write_shard(tmp_path / "x.bin", np.array(ids))
    assert not list(tmp_path.iterdir())


def test_more_ranks_than_windows(place):
    "Handled: ranks without a validation window add nothing, and the sum is that of one process"
    from gpt2_course.checkpoint import load_model

    model, val = load_model(place / "run"), [np.asarray(open_split("data", "val")[0][:100])]
    one = validation_sum(model, val, 4, 0, 0, 1)
    torch.testing.assert_close(sum(validation_sum(model, val, 4, 0, r, 8) for r in range(8)), one, rtol=1e-6, atol=0)
    assert one[1] == 96


TRAIN = [
    ("--batch-tokens 0", "--batch-tokens is 0"),
    ("--micro-batch 0", "--micro-batch is 0"),
    ("--seed -1", "--seed is -1"),
    ("--seed 99999999999999999999", "below 2**63"),
    ("--keep 0", "--keep is 0"),
    ("--eval-every -5", "--eval-every is -5"),
    ("--steps 2.5", "--steps"),
    ("--model.n-layer 0", "--model.n-layer is 0"),
    ("--model.dropout 1", "--model.dropout is 1"),
    ("--model.vocab-size 10", "is below the 85 tokens"),
    ("--optim.lr nan", "--optim.lr is nan"),
    ("--optim.lr inf", "or infinite"),
    ("--optim.min-lr 1", "is above --optim.lr"),
    ("--optim.beta2 1", "--optim.beta2 is 1"),
    ("--optim.warmup 3", "is longer than --steps 2"),
    ("--batch-tokens 100", "choose 128"),
    ("--attention flash", "--attention 'flash' is unknown"),
    ("--order shuffled", "--order 'shuffled' is unknown"),
    ("--log tensorbord", "did you mean tensorboard?"),
    ("--preset nano-chr", "did you mean nano-char?"),
    ("--init-from data", "data"),
    ("--init-from no/such", "no/such"),
    ("--resume --out new", "new holds no run"),
    ("--eval-only --out new", "new does not exist"),
    ("--out file", "--out file is a file"),
    ("--out file/run", "cannot be written"),
    ("--config missing.json", "missing.json does not exist"),
    ("--config data", "data cannot be read"),
]


@pytest.mark.parametrize("flags, says", TRAIN, ids=[flags for flags, _ in TRAIN])
def test_train_options(command, place, flags, says):
    (place / "file").write_text("in the way")
    assert says in refused(command, place, "train", *SMALL, "--data", "data", "--out", "elsewhere", *flags.split())


def test_a_prompt_that_the_tokenizer_lacks(command, place):
    assert "is not among the" in refused(command, place, "train", *SMALL, "--data", "data", "--out", "new", "--sample-prompt", "naïve")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(command, place):
    for name in ("train", "evaluate", "sample"):
        ask = dict(train=[*SMALL, "--data", "data", "--out", "new"], evaluate=["run", "--data", "data"], sample=["run"])[name]
        assert "torch sees no CUDA GPU here" in refused(command, place, name, *ask, "--device", "cuda")


def test_no_bf16(monkeypatch):
    "A GPU without bf16: asked for, it is refused; by default fp16 is taken"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="use float16"):
        trainer.pick_dtype("bfloat16", torch.device("cuda"))
    assert trainer.pick_dtype("auto", torch.device("cuda")) == torch.float16


def test_out_cannot_be_written(command, place, monkeypatch):
    monkeypatch.setattr(trainer.os, "access", lambda path, mode: False)
    assert "cannot be written: choose another directory" in refused(command, place, "train", *SMALL, "--data", "data", "--out", "new/run")


CONFIGS = {
    "a list": ("[1, 2]", "is not an object of options"),
    "a word": ('"nano"', "is not an object of options"),
    "text for a number": ('{"steps": "many"}', "steps is 'many', but should be int"),
    "fraction for a whole number": ('{"steps": 2.5}', "steps is 2.5, but should be int"),
    "number for a switch": ('{"compile": 1}', "compile is 1, but should be bool"),
    "switch for a number": ('{"steps": true}', "steps is True, but should be int"),
    "null": ('{"data": null}', "data is None, but should be str"),
    "model is no object": ('{"model": 3}', "3 is not an object"),
    "unknown inside": ('{"model": {"n_layers": 3}}', "did you mean n_layer?"),
    "impossible inside": ('{"optim": {"lr": NaN}}', "--optim.lr is nan"),
    "loggers are no list": ('{"log": "wandb"}', "log is 'wandb', but should be"),
    "empty": ("", "is not valid JSON"),
    "not UTF-8": ("\udcff", "is not valid JSON"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_config_files(command, place, kind):
    text, says = CONFIGS[kind]
    (place / "c.json").write_text(text, errors="surrogateescape")
    assert says in refused(command, place, "train", "--config", "c.json", "--data", "data", "--out", "new")


def no_checkpoint(place):
    for path in (place / "run" / "checkpoints").glob("step_*"):
        shutil.rmtree(path)


def other_data(place):
    meta = json.loads((place / "data" / "meta.json").read_text())
    ids = np.array(open_split("data", "train")[0][:5000])
    write_shard(place / "data" / "train_000000.bin", ids)
    meta["shards"]["train_000000.bin"]["sha256"] = sha256_file(place / "data" / "train_000000.bin")
    (place / "data" / "meta.json").write_text(json.dumps(meta))


def other_format(place):
    from gpt2_course.checkpoint import sealed

    path = next((place / "run" / "checkpoints").glob("step_*")) / "meta.json"
    path.write_text(sealed({**json.loads(path.read_text()), "format": 99}))


RESUMES = {
    "no checkpoint": (no_checkpoint, "", "has no whole checkpoint"),
    "other data": (other_data, "", "is not the data that"),
    "another shape": (lambda place: None, "--model.n-head 4", "n_head 2 there, 4 here"),
    "another format": (other_format, "", "has format 99, this package reads 1"),
    "config.json is garbage": (lambda place: (place / "run" / "config.json").write_text("{"), "", "is not valid JSON"),
    "config.json of a later version": (lambda place: edit(place / "run" / "config.json", new_option=1), "", "unknown option 'new_option'"),
}


@pytest.mark.parametrize("kind", RESUMES)
def test_resume(command, place, kind):
    spoil, flags, says = RESUMES[kind]
    spoil(place)
    assert says in refused(command, place, "train", "--data", "data", "--out", "run", "--resume", *flags.split())


def test_eval_only_reads_the_weights_even_with_resume(command, place):
    "Both flags together: the loss of the run's weights, not of fresh ones"
    status, out, _ = command("train", "--data", "data", "--out", "run", "--resume", "--eval-only")
    assert status == 0
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert json.loads(out.splitlines()[-1])["loss"] == pytest.approx(min(r["loss"] for r in rows if r["split"] == "val"), rel=1e-5)


def damage(place):
    path = next((place / "run" / "checkpoints").glob("step_*"))
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1] + b"x")
    path.rename(place / "step")


SAMPLES = [
    ("run --temperature nan", "--temperature is nan"),
    ("run --top-k -1", "--top-k is -1"),
    ("run --top-p 0", "--top-p is 0"),
    ("run --top-p -0.5", "--top-p is -0.5"),
    ("run --max-new-tokens 0", "--max-new-tokens is 0"),
    ("run --num-samples -2", "--num-samples is -2"),
    ("run --checkpoint worst", "--checkpoint 'worst' is unknown"),
    ("run --device tpu", "--device 'tpu' is unknown"),
    ("run --prompt FILE:latin.txt", "is not UTF-8 text"),
    ("run --prompt FILE:empty.txt", "is empty"),
    ("run --prompt FILE:data", "cannot be read"),
    ("step", "step is damaged"),
    ("data", "data"),
    ("latin.txt", "latin.txt"),
    ("", "RUN"),
]


@pytest.mark.parametrize("args, says", SAMPLES, ids=[args or "nothing" for args, _ in SAMPLES])
def test_sample(command, place, args, says):
    (place / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (place / "empty.txt").write_text("")
    if args == "step":
        damage(place)
    assert says in refused(command, place, "sample", *args.split())


def test_more_top_k_than_tokens_is_all_of_them(place):
    "Handled: a top_k above the vocabulary changes nothing"
    from gpt2_course.checkpoint import load_model

    model, idx = load_model("run"), torch.zeros(1, 1, dtype=torch.long)
    ask = lambda k: generate(model, idx, 20, top_k=k, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ask(10_000), ask(None))


def test_pointers_that_point_nowhere(command, place):
    "Handled: the newest whole checkpoint is taken"
    for bad in (b"step_99999999", b"\xff\xfe\x00", b""):
        (place / "run" / "checkpoints" / "best").write_bytes(bad)
        assert command("sample", "run", "--num-samples", "1", "--max-new-tokens", "2", "--device", "cpu")[0] == 0


OTHERS = [
    ("evaluate run --task perplexity --data data", "--task 'perplexity' is unknown"),
    ("evaluate run", "--task val needs --data"),
    ("evaluate run --data data --limit -1", "--limit is -1"),
    ("evaluate run --data data --batch-tokens 0", "--batch-tokens is 0"),
    ("evaluate run --task hellaswag --data words.txt", "words.txt"),
    ("evaluate run --task lambada --data rows.jsonl", "rows.jsonl"),
    ("evaluate run --task lambada --data missing.jsonl", "missing.jsonl"),
    ("evaluate no/such/run --data data", "no/such/run"),
    ("export run data", "is not empty"),
    ("export no/such/run hf", "no/such/run"),
    ("export run words.txt/hf", "words.txt"),
    ("prepare empty.txt --out new", "give more text"),
    ("prepare latin.txt --out new", "latin.txt"),
    ("prepare rows.jsonl --out new", "rows.jsonl, line 1"),
    ("prepare bad.parquet --out new", "bad.parquet"),
    ("prepare other.parquet --out new", "other.parquet"),
    ("prepare nothing*.txt --out new", "nothing*.txt matches no file"),
    ("prepare words.txt --out latin.txt", "latin.txt"),
    ("prepare words.txt --out latin.txt/new", "latin.txt"),
    ("prepare words.txt --shard-tokens -1 --out new", "--shard-tokens is -1"),
    ("prepare words.txt --tokenizer bpe:-5 --out new", "--tokenizer 'bpe:-5' is unknown"),
    ("prepare words.txt --tokenizer bpe:99999999 --out new", "must have 258 to 65536"),
    ("prepare", "SOURCE"),
    ("plan --gpus 0", "--gpus"),
    ("plan --gpu abacus", "abacus"),
    ("plan --tokens -1", "--tokens"),
    ("plan --preset gpt3", "gpt3"),
    ("doctor no/such/run", "no/such/run"),
    ("doctor words.txt", "words.txt"),
    ("doctor data", "data"),
]


@pytest.mark.parametrize("args, says", OTHERS, ids=[args for args, _ in OTHERS])
def test_other_commands(command, place, args, says):
    (place / "words.txt").write_text("A line of text.\n\n" * 500)
    (place / "empty.txt").write_text("")
    (place / "latin.txt").write_bytes("naïve. ".encode("latin-1") * 2000)
    (place / "rows.jsonl").write_text('{"words": "no field of the right name"}\n' * 50)
    (place / "bad.parquet").write_bytes(b"PAR1 and no more")
    if "other.parquet" in args:
        pa = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pa.table(dict(words=["a", "b"])), place / "other.parquet")
    name, *argv = args.split()
    assert says in refused(command, place, name, *argv)


def test_the_seed_of_a_sample(command, place):
    "Any whole number is a seed, or is refused in a line"
    for seed, status in (("-1", {0, 2}), ("99999999999999999999", {2})):
        code, _, err = command("sample", "run", "--seed", seed, "--num-samples", "1", "--max-new-tokens", "2", "--device", "cpu")
        assert code in status and "Traceback" not in err, (seed, err)


def test_every_command_is_tried():
    guarded = {p.stem for p in (REPO / "gpt2_course").glob("*.py") if 'if __name__ == "__main__"' in p.read_text("utf-8")}
    tried = {"train", "sample", *(args.split()[0] for args, _ in OTHERS)}
    assert {"train", "sample", "prepare"} < tried <= guarded
