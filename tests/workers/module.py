"""`python -m MODULE …` in a process forked from one that has torch imported already: the tests start hundreds, and importing torch is most of each."""

import os
import runpy
import sys


def start(args: list[str], cwd: str, env: dict[str, str], out: str, err: str):
    "Be what `python -m` would be: its arguments, directory, environment, output files and exit status"
    for name, fd in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if "OMP_NUM_THREADS" in env:
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv = args
    sys.path.insert(0, cwd)
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)
