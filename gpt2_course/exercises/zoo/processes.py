"""Ranks in processes of their own: the cases that they run and the rows that they write."""

import json, os, re, subprocess, sys, tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch


CASES = {} # name -> function (rank, world, say, talk)

def case(fn):
    "Something that two ranks do"
    CASES[fn.__name__] = fn
    return fn

def plainly(message): # the first line, without places in gloo's code and ports
    return re.sub(r"\[[^]\s]*[/.][^]]*\]\S* ?|\. .*", "", message.splitlines()[0])[:75]

def one_rank(names, rank, world, folder, patience):
    "The work of one process: one case after the other"
    import torch.distributed as dist
    torch.set_num_threads(1)
    rank, world, patience = int(rank), int(world), float(patience)
    dist.init_process_group("gloo", init_method=(Path(folder)/"meet").as_uri(), rank=rank,
                            world_size=world, timeout=timedelta(seconds=120))
    with open(Path(folder)/f"{rank}.jsonl", "w", encoding="utf-8", buffering=1) as file:
        for name in names.split("+"):
            def say(**row): file.write(json.dumps(dict(case=name, rank=rank, **row)) + "\n")
            group = dist.new_group(timeout=timedelta(seconds=patience))
            try: CASES[name](rank, world, say, group)
            except RuntimeError as e: say(ended=plainly(str(e)))
    os._exit(0) # gloo's threads may wait for a peer that is gone

@cache
def ranks(
    names:str,        # of cases, joined by +
    world:int=2,
    patience:float=3, # seconds that a rank waits for the others
) -> list:            # rows of all ranks, by rank
    "Run cases in processes of their own; none is left behind"
    code = "import sys; from gpt2_course.exercises.zoo import one_rank; one_rank(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        jobs = [subprocess.Popen([sys.executable, "-c", code, names, str(r), str(world), folder,
                                  str(patience)], stderr=subprocess.DEVNULL) for r in range(world)]
        try:
            for j in jobs: j.wait(150)
        finally:
            for j in jobs:
                if j.poll() is None: j.kill()
                j.wait()
        files = [Path(folder)/f"{r}.jsonl" for r in range(world)]
        return [json.loads(line) for f in files if f.exists()
                for line in f.read_text(encoding="utf-8").splitlines()]

def rows_of(name): # of a case; those that do not hang share one launch
    calm = "drifting_twins+chorus+loaded_dice"
    names = calm if name in calm.split("+") else name
    return [{k: v for k, v in r.items() if k != "case"} for r in ranks(names) if r["case"] == name]
