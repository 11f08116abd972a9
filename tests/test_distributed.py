"""Ranks and their collectives: who a process is, which device it takes, and sums, votes and gathers of two real processes that are started once."""

import os
import sys
import types

import pytest
import torch
from gpt2_course import distributed
from gpt2_course.config import UserError
from gpt2_course.distributed import World, any_over, gather, pick_device, process_group, sum_over, wrap

CPU = torch.device("cpu")


def test_world_alone_and_from_the_environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_env() == World(0, 0, 1) and World().main
    monkeypatch.setenv("RANK", "5"), monkeypatch.setenv("LOCAL_RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.from_env() == World(5, 1, 8) and not World.from_env().main and World.from_env().machines == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert World.from_env() == World(5, 1, 8, 2) and World.from_env().machines == 4


@pytest.mark.parametrize("cuda, mps, name, want", [(0, 0, "auto", "cpu"), (2, 0, "auto", "cuda:1"), (0, 1, "auto", "mps"), (2, 1, "auto", "cuda:1"), (2, 1, "cpu", "cpu"), (2, 1, "mps", "mps")])
def test_pick_device(monkeypatch, cuda, mps, name, want):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert str(pick_device(name, 1)) == want


def test_a_device_that_is_missing(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, says in (("cuda", "torch sees no CUDA GPU"), ("mps", "torch sees no Apple GPU")):
        with pytest.raises(UserError, match=says):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(pick_device("cuda", 1)) == "cuda:1" and str(pick_device("cuda")) == "cuda:0"
    with pytest.raises(UserError, match="process 2 has no GPU: this machine has 2, so launch with --nproc-per-node 2"):
        pick_device("cuda", 2)


def test_alone_nothing_is_exchanged():
    t, model = torch.ones(3), torch.nn.Linear(2, 2)
    with process_group(World(), CPU):
        assert not torch.distributed.is_initialized()
        assert sum_over(t, World()) is t and any_over(True, World()) is True and any_over(False, World()) is False
        assert gather(t, World(), CPU) == [t] and wrap(model, World(), CPU) is model


# --- two processes that wait for work ---


def together(world):
    "What the collectives return in this rank"
    t = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    summed = sum_over(t.clone(), world)
    votes = [any_over(v, world) for v in (world.rank == 0, world.rank == 1, True, False)]
    rows = gather(t, world, CPU)
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(float(world.rank))
    ddp = wrap(model, world, CPU)
    (ddp(torch.ones(1, 2) * (world.rank + 1)).sum()).backward()
    return dict(summed=summed, votes=votes, rows=torch.stack(rows), weight=model.weight.detach().clone(), grad=model.weight.grad.clone(), kind=type(ddp).__name__)


@pytest.fixture(scope="module")
def ranks():
    from gpt2_course.exercises import distributed as programs

    module = types.ModuleType("together_in_ranks")
    module.together = together
    here = os.path.dirname(os.path.abspath(__file__))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))
    try:
        yield programs.launch(sys.modules[__name__].together, 2, seconds=60)
    finally:
        os.environ["PYTHONPATH"] = before
        programs.dismiss()


def test_collectives_of_two_ranks(ranks):
    assert len(ranks) == 2 and not any("error" in r for r in ranks), ranks
    for r in ranks:
        assert r["summed"].tolist() == [3.0, 30.0] and r["votes"] == [True, True, True, False]
        assert r["rows"].tolist() == [[1.0, 10.0], [2.0, 20.0]]
        assert r["kind"] == "DistributedDataParallel" and r["weight"].tolist() == [[0.0, 0.0]]  # rank 0's go to all
        assert r["grad"].tolist() == [[1.5, 1.5]]  # the mean of both


class FakeStore:
    made = []

    def __init__(self, *args, **more):
        FakeStore.made.append((args, more))


@pytest.mark.parametrize("hosted", ["True", ""])
@pytest.mark.parametrize("fails", [False, True])
def test_process_group_joins_and_leaves(monkeypatch, hosted, fails):
    FakeStore.made, calls = [], []
    monkeypatch.setenv("MASTER_ADDR", "there"), monkeypatch.setenv("MASTER_PORT", "1234"), monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", hosted)
    monkeypatch.setattr(distributed.dist, "TCPStore", FakeStore)
    monkeypatch.setattr(distributed.dist, "PrefixStore", lambda name, store: calls.append(name) or store)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **more: calls.append((backend, more)))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: calls.append("left"))
    try:
        with process_group(World(0, 0, 2), CPU, minutes=2):
            assert calls[0] == "attempt_3" and calls[1][0] == "gloo" and calls[1][1]["rank"] == 0 and calls[1][1]["world_size"] == 2
            assert calls[1][1]["timeout"].total_seconds() == 120
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert calls[-1] == "left"
    (args, more) = FakeStore.made[0]
    assert args == ("there", 1234, 2, hosted != "True") and more["timeout"].total_seconds() == 120
