"""A pickle that runs a command when it is loaded, put in the place of every file that the package reads."""

import io
import json
import os
import pickle
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import torch
from gpt2_course import checkpoint, evaluate, export, prepare, sample, train
from gpt2_course.config import UserError
from gpt2_course.data import sha256_file


class Payload:
    "Unpickled, it makes a file"

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def bombs(marker):
    "The same payload in the containers that loaders know"
    plain, zipped, legacy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(Payload(marker), plain)
    torch.save(dict(optimizer=Payload(marker), rngs=[]), zipped)
    torch.save(dict(optimizer=Payload(marker), rngs=[]), legacy, _use_new_zipfile_serialization=False)
    return dict(pickle=plain.getvalue(), zip=zipped.getvalue(), legacy=legacy.getvalue())


def attempt(module, *argv):
    "A command in this process: None if it ends well, else its error line; whatever else it raises goes through"
    old, out = sys.argv, io.StringIO()
    sys.argv = [module.__name__, *map(str, argv)]
    try:
        with redirect_stdout(out), redirect_stderr(out):
            module.main()
    except UserError as e:
        return str(e)
    finally:
        sys.argv = old
    return None


def seal(step):
    "Make a forged checkpoint look whole"
    try:
        meta = json.loads((step / "meta.json").read_text())
    except ValueError:
        return
    meta["sha256"] = {p.name: sha256_file(p) for p in step.iterdir() if p.name != "meta.json"}
    (step / "meta.json").write_text(checkpoint.sealed(meta))


def seal_data(data):
    "Make a forged corpus look as prepared"
    try:
        meta = json.loads((data / "meta.json").read_text())
    except ValueError:
        return
    for name, shard in meta["shards"].items():
        shard["sha256"] = sha256_file(data / name)
    (data / "meta.json").write_text(json.dumps(meta))


def unsafe_loads(bench, n):
    "Every file, every container, every command that reads it: nothing runs, and each is refused in a line or not looked at"
    marker = bench.root / "the-payload-ran"
    for name, bomb in bombs(marker).items():  # a payload that never works would prove nothing
        pickle.loads(bomb) if name == "pickle" else torch.load(io.BytesIO(bomb), weights_only=False)
        os.rmdir(marker)
    trained, sliced = bench.undisturbed(1), bench.undisturbed(2, "--parallel", "fsdp")
    hf = bench.fresh("hf")
    assert attempt(export, trained, hf) is None
    ran, loads, loud = [], 0, []

    def trial(what, command):
        nonlocal loads
        loads += 1
        try:
            said = command()
        except Exception as e:
            said = None
            loud.append(f"{what}: {type(e).__name__}")
        if marker.exists():
            os.rmdir(marker)
            ran.append(what)
        return said

    for container, bomb in bombs(marker).items():
        step = "checkpoints/step_00000020"
        part = f"{step}/shard-00001-model-00001-of-00001.safetensors"
        every = (f"{step}/state.pt", f"{step}/model.safetensors", f"{step}/meta.json", "config.json", "tokenizer.json", "checkpoints/best", "status.json")
        for whole, name in (*((trained, name) for name in every), (sliced, f"{step}/state.pt"), (sliced, part)):
            run = shutil.copytree(whole, bench.fresh("forged"))
            shutil.rmtree(run / "checkpoints" / "step_00000010")
            (run / name).write_bytes(bomb)
            seal(run / step)
            flags = ("--data", bench.data, "--out", run, "--steps", "22", "--sample-every", "0")
            trial(f"{container} as {name}, sampled", lambda: attempt(sample, run, "--max-new-tokens", "2", "--num-samples", "1", "--device", "cpu"))
            trial(f"{container} as {name}, evaluated", lambda: attempt(evaluate, run, "--data", bench.data, "--limit", "100", "--device", "cpu"))
            said = trial(f"{container} as {name}, resumed", lambda: attempt(train, *flags, "--resume", "--device", "cpu"))
            if name.endswith(("state.pt", ".safetensors", "meta.json", "config.json")) and not said:
                loud.append(f"{container} as {name} was accepted")
        for name in ("train_000000.bin", "val_000000.bin", "meta.json", "tokenizer.json"):
            data = shutil.copytree(bench.data, bench.fresh("forged-data"))
            (data / name).write_bytes(bomb)
            seal_data(data)
            flags = ("--data", data, "--out", bench.fresh("none"), "--model.block-size", "32", "--batch-tokens", "512")
            if not trial(f"{container} as data's {name}", lambda: attempt(train, "--preset", "nano-char", *flags, "--check", "--device", "cpu")):
                loud.append(f"{container} as data's {name} was accepted")
        for name in ("model.safetensors", "config.json", "pytorch_model.bin"):
            folder = shutil.copytree(hf, bench.fresh("forged-hf"))
            (folder / name).write_bytes(bomb)
            if name == "pytorch_model.bin":
                (folder / "model.safetensors").unlink()
            if not trial(f"{container} as a Hugging Face {name}", lambda: attempt(sample, folder, "--max-new-tokens", "2", "--device", "cpu")):
                loud.append(f"{container} as a Hugging Face {name} was accepted")
        for suffix in ("txt", "jsonl", "parquet"):
            text = bench.fresh("text").parent / f"text.{suffix}"
            text.write_bytes(bomb)
            trial(f"{container} as text.{suffix}", lambda: attempt(prepare, text, "--out", text.parent / "out", "--tokenizer", "gpt2"))
            trial(f"{container} as --config", lambda: attempt(train, "--config", text, "--check"))
            trial(f"{container} as --prompt", lambda: attempt(sample, trained, "--prompt", f"FILE:{text}", "--device", "cpu"))
            trial(f"{container} as HellaSwag", lambda: attempt(evaluate, trained, "--task", "hellaswag", "--data", text, "--device", "cpu"))
    return not ran and not loud, f"{len(ran)} of {loads} ran" + "".join(f"; {what}" for what in (ran + loud)[:5])
