"""Helpers of the tests that train: the flags of a tiny run, launching it, reading what it wrote, and the one line of a refusal."""

import json

from gpt2_course.checkpoint import load_model, load_state
from gpt2_course.optim import adamw
from safetensors.torch import load_file

from forked import WORKERS, torchrun

__all__ = ["TINY", "WORKER", "WORKERS", "losses", "metrics", "moments", "moments_of", "refused", "torchrun", "weights", "weights_of"]
WORKER = WORKERS / "fit_digest.py"
TINY = (
    "--preset nano-char --device cpu --dtype float32 --no-compile --steps 10 --batch-tokens 512 --micro-batch 4 --model.block-size 32"
    " --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --optim.warmup 3 --optim.lr 1e-2 --optim.min-lr 1e-3 --log-every 1 --eval-every 5"
    " --eval-tokens 2048 --sample-every 5 --sample-tokens 8 --save-every 5"
).split()


def metrics(out, split="train"):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def losses(out, split="train"):
    return [row["loss"] for row in metrics(out, split)]


def step(out, number):
    return out / "checkpoints" / f"step_{number:08d}"


def weights_of(path):
    "The weights of a step directory, whoever wrote it"
    if (path / "model.safetensors").exists():
        return load_file(path / "model.safetensors")
    return {k: v for k, v in load_model(path).state_dict().items() if k != "lm_head.weight"}


def moments_of(path):
    "AdamW's state by the parameters' names, whoever wrote it"
    model = load_model(path)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    load_state(path, optimizer, model)
    return {f"{name}.{k}": v for name, p in model.named_parameters() for k, v in optimizer.state[p].items()}


def weights(out, number=10):
    return weights_of(step(out, number))


def moments(out, number=10):
    return moments_of(step(out, number))


def refused(done) -> str:
    "The one line that a refused command printed"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stdout
    return lines[0]
