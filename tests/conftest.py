"""What the tests share: the repository's files, a copy of them, processes without a network, data and runs that are made once, and how two workers divide the work."""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from gpt2_course.device import cores
from xdist.scheduler import LoadScopeScheduling

from forked import POSSIBLE, Forks, is_ours, unpack
from run import known_durations

REPO = Path(__file__).resolve().parents[1]
OFFLINE = REPO / "tests" / "offline"
NOT_OURS = {".venv", "runs", "my_course", "_docs", "_proc", "build", "dist", ".git"}
SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
THREADS = max(1, cores() // SIDE_BY_SIDE)  # of each worker and of what it starts


def repo_files(root: Path = REPO) -> list[Path]:
    "Files of the repository, relative: tracked, or new and not ignored (in an unpacked archive: all but what git would ignore)"
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(git, capture_output=True) if (root / ".git").exists() and shutil.which("git") else None
    if listing and listing.returncode == 0:
        names = [Path(os.fsdecode(name)) for name in listing.stdout.split(b"\0") if name]
    else:
        names = [path.relative_to(root) for path in root.rglob("*") if path.is_file() or path.is_symlink()]
        names = [
            name
            for name in names
            if name.parts[0] not in NOT_OURS
            and name.parts[:2] != ("data", "cache")
            and not any(part == "__pycache__" or part.endswith(".egg-info") or part.endswith("_cache") for part in name.parts)
            and ".ipynb_checkpoints" not in name.parts
        ]
    return sorted(name for name in set(names) if os.path.lexists(root / name))


def copy_repo(to: Path) -> Path:
    "A copy of the repository's files that a test may dirty"
    for name in repo_files():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, target, follow_symlinks=False)
    return to


def offline_env(root: Path = REPO, **more: str) -> dict[str, str]:
    "This environment with no network for Python, and with `root`'s gpt2_course in front of any installed one"
    path = [str(OFFLINE), str(root), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}
    for name in ("MPLBACKEND", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # `make test` is no part of what is tested
        env.pop(name, None)
    return env


@pytest.fixture(scope="session")
def repo() -> Path:
    "The repository's root"
    return REPO


@pytest.fixture(scope="session")
def py() -> str:
    "The Python that runs the tests"
    return sys.executable


@pytest.fixture(scope="session")
def forks() -> Forks | None:
    "Processes that need not import torch; None where there is no fork"
    return Forks(offline_env()) if POSSIBLE else None


@pytest.fixture(scope="session")
def run(py, forks):
    """run(args, ...) -> CompletedProcess with text; `py` is put in front, there is no network, a status other than `status` fails

    Commands of the package and workers of the tests are forked from a process that has torch imported, and so are the processes
    that torchrun would start, unless `fresh` asks for a new Python, and for torchrun.
    """

    def run(
        args,  # e.g. ["-m", "gpt2_course.train", "--help"]
        status: int | None = 0,  # the exit status to expect; None: any
        timeout: float = 600,  # seconds
        cwd: Path = REPO,
        root: Path = REPO,  # whose gpt2_course
        fresh: bool = False,  # start Python anew
        **env: str,  # more environment
    ) -> subprocess.CompletedProcess:
        args, env = list(map(str, args)), offline_env(root, **env)
        if forks and not fresh and root == REPO and is_ours(unpack(args)[1]):
            done = forks.run(args, cwd, env, timeout)
        else:
            done = subprocess.run([py, *args], cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        told = f"{' '.join([py, *args])}\nexit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert status is None or done.returncode == status, told
        return done

    return run


@pytest.fixture(scope="session")
def repo_copy(tmp_path_factory) -> Path:
    "One copy of the repository for all notebooks: they may write where they like"
    return copy_repo(tmp_path_factory.mktemp("copy") / "gpt2_course_copy")


def shared(tmp_path_factory, name: str, make) -> Path:
    "A directory that `make` fills, once for all workers: others wait until it is whole; nobody may write into it"
    root = tmp_path_factory.getbasetemp()
    root = root.parent if SIDE_BY_SIDE > 1 else root
    out, done = root / "shared" / name, root / "shared" / f"{name}.done"
    out.parent.mkdir(exist_ok=True)
    with FileLock(root / "shared" / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(out, ignore_errors=True)
            make(out)
            done.touch()
    return out


@pytest.fixture(scope="session")
def data(run, tmp_path_factory) -> Path:
    "The embedded corpus as characters"
    return shared(tmp_path_factory, "char", lambda out: run(["-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "char", "--out", out]))


@pytest.fixture(scope="session")
def one(run, data, tmp_path_factory) -> Path:
    "Ten undisturbed steps in one process, four micro-batches each"
    from runs import TINY

    return shared(tmp_path_factory, "one", lambda out: run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", out], OMP_NUM_THREADS="1"))


@pytest.fixture(scope="session")
def two(run, data, tmp_path_factory):
    "The same in two processes, two micro-batches each: the run directory and what the ranks printed"
    from runs import TINY, WORKER, torchrun

    def train(out):
        done = run(torchrun(2, WORKER, *TINY, "--data", data, "--out", out), OMP_NUM_THREADS="1")
        (out / "digests").write_text("\n".join(line.split()[2] for line in done.stdout.splitlines() if line.startswith("rank ")))

    out = shared(tmp_path_factory, "two", train)
    return out, (out / "digests").read_text().split()


def lacking(what: str):
    "Skip a test that cannot run here; in CI, where everything is installed, fail it"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is missing")


@pytest.fixture(scope="session")
def chromium() -> str:
    "A Chromium that is already on this machine, and what drives it"
    if not importlib.util.find_spec("playwright"):
        lacking("playwright (pip install playwright)")
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
    if not found:
        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    return found if os.path.exists(found) else lacking("Chromium (playwright install chromium)")


@contextmanager
def headless(chromium: str):
    "Headless Chromium, driven by Playwright from this thread"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")  # no longer: while Playwright runs, the thread counts as inside its event loop
def browser(chromium):
    with headless(chromium) as browser:
        yield browser


@pytest.fixture
def notebook_seconds(record_property):
    "notebook_seconds(name, seconds): printed at the end, never asserted"
    return lambda name, seconds: record_property("notebook", [name, seconds])


# --- two workers ---


def unit(nodeid: str) -> str:
    "What one worker takes as a whole: a notebook, a chapter's exercises, else a file of tests, whose fixtures are then built once"
    path, _, test = nodeid.partition("::")
    name, _, params = test.rstrip("]").partition("[")
    if name == "test_notebook_runs":
        return params
    if name in ("test_rule", "test_challenge"):
        return f"{Path(path).name} {params.split('.')[0].split('-')[-1]}"
    return Path(path).name


class ByUnit(LoadScopeScheduling):
    "Hands out units in the order of the list. (`--dist loadgroup` would, but xdist 3.8 loses its groups under pytest 9.2, without a word.)"

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return ByUnit(config, log)


def pytest_collection_modifyitems(config, items):
    "The longest unit first, so that both workers end together; what belongs together stays together and in its order"
    seconds = known_durations()
    order = {}
    for item in items:
        item.user_properties.append(("unit", unit(item.nodeid)))
        order.setdefault(unit(item.nodeid), len(order))
    if SIDE_BY_SIDE > 1:
        items.sort(key=lambda item: (-seconds.get(unit(item.nodeid), 5.0), order[unit(item.nodeid)]))


WHERE: dict[str, set[str]] = {}  # unit -> the workers that ran it


def pytest_sessionfinish(session):
    "Fixtures of a file that are built twice cost minutes and nothing fails: so this does"
    torn = [name for name, workers in WHERE.items() if len(workers) > 1]
    if torn:
        print(f"\nFAILED: these ran on more than one worker: {', '.join(torn)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_runtest_logreport(report):
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid}", flush=True)  # at once, not only at the end
    if hasattr(report, "node"):
        WHERE.setdefault(unit(report.nodeid), set()).add(report.node.gateway.id)
    for name, value in report.user_properties if report.when == "call" else ():
        if name == "notebook":
            NOTEBOOKS_RUN[value[0]] = value[1]


NOTEBOOKS_RUN: dict[str, float] = {}


def pytest_terminal_summary(terminalreporter):
    if not NOTEBOOKS_RUN:
        return
    terminalreporter.section("seconds per notebook")
    for name, spent in sorted(NOTEBOOKS_RUN.items()):
        terminalreporter.write_line(f"{spent:7.1f}  {name}")
    terminalreporter.write_line(f"{sum(NOTEBOOKS_RUN.values()):7.1f}  together")
