"""The reliability scorecard in its short form: each row of tests/soak.py with a small count (`make soak` runs them in full), and what a crash under torchrun may and may not do."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from gpt2_course import checkpoint, train

from conftest import offline_env
from runs import refused
from soak import WORKERS, Bench, rows_of_scorecard, small_checkpoint, torchrun

TABLE = rows_of_scorecard()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Models this small are faster with one thread"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.short])
def test_scorecard(bench, name):
    ok, measured = TABLE[name].run(bench, TABLE[name].short)
    assert ok, measured


def test_a_user_error_is_not_tried_again(bench):
    "A wrong flag under --max-restarts: one attempt, one line, although torchrun would grant many; and a run in the way is not taken over"
    done = bench.python(*torchrun(2, "-m", "gpt2_course.train", "--data", "no/such/data", restarts=50), status=1)
    assert done.stderr.count("error: ") == 1 and "--data no/such/data does not exist" in done.stderr
    theirs = bench.undisturbed(1)
    before = {p: p.stat().st_mtime_ns for p in theirs.rglob("*")}
    done = bench.python(*torchrun(2, WORKERS / "fit_digest.py", *bench.flags(theirs), restarts=5), status=1)
    assert done.stderr.count("error: ") == 1 and "already holds a run" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in theirs.rglob("*")} == before


def test_only_the_launch_that_began_a_run_takes_it_up(monkeypatch, tmp_path):
    "A second attempt implies --resume if status.json names its own launch and a checkpoint is there; a first attempt never does"
    ask = lambda: train.read_options(["--out", str(tmp_path)]).resume
    (tmp_path / "config.json").write_text("{}")
    small_checkpoint(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not ask()
    for launch, attempt, resumes in (("mine", "1", True), ("mine", "0", False), ("theirs", "1", False)):
        (tmp_path / "status.json").write_text(json.dumps(dict(state="running", launch=launch)))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        assert ask() is resumes, (launch, attempt)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (tmp_path / "status.json").write_text("[]")
    assert not ask()


def test_pruning_spares_what_a_fallback_needs(tmp_path):
    "A damaged checkpoint of a later step takes no place among those that are kept, and what killed saves left is cleared away"
    for step in (1, 2, 9):
        small_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000009" / "state.pt").write_bytes(b"damaged")
    (tmp_path / "checkpoints" / ".step_00000003.part").mkdir()
    (tmp_path / "checkpoints" / "step_notes").mkdir()
    checkpoint.prune(tmp_path, 1, "", step=2)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step_00000002", "step_00000009", "step_notes"}
    assert checkpoint.newest(tmp_path, lambda line: None).name == "step_00000002"


def test_pointers_follow_a_fallback(bench, tmp_path):
    "Taken up from an older checkpoint, a run names that one as its last"
    out = shutil.copytree(bench.undisturbed(1), tmp_path / "run")
    (out / "checkpoints" / "step_00000020" / "state.pt").write_bytes(b"damaged")
    code = (
        "import sys\nfrom gpt2_course import trainer\nfrom gpt2_course.distributed import World\nfrom gpt2_course.train import read_options\n"
        "trainer.start_run(trainer.preflight(read_options(sys.argv[1:]), World()), World())\n"
    )
    args = [sys.executable, "-c", code, *map(str, bench.flags(out, "--resume"))]
    subprocess.run(args, check=True, env=offline_env(), capture_output=True)
    assert (out / "checkpoints" / "last").read_text() == "step_00000010"


def test_a_full_disk_is_one_line_wherever_it_strikes(run, tmp_path):
    "A log, a pointer, a sample: OSError of a full disk ends a command as a user's error does; any other OSError shows its traceback"
    program = tmp_path / "full.py"
    program.write_text("import errno, os, sys\nfrom gpt2_course.config import run\n\n\ndef main():\n    n = getattr(errno, sys.argv[1])\n    raise OSError(n, os.strerror(n), 'log')\n\n\nrun(main)\n")
    assert "log not written: No space left on device" in refused(run([program, "ENOSPC"], status=2))
    assert "Traceback" in run([program, "EIO"], status=1).stderr
