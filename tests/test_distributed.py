"""Ranks and their collectives: who a process is, which device it takes, and sums, votes and gathers of two real processes that are started once."""

import dataclasses
import multiprocessing
import os
import sys
import weakref

import pytest
import torch
from gpt2_course import distributed
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.distributed import World, any_over, gather, pick_device, process_group, shard_mesh, slice_up, sum_over, wrap
from gpt2_course.model import GPT

from forked import places

CPU = torch.device("cpu")


def test_world_alone_and_from_the_environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_env() == World() == World(0, 0, 1) and World().main
    monkeypatch.setenv("RANK", "5"), monkeypatch.setenv("LOCAL_RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.from_env() == World(5, 1, 8) and not World.from_env().main and World.from_env().machines == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert World.from_env() == World(5, 1, 8, 2) and World.from_env().machines == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        World().rank = 1


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


@pytest.mark.parametrize("device, ids", [(CPU, None), (torch.device("cuda", 1), [torch.device("cuda", 1)])])
def test_a_gpu_is_named_to_its_wrapper(monkeypatch, device, ids):
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model, **more: (model, more))
    assert wrap("model", World(1, 1, 2), device) == ("model", dict(device_ids=ids, gradient_as_bucket_view=True))


# --- two processes in one real group ---


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
    views = model.weight.grad._base is not None
    return dict(summed=summed, votes=votes, rows=torch.stack(rows), weight=model.weight.detach().clone(), grad=model.weight.grad.clone(), views=views, kind=type(ddp).__name__)


def tiny():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=4, vocab_size=11, n_layer=2, n_head=2, n_embd=8))
    return model, torch.randint(11, (4, 4))


def sliced(world):
    "A step of a model in slices, each rank on its half of the rows"
    model, idx = tiny()
    mesh = shard_mesh(world, "cpu")
    assert slice_up(model, mesh) is model
    pieces = [type(p).__name__ for p in model.parameters()]
    held = {n: p.to_local().numel() / p.numel() for n, p in model.named_parameters()}
    units = [n for n, m in model.named_modules() if type(m).__name__.startswith("FSDP")]
    opt = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-4)  # where gradients are nothing but rounding, so is the step
    mine = idx.chunk(world.size)[world.rank]
    model(mine, mine).backward()
    opt.step()
    moments = [(type(s["exp_avg"]).__name__, s["exp_avg"].to_local().shape == p.to_local().shape) for p, s in opt.state.items()]
    weights = {n: p.full_tensor().detach().clone() for n, p in model.named_parameters()}
    return dict(pieces=sorted(set(pieces)), held=held, units=units, moments=moments, weights=weights, mesh=(tuple(mesh.shape), mesh.mesh_dim_names))


def rank(env, folder):
    "What a started process does: both, in a group joined as after torchrun"
    os.environ.update(env)
    torch.set_num_threads(1)
    world = World.from_env()
    with process_group(world, CPU, minutes=0.5):
        torch.save(dict(together=together(world), sliced=sliced(world)), f"{folder}/{world.rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    "Their results; forked where that is safe, so that they run the code that this process has imported: beside a GPU, autograd has threads that a fork lacks"
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")
    started = [context.Process(target=rank, args=(env, str(folder))) for env in places(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


def test_collectives_of_two_ranks(ranks):
    for r in (r["together"] for r in ranks):
        assert r["summed"].tolist() == [3.0, 30.0] and r["votes"] == [True, True, True, False]
        assert r["rows"].tolist() == [[1.0, 10.0], [2.0, 20.0]]
        assert r["kind"] == "DistributedDataParallel" and r["weight"].tolist() == [[0.0, 0.0]]  # rank 0's go to all
        assert r["grad"].tolist() == [[1.5, 1.5]] and r["views"]  # the mean of both, in the memory that was sent


def test_slices_of_two_ranks(ranks):
    for r in (r["sliced"] for r in ranks):
        assert r["pieces"] == ["DTensor"] and set(r["units"]) == {"", "transformer.h.0", "transformer.h.1"}
        assert set(r["held"].values()) == {0.5}  # every size here is even
        assert r["moments"] == [("DTensor", True)] * len(r["held"]) and r["mesh"] == ((2,), ("shard",))


def test_slices_learn_what_a_whole_model_learns(ranks):
    model, idx = tiny()
    opt = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-4)
    model(idx, idx).backward()
    opt.step()
    want = dict(model.named_parameters())
    for r in (r["sliced"] for r in ranks):
        assert r["weights"].keys() == want.keys()
        for name, weight in r["weights"].items():
            torch.testing.assert_close(weight, want[name], rtol=1e-3, atol=1e-3, msg=name)


# --- joining and leaving ---


class FakeStore:
    made = []

    def __init__(self, *args, **more):
        FakeStore.made.append((args, more))


@pytest.fixture
def calls(monkeypatch):
    "What process_group asks of torch, which does not answer; the environment is torchrun's"
    FakeStore.made, calls = [], []
    for name, value in dict(MASTER_ADDR="there", MASTER_PORT="1234", TORCHELASTIC_RESTART_COUNT="3", TORCHELASTIC_USE_AGENT_STORE="False").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.dist, "TCPStore", FakeStore)
    monkeypatch.setattr(distributed.dist, "PrefixStore", lambda name, store: calls.append(name) or ("prefixed", store))
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **more: calls.append((backend, more)))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    return calls


@pytest.mark.parametrize("hosted, rank, serves", [("True", 0, False), ("True", 1, False), ("False", 0, True), (None, 0, True), ("False", 1, False)])
def test_rank_0_serves_the_store_unless_torchruns_agent_does(calls, monkeypatch, hosted, rank, serves):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", hosted) if hosted else monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with process_group(World(rank, rank, 2), CPU, minutes=2):
        ((args, more),) = FakeStore.made
        assert args == ("there", 1234, 2, serves) and more["timeout"].total_seconds() == 120
        prefix, (backend, joined) = calls
        assert prefix == "attempt_3" and backend == "gloo" and joined["store"][0] == "prefixed" and isinstance(joined["store"][1], FakeStore)
        assert (joined["rank"], joined["world_size"], joined["timeout"].total_seconds()) == (rank, 2, 120)
    assert calls[2:] == ["left"]


def test_by_default_the_first_attempt_and_ten_minutes(calls, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    with process_group(World(1, 1, 3), CPU):
        assert calls[0] == "attempt_0" and calls[1][1]["timeout"].total_seconds() == 600


def test_a_gpu_is_chosen_before_its_group_is_joined(calls):
    device = torch.device("cuda", 1)
    with process_group(World(1, 1, 2), device):
        assert [c if isinstance(c, (str, torch.device)) else c[0] for c in calls] == [device, "attempt_3", "cpu:gloo,cuda:nccl"]


def test_a_failure_inside_leaves_the_group_and_keeps_nothing_alive(calls):
    class Wrapper:
        pass

    gone = []

    def train():
        wrapper = Wrapper()
        gone.append(weakref.ref(wrapper))
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside") as told:
        with process_group(World(0, 0, 2), CPU):
            train()
    assert calls[-1] == "left" and told.value.__traceback__ and gone[0]() is None
