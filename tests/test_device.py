"""The table of GPUs by exact name, wherever it is used: the trainer's MFU, the plan; and the cores that a process may use."""

import json
import os
import subprocess
import sys

import pytest
import torch
from gpt2_course import trainer
from gpt2_course.data import read_meta
from gpt2_course.device import GPUS, cores, named_gpu, reported_gpu
from gpt2_course.distributed import World
from gpt2_course.train import read_options

from conftest import REPO, offline_env

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA L40", 181),  # was taken for an L4
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 PCIe", 756),  # was taken for the SXM module
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A100X", None),  # not an A100
        ("NVIDIA T400", None),  # not a T4
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of one
    ],
)
def test_a_peak_belongs_to_an_exact_name(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert trainer.peak_flops(CUDA) == (tera and tera * 1e12)
    assert trainer.peak_flops(torch.device("cpu")) is None


def test_the_table_is_plausible():
    "Names answer to one row each; a ridge between 40 and 600 FLOP a byte, so that no unit is off by a thousand"
    names = [n.lower() for g in GPUS for n in (g.name, *g.reported)]
    assert len(names) == len(set(names)) and all(g.source[-4:].isdecimal() for g in GPUS)
    assert all(40 < g.flops / g.bandwidth < 600 and 16e9 <= g.memory <= 288e9 for g in GPUS)
    wanted = ["b200", "b300", "5090", "l40s", "mi300x", "mi325x", "gh200"]
    assert all(named_gpu(n) for n in wanted) and reported_gpu("h200") is None and named_gpu("nvidia h200") == named_gpu("H200")


@pytest.mark.parametrize("name, times", [("NVIDIA L40G", 1), ("NVIDIA L40", 0)])
def test_the_plan_line_says_once_that_a_gpu_is_unknown(data, monkeypatch, name, times):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    cfg = read_options(["--preset", "nano-char", "--data", str(data)])
    plan = trainer.Plan(cfg, read_meta(data), CUDA, torch.bfloat16, True, 1, None)
    assert trainer.describe(plan, World()).count(f"{name} is not in the table of gpt2_course.device") == times


def plan_of(run, *args) -> dict:
    return json.loads(run(["-m", "gpt2_course.plan", *args, "--json"]).stdout)


def test_the_plan_reads_the_same_table(run):
    for name in ("l40", "NVIDIA H100 PCIe", "mi325x", "gh200-144g"):
        e = plan_of(run, "--gpu", name, "--gpus", "1")
        assert (e["assumed"]["peak_flops"], e["memory_of_device"]) == (named_gpu(name).flops, named_gpu(name).memory)
        assert e["assumed"]["peak_source"].endswith(named_gpu(name).source)
    assert plan_of(run, "--gpu", "t4", "--gpus", "1")["dtype"] == "float16"


def test_no_other_module_has_peaks():
    "One table: neither modules nor chapters hold a second one"
    for path in (REPO / "gpt2_course").glob("*.py"):
        if path.stem != "device":
            assert not [n for n in ("989e12", "312e12", "PEAK_FLOPS", "GPU_BYTES") if n in path.read_text("utf-8")], path


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_cores_are_those_that_may_be_used(tmp_path):
    "In the ablation, in reports of speed and in prepare: taskset counts, not the machine"
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.cpu_count = lambda: 64\n"
        "import torch\nfrom gpt2_course import ablation, device, prepare, speed\nfrom gpt2_course.bench import machine\n"
        "from gpt2_course.config import PrepareConfig, TrainConfig\n"
        "started, real = [], ablation.subprocess.Popen\n"
        "def popen(args, env, **more):\n    started.append(env['OMP_NUM_THREADS'])\n    return real([sys.executable, '-c', 'import time; time.sleep(0.5)'], **more)\n"
        "ablation.subprocess.Popen = popen\n"
        "ablation.finish = lambda out, p, say, bar: print('at a time', len(started))\n"
        "ablation.run_all(sys.argv[1], {'a': TrainConfig(device='cpu'), 'b': TrainConfig(device='cpu')})\n"
        "cpu = torch.device('cpu')\n"
        "print(device.cores(), machine(cpu, 0)['cores'], speed.device_name(cpu).rpartition(', ')[2], started[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=offline_env(), cwd=REPO)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.strip().splitlines()
    assert first == "at a time 1" and last == "1 1 1 cores 1", done.stdout
    assert cores() == len(os.sched_getaffinity(0))
