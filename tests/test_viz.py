"""The time machine: one file that asks for nothing, shows every snapshot, and is made from any run that the trainer leaves behind."""

import base64
import json
import re
import shutil

import pytest
from gpt2_course import viz
from gpt2_course.checkpoint import load_model
from gpt2_course.config import UserError

from conftest import REPO

PAGE = REPO / "assets" / "time_machine.html"
LOOK = REPO / "assets" / "runs" / "look-inside"
OUTSIDE = re.compile(r"https?:|url\(|@import|\bsrc\s*=|\bhref\s*=|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", re.I)


def data_of(page):
    "The page without its data, and the data"
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return page.replace(found[1], ""), json.loads(found[1])


@pytest.fixture(scope="module")
def tiny(run, tmp_path_factory):
    "A fresh run of four snapshots"
    home = tmp_path_factory.mktemp("viz")
    run(["-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "char", "--out", home / "data"])
    shape = "--model.block-size 16 --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --batch-tokens 128 --micro-batch 8".split()
    often = "--steps 8 --eval-every 4 --eval-tokens 512 --sample-every 4 --sample-tokens 8 --snapshot-every 2 --optim.warmup 2 --no-compile".split()
    run(["-m", "gpt2_course.train", "--preset", "nano-char", "--device", "cpu", "--data", home / "data", "--out", home / "run", *shape, *often])
    return home / "run"


def test_a_fresh_run_becomes_a_page(tiny, tmp_path):
    page = viz.time_machine(tiny, tmp_path / "new" / "page.html", "To be, or not to be").read_text("utf-8")
    code, data = data_of(page)
    assert not OUTSIDE.search(code) and page.count("</script>") == 2
    assert [f["step"] for f in data["frames"]] == [2, 4, 6, 8]
    assert "".join(data["tokens"]) == "To be, or not to"  # the block has 16 positions
    assert [f["sample_step"] for f in data["frames"]] == [None, 4, 4, 8]
    T = len(data["tokens"])
    assert all(len(base64.b64decode(f["maps"])) == 2 * 2 * T * (T + 1) // 2 for f in data["frames"])
    assert [step for step, _ in data["val"]] == [0, 4, 8] and 'aria-label="Training step"' in code and 'type="range"' in code


def test_a_sample_cannot_end_the_script(tiny, tmp_path):
    evil = tmp_path / "evil"
    shutil.copytree(tiny, evil)
    rows = [json.loads(line) for line in (evil / "samples.jsonl").read_text().splitlines()]
    text = "</script><script>alert(1)</script><!--"
    (evil / "samples.jsonl").write_text("".join(json.dumps({**row, "text": text}) + "\n" for row in rows) + '{"step": 9, "te')
    page = viz.time_machine(evil, tmp_path / "page.html", "To be").read_text("utf-8")
    assert page.count("</script>") == 2 and data_of(page)[1]["frames"][-1]["sample"].endswith(text)
    framed = viz.embed(tmp_path / "page.html")
    assert framed.count("<iframe") == framed.count("</iframe>") == 1 and "<script" not in framed


def test_few_frames_keep_the_first_and_the_last(tiny, tmp_path):
    _, data = data_of(viz.time_machine(tiny, tmp_path / "page.html", "To be", most=2).read_text("utf-8"))
    assert [f["step"] for f in data["frames"]] == [2, 8]


def test_what_cannot_work_is_said(tiny, tmp_path):
    with pytest.raises(UserError, match="--snapshot-every"):
        viz.time_machine(tmp_path, tmp_path / "page.html", "To be")
    with pytest.raises(UserError, match="prompt is empty"):
        viz.time_machine(tiny, tmp_path / "page.html", "")


def test_a_run_without_samples_or_metrics_still_works(tiny, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    (bare / "samples.jsonl").unlink()
    (bare / "metrics.jsonl").unlink()
    _, data = data_of(viz.time_machine(bare, tmp_path / "page.html", "To be").read_text("utf-8"))
    assert data["frames"][0]["sample"] is None and data["val"] == []


def test_the_committed_page_is_whole_and_asks_for_nothing():
    code, data = data_of(PAGE.read_text("utf-8"))
    assert not OUTSIDE.search(code)
    steps = [f["step"] for f in data["frames"]]
    assert steps == viz.spread(list(range(50, 4001, 50)), 16) and all(f["sample"] for f in data["frames"])
    assert code.endswith(f"<script>{viz.PAGE_JS}</script></body></html>\n") and viz.PAGE_CSS in code and viz.PAGE_BODY in code, "make it anew"


def test_the_committed_checkpoint_loads():
    model = load_model(LOOK)
    best = min(json.loads(line)["loss"] for line in (LOOK / "metrics.jsonl").read_text().splitlines() if '"val"' in line)
    meta = json.loads((LOOK / "checkpoints" / "step_00004000" / "meta.json").read_text())
    assert meta["val_loss"] == best and model.cfg.n_layer == 4
