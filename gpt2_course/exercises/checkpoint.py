"""The catalogue of chapter 19 with its reference answers, the program that is killed there while
it saves, and the challenge of the smallest checkpoint."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint
from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig, packaged
from ..data import TokenLoader
from ..evals import validation_sum
from ..model import GPT
from ..optim import adamw, cosine_lr
from ..tokenizer import CharTokenizer


def keep_saving(
    folder, # where
    how:str,# overwrite (one file) or package
):
    "Save again and again; never returns"
    torch.set_num_threads(1)
    model = GPT(GPTConfig(block_size=64, vocab_size=4096, n_layer=2, n_head=4, n_embd=256))
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    for p in model.parameters(): p.grad = torch.ones_like(p)
    optimizer.step() # now it has its two moments
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
    "Measure, from outside, what the program above has written"
    folder = Path(folder)
    size = lambda pattern: sum(sizes(folder, pattern))
    if how == "overwrite": return size("checkpoint.pt"), 0
    return size("checkpoints/step_*/*"), size("checkpoints/.step_*/*")

def sizes(folder, pattern): # of files that may vanish while we look, and directories, too
    found = folder.glob(pattern)
    while True:
        try:
            path = next(found, None)
            if path is None: return
            yield path.stat().st_size
        except OSError: pass

def survives(
    folder,
    how:str,
) -> bool: # whether what is on disk can be loaded and holds what was saved
    "Try to read it as a resume would"
    try:
        if how == "package": return bool(checkpoint.newest(folder, say=lambda line: None))
        return bool(torch.load(Path(folder)/"checkpoint.pt", weights_only=True))
    except Exception: return False # torch.load has many ways of failing


def resume_position(
    step:int,         # finished steps
    accumulation:int, # micro-batches per step, in each process
    B:int,            # rows of a micro-batch
    world:int,        # processes
    W:int,            # windows in an epoch
) -> tuple:           # (epoch, windows of that epoch that have been seen)
    "Where all ranks together stand in the stream of windows"
    return divmod(step * accumulation * B * world, W)


def positions(
    seed:int,
) -> list: # of (step, accumulation, B, world, W)
    "Several epochs, the end of one, the beginning of the run, one process, less than an epoch"
    rng = np.random.default_rng(seed)
    some = lambda low, high: int(rng.integers(low, high))
    return [(some(10, 60), 2, 4, 2, 37), (5, 4, 3, 2, 40), (0, 2, 4, 2, 37),
            (some(20, 40), 3, 2, 1, 11), (3, 1, 8, 4, 100)]

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

def not_turned(s, a, B, w, W): # an epoch that has been read to its end is still the open one
    epoch, seen = by_reading(s, a, B, w, W)
    return (epoch, seen) if seen or not epoch else (epoch - 1, W)

register(Exercise(
    "checkpoint.resume_position", "19", "Where a run stands after `step` finished steps: (epoch, "
    "windows of that epoch that all processes together have read). Both count from 0; an epoch has "
    "W windows.",
    inputs=positions, oracle=by_reading,
    package="gpt2_course.exercises.checkpoint:resume_position",
    wrongs=(
        Wrong("each process counts its own windows alone",
              lambda s, a, B, w, W: divmod(s * a * B, W),
              "The stream is shared: the ranks take turns. After a resume the model rereads what "
              "the other ranks had already read."),
        Wrong("a step is taken for a micro-batch", lambda s, a, B, w, W: divmod(s * B * w, W),
              "With accumulation a step reads several micro-batches; most of its data would be "
              "read again."),
        Wrong("micro-batches are counted, not windows",
              lambda s, a, B, w, W: divmod(s * a * w, W),
              "A micro-batch has B rows, and each row is a window. The resumed run goes back to a "
              "place B times nearer to the start."),
        Wrong("the batch that was fetched ahead counts as read",
              lambda s, a, B, w, W: divmod((s * a + 1) * B * w, W),
              "Loaders fetch ahead. A batch that no step has used is lost unless the position "
              "counts finished steps only."),
        Wrong("the epoch is forgotten", lambda s, a, B, w, W: (0, s * a * B * w % W),
              "Each epoch has its own order. Here the first epoch's order is repeated again and "
              "again, and the loss becomes periodic."),
        Wrong("the epoch is a fraction",
              lambda s, a, B, w, W: (s * a * B * w / W, s * a * B * w % W),
              "The order of an epoch is drawn from its number, an integer: use //, which rounds "
              "down."),
        Wrong("the two numbers are swapped",
              lambda s, a, B, w, W: divmod(s * a * B * w, W)[::-1],
              "The epoch comes first. If they are swapped, a run in its first epoch resumes in "
              "epoch 20 or so, in an order that it never began."),
        Wrong("a finished epoch still counts as the current one", not_turned,
              "Windows are numbered 0 to W - 1: after W of them the run is at window 0 of the next "
              "epoch. Position W of the old one does not exist."),
        Wrong("an incomplete batch at the end of an epoch is dropped",
              lambda s, a, B, w, W: divmod(s * a * B * w, W // (B * w) * B * w),
              "Many loaders do drop it (drop_last). Here a batch may continue into the next epoch, "
              "so each epoch has all its W windows.")),
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
    fronts = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.")
    return [(named(""),), *((named(f),) for f in fronts), (named("module.", "_orig_mod."),)]

def piecewise(state):
    "Names taken apart at their dots"
    out = {}
    for name, t in state.items():
        parts = [p for p in name.split(".") if p != "_orig_mod"]
        if parts[0] == "module": parts = parts[1:]
        if parts[0] != "lm_head": out[".".join(parts)] = t.detach().clone()
    return out

def as_file(result, state):
    "The tensors, and whatever a file writer would refuse in them"
    if not isinstance(result, dict): return result
    tensors = {k: v for k, v in result.items() if isinstance(v, torch.Tensor)}
    tell = lambda bad: ", ".join(str(k) for k, v in tensors.items() if bad(v))
    others = ", ".join(str(k) for k in result if k not in tensors)
    return {"state": result, "tensors that still require a gradient": tell(
        lambda v: v.requires_grad), "tensors with gaps": tell(lambda v: not v.is_contiguous()),
        "what is not a tensor": others}

def renamed(change, drop=("lm_head.weight",), before=(), tensor=lambda v: v.detach().contiguous()):
    "Some other renaming; `drop` is looked for afterwards, `before` in the old names"
    def fn(state):
        out = {change(k): tensor(v) for k, v in state.items() if k not in before}
        return {k: v for k, v in out.items() if k not in drop}
    return fn

plain = lambda k: k.replace("_orig_mod.", "").removeprefix("module.")
register(Exercise(
    "checkpoint.untied", "19", "The state dict with plain names (no _orig_mod. of torch.compile, "
    "no module. of DDP in front) and without the tied lm_head.weight; its tensors are detached and "
    "contiguous, as a file needs them.",
    inputs=states, oracle=piecewise, package="gpt2_course.checkpoint:untied", read=as_file,
    wrongs=(
        Wrong("_orig_mod. is removed at the front only",
              renamed(lambda k: k.removeprefix("_orig_mod.").removeprefix("module.")),
              "DDP around a compiled model writes module._orig_mod., and a compiled block has it "
              "inside the name: no plain model can load the file."),
        Wrong("module. is removed everywhere",
              renamed(lambda k: k.replace("_orig_mod.", "").replace("module.", "")),
              "A layer whose own name ends in module loses that part of it. Remove only the prefix "
              "that the wrapper added."),
        Wrong("module. is removed before _orig_mod.",
              renamed(lambda k: k.removeprefix("module.").replace("_orig_mod.", "")),
              "A compiled DDP model writes _orig_mod.module.: the prefix is in front only once "
              "_orig_mod. is gone."),
        Wrong("only the prefixes of a compiled model are removed",
              renamed(lambda k: k.replace("_orig_mod.", "")),
              "DDP's module. stays in front of every name, and a plain model finds none of its "
              "tensors."),
        Wrong("lstrip is used for removeprefix",
              renamed(lambda k: k.replace("_orig_mod.", "").lstrip("module.")),
              "str.lstrip removes any of these letters from the front, not the word: lm_head "
              "becomes _head."),
        Wrong("the tied head is written as well", renamed(plain, drop=()),
              "safetensors refuses two names for the same memory; other formats write it twice, "
              "and after loading the two may no longer be tied."),
        Wrong("the head is looked up before its name is plain",
              renamed(plain, drop=(), before=("lm_head.weight",)),
              "In a wrapped model it is called module.lm_head.weight: rename first, then compare, "
              "or it is written after all."),
        Wrong("the embedding is dropped instead of the head",
              renamed(plain, drop=("transformer.wte.weight",)),
              "A program that loads by GPT-2's names does not find its first tensor: wte is the "
              "name that all of them look for."),
        Wrong("the tensors are not detached", renamed(plain, tensor=lambda v: v.contiguous()),
              "A tensor that still requires a gradient stays attached to autograd; NumPy and many "
              "writers refuse it."),
        Wrong("non-contiguous tensors are kept as they "
              "are", renamed(plain, tensor=lambda v: v.detach()),
              "A slice such as t[:, ::2] is a view with gaps. A file has no gaps between its "
              "bytes, and safetensors refuses such a tensor: call contiguous().")),
    hints=("torch.compile adds _orig_mod. to everything that it compiled; DDP adds module. in "
           "front.",
           "str.replace removes everywhere, str.removeprefix at the front only: use each once, "
           "_orig_mod. first.",
           "Skip lm_head.weight by its plain name; store v.detach().contiguous() of the rest.")))


def newest_whole(
    found, # step -> (files: name -> bytes, digests: name -> sha256 as promised by meta.json)
):         # the newest step whose files are all there as promised, or None
    "Search backwards until one passes"
    def whole(files, digests):
        return bool(digests) and all(
            n in files and hashlib.sha256(files[n]).hexdigest() == d for n, d in digests.items())
    return max((step for step, pair in found.items() if whole(*pair)), default=None)


def runs_on_disk(
    seed:int,
) -> list: # of (found,)
    "Whole, with a flipped bit, with a missing file, without any digest, and in no order"
    g = torch.Generator().manual_seed(seed)
    def step(hurt=None):
        files = {n: bytes(torch.randint(256, (20,), generator=g).tolist())
                 for n in ("model.safetensors", "state.pt")}
        digests = {n: hashlib.sha256(b).hexdigest() for n, b in files.items()}
        if hurt == "flip":
            raw = bytearray(files["state.pt"])
            raw[7] ^= 1 << int(torch.randint(8, (), generator=g))
            files["state.pt"] = bytes(raw)
        if hurt == "missing": files.pop("state.pt")
        return (files, {}) if hurt == "no digests" else (files, digests)
    return [({90: step(), 100: step()},), ({100: step(), 200: step("flip")},),
            ({100: step(), 200: step("missing"), 300: step("no digests")},), ({50: step("flip")},),
            ({300: step(), 100: step("flip"), 200: step()},), ({},)]

def one_by_one(found):
    "A loop from the highest number down"
    for step in range(max(found, default=-1), -1, -1):
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

def until_damaged(found): # the last step in front of the first damaged one
    best = None
    for step in sorted(found):
        if not as_promised(*found[step]): break
        best = step
    return best

register(Exercise(
    "checkpoint.newest_whole", "19", "The newest step at which every promised sha256 is that of "
    "its file; None if there is no such step. A checkpoint without digests is not whole.",
    inputs=runs_on_disk, oracle=one_by_one,
    package="gpt2_course.exercises.checkpoint:newest_whole",
    wrongs=(
        Wrong("the files are only required to exist",
              searched(lambda files, digests: bool(digests) and set(digests) <= set(files)),
              "A flipped bit is loaded without an error, and the run continues with it."),
        Wrong("only the files that are there are compared",
              searched(lambda files, digests: all(
                  hashlib.sha256(b).hexdigest() == digests.get(n) for n, b in files.items())),
              "A file that is missing is never looked at, so an interrupted copy passes. Loop over "
              "the digests, not over the files."),
        Wrong("one file with the right digest is enough",
              searched(lambda files, digests: any(
                  hashlib.sha256(files.get(n, b"?")).hexdigest() == d for n, d in digests.items())),
              "any() is satisfied by the weights alone; the damaged optimiser state is noticed "
              "only after the run has started, or never."),
        Wrong("only the newest is checked", searched(as_promised, tries=1),
              "One damaged checkpoint makes the run start at step 0, although an older one is "
              "fine."),
        Wrong("the oldest whole one is taken", searched(as_promised, sorted),
              "All the steps since the first checkpoint are done again."),
        Wrong("the search stops at the first damaged one", until_damaged,
              "The search goes up from the oldest, so whole checkpoints that are newer than a "
              "damaged one are ignored. Search from the newest down."),
        Wrong("steps are compared as text",
              searched(as_promised, lambda found: sorted(found, key=str, reverse=True)),
              "As text, '90' comes after '100': the run goes back to an older step. Directory "
              "names therefore have leading zeros."),
        Wrong("the last in the listing counts as the newest",
              searched(as_promised, lambda found: list(found)[::-1]),
              "A directory is listed in any order, and a dict keeps the order in which it was "
              "filled: sort the steps by their number."),
        Wrong("a checkpoint without digests counts as whole",
              searched(lambda files, digests: all(
                  hashlib.sha256(files.get(n, b"?")).hexdigest() == d for n, d in digests.items())),
              "all() of nothing is True: a meta.json that was cut short lets anything pass."),
        Wrong("max() of nothing raises an error",
              lambda found: max(s for s, pair in found.items() if as_promised(*pair)),
              "That no checkpoint is whole is an ordinary case: return None, and the caller "
              "decides what to do. max takes default=None.")),
    hints=("Compare hashlib.sha256(content).hexdigest() with each promise.",
           "A file that is missing breaks a promise; no promise at all is no proof.",
           "max of the steps that pass, with default=None.")))


def kept(
    steps,       # steps that have a checkpoint, ascending
    keep:int,    # newest ones to keep, at least 1
    best:int,    # step of the best one
    every:int=0, # multiples of it stay too; 0: none
) -> list:       # steps that stay, ascending
    "The newest, the best, and the milestones"
    new = steps[-keep:]
    return [s for s in steps if s in new or s == best or (every and s % every == 0)]


def kept_inputs(
    seed:int,
) -> list: # of (steps, keep, best, every)
    "An old best one, milestones, fewer than may be kept, a best one that is gone, two reasons"
    rng = np.random.default_rng(seed)
    return [([10, 20, 30, 40, 50], 2, int(rng.choice([10, 20, 30])), 0),
            ([100, 200, 300, 400, 500, 600], 1, 300, 200), ([5], 3, 5, 2),
            ([30, 40, 50, 60], 1, int(rng.choice([10, 20])), 0),
            ([1000, 1500, 2000, 2500, 3000], 3, 2500, 1000)]

def by_sets(steps, keep, best, every=0):
    "Three sets, united"
    newest = set(sorted(steps, reverse=True)[:keep])
    milestones = {s for s in steps if s % every == 0} if every else set()
    return sorted(newest | ({best} & set(steps)) | milestones)

def numbered(s, k, b, e=0): # milestones by their place in the list
    places = {x for i, x in enumerate(s) if i % e == 0} if e else set()
    return sorted({*places, *by_sets(s, k, b, 0)})

def reasons(s, k, b, e=0): # a list for each reason, joined
    return sorted([*s[-k:], *(x for x in s if x == b), *(x for x in s if e and x % e == 0)])

register(Exercise(
    "checkpoint.kept", "19", "Which steps keep their checkpoint, ascending: the newest `keep`, the "
    "best, and the multiples of `every` (0: none).",
    inputs=kept_inputs, oracle=by_sets, package="gpt2_course.exercises.checkpoint:kept",
    wrongs=(
        Wrong("the best one is not protected", lambda s, k, b, e=0: by_sets(s, k, -1, e),
              "The checkpoint that `best` names is gone: sampling from the run fails."),
        Wrong("the oldest are kept", lambda s, k, b, e=0: sorted({*s[:k], *by_sets(s, 0, b, e)}),
              "After each save the new checkpoint is deleted: a resume goes back to the start of "
              "the run."),
        Wrong("one checkpoint too many is kept",
              lambda s, k, b, e=0: sorted({*s[-k - 1:], *by_sets(s, 0, b, e)}),
              "Off by one: the last `keep` items are steps[-keep:]. On a nearly full disk another "
              "1.5 GB stops the run."),
        Wrong("one of the newest is missing", lambda s, k, b, e=0: by_sets(s, k - 1, b, e),
              "Off by one: with keep = 1 the checkpoint that was just written is deleted."),
        Wrong("milestones are not kept", lambda s, k, b, e=0: by_sets(s, k, b, 0),
              "Milestones are there to look back at the training; here none of them are left."),
        Wrong("`every` is taken to count checkpoints, not steps", numbered,
              "Milestones are steps that `every` divides. Positions in a list from which items are "
              "deleted change with each save."),
        Wrong("everything is kept where there are no milestones",
              lambda s, k, b, e=0: by_sets(s, k, b, e) if e else list(s),
              "every = 0 means that there are none: nothing would ever be deleted, and the disk "
              "fills up."),
        Wrong("every = 0 is used as a divisor",
              lambda s, k, b, e=0: [x for x in s if x in s[-k:] or x == b or x % e == 0],
              "s % 0 raises ZeroDivisionError. Check first whether `every` is 0."),
        Wrong("the best one counts among the newest",
              lambda s, k, b, e=0: by_sets(s, k - (b in s and b not in s[-k:]), b, e),
              "With keep = 1 and an old best one, no recent checkpoint is left to resume from."),
        Wrong("the best one is listed although it has no checkpoint",
              lambda s, k, b, e=0: sorted({*by_sets(s, k, b, e), b}),
              "The best validation may belong to a step that was never saved, or was damaged. Only "
              "a step that has a checkpoint can keep one."),
        Wrong("a step with two reasons is listed twice", reasons,
              "One reason is enough: take the union of sets, or go through the steps once.")),
    hints=("There are three reasons to keep a step; one is enough.",
           "steps[-keep:] are the newest ones.",
           "every = 0 must not be a divisor: test it first.")))


# --- the challenge: the smallest checkpoint from which a run resumes as if nothing had happened

class Rehearsal:
    "A small run on three tragedies that is interrupted after 150 steps; Macbeth is held out"
    shape = dict(block_size=64, n_layer=2, n_head=4, n_embd=64)
    saved, more, length = 150, 20, 250 # steps: before the checkpoint, after it, of the schedule

    def __init__(self):
        read = lambda n: packaged(f"shakespeare/{n}.txt").read_text(encoding="utf-8")
        plays, held = [read(n) for n in ("hamlet", "king_lear", "othello")], read("macbeth")
        tok = CharTokenizer("".join(plays) + held)
        ids = lambda text: np.array(tok.encode(text), np.uint16)
        self.train, self.held = [ids(t) for t in plays], [ids(held)]
        torch.manual_seed(0)
        self.cfg = GPTConfig(vocab_size=tok.n_vocab, **self.shape)
        model, self.position = GPT(self.cfg), 0
        optimizer = self.fresh(model)
        self.position = self.steps(model, optimizer, 0, self.saved)[1]
        self.state = {f"weight {k}": v.clone() for k, v in
                      checkpoint.untied(model.state_dict()).items()}
        for k, p in model.named_parameters(): # wte has rows for padding in memory, not in a file
            rows = len(self.state[f"weight {k}"])
            self.state[f"mean {k}"] = optimizer.state[p]["exp_avg"][:rows].clone()
            self.state[f"square {k}"] = optimizer.state[p]["exp_avg_sq"][:rows].clone()

    def fresh(self, model): return adamw(model, 3e-3, 0.1, (0.9, 0.95), "cpu")

    def steps(self, model, optimizer, first, n): # (n,) training losses, position in the data
        loader = TokenLoader(self.train, 16, self.cfg.block_size, seed=0, position=self.position)
        losses = []
        for s in range(first, first + n):
            lr = cosine_lr(s, max_lr=3e-3, min_lr=3e-4, warmup=20, steps=self.length)
            for group in optimizer.param_groups: group["lr"] = lr
            loss = model(*loader.next())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses), loader.position

    def resumed(self, state): # (n,) losses of the steps after a resume, then that on Macbeth
        model = GPT(self.cfg)
        model.load_state_dict({k.removeprefix("weight "): v for k, v in state.items()
                               if k.startswith("weight ")})
        optimizer = self.fresh(model)
        for k, p in model.named_parameters():
            mean, square = torch.zeros_like(p), torch.zeros_like(p)
            mean[:len(state[f"mean {k}"])] = state[f"mean {k}"]
            square[:len(state[f"square {k}"])] = state[f"square {k}"]
            optimizer.state[p] = dict(step=torch.tensor(float(self.saved)), exp_avg=mean,
                                      exp_avg_sq=square)
        losses = self.steps(model, optimizer, self.saved, self.more)[0]
        loss, n = validation_sum(model, self.held, 64).tolist()
        return losses, loss / n

ALLOWED = 0.001 # nats by which a resumed run may differ from the exact one

def bytes_per_parameter(fn, seconds):
    "Pack the state of a run, unpack it, train on, and compare with the run that lost nothing"
    run = Rehearsal()
    parts = fn(), fn() # what one pair remembers, the other does not know
    if not all(isinstance(p, (tuple, list)) and len(p) == 2 and all(map(callable, p))
               for p in parts):
        raise ValueError("it must return two functions: pack(state) and unpack(blob, like)")
    blob = parts[0][0](copy.deepcopy(run.state))
    if not isinstance(blob, (bytes, bytearray)): raise ValueError("pack must return bytes")
    like = {k: torch.zeros_like(v) for k, v in run.state.items()}
    state = parts[1][1](bytes(blob), copy.deepcopy(like))
    if not isinstance(state, dict) or state.keys() != like.keys():
        raise ValueError("unpack must return a dict with the names of `like`")
    for k, v in like.items():
        if not isinstance(state[k], torch.Tensor) or state[k].shape != v.shape:
            raise ValueError(f"{k}: unpack must return a tensor of shape {tuple(v.shape)}")
    state = {k: v.detach().to(torch.float32) for k, v in state.items()}
    (exact, held), (losses, mine) = run.resumed(run.state), run.resumed(state)
    gap, far = float(np.abs(losses - exact).mean()), abs(mine - held)
    if not max(gap, far) <= ALLOWED:
        raise ValueError(f"the resumed run differs from the exact one by {gap:.4f} nats per letter "
                         f"in its next {run.more} losses and by {far:.4f} on Macbeth; {ALLOWED} "
                         "are allowed")
    return len(blob) / sum(v.numel() for k, v in like.items() if k.startswith("weight "))

def half_as_wide():
    "The plain solution: everything in bfloat16, one tensor after the other"
    def pack(state):
        flat = torch.cat([v.flatten() for v in state.values()])
        return flat.bfloat16().view(torch.int16).numpy().tobytes()

    def unpack(blob, like):
        flat = torch.from_numpy(np.frombuffer(blob, np.int16).copy()).view(torch.bfloat16).float()
        parts = flat.split([v.numel() for v in like.values()])
        return {k: part.view(v.shape) for part, (k, v) in zip(parts, like.items())}
    return pack, unpack

set_challenge(Challenge(
    "checkpoint.bytes", "19", "Return two functions: pack(state) -> bytes and unpack(blob, like) "
    "-> state. The state holds the weights and AdamW's two moments of a run, float32 tensors by "
    "name; `like` has the same names and shapes, filled with zeros. A run that resumes from your "
    "bytes may differ from the exact one by at most 0.001 nats per letter, on average over its "
    "next 20 losses and on Macbeth.",
    score=bytes_per_parameter, plain=half_as_wide, to_beat=6.0, unit="bytes per parameter",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=60, fixed=True))
