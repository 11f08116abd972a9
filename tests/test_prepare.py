"""Preparing a corpus: the same shards whatever the number of processes, however often it is killed and however bad the network is."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiktoken
import tiktoken_ext.openai_public
from gpt2_course import config, prepare, tokenizer
from gpt2_course.config import PrepareConfig, UserError
from gpt2_course.data import open_split, verify
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import REPO, offline_env
from fake_hub import Hub
from runs import refused

EOT = 50256
SAMPLE = REPO / "data" / "sample.parquet"
FINEWEB = "HuggingFaceFW/fineweb-edu"
SMALL = ["--val-tokens", "1000", "--shard-tokens", "5000"]


def sample_texts() -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(SAMPLE)["text"].to_pylist()


def parquet(texts, rows=7) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "url": ["http://example.com"] * len(texts)}), out, row_group_size=rows)
    return out.getvalue()


def shards(directory) -> dict[str, bytes]:
    "All that a preparation leaves, and a proof that it is sound"
    verify(directory)
    names = {path.name for path in Path(directory).iterdir()}
    assert {n for n in names if not n.endswith(".bin")} == {"meta.json", "tokenizer.json"}, names
    return {n: (Path(directory) / n).read_bytes() for n in sorted(names) if n.endswith(".bin")}


def tokens(directory, split) -> list[int]:
    return np.concatenate(open_split(directory, split)).tolist()


# --- tokens ---


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ids_are_tiktokens_own_for_any_number_of_workers(run, tmp_path, workers):
    ranks = tokenizer.load_ranks(REPO / "data" / "gpt2.tiktoken", tokenizer.GPT2_SHA256)
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=tiktoken_ext.openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOT}
    )
    want = [id for text in sample_texts() for id in theirs.encode_ordinary(text) + [EOT]]
    run(["-m", "gpt2_course.prepare", SAMPLE, "--out", tmp_path / "a", *SMALL, "--workers", workers])
    shards(tmp_path / "a")
    assert tokens(tmp_path / "a", "val") + tokens(tmp_path / "a", "train") == want


def test_shards_do_not_depend_on_the_number_of_workers(run, tmp_path):
    "Chunks of very unequal size, so that workers finish out of turn"
    rng, book = random.Random(1), " ".join(sample_texts())
    texts = [book[: rng.choice([10, 1000, 10**5, 6 * 10**5])] for _ in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    for workers in (0, 2, 3):
        run(["-m", "gpt2_course.prepare", tmp_path / "rows.jsonl", "--out", tmp_path / str(workers), "--shard-tokens", "300000", "--workers", workers])
    assert shards(tmp_path / "0") == shards(tmp_path / "2") == shards(tmp_path / "3")
    assert (tmp_path / "0" / "meta.json").read_text() == (tmp_path / "3" / "meta.json").read_text()


DOCUMENTS = st.lists(st.integers(0, 60), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DOCUMENTS, st.integers(1, 25), st.integers(1, 60), st.lists(st.integers(0, 12), max_size=3))
def test_any_documents_any_shards_any_interruption(tmp_path_factory, lengths, shard_tokens, val_tokens, stops):
    "Empty documents, documents of many shards, short last shards; stopped twice anywhere: as one list of tokens, cut up"
    here = tmp_path_factory.mktemp("any")
    texts = [("ab" * n)[:n] for n in lengths]
    if sum(map(bool, texts)) < 2:
        return
    (here / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    cfg = PrepareConfig((str(here / "rows.jsonl"),), out=str(here / "out"), tokenizer="char", val_tokens=val_tokens, shard_tokens=shard_tokens)
    real = prepare.ShardWriter.add
    for stop in stops:
        taken = []

        def add(writer, *args, taken=taken, stop=stop):
            if len(taken) == stop:
                raise KeyboardInterrupt
            taken.append(args)
            real(writer, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepare.ShardWriter, "add", add)
            try:
                prepare.prepare(cfg, quiet=True)
            except KeyboardInterrupt:
                assert not (here / "out" / "meta.json").exists()
            except UserError as error:
                assert "went to validation" in str(error)
    try:
        meta = prepare.prepare(cfg, quiet=True)
    except UserError as error:
        assert "went to validation" in str(error) and not (here / "out").exists()
        return
    tok = tokenizer.load(here / "out" / "tokenizer.json")
    documents = [tok.encode(t) + [tok.eot_token] for t in texts if t]
    split = {"val": [], "train": []}
    size = (here / "rows.jsonl").stat().st_size
    for i, ids in enumerate(documents):
        enough = sum(map(len, documents[:i])) >= val_tokens or sum(len(d) - 1 for d in documents[:i]) >= size / 10
        split["train" if i and enough else "val"].append(ids)
    for name, parts in split.items():
        flat = [id for ids in parts for id in ids]
        want = [flat[i : i + shard_tokens] for i in range(0, len(flat), shard_tokens)]
        assert [s.tolist() for s in open_split(here / "out", name)] == want
        assert meta["documents"][name] == len(parts) and meta["tokens"][name] == len(flat)
        assert meta["bytes"][name] == len(flat) - len(parts)
    shards(here / "out")


def test_text_that_tokenizers_stumble_on(tmp_path):
    "Half a surrogate pair, a million blanks in a row, the words <|endoftext|>: nothing of it ends the preparation"
    texts = ["a\ud800b", " " * 1_000_000 + "x", "a<|endoftext|>b", "\u2028\x00\ufeff"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts * 2))
    prepare.prepare(PrepareConfig((str(tmp_path / "rows.jsonl"),), out=str(tmp_path / "out"), val_tokens=1), quiet=True)
    ids = tokens(tmp_path / "out", "val") + tokens(tmp_path / "out", "train")
    assert ids.count(EOT) == 8
    assert tokenizer.gpt2().decode(ids) == "".join(t.replace("\ud800", "\ufffd") + "<|endoftext|>" for t in texts * 2)


def test_max_tokens_is_an_upper_bound_in_whole_documents(tmp_path):
    ask = dict(source=(str(SAMPLE),), shard_tokens=5000)
    prepare.prepare(PrepareConfig(**ask, out=str(tmp_path / "all"), val_tokens=2000), quiet=True)
    part = prepare.prepare(PrepareConfig(**ask, out=str(tmp_path / "part"), max_tokens=20_000), quiet=True)
    ids = tokens(tmp_path / "part", "val") + tokens(tmp_path / "part", "train")
    whole = tokens(tmp_path / "all", "val") + tokens(tmp_path / "all", "train")
    assert len(ids) <= 20_000 and ids == whole[: len(ids)] and ids[-1] == EOT
    assert len(ids) + whole[len(ids) :].index(EOT) + 1 > 20_000, "the next document would have fitted"
    assert 2000 <= part["tokens"]["val"] < 5000, "validation takes a tenth"


def test_a_wish_that_cannot_be_met_is_said(run, tmp_path):
    "More tokens of validation than a tenth of the text, more tokens of a vocabulary than it has pairs; at the second call, too"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in sample_texts()))
    ask = ["-m", "gpt2_course.prepare", rows, "--out", tmp_path / "out", "--tokenizer", "bpe:60000", "--val-tokens", "99999999"]
    for _ in range(2):
        told = run(ask).stdout
        meta = json.loads((tmp_path / "out" / "meta.json").read_text())
        assert f"--val-tokens asked for 99,999,999 tokens of validation, which takes no more than a tenth of the text or of --max-tokens: there are {meta['tokens']['val']:,}\n" in told
        assert f"--tokenizer bpe:60000 asked for 60,000 tokens, for which the text has too few pairs: there are {meta['vocab_size']:,}\n" in told + "\n"
    ask = ["-m", "gpt2_course.prepare", rows, "--out", tmp_path / "few", "--max-tokens", "20000", "--val-tokens", "9000"]
    assert "--val-tokens asked for 9,000" in run(ask).stdout
    assert "note:" not in run([*ask[:4], tmp_path / "met", "--val-tokens", "2000"]).stdout, "met, and said all the same"
    assert "note:" not in run([*ask[:4], tmp_path / "default"]).stdout, "nobody asked"


def test_a_note_of_progress_deletes_nothing_elsewhere(run, tmp_path):
    "progress.json names shards, which are deleted when no document is left for training"
    (tmp_path / "precious.bin").write_text("mine")
    (tmp_path / "text.jsonl").write_text('{"text": "one document"}\n')
    cfg = PrepareConfig((str(tmp_path / "text.jsonl"),), out=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    tokenizer.save(tokenizer.gpt2(), tmp_path / "out" / "tokenizer.json")
    totals = {s: dict(documents=0, tokens=0, bytes=0) for s in ("train", "val")}
    note = dict(request=prepare.request_of(cfg, prepare.parts_of(cfg.source)), pins={}, totals=totals, place=None, written=0)
    (tmp_path / "out" / "progress.json").write_text(json.dumps(note | dict(shards={"../precious.bin": dict(tokens=1, sha256="0")})))
    ask = ["-m", "gpt2_course.prepare", tmp_path / "text.jsonl", "--out", tmp_path / "out"]
    assert "names '../precious.bin', which is not the name of a file beside it" in refused(run(ask, status=2))
    assert (tmp_path / "precious.bin").read_text() == "mine"


# --- interruptions ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "A file that takes some seconds, and what comes of it undisturbed"
    here = tmp_path_factory.mktemp("corpus")
    texts = sample_texts()
    with open(here / "rows.jsonl", "w") as f:
        for i in range(20):
            f.writelines(json.dumps({"text": f"{i} {text}"}) + "\n" for text in texts)
    prepare.prepare(PrepareConfig((str(here / "rows.jsonl"),), out=str(here / "whole"), shard_tokens=100_000), quiet=True)
    return here / "rows.jsonl", shards(here / "whole")


def begin(corpus, out, workers, **env):
    "Start a preparation and return once it has written some shards"
    command = [sys.executable, "-m", "gpt2_course.prepare", corpus, "--out", out, "--shard-tokens", "100000", "--workers", workers]
    started = subprocess.Popen(list(map(str, command)), cwd=out.parent, env=offline_env(**env), stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(list(out.glob("train_*.bin"))) >= 3 or started.poll() is not None)
    assert started.poll() is None, started.stderr.read()
    return started


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def family(process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes) -> list:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def finish(run, corpus, out, whole, workers):
    "The same command again: it goes on, and the result is that of an undisturbed run"
    assert not (out / "meta.json").exists(), "it had finished before it was stopped"
    noted = json.loads((out / "progress.json").read_text())["shards"]
    kept = {out / name: (out / name).stat().st_mtime_ns for name in noted}
    assert len(kept) >= 2
    run(["-m", "gpt2_course.prepare", corpus, "--out", out, "--shard-tokens", "100000", "--workers", workers])
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), "finished shards were written again"
    assert shards(out) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_then_go_on(run, corpus, tmp_path, workers):
    file, whole = corpus
    started = begin(file, tmp_path / "out", workers)
    children = family(started)
    started.kill()
    started.wait()
    until(lambda: not alive(children))  # no orphans
    finish(run, file, tmp_path / "out", whole, 3 - workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signal_to_all_as_from_a_terminal(run, corpus, tmp_path, kind, workers):
    file, whole = corpus
    started = begin(file, tmp_path / "out", workers)
    children = family(started)
    os.killpg(started.pid, kind)
    told = started.communicate(timeout=60)[1].strip().splitlines()
    assert started.returncode == 1 and len(told) == 1, told
    assert told[0].startswith("stopped: the same command goes on") or kind in (signal.SIGTERM, signal.SIGUSR1) and "worker process died" in told[0]
    until(lambda: not alive(children))
    finish(run, file, tmp_path / "out", whole, workers)


def test_killed_worker_is_one_line(run, corpus, tmp_path):
    file, whole = corpus
    started = begin(file, tmp_path / "out", 2)
    children = family(started)
    next(c for c in children if "spawn_main" in " ".join(c.cmdline())).kill()
    told = started.communicate(timeout=60)[1].strip().splitlines()
    assert started.returncode == 1 and len(told) == 1 and "a worker process died" in told[0], told
    until(lambda: not alive(children))
    finish(run, file, tmp_path / "out", whole, 2)


def test_killed_before_the_first_shard_was_noted(tmp_path):
    cfg = PrepareConfig((str(SAMPLE),), out=str(tmp_path / "out"), shard_tokens=5000)
    with pytest.MonkeyPatch.context() as patch:
        noted = []
        real = prepare.ShardWriter.note
        patch.setattr(prepare.ShardWriter, "note", lambda self, *a: 1 / 0 if noted else (noted.append(1), real(self, *a)))
        with pytest.raises(ZeroDivisionError):
            prepare.prepare(cfg, quiet=True)
    assert len(list((tmp_path / "out").glob("*.bin"))) == 1
    prepare.prepare(cfg, quiet=True)
    shards(tmp_path / "out")


def test_a_script_without_a_guard(run, tmp_path):
    "On every system a new process imports the script again: one line says what to do"
    script = tmp_path / "mine.py"
    ask = f"PrepareConfig(({str(SAMPLE)!r},), out={str(tmp_path / 'out')!r}, workers=2)"
    script.write_text(
        "from gpt2_course.config import PrepareConfig\nfrom gpt2_course.prepare import WorkerLost, prepare\n"
        f"try: prepare({ask}, quiet=True)\nexcept WorkerLost as e: print('lost:', e)\n"
    )
    assert "must call prepare under if __name__" in run([script], timeout=120).stdout
    assert not (tmp_path / "out" / "meta.json").exists()


def test_settings(run, tmp_path):
    "Finished and asked again: left alone, with a line; other settings, finished or interrupted: refused"
    ask = ["-m", "gpt2_course.prepare", SAMPLE, "--out", tmp_path / "out"]
    run([*ask, *SMALL])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    again = run([*ask, *SMALL, "--workers", "3"])
    assert "nothing to do" in again.stdout and again.stderr == ""
    assert "was prepared with other settings" in refused(run([*ask, "--tokenizer", "char"], status=2))
    assert "was prepared with other settings" in refused(run([*ask, *SMALL, "--max-tokens", "50000"], status=2))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    note = dict(request=meta["request"], pins={}, shards={}, totals={}, place=None, written=0)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "progress.json").write_text(json.dumps(note))
    assert "an interrupted preparation of something else" in refused(run([*ask[:-1], tmp_path / "half"], status=2))


def test_all_in_validation_leaves_nothing(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    ask = ["-m", "gpt2_course.prepare", tmp_path / "rows.jsonl", "--out", tmp_path / "out"]
    assert "all 1 documents went to validation" in refused(run(ask, status=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args, says",
    [
        (["fineweb-edu:sample-10B"], "did you mean fineweb-edu:sample-10BT?"),
        (["openwebtxt"], "did you mean openwebtext?"),
        (["shakespeare", "--workers", "-1"], "--workers is -1"),
        (["shakespeare", "--max-tokens", "0"], "--max-tokens is 0"),
        (["broken.txt.gz"], "cannot be read"),
    ],
)
def test_bad_input_gets_one_line(run, tmp_path, args, says):
    (tmp_path / "broken.txt.gz").write_bytes(b"not compressed")
    assert says in refused(run(["-m", "gpt2_course.prepare", *args, "--out", "out"], status=2, cwd=tmp_path))


# --- the hub ---


HUB_TEXTS = [f"{i} {text}" for i in range(5) for text in sample_texts()]  # some chunks for the workers
HUB_SIZES = ["--val-tokens", "1000", "--shard-tokens", "50000"]


@pytest.fixture(scope="module")
def hub_files():
    return {
        "README.md": b"# a data set",
        "sample/10BT/001_00000.parquet": parquet(HUB_TEXTS[600:], 50),
        "sample/10BT/000_00000.parquet": parquet(HUB_TEXTS[:600], 50),
        "sample/100BT/000_00000.parquet": parquet(HUB_TEXTS[:3]),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    here = tmp_path_factory.mktemp("local")
    (here / "rows.parquet").write_bytes(parquet(HUB_TEXTS))
    prepare.prepare(PrepareConfig((str(here / "rows.parquet"),), out=str(here / "out"), val_tokens=1000, shard_tokens=50000), quiet=True)
    return shards(here / "out")


def faults(n):
    "Every third read is cut in the middle, some are answered 503, one 403 as from a link that has expired"
    return {7: 403, 8: 503}.get(n, "cut" if n % 3 == 0 else None)


@pytest.mark.parametrize("fault", [lambda n: None, faults], ids=["good", "bad"])
@pytest.mark.parametrize("workers", [1, 2])
def test_hub_gives_the_same_as_files(run, tmp_path, hub_files, undisturbed, fault, workers):
    ask = ["-m", "gpt2_course.prepare", "fineweb-edu", "--out", tmp_path / "out", *HUB_SIZES, "--workers", workers]
    with Hub(FINEWEB, hub_files, fault=fault) as hub:
        done = run(ask, timeout=200, HF_HOME=str(tmp_path / "hf"), **hub.env)
        assert shards(tmp_path / "out") == undisturbed
        assert set(hub.faults) == (set() if fault(3) is None else {"cut", 403, 503}), hub.faults
        assert ("the connection was lost" in done.stderr) == bool(hub.faults)
        reads = hub.reads
        assert "nothing to do" in run(ask, **hub.env).stdout and hub.reads == reads
    pins = json.loads((tmp_path / "out" / "meta.json").read_text())["pins"]["fineweb-edu"]
    assert pins == dict(revision="1" * 40, files=["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"])


def test_a_killed_stream_keeps_to_its_revision(run, tmp_path, hub_files, undisturbed):
    "Killed while the hub is silent, taken up after the data set has changed: as if nothing had happened"
    silent = []

    def fault(n):
        while n >= 5 and silent:
            time.sleep(0.1)

    with Hub(FINEWEB, hub_files, fault=fault) as hub:
        env = dict(HF_HOME=str(tmp_path / "hf"), **hub.env)
        ask = ["-m", "gpt2_course.prepare", "fineweb-edu", "--out", tmp_path / "out", *HUB_SIZES]
        silent.append(True)
        started = subprocess.Popen([sys.executable, *map(str, ask)], cwd=tmp_path, env=offline_env(**env))
        until(lambda: len(list((tmp_path / "out").glob("train_*.bin"))) >= 3 or started.poll() is not None)
        started.kill()
        started.wait()
        assert not (tmp_path / "out" / "meta.json").exists()
        silent.clear()
        hub.sha = "4" * 40
        hub.files[hub.sha] = {"sample/10BT/000_00000.parquet": parquet(["other text"])}
        run(ask, timeout=200, **env)
    assert shards(tmp_path / "out") == undisturbed


def test_openwebtext_where_only_the_converted_copy_is_parquet(run, tmp_path, hub_files):
    with Hub("Skylion007/openwebtext", {"openwebtext.py": b""}) as hub:
        hub.files["refs/convert/parquet"] = {"plain_text/train/0000.parquet": hub_files["sample/10BT/000_00000.parquet"]}
        run(["-m", "gpt2_course.prepare", "openwebtext", "--out", tmp_path / "out", *HUB_SIZES], HF_HOME=str(tmp_path / "hf"), **hub.env)
    assert shards(tmp_path / "out")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), max_size=6), st.booleans())
def test_stream_loses_and_doubles_nothing(drops, slowly):
    "The connection may drop in front of any document, several times at one place"
    left = list(drops)

    class Flaky(prepare.HubSet):
        def stream(self, after):
            for i in range(after or 0, 10):
                if left and left[0] <= i:
                    left.pop(0)
                    raise ConnectionError("gone")
                yield f"document {i}", i + 1

    flaky = Flaky("fineweb-edu", {}, pauses=(0,) * 6)
    assert list(flaky.documents()) == [(f"document {i}", i + 1) for i in range(10)]
    assert not left or min(left) > 9


def test_patience_ends():
    class Dead(prepare.HubSet):
        tried = 0

        def stream(self, after):
            self.tried += 1
            raise ConnectionError("no route\nto host")
            yield

    dead = Dead("openwebtext", {}, pauses=(0, 0, 0))
    with pytest.raises(UserError, match="SOURCE openwebtext: .*ConnectionError: no route.*give the same command again") as told:
        next(dead.documents())
    assert dead.tried == 4 and "\n" not in str(told.value)
    with pytest.raises(UserError, match="HTTPS_PROXY"):
        raise prepare.unreachable("fineweb-edu", TimeoutError())


def test_a_programming_error_is_not_retried():
    class Wrong(prepare.HubSet):
        def stream(self, after):
            raise TypeError("a bug")
            yield

    with pytest.raises(TypeError):
        next(Wrong("openwebtext", {}, pauses=(60,)).documents())


@pytest.mark.parametrize("source", ["fineweb-edu", "openwebtext"])
@pytest.mark.parametrize("env", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "HF_HUB_OFFLINE=1"])
def test_no_network_is_one_line(run, tmp_path, source, env):
    env = {"HF_ENDPOINT": "https://huggingface.co", **env}
    done = run(["-m", "gpt2_course.prepare", source], status=2, cwd=tmp_path, timeout=60, HF_HOME=str(tmp_path / "hf"), **env)
    line = refused(done)
    assert f"SOURCE {source}: https://huggingface.co/datasets/" in line and "HTTPS_PROXY" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", ["datasets", "huggingface_hub"])
def test_without_datasets_is_one_line(tmp_path, missing):
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module named {missing}')")
    env = offline_env()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "front"), env["PYTHONPATH"]])
    done = subprocess.run([sys.executable, "-m", "gpt2_course.prepare", "fineweb-edu"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'gpt2_course[data]'" in refused(done)
    assert not (tmp_path / "data").exists()


# --- progress ---


def test_progress_lines(capsys, tmp_path):
    "No terminal: a line now and then, with megabytes, tokens, speed and time left; none when quiet"
    for quiet in (False, True):
        progress = prepare.Progress(Path("out"), 10_000_000, None, quiet=quiet, every=0)
        progress.began -= 2
        progress.update(4_000_000, dict(train=dict(tokens=1_000_000), val=dict(tokens=0)))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("tokenising into out: 4 MB, 1.0 M tokens, 2.0 MB/s, 00:0"), told
    progress = prepare.Progress(Path("out"), None, 4_000_000, done=1_000_000, every=0)
    progress.began -= 1
    progress.update(1_000_000, dict(train=dict(tokens=1_000_000), val=dict(tokens=0)))
    assert "2 MB, 1.0 M tokens, 1.0 MB/s, 00:0" in capsys.readouterr().err  # what was there before does not count as speed


@pytest.mark.parametrize("name, source, tok", [("gpt2-124m", "fineweb-edu", "gpt2"), ("nano", "shakespeare", "bpe:1024"), ("nano-char", "shakespeare", "char")])
def test_presets_read_where_prepare_writes(name, source, tok):
    "Without --out and --data the two commands meet"
    assert prepare.out_dir(PrepareConfig((source,), tokenizer=tok)).as_posix() == config.preset(name).data
