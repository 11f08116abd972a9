"""The programs that chapter 18 runs in real processes: a function can be started in another process
only if it lives in a module."""

import faulthandler
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..config import GPTConfig, packaged
from ..data import TokenLoader
from ..distributed import World
from ..model import GPT
from ..optim import adamw
from ..tokenizer import CharTokenizer


def starter():
    "How to start a process that runs a function of a module: quickly, where that is safe"
    import multiprocessing
    if sys.platform != "linux": return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver") # one process imports, all are copies of it
    context.set_forkserver_preload(["torch._dynamo", __name__])
    return context

class Team:
    "n processes in one gloo group that wait for jobs"
    def __init__(self, n, wait, env):
        start = starter()
        self.folder, self.jobs = tempfile.TemporaryDirectory(), 0
        pipes = [start.Pipe() for _ in range(n)]
        self.pipes = [mine for mine, _ in pipes]
        self.ranks = [start.Process(target=member, daemon=True, args=(
            self.folder.name, World(r, r, n), wait, theirs, dict(os.environ) | env))
            for r, (_, theirs) in enumerate(pipes)]
        for p in self.ranks: p.start()

    def run(self, fn, args, seconds): # what each rank returned, whether all did
        self.jobs += 1
        files = [Path(self.folder.name)/f"{self.jobs}_{r}.pt" for r in range(len(self.ranks))]
        for pipe, file in zip(self.pipes, files): pipe.send((fn, args, str(file)))
        deadline = time.monotonic() + seconds
        while not all(f.exists() for f in files) and time.monotonic() < deadline:
            time.sleep(0.01)
        missing = dict(error="ended without a result"), False
        rows = [torch.load(f, weights_only=True) if f.exists() else missing for f in files]
        return [result for result, _ in rows], all(good for _, good in rows)

    def close(self):
        for p in self.ranks:
            p.kill()
            p.join()
        for pipe in self.pipes: pipe.close()
        self.folder.cleanup()

def member(folder, world, wait, pipe, env):
    "What a started process does"
    os.environ.update(env)
    dist.set_debug_level_from_env()
    log = os.open(f"{folder}/{world.rank}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(log, stream)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world.size)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size,
                            timeout=timedelta(seconds=wait))
    while True:
        try: fn, args, file = pipe.recv()
        except EOFError: os._exit(0)
        try: result = fn(world, *args)
        except Exception as e: result = dict(error=f"{type(e).__name__}: {e}")
        row = result, not (isinstance(result, dict) and result.get("error"))
        torch.save(row, file + ".part")
        os.rename(file + ".part", file)


TEAMS = {} # (n, wait, env) -> Team that waits for its next job

def launch(
    fn,               # function of a module: fn(world, *args) -> tensors and plain values
    n:int,            # processes
    *args,
    seconds:float=150, # then whoever still runs is ended
    wait:float=60,     # seconds after which a collective gives up
    **env:str,        # variables of the environment
) -> list:            # what each rank returned; of one that failed, dict(error=…)
    "Run a function in n processes that can talk to each other"
    key = n, wait, *sorted(env.items())
    if key not in TEAMS: TEAMS[key] = Team(n, wait, env)
    results, good = TEAMS[key].run(fn, args, seconds)
    if not good: TEAMS.pop(key).close() # the group is broken: the next job gets a new one
    return results

def dismiss():
    "End all processes that wait"
    while TEAMS: TEAMS.popitem()[1].close()


def mark_children(
    name:str, # such as "chapter 18"
):
    "Every process that this one starts from now on carries a mark in its environment"
    os.environ["GPT2_COURSE_MARK"] = f"{name}, process {os.getpid()}"

def left_behind() -> list[str]: # command lines
    "Processes that carry the mark and still run, orphans included"
    import psutil # the kernel of a notebook needs it too
    from multiprocessing.forkserver import _forkserver as server # waits as long as this process
    found = []
    for p in psutil.process_iter():
        try:
            mine = p.environ().get("GPT2_COURSE_MARK") == os.environ["GPT2_COURSE_MARK"]
            words = " ".join(p.cmdline())
        except (psutil.Error, OSError): continue
        # multiprocessing's own tidier lives as long as the process that uses it
        ours = p.pid in (os.getpid(), server._forkserver_pid) or "resource_tracker" in words
        if mine and not ours: found.append(words)
    return found


def introduce(
    world:World,
) -> str: # a sentence
    "The smallest program for several processes"
    return f"rank {world.rank} of {world.size}, process {os.getpid()}"


def ring_plan(
    rank:int,
    n:int,   # processes in the ring
) -> list:   # of (slice to give to the right, slice to take from the left, whether to add it)
    "2 (n - 1) steps: sums travel round the ring until each is whole, then once more as they are"
    first = [((rank - s) % n, (rank - s - 1) % n, True) for s in range(n - 1)]
    second = [((rank + 1 - s) % n, (rank - s) % n, False) for s in range(n - 1)]
    return first + second


class Post:
    "Sending and receiving, with a count of the bytes"
    def __init__(self): self.sent = self.received = 0

    def send(self, t, to): # returns at once; call .wait() on what it returns
        self.sent += t.nbytes
        return dist.isend(t.contiguous(), to)

    def receive(self, like, source): # a new tensor of the same shape
        t = torch.empty_like(like)
        dist.recv(t, source)
        self.received += t.nbytes
        return t

def naive_all_reduce(t, world, post):
    "Everyone sends to rank 0; it adds, and sends the sum to everyone"
    others = range(1, world.size)
    if world.main:
        for r in others: t += post.receive(t, r)
        for job in [post.send(t, r) for r in others]: job.wait()
    else:
        post.send(t, 0).wait()
        t.copy_(post.receive(t, 0))

def ring_all_reduce(t, world, post):
    "Everyone gives a slice to the right and takes one from the left, 2 (n - 1) times"
    n, rank = world.size, world.rank
    slices = t.tensor_split(n) # views: what is written into them is written into t
    for give, take, add in ring_plan(rank, n):
        job = post.send(slices[give], (rank + 1) % n)
        got = post.receive(slices[take], (rank - 1) % n)
        job.wait() # both at once: if all sent first and nobody received, all would wait
        slices[take].copy_(slices[take] + got if add else got)


def draw(rank, size): # this rank's (size,) numbers
    return torch.randn(size, generator=torch.Generator().manual_seed(rank))

def compare_all_reduce(
    world:World,
    size:int,  # numbers to add up
) -> dict:     # way -> (the sum, bytes sent, bytes received, milliseconds) of this rank
    "Three ways of adding up the same numbers"
    out = {}
    for name, fn in dict(naive=naive_all_reduce, ring=ring_all_reduce).items():
        t, post = draw(world.rank, size), Post()
        dist.barrier()
        began = time.perf_counter()
        fn(t, world, post)
        out[name] = t, post.sent, post.received, 1e3 * (time.perf_counter() - began)
    t = draw(world.rank, size)
    dist.all_reduce(t)
    out["gloo"] = t, None, None, None
    return out


def material(
    seed:int=0, # of the weights
    double:bool=False,
) -> tuple:     # GPT, ids of Hamlet
    "A small model and something to read"
    text = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    tok = CharTokenizer(text)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=32, vocab_size=tok.n_vocab, n_layer=2, n_head=2, n_embd=32))
    return model.double() if double else model, np.array(tok.encode(text), np.uint16)

def flat(model): # all weights of a model in one vector, a copy
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()

def local(model, batches): # add up this process's gradients; the mean loss
    total = 0.0
    for x, y in batches:
        loss = model(x, y) / len(batches)
        loss.backward()
        total += loss.item()
    return total


def by_hand(model, batches, world):
    "DDP in three lines: accumulate, add up over ranks, divide"
    loss = local(model, batches)
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world.size
    return loss

def each(ddp, batches, world):
    "DDP as it comes: every micro-batch exchanges"
    return local(ddp, batches)

def flag_before(ddp, batches, world):
    "Only the last micro-batch exchanges gradients, as decided before its forward pass"
    total = 0.0
    for i, (x, y) in enumerate(batches):
        ddp.require_backward_grad_sync = i == len(batches) - 1
        loss = ddp(x, y) / len(batches)
        loss.backward()
        total += loss.item()
    return total

def flag_after(ddp, batches, world):
    "The bug of two well-known training scripts: the same line, one line too late"
    total = 0.0
    for i, (x, y) in enumerate(batches):
        loss = ddp(x, y) / len(batches)
        ddp.require_backward_grad_sync = i == len(batches) - 1
        loss.backward()
        total += loss.item()
    return total

EXCHANGES = dict(by_hand=by_hand, each=each, before=flag_before, after=flag_after)


def train_replica(
    world:World,
    how:str,         # a key of `EXCHANGES`
    steps:int,
    micro:int,       # micro-batches a step, of four rows
    broadcast:bool=True, # rank 0's first weights go to everyone; else each rank has its own
    double:bool=False,   # arithmetic in float64
) -> dict:           # weights (steps + 1, parameters) and losses of this rank
    "Train this rank's replica and keep its weights after every step"
    model, ids = material(seed=world.rank, double=double)
    if broadcast:
        for p in model.parameters(): dist.broadcast(p.data, src=0)
    loader = TokenLoader([ids], 4, 32, rank=world.rank, world=world.size)
    optimizer = adamw(model, 1e-2, 0.1, (0.9, 0.95), "cpu")
    trained = model if how == "by_hand" else DistributedDataParallel(model)
    weights, losses = [flat(model)], []
    for _ in range(steps):
        batches = [loader.next() for _ in range(micro)]
        losses.append(EXCHANGES[how](trained, batches, world))
        optimizer.step()
        optimizer.zero_grad()
        weights.append(flat(model))
    return dict(weights=torch.stack(weights), losses=losses)


def virtual_ranks(
    n:int,          # ranks to imitate
    steps:int,
    micro:int,      # micro-batches a step and rank
) -> torch.Tensor:  # (steps + 1, parameters) weights after every step
    "One process that computes each rank's gradient in its turn: what n processes must equal"
    model, ids = material(0)
    loaders = [TokenLoader([ids], 4, 32, rank=r, world=n) for r in range(n)]
    optimizer = adamw(model, 1e-2, 0.1, (0.9, 0.95), "cpu")
    weights = [flat(model)]
    for _ in range(steps):
        each = []
        for loader in loaders:
            optimizer.zero_grad()
            local(model, [loader.next() for _ in range(micro)])
            each.append([p.grad for p in model.parameters()])
        for p, *grads in zip(model.parameters(), *each): p.grad = sum(grads) / n
        optimizer.step()
        weights.append(flat(model))
    return torch.stack(weights)

def one_batch(n, steps, micro, double=False): # as above, but all rows of a step in one batch
    model, ids = material(0, double)
    loaders = [TokenLoader([ids], 4, 32, rank=r, world=n) for r in range(n)]
    optimizer = adamw(model, 1e-2, 0.1, (0.9, 0.95), "cpu")
    weights = [flat(model)]
    for _ in range(steps):
        rows = [loader.next() for loader in loaders for _ in range(micro)]
        optimizer.zero_grad()
        local(model, [tuple(torch.cat(part) for part in zip(*rows))])
        optimizer.step()
        weights.append(flat(model))
    return torch.stack(weights)


def timeline(
    world:World,
    megabytes:float, # of a bucket
) -> dict:           # milliseconds since backward began: ready, buckets, end
    "When each gradient is ready, and from when to when each bucket travels, in one backward pass"
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=2048, n_layer=4, n_head=4, n_embd=256))
    names = {id(p): name for name, p in model.named_parameters()}
    x, y = torch.randint(2048, (2, 4, 64))
    ready, buckets, began = [], [], [0.0]
    now = lambda: 1e3 * (time.perf_counter() - began[0])

    def travel(state, bucket):
        row = dict(names=[names[id(p)] for p in bucket.parameters()], start=now(),
                   megabytes=bucket.buffer().nbytes / 1e6)
        buckets.append(row)
        def arrived(future):
            row["end"] = now()
            return future.value()[0] / world.size
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(arrived)

    ddp = DistributedDataParallel(model, bucket_cap_mb=megabytes, gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, travel)
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: ready.append((name, now())))
    for _ in range(4): # buckets are laid out anew after the first pass; the last one is kept
        model.zero_grad()
        loss = ddp(x, y)
        dist.barrier()
        ready.clear(), buckets.clear()
        began[0] = time.perf_counter()
        loss.backward()
        end = now()
    return dict(ready=ready, buckets=buckets, end=end)

def exchanges(
    world:World,
    how:str,   # each, before or after
    micro:int, # micro-batches a step
    steps:int,
) -> list:     # (steps x micro) how many buckets travelled in each backward pass
    "Which micro-batches talk"
    model, ids = material(0)
    loader = TokenLoader([ids], 4, 32, rank=world.rank, world=world.size)
    ddp, counts = DistributedDataParallel(model), []
    def travel(state, bucket):
        counts[-1] += 1
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(
            lambda future: future.value()[0] / world.size)
    ddp.register_comm_hook(None, travel)
    ddp.register_forward_pre_hook(lambda module, args: counts.append(0))
    for _ in range(steps):
        EXCHANGES[how](ddp, [loader.next() for _ in range(micro)], world)
    return counts


def uneven(
    world:World,
    then:str,       # what rank 1 does next: report (alone) or validate (with the others)
    monitored:bool, # a monitored barrier before each step
    wait:float,     # seconds until a collective gives up
) -> dict:          # seconds until something was said, the error, the stack of this rank
    "Rank 1 has one batch fewer and leaves the loop: rank 0 waits for it in an all-reduce"
    stack, limit = tempfile.TemporaryFile("w+"), timedelta(seconds=wait)
    group = dist.new_group(timeout=limit) # the same ranks, less patient
    faulthandler.dump_traceback_later(0.6 * wait, file=stack) # where is everyone by then?
    error, began = "", time.perf_counter()
    try:
        for step in range(3 - world.rank):
            if monitored: dist.monitored_barrier(group, timeout=limit)
            dist.all_reduce(torch.ones(4), group=group) # the gradients
        if then == "validate": dist.all_reduce(torch.ones(2), group=group) # loss and tokens
        elif not world.main: write_report(1.5 * wait)
    except RuntimeError as e: error = str(e)
    faulthandler.cancel_dump_traceback_later()
    stack.seek(0)
    return dict(seconds=time.perf_counter() - began, error=error, stack=stack.read())

def write_report(seconds): # something that a rank does alone
    time.sleep(seconds)


def prepare_then_read(
    world:World,
    folder:str, # where rank 0 writes
    right:bool, # with the barrier that makes the others wait
) -> str:       # what this rank read, or could not
    "Rank 0 prepares the data, everyone reads it"
    path = Path(folder)/f"data_{right}.txt"
    if world.main:
        time.sleep(0.3) # tokenising
        path.write_text("tokens")
    if right: dist.barrier() # outside the if: all must come
    try: return path.read_text()
    except FileNotFoundError: return "FileNotFoundError"

def validate_alone(
    world:World,
) -> list: # what this rank takes for the validation loss and for the gradient
    "Rank 0 alone asks for a sum over ranks; rank 1's next collective answers it"
    loss = torch.tensor([1.0 + world.rank])
    gradient = torch.tensor([100.0])
    if world.main: dist.all_reduce(loss)     # meant: add up the losses
    dist.all_reduce(gradient)                # meant: add up the gradients
    if not world.main: dist.all_reduce(loss) # rank 1 validates as well, but later
    return [float(loss), float(gradient)]
