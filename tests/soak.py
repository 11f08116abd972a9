"""The reliability scorecard: faults made on purpose, counted and compared with what must hold.

    python tests/soak.py                        every row in full (`make soak`)
    python tests/soak.py --short                the counts that `make test` uses
    python tests/soak.py --only kill signals    some rows

Prints a table, writes it as JSON, ends with status 1 if a row fails. Each row is a function of a `Bench` (the runs that rows share) and a count, and
returns whether it holds and what was measured; tests/test_reliability.py calls the same functions.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from gpt2_course import checkpoint
from gpt2_course.config import PRESETS, GPTConfig, UserError
from gpt2_course.data import TokenLoader, sha256_file, verify, write_shard
from gpt2_course.distributed import World
from gpt2_course.model import GPT
from gpt2_course.optim import adamw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import REPO, offline_env
from forked import POSSIBLE, WORKERS, Forks, is_ours, torchrun, unpack
from runs import moments_of, weights_of

# Dropout is on: whoever loses a rank's random state is found out.
TINY = (
    "--preset nano-char --device cpu --dtype float32 --no-compile --steps 20 --batch-tokens 512 --micro-batch 4 --model.block-size 32"
    " --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --model.dropout 0.1 --optim.warmup 3 --optim.lr 1e-2 --optim.min-lr 1e-3 --log-every 1"
    " --eval-every 10 --eval-tokens 2048 --sample-every 0 --save-every 10"
).split()
TRAIN = ["-m", "gpt2_course.train"]
SEED = 2026
SLICED = ("--parallel", "fsdp")


class Bench:
    "A directory, the prepared corpus and undisturbed runs, each made when it is first asked for"

    def __init__(self, root):
        self.root = Path(root)
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)

    def env(self, **more):
        return offline_env(OMP_NUM_THREADS="1", TMPDIR=str(self.root / "tmp"), **more)

    def python(self, *args, status=0, **env):
        "Run Python to its end; an unexpected status (None: any will do) is an error"
        args, env = [str(a) for a in args], self.env(**env)
        if POSSIBLE and is_ours(unpack(args)[1]):
            done = self.forks.run(args, REPO, env, 3600)
        else:
            done = subprocess.run([sys.executable, *args], env=env, cwd=REPO, capture_output=True, text=True, timeout=3600, stdin=subprocess.DEVNULL)
        assert status is None or done.returncode == status, f"{args}\nstatus {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    @cached_property
    def forks(self):
        return Forks(offline_env())

    def fresh(self, name):
        "A directory that does not exist yet"
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root)) / "run"

    @cached_property
    def data(self):
        out = self.root / "data"
        self.python("-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "char", "--out", out)
        return out

    def flags(self, out, *more):
        return [*TINY, "--data", self.data, "--out", out, *more]

    def train(self, ranks, out, *more, status=0, **env):
        worker = WORKERS / "fit_digest.py"
        args = self.flags(out, *more)
        return self.python(*(torchrun(ranks, worker, *args) if ranks > 1 else [worker, *args]), status=status, **env)

    @cached_property
    def runs(self):
        return {}

    def undisturbed(self, ranks, *more):
        "A run directory that nothing happened to"
        key = (ranks, *more)
        if key not in self.runs:
            self.runs[key] = self.fresh("undisturbed")
            told = self.train(ranks, self.runs[key], *more).stdout
            (self.runs[key] / "digests").write_text(" ".join(line.split()[2] for line in told.splitlines() if line.startswith("rank ")))
        return self.runs[key]


def rows(out, split="train"):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["split"] == split]


def losses(out):
    return [(row["step"], row["loss"]) for split in ("train", "val") for row in rows(out, split)]


def last(out):
    return out / "checkpoints" / (out / "checkpoints" / "last").read_text()


def equal_to_the_bit(a, b):
    "Losses, weights, optimiser, random states and position of two finished runs"
    if losses(a) != losses(b) or last(a).name != last(b).name:
        return False
    states = [torch.load(last(o) / "state.pt", weights_only=True) for o in (a, b)]
    metas = [json.loads((last(o) / "meta.json").read_text()) for o in (a, b)]
    same = True
    for read in (weights_of, moments_of):
        x, y = read(last(a)), read(last(b))
        same &= x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    same &= len(states[0]["rngs"]) == len(states[1]["rngs"])
    same &= all(torch.equal(x[k], y[k]) for x, y in zip(states[0]["rngs"], states[1]["rngs"]) for k in ("torch", "numpy", "python"))
    return same and all(metas[0][k] == metas[1][k] for k in ("step", "position", "best", "val_loss"))


# --- killed while saving ---


def kill_in_save(bench, n):
    "SIGKILL at a random moment of back-to-back saves"
    ours, naive = (
        json.loads(bench.python(WORKERS / "saver.py", bench.fresh(f"saves-{how}"), n, SEED, how).stdout) for how in ("ours", "naive")
    )
    ok = not ours["lost"] and len(naive["lost"]) > 0  # kills that cannot hurt would prove nothing
    return ok, f"{len(ours['lost'])} of {n} lost ({ours['saves']} saves; over the only file: {len(naive['lost'])} lost)" + "".join(ours["lost"][:1])


# --- flipped bits ---


def small_checkpoint(run, step=1):
    cfg = GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=32)
    model = GPT(cfg)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    ids = torch.zeros(1, 16, dtype=torch.long)
    model(ids, ids).backward()
    optimizer.step()
    return checkpoint.save(run, step, model, optimizer, [checkpoint.rng_state(torch.device("cpu"))], dict(config=dict(model=asdict(cfg))))


@contextmanager
def flipped(path, chance):
    "One bit of a file is wrong inside the `with`; its number is given"
    at, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
    with open(path, "r+b") as f:
        f.seek(at)
        old = f.read(1)[0]
        f.seek(at)
        f.write(bytes([old ^ 1 << bit]))
    yield at * 8 + bit
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(bytes([old]))


def refuses(call):
    try:
        call()
    except UserError:
        return True
    return False


def bit_flips(bench, n):
    "One bit of one file of a checkpoint by one process or by two, or of a prepared corpus"
    parts = last(bench.undisturbed(2, *SLICED))
    step, chance, found = small_checkpoint(bench.fresh("flips")), random.Random(SEED), []
    data = shutil.copytree(bench.data, bench.fresh("flipped-data"))
    sound = lambda: checkpoint.is_whole(step) and checkpoint.is_whole(parts) and not refuses(lambda: verify(data))
    assert sound(), "sound files are refused"
    for i in range(n):
        place = (data, step, data, parts)[i % 4]
        with flipped(chance.choice(sorted(place.glob("*.bin") if place == data else place.iterdir())), chance):
            found.append(refuses(lambda: verify(data)) if place == data else not checkpoint.is_whole(place))
    assert sound(), "the files were not put right"
    return all(found), f"{sum(found)} of {n} found"


# --- stop and go on ---


def resume(bench, n):
    "Twenty steps against ten, and ten more in new processes; with one process, then with two"
    same = []
    for ranks in range(1, n + 1):
        whole = bench.undisturbed(ranks)
        cut = shutil.copytree(whole, bench.fresh("cut"))
        shutil.rmtree(cut / "checkpoints" / "step_00000020")
        (cut / "checkpoints" / "last").write_text("step_00000010")
        bench.train(ranks, cut, "--resume")
        same.append(equal_to_the_bit(cut, whole))
    return all(same), "bitwise with " + " and ".join(f"{r} process{'es' * (r > 1)}: {'yes' if s else 'NO'}" for r, s in enumerate(same, 1))


def virtual_ranks(bench, n):
    "Processes against one process that computes each rank's gradient apart; and that against plain accumulation"
    real, flags = bench.undisturbed(n), bench.flags(bench.fresh("none"))
    ask = lambda how, *more: json.loads(bench.python(WORKERS / "virtual_ranks.py", n, how, *flags, *more).stdout)
    ours = ask("ranks")
    same = ours["losses"] == [row["loss"] for row in rows(real)] and (real / "digests").read_text().split() == [ours["digest"]] * n
    plain = [ask(how, "--model.dropout", "0") for how in ("ranks", "naive")]
    apart = max(abs(a - b) / b for a, b in zip(plain[0]["losses"], plain[1]["losses"]))
    return same and apart <= 1e-6, f"{len(ours['losses'])} losses and the weights bitwise: {'yes' if same else 'NO'}; naive accumulation {apart:.1e} apart"


# --- killed workers ---

KILLED = ("--steps", "60", "--save-every", "5", "--eval-every", "20")


def killed_run(bench, kills, *more):
    "A run under torchrun whose workers die as told; whether it ended as the undisturbed one"
    whole, out = bench.undisturbed(2, *KILLED, *more), bench.fresh("killed")
    args = torchrun(2, WORKERS / "fit_killed.py", *bench.flags(out, *KILLED, *more), restarts=len(kills))
    done = bench.python(*args, status=None, KILLS=json.dumps(kills))
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("rank ")]
    complete = done.returncode == 0 and sorted(t[1] for t in told) == ["0", "1"] and {t[4] for t in told} == {str(len(kills))}
    return complete and len({t[2] for t in told}) == 1 and equal_to_the_bit(out, whole)


def kill_worker(bench, n):
    "SIGKILL of one worker under --max-restarts, a run each; every second pair of runs in slices"
    chance = random.Random(SEED)
    how = lambda i: SLICED if i % 4 > 1 else ()
    ok = [killed_run(bench, [[i % 2, chance.randrange(1, 40), chance.uniform(0, 0.05)]], *how(i)) for i in range(n)]
    return all(ok), f"{sum(ok)} of {n} recovered, bitwise"


def many_kills(bench, n):
    "One run that is killed again and again"
    chance = random.Random(SEED + 1)
    kills = [[chance.randrange(2), chance.randrange(1, 12), chance.uniform(0, 0.05)] for _ in range(n)]
    ok = killed_run(bench, kills)
    return ok, f"{n} kills, final weights bitwise equal: {'yes' if ok else 'NO'}"


# --- asked to stop ---


def interrupt(bench, out, args, ranks, sig, more_steps, pause):
    "Start or go on, wait for some steps, send a signal; returns what the run printed"
    before = rows(out)[-1]["step"] if (out / "metrics.jsonl").exists() else 0
    command = [sys.executable, *map(str, torchrun(ranks, *args) if ranks > 1 else args)]
    process = subprocess.Popen(command, env=bench.env(), cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if rows(out)[-1]["step"] >= before + more_steps:
                break
        except (OSError, ValueError, IndexError):
            pass
        time.sleep(0.02)
    time.sleep(pause)
    if sig == signal.SIGINT:
        os.killpg(process.pid, sig)  # as a terminal does
    else:
        process.send_signal(sig)
    told, err = process.communicate(timeout=120)
    assert ranks > 1 or process.returncode == 0, err
    assert "Traceback" not in err or ranks > 1, err
    return told


def signals(bench, n):
    "SIGTERM and Ctrl-C in turn, half of them under torchrun; each run goes on where the signal ended the one before"
    chance, good = random.Random(SEED + 2), []
    for ranks, count in ((1, n - n // 2), (2, n // 2)):
        if not count:
            continue
        long = ("--steps", 60 + 60 * count, "--save-every", "1000000", "--eval-every", "1000000", "--keep", "1")
        out, name = bench.fresh("signals"), None
        flags = [*(TRAIN if ranks == 1 else [WORKERS / "fit_digest.py"]), *bench.flags(out, *long)]
        for i in range(count):
            sig = (signal.SIGTERM, signal.SIGINT)[i % 2]
            told = interrupt(bench, out, [*flags, *["--resume"] * (i > 0)], ranks, sig, chance.randrange(1, 6), chance.uniform(0, 0.1))
            status, meta = json.loads((out / "status.json").read_text()), json.loads((last(out) / "meta.json").read_text())
            boundary = meta["position"] == meta["step"] * 512 // 32 and status["step"] == meta["step"] == rows(out)[-1]["step"]
            went_on = i == 0 or ranks > 1 or f"resumed from {out / 'checkpoints' / name} at step" in told
            good.append(status["state"] == "interrupted" and boundary and checkpoint.is_whole(last(out)) and went_on)
            name = last(out).name
        bench.train(ranks, out, *long, "--resume")
        good[-1] &= equal_to_the_bit(out, bench.undisturbed(ranks, *long))
    return all(good), f"{sum(good)} of {n} saved at a step boundary, all resumed, the end bitwise equal"


# --- no room ---


@contextmanager
def small_disk(at, size):
    "A tmpfs of `size`, where this user may mount one; else None"
    at.mkdir(parents=True)
    mount = shutil.which("mount")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True) if mount else None
    try:
        yield at if done and done.returncode == 0 else None
    finally:
        if done and done.returncode == 0:
            subprocess.run(["umount", "-l", str(at)], check=True)


def disk_full(bench, n):
    "The third checkpoint finds no room: the first two are kept, and the run goes on once there is some"
    with small_disk(bench.fresh("disk").parent / "small", "1100k") as disk:
        out = (disk or bench.fresh("full")) / "run"
        # without a small disk: one that says it is full after two checkpoints
        code = (
            "import shutil, sys\nfrom gpt2_course import checkpoint, config, train\nusage = shutil.disk_usage\n"
            "few = lambda: len(checkpoint.steps(sys.argv[sys.argv.index('--out') + 1])) < 2\n"
            "shutil.disk_usage = lambda path: usage(path) if few() else usage(path)._replace(free=1000)\nconfig.run(train.main)\n"
        )
        flags = bench.flags(out, "--save-every", "5", "--keep", "3", "--eval-every", "10")
        done = bench.python(*(TRAIN if disk else ["-c", code]), *flags, status=None)
        lines = done.stderr.strip().splitlines()
        told = lines[-1] if lines else ""
        named = told.startswith("error: checkpoint of step 15 not written") and "No space left on device" in told
        clean = "Traceback" not in done.stderr and done.stderr.count("error: ") == 1
        kept = [p.name for p in checkpoint.steps(out) if checkpoint.is_whole(p)] == ["step_00000005", "step_00000010"]
        rest = [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".step")]
        if disk:
            subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        bench.python(*TRAIN, *flags, "--resume")
        same = equal_to_the_bit(out, bench.undisturbed(1))
        ok = named and clean and kept and not rest and done.returncode == 2 and same
        written = writers_fail(disk) if disk and n > 1 else []
    how = "tmpfs" if disk else "a disk that says it is full"
    if not ok:
        return False, f"{how}: status {done.returncode}, kept {kept}, left behind {rest}, resumed bitwise {same}, said {done.stderr[-300:]!r}"
    more = f"; cut short in {sum(written)} of {len(written)} writes, each named" if written else ""
    return all(written), f"old checkpoints kept, ENOSPC in one line, status {done.returncode}, resumed bitwise ({how}){more}"


def writers_fail(disk):
    "There seemed to be room, but the writers of safetensors, torch and JSON find none"
    run, found, enough = disk / "writers", [], checkpoint.make_room
    shutil.rmtree(disk / "run")
    whole = small_checkpoint(run)
    free = lambda: shutil.disk_usage(disk).free
    before = free()
    small_checkpoint(run, 2)
    need, chance = before - free(), random.Random(SEED + 3)
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    checkpoint.make_room = lambda *a: None
    try:
        for left in sorted(chance.randrange(0, need - 4096) for _ in range(12)):
            (disk / "filler").write_bytes(bytes(free() - left))
            try:
                small_checkpoint(run, 2)
                found.append(False)
            except UserError as e:
                found.append("No space left on device" in str(e))
            found[-1] &= [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000001"] and checkpoint.is_whole(whole)
            (disk / "filler").unlink()
    finally:
        checkpoint.make_room = enough
    return found


# --- the properties of the stream ---


def stream(sizes, T, order, world, B, position=0):
    shards = [np.arange(n, dtype=np.uint32) + 1000 * i for i, n in enumerate(sizes)]
    return [TokenLoader(shards, B, T, 7, order, rank, world, position) for rank in range(world)]


def properties(bench, n):
    "Any shards, block, order, number of ranks, batch and stopping point"
    tried = dict(union=0, resume=0)
    sizes = st.lists(st.integers(5, 400), min_size=1, max_size=4)
    orders = st.sampled_from(["epochs", "random", "sequential"])
    ask = settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

    @ask
    @given(sizes, st.integers(1, 16), orders, st.integers(1, 4), st.integers(1, 3))
    def union(sizes, T, order, world, B):
        tried["union"] += 1
        if max(sizes) <= T:
            return
        many, one = stream(sizes, T, order, world, B), stream(sizes, T, order, 1, B * world)[0]
        for _ in range(12):
            x, y = (torch.cat(parts) for parts in zip(*(m.next() for m in many)))
            assert all(torch.equal(a, b) for a, b in zip((x, y), one.next()))

    @ask
    @given(sizes, st.integers(1, 16), orders, st.integers(1, 3), st.integers(1, 3), st.integers(0, 60))
    def resumed(sizes, T, order, world, B, steps):
        tried["resume"] += 1
        if max(sizes) <= T:
            return
        whole = stream(sizes, T, order, world, B)
        for loader in whole:
            for _ in range(steps):
                loader.next()
        for a, b in zip(whole, stream(sizes, T, order, world, B, whole[0].position)):
            assert all(torch.equal(a.next()[0], b.next()[0]) for _ in range(5))

    union()
    resumed()
    return min(tried.values()) >= n, f"{tried['union']} unions and {tried['resume']} resumptions equal"


# --- what costs time before a run ---


def preflight_time(bench, n):
    "All checks of a run on shards of n million tokens"
    from gpt2_course.tokenizer import gpt2, save
    from gpt2_course.trainer import preflight

    data, rng = bench.fresh("large"), np.random.default_rng(SEED)
    data.mkdir()
    counts, per = dict(train=n * 1_000_000, val=100_000), 50_000_000
    shards = {}
    for split, left in counts.items():
        while left > 0:
            name = f"{split}_{sum(s.startswith(split) for s in shards):06d}.bin"
            write_shard(data / name, rng.integers(0, 50257, min(per, left), dtype=np.uint16))
            shards[name] = dict(tokens=min(per, left), sha256=sha256_file(data / name))
            left -= per
    save(gpt2(), data / "tokenizer.json")
    (data / "meta.json").write_text(json.dumps(dict(vocab_size=50257, shards=shards, tokens=counts)))
    cfg = replace(PRESETS["gpt2-124m"], data=str(data), out=str(bench.fresh("none")), device="cpu")
    t0 = time.perf_counter()
    preflight(cfg, World(), lambda *a: None)
    seconds = time.perf_counter() - t0
    shutil.rmtree(data)
    return seconds < 1 or n < 100, f"{seconds:.2f} s for {n} million tokens"


def pytest_run(bench, *args, **env):
    "(whether these tests pass, pytest's last line)"
    done = bench.python("-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *args, status=None, **env)
    told = [line for line in done.stdout.splitlines() if " passed" in line or " failed" in line or " error" in line]
    return done.returncode == 0, told[-1].strip("= ") if told else done.stdout[-300:]


def bad_inputs(bench, n):
    "Every command with every bad input of the list"
    return pytest_run(bench, *(REPO / "tests" / f for f in ("test_bad_inputs.py", "test_commands.py")[: 1 + (n > 1)]))


def exercises(bench, n):
    "The package's answers right with n fresh seeds each, every mistake called by its name with a tenth of that"
    told, good = [], True
    for rule, seeds in (("right", n), ("mistakes", n // 10)):
        command = [sys.executable, str(REPO / "tests" / "exercise_rules.py"), "--seeds", str(seeds), "--only", rule]
        done = subprocess.run(command, env=bench.env(), cwd=REPO, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        good &= done.returncode == 0
        told += done.stdout.strip().splitlines()[-2:]
    return good, " | ".join(told)


def hellaswag(bench, n):
    "The first n rows of HellaSwag, a random model, three normalisations: our answers and those of transformers"
    ok, told = pytest_run(bench, REPO / "tests" / "test_evals.py", "-k", "answers_are_those", HELLASWAG_ROWS=str(n))
    return ok and "1 passed" in told, f"{n} rows: {told}"


def site(bench, n):
    "The site with every page examined for accessibility (skipped without Chromium and axe-core)"
    return pytest_run(bench, REPO / "tests" / "test_site.py", AXE_PAGES="all")


def challenges(bench, n):
    "The plain solution of each open challenge with its whole budget, beside the score that is published (speed depends on the machine)"
    code = (
        "from gpt2_course import check, challenge; check.load_all()\n"
        "for name, c in challenge.CHALLENGES.items():\n"
        "    s = challenge.challenge(name, ours=True)\n"
        "    near = abs(s.value / c.to_beat - 1) < (0.5 if 'ratio' in c.unit or 'times' in c.unit else 0.05)\n"
        "    print(name, f'{s.value:.4g}', 'published', c.to_beat, '' if near else 'FAR: ' + s.message)"
    )
    done = bench.python("-c", code, status=None)
    lines = done.stdout.strip().splitlines()
    far = [line for line in lines if "FAR" in line]
    return done.returncode == 0 and not far, f"{len(lines)} challenges" + "".join(f"; {line}" for line in far)


@dataclass(frozen=True)
class Row:
    "A line of the scorecard"

    test: str
    required: str
    run: object  # function of a Bench and a count
    full: int
    short: int  # 0: not in the short form


def rows_of_scorecard():
    from unsafe_loads import unsafe_loads

    return {
        "save": Row("SIGKILL in back-to-back saves", "0 lost", kill_in_save, 50, 6),
        "flips": Row("single-bit flips in checkpoints and shards", "all found", bit_flips, 200, 40),
        "resume": Row("20 steps = 10, new process, 10 more", "bitwise, 1 and 2 processes", resume, 2, 2),
        "virtual": Row("2 processes = 1 with 2 virtual ranks, 20 steps", "bitwise; naive <= 1e-6", virtual_ranks, 2, 2),
        "kill": Row("SIGKILL of a worker under --max-restarts", "all recover, bitwise", kill_worker, 12, 0),
        "soak": Row("random kills in one run", "bitwise", many_kills, 10, 2),
        "signals": Row("SIGTERM and Ctrl-C", "all saved at a boundary, resumed", signals, 20, 2),
        "disk": Row("disk full", "old kept, ENOSPC in one line, status 2", disk_full, 2, 2),
        "code": Row("loads that can run code", "0", unsafe_loads, 1, 1),
        "properties": Row("ranks' union = one stream; resume anywhere", "no counterexample", properties, 500, 60),
        "preflight": Row("preflight of 100 million tokens", "< 1 s", preflight_time, 100, 2),
        "exercises": Row("right answers and mistakes of all exercises", "0 refused, each by its name", exercises, 200, 0),
        "hellaswag": Row("answers to HellaSwag beside transformers", "none differs", hellaswag, 1000, 0),
        "site": Row("pages of the site, all examined by axe", "no serious fault", site, 1, 0),
        "challenges": Row("open challenges, plain solutions", "the published scores, within 5 %", challenges, 1, 0),
        "bad": Row("bad inputs", "one line, status 2, nothing written", bad_inputs, 2, 0),
    }


def main():
    parser = argparse.ArgumentParser(description="The reliability scorecard")
    parser.add_argument("--short", action="store_true", help="the counts of `make test`")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="rows: " + " ".join(rows_of_scorecard()))
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "soak.json", help="JSON file to write")
    args = parser.parse_args()
    table = rows_of_scorecard()
    unknown = set(args.only) - set(table)
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}: choose from {', '.join(table)}")
    torch.set_num_threads(1)
    found = []
    print(f"{'test':<50} {'required':<40} {'s':>6}  measured", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        bench = Bench(root)
        for name, row in table.items():
            count = row.short if args.short else row.full
            if args.only and name not in args.only or not count:
                continue
            t0 = time.perf_counter()
            try:
                ok, measured = row.run(bench, count)
            except Exception as e:
                ok, measured = False, f"{type(e).__name__}: {e}"
            seconds = round(time.perf_counter() - t0, 1)
            found.append(dict(name=name, test=row.test, count=count, required=row.required, measured=measured, ok=bool(ok), seconds=seconds))
            print(f"{row.test:<50} {row.required:<40} {seconds:>6}  {'' if ok else 'FAILED: '}{measured}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(dict(torch=torch.__version__, short=args.short, rows=found), indent=1) + "\n")
    failed = [row["test"] for row in found if not row["ok"]]
    print(f"{len(found) - len(failed)} of {len(found)} rows hold; written to {args.out}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
