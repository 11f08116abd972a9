"""Processes forked from one that has torch imported: the tests start hundreds of commands, and importing torch is most of each.

`Forks.run` is `python -m MODULE …` or `python SCRIPT …` in a new process, or in several that are told by their environment which of them each is, as
torchrun does. A process's own state (imported modules, environment, arguments, directory) is that of a new process; only the imports are already paid for.
"""

import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRELOAD = [  # nothing that changes what a command does: with IPython imported, tqdm takes it for a notebook
    *("torch", "torch.distributed", "torch.nn.parallel", "numpy", "tyro", "tiktoken", "tqdm", "safetensors.torch", "pytest"),
    *("torch._dynamo", "matplotlib.pyplot", "matplotlib.backends.backend_agg"),  # a second each, wanted by the first optimiser and by the loss curve
]
POSSIBLE = "forkserver" in multiprocessing.get_all_start_methods()
WORKERS = Path(__file__).resolve().parent / "workers"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(n: int, *args, restarts: int = 0) -> list[str]:
    "The arguments of Python that start n processes on this machine"
    return [*TORCHRUN, str(n), *(["--max-restarts", str(restarts)] if restarts else []), *map(str, args)]


def unpack(args: list[str]) -> tuple[int, list[str]]:
    "(number of processes, what each of them runs); torchrun is left as it is where it shall start workers again"
    return (int(args[4]), args[5:]) if args[:4] == TORCHRUN and args[5] != "--max-restarts" else (1, args)


def is_ours(program: list[str]) -> bool:
    "A command of the package, or a worker of the tests"
    return program[0].startswith(str(WORKERS)) or program[0] == "-m" and program[1].startswith("gpt2_course.")


def body(args: list[str], cwd: str, env: dict[str, str], out: str, err: str):
    "Be what `python …` would be: its arguments, directory, environment, output files and exit status"
    if env.pop("FORKED_LEADS", ""):
        os.setsid()
    for name, fd in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(name, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    if "OMP_NUM_THREADS" in env:
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    if args[0] == "-m":
        sys.argv = args[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(args[0]).resolve().parent))
        runpy.run_path(args[0], run_name="__main__")


class Forks:
    "Starts processes; `env` is the environment of the process that they are forked from"

    def __init__(self, env: dict[str, str]):
        self.context = multiprocessing.get_context("forkserver")
        self.folder, self.count = Path(tempfile.mkdtemp(prefix="forked-")), itertools.count()
        self.context.set_forkserver_preload(PRELOAD)
        before = dict(os.environ)
        os.environ.update(env)
        multiprocessing.forkserver.ensure_running()
        os.environ.clear()
        os.environ.update(before)

    def start(self, args, cwd, env):
        "(process, file with its stdout, file with its stderr)"
        files = [self.folder / f"{next(self.count)}.{name}" for name in ("out", "err")]
        for file in files:
            file.touch()
        process = self.context.Process(target=body, args=([str(a) for a in args], str(cwd), env, *map(str, files)))
        process.start()
        return process, *files

    def run(self, args: list[str], cwd, env, timeout: float) -> subprocess.CompletedProcess:
        "Arguments of Python, or torchrun's: n processes side by side, their output one after another; once one has failed, the others have five seconds"
        n, args = unpack(args)
        started = [self.start(args, cwd, env | place) for place in places(n)]
        deadline, status = time.monotonic() + timeout, 0
        running = [process for process, _, _ in started]
        while running and time.monotonic() < deadline:
            multiprocessing.connection.wait([p.sentinel for p in running], deadline - time.monotonic())
            failed = next((p.exitcode for p in running if p.exitcode), 0)
            if failed and not status:
                status, deadline = failed, time.monotonic() + 5
            running = [p for p in running if p.exitcode is None]
        for process in running:
            process.kill()
            process.join()
        if running and not status:
            raise subprocess.TimeoutExpired(args, timeout)
        out, err = ("".join(files[i].read_text("utf-8") for _, *files in started) for i in (0, 1))
        return subprocess.CompletedProcess(args, status, out, err)


class Popen:
    "What `Forks.start` gives, as jupyter_client wants it: a process that leads a group of its own"

    stdin = stdout = stderr = None

    def __init__(self, forks: "Forks", command: list[str], **more):
        self.process, *_ = forks.start(command[1:], more.get("cwd") or os.getcwd(), {"FORKED_LEADS": "1", **(more.get("env") or os.environ)})
        self.pid = self.process.pid
        while self.process.is_alive() and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int):
        if self.process.is_alive():
            os.kill(self.pid, number)

    def terminate(self):
        self.process.terminate()

    def kill(self):
        self.process.kill()


def free_port() -> int:
    "A port of this machine that nobody listens on"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def places(n: int) -> list[dict[str, str]]:
    "What torchrun tells each of n processes by its environment"
    if n == 1:
        return [{}]
    common = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return [common | dict(RANK=str(r), LOCAL_RANK=str(r)) for r in range(n)]
