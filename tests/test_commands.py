"""The commands as a user types them: help, misspelt flags, bad input: one line on stderr, exit status 2, nothing written or lost."""

import dataclasses
import inspect
import json
import shutil

import numpy as np
import pytest
from gpt2_course import config
from gpt2_course.data import HEADER, sha256_file, write_shard

from runs import TINY, refused

COMMANDS = {"train": config.TrainConfig, "prepare": config.PrepareConfig, "sample": config.SampleConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(run, command):
    "Every option is there, with a sentence"
    told = run(["-m", f"gpt2_course.{command}", "--help"], fresh=True, COLUMNS="80").stdout
    for field in dataclasses.fields(COMMANDS[command]):
        name = field.name if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING else config.flag(field.name)
        assert (name.upper() if not name.startswith("--") else name) in told or field.name in ("model", "optim"), name
        hint = next(line for line in inspect.getsource(COMMANDS[command]).splitlines() if line.strip().startswith(f"{field.name}:"))
        first_words = " ".join(hint.partition("# ")[2].split()[:2])
        assert not name.startswith("--") or field.name in ("model", "optim") or first_words in " ".join(told.replace("│", " ").split()), hint


@pytest.mark.parametrize(
    "args, says",
    [
        (["train", "--stepz", "3"], "did you mean --steps?"),
        (["train", "--optim.learning-rate", "3"], "unknown option --optim.learning-rate"),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--steps", "0"], "--steps is 0"),
        (["train", "--micro-batch", "-1"], "--micro-batch is -1"),
        (["train", "--preset", "gpt2-124"], "did you mean gpt2-124m?"),
        (["train", "--model.n-embd", "101"], "not divisible by --model.n-head"),
        (["train", "--model.block-size", "0"], "--model.block-size is 0"),
        (["train", "--optim.lr", "-1"], "--optim.lr is -1"),
        (["train", "--dtype", "float12"], "--dtype 'float12' is unknown (did you mean "),
        (["train", "--device", "gpu"], "--device 'gpu' is unknown"),
        (["train", "--config", "no-such.json"], "no-such.json does not exist"),
        (["train", "--data", "no/such/dir"], "--data no/such/dir does not exist"),
        (["train", "--resume", "--out", "no/such/run"], "no/such/run holds no run"),
        (["prepare", "no-such-file.txt"], "no-such-file.txt matches no file"),
        (["prepare", "README.md"], "is of no known kind"),
        (["prepare", "shakespeare", "--tokenizer", "bpe"], "choose gpt2, char or bpe:VOCAB_SIZE"),
        (["prepare", "shakespeare", "--tokenizer", "bpe:100"], "must have 258 to 65536"),
        (["prepare", "shakespeare", "--val-tokens", "0"], "--val-tokens is 0"),
        (["sample", "no/such/run"], "no/such/run does not exist"),
        (["sample", "runs", "--temperature", "-1"], "--temperature is -1"),
        (["sample", "runs", "--top-k", "0"], "--top-k is 0"),
        (["sample", "runs", "--top-p", "1.5"], "--top-p is 1.5"),
        (["sample", "runs", "--num-samples", "0"], "--num-samples is 0"),
        (["sample", "runs", "--prompt", ""], "--prompt is empty"),
        (["sample", "runs", "--prompt", "FILE:no-such-file"], "cannot be read"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_bad_input_gets_one_line(run, args, says, tmp_path):
    (tmp_path / "README.md").write_text("not a corpus")
    before = sorted(tmp_path.rglob("*"))
    assert says in refused(run(["-m", f"gpt2_course.{args[0]}", *args[1:]], status=2, cwd=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


@pytest.fixture
def broken(data, tmp_path):
    "A copy of prepared data to be damaged, and its first training shard"
    copy = shutil.copytree(data, tmp_path / "data")
    return copy, copy / "train_000000.bin"


def flip_bit(shard):
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)


def damage_magic(shard):
    shard.write_bytes(b"GPT2TOKZ" + shard.read_bytes()[8:])


def damage_version(shard):
    raw = np.frombuffer(shard.read_bytes()[: HEADER.itemsize], HEADER).copy()
    raw["version"] = 9
    shard.write_bytes(raw.tobytes() + shard.read_bytes()[HEADER.itemsize :])


def large_id(shard):
    ids = np.zeros(1000, np.uint16)
    ids[500] = 60000
    write_shard(shard, ids)
    meta = json.loads((shard.parent / "meta.json").read_text())
    meta["shards"][shard.name]["sha256"] = sha256_file(shard)
    (shard.parent / "meta.json").write_text(json.dumps(meta))


DAMAGE = {
    "missing": (lambda s: s.unlink(), "is missing"),
    "empty": (lambda s: s.write_bytes(b""), "is empty"),
    "truncated": (lambda s: s.write_bytes(s.read_bytes()[:-100]), "is cut short"),
    "text": (lambda s: s.write_text("To be, or not to be. " * 10), "is not a shard of tokens"),
    "magic": (damage_magic, "is not a shard of tokens"),
    "version": (damage_version, "has format version 9"),
    "short": (lambda s: write_shard(s, np.zeros(10, np.uint16)), "has no window of 32"),
    "flipped bit": (flip_bit, "has changed since it was prepared"),
    "large id": (large_id, "holds token 60000"),
    "stray": (lambda s: (s.parent / "notes.bin").write_bytes(b"x"), "which meta.json does not name"),
    "no meta": (lambda s: (s.parent / "meta.json").unlink(), "has no meta.json"),
    "garbage meta": (lambda s: (s.parent / "meta.json").write_text("{"), "is not valid JSON"),
    "no tokenizer": (lambda s: (s.parent / "tokenizer.json").unlink(), "does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_data_is_refused(run, broken, tmp_path, kind):
    directory, shard = broken
    act, says = DAMAGE[kind]
    act(shard)
    done = run(["-m", "gpt2_course.train", *TINY, "--data", directory, "--out", tmp_path / "run", "--check"], status=2)
    assert says in refused(done)
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_divide(run, data, tmp_path):
    done = run(["-m", "gpt2_course.train", *TINY, "--data", data, "--batch-tokens", "500", "--out", tmp_path / "run", "--check"], status=2)
    assert "choose 384 or 512" in refused(done)


def test_check_writes_nothing(run, data, tmp_path):
    done = run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "run", "--check"])
    assert "everything is in order" in done.stdout and not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(run, data, one):
    done = run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", one], status=2)
    assert "already holds a run" in refused(done)
    done = run(["-m", "gpt2_course.train", "--out", one, "--resume", "--model.n-embd", "64"], status=2)
    assert "n_embd 32 there, 64 here" in refused(done)


def test_under_torchrun_rank_zero_speaks_once(run, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gpt2_course.train", "--data", tmp_path / "none"]
    done = run(command, status=1, fresh=True)
    assert done.stderr.count("error: ") == 1 and f"--data {tmp_path / 'none'} does not exist" in done.stderr


def test_damaged_checkpoint_falls_back(run, data, one, tmp_path):
    "A flipped bit in the newest checkpoint: the one before it is taken, and that is said"
    out = shutil.copytree(one, tmp_path / "run")
    flip_bit(out / "checkpoints" / "step_00000010" / "model.safetensors")
    done = run(["-m", "gpt2_course.train", "--out", out, "--resume", "--data", data])
    assert "step_00000010 is damaged: falling back" in done.stdout and "at step 5" in done.stdout
    for path in (out / "checkpoints").glob("step_*"):
        (path / "meta.json").write_text("garbage")
    done = run(["-m", "gpt2_course.train", "--out", out, "--resume", "--data", data], status=2)
    assert "has no whole checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_sample(run, one, tmp_path):
    "Same seed, same text; greedy ignores the seed; a prompt longer than the block is cropped, and that is said"
    ask = ["-m", "gpt2_course.sample", one, "--max-new-tokens", "20", "--device", "cpu"]
    first = run([*ask, "--prompt", "HAMLET."], cwd=tmp_path)
    assert first.stdout.count("HAMLET.") == 3 and first.stdout == run([*ask, "--prompt", "HAMLET."]).stdout
    greedy = [run([*ask, "--temperature", "0", "--num-samples", "1", "--seed", s]).stdout for s in "12"]
    assert greedy[0] == greedy[1]
    assert "the model sees its last 32" in run([*ask, "--prompt", "to be or not to be " * 5]).stderr
    (tmp_path / "prompt.txt").write_text("ROMEO.")
    assert run([*ask, "--prompt", f"FILE:{tmp_path / 'prompt.txt'}"]).stdout.startswith("ROMEO.")
    assert "is not among the" in refused(run([*ask, "--prompt", "naïve"], status=2))


def test_config_file_and_flags(run, data, one, tmp_path):
    "--config takes a run's config.json; flags win over it; an unknown key is refused"
    ask = ["-m", "gpt2_course.train", "--config", one / "config.json", "--out", tmp_path / "run", "--check"]
    assert "run     10 steps" in run(ask).stdout and "run     20 steps" in run([*ask, "--steps", "20"]).stdout
    (tmp_path / "c.json").write_text(json.dumps({"stepz": 3}))
    assert "did you mean steps?" in refused(run(["-m", "gpt2_course.train", "--config", tmp_path / "c.json", "--check"], status=2))


def test_prepare_sources(run, tmp_path, repo):
    "Text, JSON lines and parquet, whole documents on each side; a single text is cut in two"
    from gpt2_course.data import open_split, read_meta

    (tmp_path / "one.txt").write_text("A line of text.\n\n" * 2000)
    rows = [json.dumps({"text": f"document {i} " * 50}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    for source, documents in (("one.txt", 2), ("rows.jsonl", 40), (str(repo / "data" / "sample.parquet"), 200)):
        out = tmp_path / "out" / source.replace("/", "_")
        run(["-m", "gpt2_course.prepare", source, "--out", out, "--val-tokens", "1000", "--shard-tokens", "5000"], cwd=tmp_path)
        meta = read_meta(out)
        assert sum(meta["documents"].values()) == documents and min(meta["documents"].values()) >= 1
        for split in ("train", "val"):
            shards = open_split(out, split)
            tokens = np.concatenate(shards)
            assert len(tokens) == meta["tokens"][split] and tokens[-1] == 50256
            assert (tokens == 50256).sum() == meta["documents"][split] and max(map(len, shards)) <= 5000
    again = run(["-m", "gpt2_course.prepare", "rows.jsonl", "--out", tmp_path / "out" / "rows.jsonl"], cwd=tmp_path, status=2)
    assert "was prepared with other settings" in refused(again)
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnot json\n')
    assert "bad.jsonl, line 2" in run(["-m", "gpt2_course.prepare", "bad.jsonl"], cwd=tmp_path, status=2).stderr


def test_a_fault_of_another_rank_is_said_too(run, tmp_path):
    "Rank 1 alone finds the fault: it waits for rank 0, then says it"
    program = tmp_path / "one.py"
    program.write_text(
        "import os, time\nfrom gpt2_course.config import UserError, run\n\n\n"
        "def main():\n    if os.environ['RANK'] == '1': raise UserError('only here')\n    time.sleep(60)\n\n\nrun(main)\n"
    )
    done = run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program], status=1)
    assert done.stderr.count("error: only here") == 1 and "Traceback (most recent call last):\n  File \"" + str(program) not in done.stderr
