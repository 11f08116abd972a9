"""The catalogue of chapter 19 with its reference answers, and the program that is killed there
while it saves."""

import hashlib
from pathlib import Path

import torch

from .. import checkpoint
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..model import GPT
from ..optim import adamw


def keep_saving(
    folder, # where
    how:str,# overwrite (one file) or package
):
    "Save again and again; never returns"
    torch.set_num_threads(1)
    model = GPT(GPTConfig(block_size=64, vocab_size=4096, n_layer=2, n_head=4, n_embd=256))
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    for p in model.parameters(): p.grad = torch.ones_like(p)
    optimizer.step() # now it has its two memories
    folder, step = Path(folder), 0
    while True:
        step += 1
        if how == "overwrite":
            torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step),
                       folder/"checkpoint.pt")
        else:
            checkpoint.save(folder, step, model, optimizer, [], {})
            checkpoint.prune(folder, 1, "")

def on_disk(
    folder,
    how:str, # as above
) -> tuple:  # bytes of what has its final name, bytes of what is being written
    "Look, from outside, at what the program above has written"
    folder = Path(folder)
    size = lambda pattern: sum(sizes(folder, pattern))
    if how == "overwrite": return size("checkpoint.pt"), 0
    return size("checkpoints/step_*/*"), size("checkpoints/.step_*/*")

def sizes(folder, pattern): # of files that may vanish while we look
    for path in folder.glob(pattern):
        try: yield path.stat().st_size
        except OSError: pass

def survives(
    folder,
    how:str,
) -> bool: # whether what is on disk can be loaded and holds what was saved
    "Try to read it as a resume would"
    try:
        if how == "package": return bool(checkpoint.newest(folder, say=lambda line: None))
        return bool(torch.load(Path(folder)/"checkpoint.pt", weights_only=True))
    except Exception: return False # torch.load has many ways of saying no


def resume_position(
    step:int,         # finished steps
    accumulation:int, # micro-batches a step, in each process
    B:int,            # rows of a micro-batch
    world:int,        # processes
    W:int,            # windows in an epoch
) -> tuple:           # (epoch, windows of that epoch that have been seen)
    "Where all ranks together stand in the stream of windows"
    return divmod(step * accumulation * B * world, W)


def by_reading(step, accumulation, B, world, W):
    "Read window by window, as the loaders do together"
    epoch = seen = 0
    for _ in range(step):
        for _ in range(accumulation):
            for _ in range(world):
                for _ in range(B):
                    seen += 1
                    if seen == W: epoch, seen = epoch + 1, 0
    return epoch, seen

register(Exercise(
    "checkpoint.resume_position", "19", "(epoch, windows seen in it) after so many steps, over all "
    "processes; windows of an epoch are counted from 0 to W.",
    inputs=lambda seed: [(10 + seed, 2, 4, 2, 37), (3, 1, 8, 4, 100), (5, 4, 3, 2, 40)],
    oracle=by_reading, package="gpt2_course.exercises.checkpoint:resume_position",
    wrongs=(
        Wrong("each process counts its own windows alone",
              lambda s, a, B, w, W: divmod(s * a * B, W),
              "The stream is shared: the ranks take turns. After a resume the model reads again "
              "what other ranks have read, world - 1 times over."),
        Wrong("a step is taken for a micro-batch", lambda s, a, B, w, W: divmod(s * B * w, W),
              "With accumulation a step reads several micro-batches; the data of most of them "
              "comes again."),
        Wrong("the batch that was fetched ahead counts as read",
              lambda s, a, B, w, W: divmod((s * a + 1) * B * w, W),
              "Loaders fetch ahead. What no step has used is lost unless the count stops at the "
              "step."),
        Wrong("the epoch is forgotten", lambda s, a, B, w, W: (0, s * a * B * w % W),
              "Each epoch has its own order; the first one's comes again and again, and the loss "
              "takes on its period.")),
    hints=("How many windows does one step read, over all processes?",
           "step * accumulation * B * world windows in all; W of them are an epoch.",
           "divmod gives both numbers at once.")))


def states(
    seed:int,
) -> list: # of (state dict,)
    "Names as compiled, wrapped, and partly compiled models have them; the head is tied"
    g = torch.Generator().manual_seed(seed)
    def named(front, inside=""):
        wte = torch.randn(5, 2, generator=g)
        mid = f"transformer.h.0.{inside}"
        return {f"{front}transformer.wte.weight": wte, f"{front}lm_head.weight": wte,
                f"{front}{mid}mlp.c_fc.weight": torch.randn(2, 4, generator=g)[:, ::2],
                f"{front}{mid}my_module.bias": torch.randn(3, generator=g).requires_grad_()}
    return [(named(""),), (named("_orig_mod."),), (named("module._orig_mod."),),
            (named("module.", "_orig_mod."),)]

def piecewise(state):
    "Names taken apart at their dots"
    out = {}
    for name, t in state.items():
        parts = [p for p in name.split(".") if p != "_orig_mod"]
        if parts[0] == "module": parts = parts[1:]
        if parts[0] != "lm_head": out[".".join(parts)] = t.detach().clone()
    return out

def renamed(change, drop="lm_head.weight"):
    "Some other renaming"
    def fn(state):
        out = {change(k): v.detach().contiguous() for k, v in state.items()}
        return {k: v for k, v in out.items() if k != drop}
    return fn

plain = lambda k: k.replace("_orig_mod.", "").removeprefix("module.")
register(Exercise(
    "checkpoint.untied", "19", "The state dict with plain names (no _orig_mod. of torch.compile, "
    "no module. of DDP in front) and without the tied lm_head.weight.",
    inputs=states, oracle=piecewise, package="gpt2_course.checkpoint:untied",
    wrongs=(
        Wrong("_orig_mod. is removed at the front only",
              renamed(lambda k: k.removeprefix("_orig_mod.").removeprefix("module.")),
              "DDP around a compiled model writes module._orig_mod., a compiled block has it "
              "inside: the file loads in no plain model."),
        Wrong("module. is removed everywhere",
              renamed(lambda k: k.replace("_orig_mod.", "").replace("module.", "")),
              "A layer whose own name ends in module loses it. Remove wrappers, not names."),
        Wrong("the tied head is written as well", renamed(plain, drop=None),
              "safetensors refuses two names for one memory; other formats write it twice, and "
              "after loading the two may be tied no longer."),
        Wrong("the embedding is dropped instead of the head",
              renamed(plain, drop="transformer.wte.weight"),
              "Loading by GPT-2's names misses its first tensor: wte is the one that all readers "
              "look for.")),
    hints=("torch.compile adds _orig_mod. wherever it compiled; DDP adds module. in front.",
           "str.replace removes everywhere, str.removeprefix at the front only: use each once.",
           "Skip lm_head.weight, and detach what is left.")))


def newest_whole(
    found, # step -> (files: name -> bytes, digests: name -> sha256 as promised by meta.json)
):         # the newest step whose files are all there as promised, or None
    "Go back until one passes"
    def whole(files, digests):
        return bool(digests) and all(
            n in files and hashlib.sha256(files[n]).hexdigest() == d for n, d in digests.items())
    return max((step for step, pair in found.items() if whole(*pair)), default=None)


def runs_on_disk(
    seed:int,
) -> list: # of (found,)
    "Whole, with a flipped bit, with a missing file, and without any digest"
    g = torch.Generator().manual_seed(seed)
    def step(hurt=None):
        files = {n: bytes(torch.randint(256, (20,), generator=g).tolist())
                 for n in ("model.safetensors", "state.pt")}
        digests = {n: hashlib.sha256(b).hexdigest() for n, b in files.items()}
        if hurt == "flip":
            raw = bytearray(files["state.pt"])
            raw[7] ^= 1 << seed % 8
            files["state.pt"] = bytes(raw)
        if hurt == "missing": files.pop("state.pt")
        return (files, {}) if hurt == "no digests" else (files, digests)
    return [({90: step(), 100: step()},), ({100: step(), 200: step("flip")},),
            ({100: step(), 200: step("missing"), 300: step("no digests")},), ({50: step("flip")},)]

def one_by_one(found):
    "A loop from the highest number down"
    for step in range(max(found), -1, -1):
        files, digests = found.get(step, ({}, {}))
        good = [n for n in digests if hashlib.sha256(files.get(n, b"?")).hexdigest() == digests[n]]
        if digests and len(good) == len(digests): return step
    return None

def searched(whole, order=lambda found: sorted(found, reverse=True), tries=None):
    "Another search"
    return lambda found: next((s for s in order(found)[:tries] if whole(*found[s])), None)

def as_promised(files, digests):
    return bool(digests) and all(hashlib.sha256(files.get(n, b"?")).hexdigest() == d
                                 for n, d in digests.items())

register(Exercise(
    "checkpoint.newest_whole", "19", "The newest step whose files all have the sha256 that was "
    "promised; None if there is none. A checkpoint without digests is not whole.",
    inputs=runs_on_disk, oracle=one_by_one,
    package="gpt2_course.exercises.checkpoint:newest_whole",
    wrongs=(
        Wrong("the files only have to be there",
              searched(lambda files, digests: bool(digests) and set(digests) <= set(files)),
              "A flipped bit is loaded without a word, and the run goes on with it."),
        Wrong("only the newest is looked at", searched(as_promised, tries=1),
              "One damaged checkpoint, and the run starts at step 0 though an older one is fine."),
        Wrong("steps are compared as text",
              searched(as_promised, lambda found: sorted(found, key=str, reverse=True)),
              "'90' comes after '100': the run falls back in time. Directory names therefore have "
              "leading zeros."),
        Wrong("a checkpoint without digests counts as whole",
              searched(lambda files, digests: all(
                  hashlib.sha256(files.get(n, b"?")).hexdigest() == d for n, d in digests.items())),
              "all() of nothing is True: a meta.json that was cut short lets anything pass.")),
    hints=("Compare hashlib.sha256(content).hexdigest() with each promise.",
           "A file that is missing breaks a promise; no promise at all is no proof.",
           "max of the steps that pass, with default=None.")))


def kept(
    steps,       # steps that have a checkpoint, ascending
    keep:int,    # newest ones to keep
    best:int,    # step of the best one
    every:int=0, # multiples of it stay too; 0: none
) -> list:       # steps that stay, ascending
    "The newest, the best, and the milestones"
    new = steps[-keep:]
    return [s for s in steps if s in new or s == best or (every and s % every == 0)]


def by_sets(steps, keep, best, every=0):
    "Three sets, united"
    newest = set(sorted(steps, reverse=True)[:keep])
    milestones = {s for s in steps if s % every == 0} if every else set()
    return sorted(newest | ({best} & set(steps)) | milestones)

register(Exercise(
    "checkpoint.kept", "19", "Which steps' checkpoints stay: the newest `keep`, the best, and the "
    "multiples of `every` (0: none); ascending.",
    inputs=lambda seed: [([10, 20, 30, 40, 50], 2, 10 + 10 * (seed % 3), 0),
                         ([100, 200, 300, 400, 500, 600], 1, 300, 200), ([5], 3, 5, 0)],
    oracle=by_sets, package="gpt2_course.exercises.checkpoint:kept",
    wrongs=(
        Wrong("the best one is not protected", lambda s, k, b, e=0: by_sets(s, k, -1, e),
              "The file that `best` names is gone: sampling the run fails."),
        Wrong("the oldest are kept", lambda s, k, b, e=0: sorted({*s[:k], *by_sets(s, 0, b, e)}),
              "After each save the new checkpoint is deleted: a resume begins at the beginning."),
        Wrong("milestones are not kept", lambda s, k, b, e=0: by_sets(s, k, b, 0),
              "The slider through the training has nothing to show."),
        Wrong("the best one counts among the newest",
              lambda s, k, b, e=0: by_sets(s, k - (b in s and b not in s[-k:]), b, e),
              "With keep = 1 and an old best, no recent checkpoint is left to resume from.")),
    hints=("Three reasons to stay; one is enough.",
           "steps[-keep:] are the newest ones.",
           "every = 0 must not be a divisor: test it first.")))
