"""Every notebook runs from top to bottom: in a new kernel, without a network, in a copy of the repository."""

import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import REPO, offline_env, repo_files
from forked import Popen

NOTEBOOKS = [
    name.as_posix()
    for name in repo_files()
    if name.parts[0] == "nbs" and name.suffix == ".ipynb" and not any(part.startswith((".", "_")) for part in name.parts)
]
GOAL = {"easy": 60, "medium": 120, "tough": 180}  # seconds on two cores
SLACK = 3  # a kernel is stopped only after this many times its goal: no test asserts a speed


def goal(name: str) -> int:
    return 120 if name.endswith("/00_start.ipynb") else GOAL.get(name.split("/")[1], 60)


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebook under {REPO.name}/nbs"


def execute(root: Path, name: str) -> float:
    "Seconds that it took"
    path = root / name
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    deadline = began + SLACK * goal(name)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=offline_env(root))
    return time.monotonic() - began


@pytest.fixture
def kernels(forks, monkeypatch):
    "Kernels are forked from a process that has torch and ipykernel imported (tests/test_lab.py starts them as JupyterLab does)"
    if forks:
        monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", partial(Popen, forks))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, repo_copy, kernels, notebook_seconds):
    notebook_seconds(name, execute(repo_copy, name))
