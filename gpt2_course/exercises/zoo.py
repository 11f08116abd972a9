"""The catalogue of chapter 26: historical bugs of GPT training code, each with a run that shows its
symptom, a diagnosis to choose, a fix to write, and where it was first reported."""

import hashlib, json, math, os, re, subprocess, sys, tempfile, time
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..attention import KVCache, attend, causal_mask, sdpa
from ..bigram import bigram_baseline
from ..check import Exercise, Verdict, Wrong, find, read_tally, register, write_tally
from ..config import GPTConfig, packaged
from ..data import TokenLoader, share
from ..model import GPT, count_params, loss_at_init
from ..tokenizer import CharTokenizer


@dataclass(frozen=True)
class Bug:
    "One creature of the zoo"
    name: str        # "zoo.still_water": by its symptom
    title: str       # what it is; only after the hunt
    seen: str        # its symptom, in a few words
    instrument: str  # what finds it
    chapter: str     # notebook that teaches the right way, under nbs/
    report: str      # address of the public report; "" where it was found by running the code
    run: object      # function () -> what the notebook prints or draws
    choices: tuple   # of (explanation, reply); the first is right

BUGS = {} # name -> Bug

def lab(name, title, seen, instrument, chapter, report, run, choices, answer, **exercise):
    "Register a bug and the exercise that mends it"
    name = f"zoo.{name}"
    BUGS[name] = Bug(name, title, seen, instrument, chapter, report, run, choices)
    register(Exercise(name, "26", package=f"gpt2_course.exercises.zoo:{answer}", **exercise))

def symptom(
    name:str, # "zoo.still_water"
):
    "Run a bug; what it returns is all that its victims saw"
    return find_bug(name).run()

def find_bug(name):
    find(name) # an unknown name raises KeyError with the nearest one
    return BUGS[name]


def shown(
    bug:Bug,
) -> dict: # letter -> (explanation, reply), in an order of the bug's own
    "The choices as the reader sees them"
    order = np.random.default_rng(sum(map(ord, bug.name))).permutation(len(bug.choices))
    return {"abcdefgh"[i]: bug.choices[k] for i, k in enumerate(order)}

def right_letter(bug): # the letter under which the reader finds the right explanation
    return next(k for k, c in shown(bug).items() if c == bug.choices[0])

def diagnose(
    name:str,      # of a bug, such as "zoo.still_water"
    choice="…",    # a letter
) -> Verdict:
    "Answer a diagnosis, and remember it; without one, print the choices"
    bug = find_bug(name)
    choices, letter = shown(bug), str(choice).strip().lower()
    if letter not in choices:
        rows = "\n".join(f"   {k}) {text}" for k, (text, _) in choices.items())
        return Verdict("open", f"◻ {name}: what is it? Put a letter in place of the dots.\n{rows}")
    right = choices[letter] == bug.choices[0]
    tally = read_tally()
    row = tally.setdefault("diagnoses", {}).setdefault(name, dict(state="open", tries=0))
    row["tries"] += 1
    row["state"] = "right" if right or row["state"] == "right" else "wrong"
    write_tally(tally)
    text, reply = choices[letter]
    return Verdict("right" if right else "mistake",
                   f"{'✓' if right else '✗'} {name}: {text}. {'Yes' if right else 'No'}: {reply}")


def visited():
    "Print how many bugs of the zoo are diagnosed and how many are mended"
    tally = read_tally()
    right = lambda part: sum(tally.get(part, {}).get(n, {}).get("state") == "right" for n in BUGS)
    print(f"the zoo has {len(BUGS)} bugs: {right('diagnoses')} diagnosed, {right('checks')} mended")


@cache
def letters():
    "Tokenizer of letters, (n,) ids of Hamlet, (m,) ids of Macbeth"
    texts = [packaged(f"shakespeare/{n}.txt").read_text(encoding="utf-8")
             for n in ("hamlet", "macbeth")]
    tok = CharTokenizer("".join(texts))
    return tok, *(np.array(tok.encode(t), np.uint16) for t in texts)

def tiny(
    seed:int=0, dropout:float=0.0, attention=sdpa, V:int | None=None, C:int=32, L:int=2,
) -> GPT:
    "A small GPT, the same for the same seed"
    torch.manual_seed(seed)
    return GPT(GPTConfig(32, V or letters()[0].n_vocab, L, 2, C, dropout), attention)

def stream(B:int=16, seed:int=0, split:int=1, **kw) -> TokenLoader:
    "Windows of 32 letters of Hamlet (1) or Macbeth (2)"
    return TokenLoader([letters()[split]], B, 32, seed, **kw)

def learn(
    model, steps:int, batch, # batch: function step -> (x, y)
    optimizer=None, before=lambda model: None, # before: called ahead of every update
    clear:bool=True, # forget the last step's gradient
) -> tuple[list, list]: # losses, gradient norms
    "A plain loop"
    opt = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, norms = [], []
    for s in range(steps):
        if clear: opt.zero_grad()
        loss = model(*batch(s))
        loss.backward()
        norms.append(length([p.grad for p in model.parameters()]))
        losses.append(loss.item())
        before(model)
        opt.step()
    return losses, norms

def length(grads) -> float: # Euclidean length of a list of tensors taken together
    return math.sqrt(sum(float((g.detach().double()**2).sum()) for g in grads if g is not None))

def digest(*tensors) -> str: # eight letters that change if a single bit does
    raw = b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)
    return hashlib.sha256(raw).hexdigest()[:8]

def weights_of(model) -> str: # digest of what a checkpoint of this model would hold
    return digest(*model.state_dict().values())

@cache
@torch.enable_grad()
def trained() -> GPT: # a model that has learnt a little, in eval mode; do not change it
    model, loader = tiny(), stream(32)
    learn(model, 150, lambda s: loader.next())
    return model.eval()

def normal(seed:int): # function (*shape) -> float32 tensor of random numbers
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g)


def warm_up(
    step:int,     # 0, 1, 2 …
    warmup:int,   # steps of the rise
    max_lr:float, # reached at step warmup - 1
) -> float:       # the learning rate of this step
    "A linear rise whose first step already moves"
    return max_lr * min(1.0, (step + 1) / warmup)

def late_warm_up(step, warmup, max_lr): return max_lr * min(1.0, step / warmup)

def still_water() -> str:
    "Six steps on one batch, with a digest of the weights after each"
    model, (x, y) = tiny(), stream().next()
    opt = torch.optim.AdamW(model.parameters(), lr=0.0)
    told = [f"before   weights {digest(*model.parameters())}"]
    for s in range(5):
        opt.param_groups[0]["lr"] = late_warm_up(s, 4, 3e-3)
        losses, norms = learn(model, 1, lambda s: (x, y), opt)
        told.append(f"step {s}   weights {digest(*model.parameters())}   loss {losses[0]:.6f}   "
                    f"gradient norm {norms[0]:.4f}")
    return "\n".join(told)

lab("still_water", "learning rate 0 at step 0", "weights equal before and after the first step",
    "digests of the weights", "medium/12_optim.ipynb",
    "https://github.com/karpathy/nanoGPT/pull/578", still_water, (
        ("the learning rate of the first step is 0",
         "the gradient is there, the weights stay, and from step 1 on they move: the warm-up "
         "counts from 0, and 0 / warmup is 0"),
        ("the gradient is zero at initialisation",
         "its norm is in the log, and it is not 0"),
        ("the optimiser was given other parameters than the model's",
         "then no later step could move them either"),
        ("the digest is taken before the update",
         "then every line would lag by one, and the loss of step 1, on the same batch, would "
         "differ from that of step 0: it is equal")),
    answer="warm_up",
    task="The learning rate of a step (0, 1, 2 …): it rises by equal amounts, the first is above "
         "0, step warmup - 1 is the first at max_lr, and there it stays.",
    inputs=lambda seed: [(s, w, float(np.random.default_rng(seed).uniform(1e-4, 1e-2)))
                         for s, w in ((0, 10), (4, 10), (9, 10), (25, 10), (0, 1))],
    oracle=lambda step, warmup, max_lr: float(np.interp(step + 1, [0, warmup], [0, max_lr])),
    wrongs=(
        Wrong("the rise is counted from 0", late_warm_up,
              "The first step has learning rate 0 and moves nothing: a whole batch is read for "
              "no update, and the maximum comes a step late."),
        Wrong("it is divided by warmup + 1",
              lambda s, w, m: m * min(1.0, (s + 1) / (w + 1)),
              "The first step moves, but the maximum is reached a step later than asked."),
        Wrong("the rise never ends", lambda s, w, m: m * (s + 1) / w,
              "After the warm-up the rate goes on growing, and the loss soon goes with it.")),
    hints=("How many steps have been begun when step 0 runs? One.",
           "max_lr times (step + 1) / warmup, but never more than max_lr."), atol=1e-9)


def std_of(
    name:str,    # of a matrix: transformer.wte.weight, transformer.h.3.mlp.c_proj.weight …
    width:int,   # n_embd; GPT-2 does not ask for it
    n_layer:int, # blocks
) -> float:      # standard deviation at initialisation
    "GPT-2's: 0.02, and less by sqrt(2 n_layer) for what writes into the residual stream"
    return 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02

def wide_std(name, width, n_layer): return 1 / math.sqrt(width)

def redraw(model, std): # every matrix again, with std(name, width, n_layer)
    for name, p in model.named_parameters():
        if p.dim() > 1: torch.nn.init.normal_(p, std=std(name, model.cfg.n_embd, model.cfg.n_layer))
    return model

@torch.no_grad()
def spread(model, x) -> list: # standard deviation of the residual stream after each block
    h, out = model.transformer.wte(x) + model.transformer.wpe(torch.arange(x.size(1))), []
    for block in model.transformer.h:
        out.append(float(h.std()))
        h = block(h)
    return out + [float(h.std())]

def high_tide() -> dict:
    "Before training: the loss, what it should be, and the width of the stream by depth"
    model, (x, y) = redraw(tiny(C=64, L=8), wide_std), stream(64).next()
    with torch.no_grad(): losses = [model(x, y).item() for _ in range(2)]
    V = model.cfg.vocab_size
    return dict(losses=losses, ln_V=math.log(V), law=loss_at_init(V, 64),
                stream=spread(model, x), healthy=spread(tiny(C=64, L=8), x))

NAMES = ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight",
         "transformer.h.2.attn.c_proj.weight", "transformer.h.1.mlp.c_proj.weight",
         "transformer.h.1.mlp.c_fc.weight")

lab("high_tide", "initialised with 1/sqrt(width), residual projections not scaled",
    "the first loss lies above ln V", "loss at initialisation", "medium/09_model.ipynb",
    "https://github.com/huggingface/transformers/issues/47458", high_tide, (
        ("the matrices are drawn too wide, and nothing is scaled for the depth",
         "wide embeddings make confident guesses that are wrong, and every block adds to the "
         "stream at full size"),
        ("the vocabulary is larger than it should be",
         "ln V moves slowly: it would take half as many tokens again to lift the loss that far, "
         "and the stream would not grow with depth"),
        ("the targets are shifted wrongly",
         "to an untrained model any target is as good as another: it would still score ln V"),
        ("dropout is on during this evaluation",
         "then the two evaluations of the same batch would differ; they are equal")),
    answer="std_of",
    task="GPT-2's standard deviation for a matrix of this full name: 0.02, and 0.02 / "
         "sqrt(2 n_layer) for the projections that write into the residual stream.",
    inputs=lambda seed: [(n, 64 + 16 * (seed % 7), 3 + seed % 5) for n in NAMES],
    oracle=lambda name, width, L: 0.02 * (0.5 / L)**0.5 if "c_proj" in name.split(".") else 0.02,
    wrongs=(
        Wrong("it is 1 / sqrt(width)", wide_std,
              "That suits a plain layer; on a tied embedding it makes logits of size 1, and the "
              "first loss is well above ln V."),
        Wrong("0.02 for all: the residual projections are not scaled", lambda n, w, L: 0.02,
              "The usual way there is a comparison of the full name with \"c_proj.weight\", which "
              "is never equal: the stream then grows with the depth."),
        Wrong("the depth is counted in blocks, not in residual writes",
              lambda n, w, L: 0.02 / math.sqrt(L) if n.endswith("c_proj.weight") else 0.02,
              "Each block writes twice: once from attention, once from the MLP."),
        Wrong("only the attention's projection is scaled",
              lambda n, w, L: 0.02 / math.sqrt(2 * L) if n.endswith("attn.c_proj.weight") else 0.02,
              "The MLP writes into the same stream.")),
    hints=("The width does not enter.", "Which two matrices of a block write into the stream? Both "
           "are called c_proj.", "name.endswith(\"c_proj.weight\")"), rtol=1e-6, atol=1e-9)


def tokens_per_second(
    B:int, T:int,    # rows and tokens of a micro-batch
    accumulate:int,  # micro-batches of a step, in each process
    world:int,       # processes
    seconds:float,   # that the step took
) -> float:          # of all processes together
    "Tokens of the step over its seconds"
    return B * T * accumulate * world / seconds

def slow_speed(B, T, accumulate, world, seconds):
    return B * T * accumulate * world / (seconds * 1000)

def snail() -> str:
    "Twelve steps, their own log, and a wall clock beside it"
    model, loader, told = tiny(), stream(16), []
    start = time.perf_counter()
    for s in range(12):
        t0 = time.perf_counter()
        learn(model, 4, lambda s: loader.next())
        dt = time.perf_counter() - t0
        if s % 3 == 0: told.append(f"step {s:2}   dt {dt * 1000:6.1f} ms   tok/s "
                                   f"{slow_speed(16, 32, 4, 1, dt):6.2f}")
    wall = time.perf_counter() - start
    return "\n".join([*told, f"one process; 12 steps of 4 x 16 x 32 tokens took {wall:.2f} s by "
                      "the clock on the wall"])

lab("snail", "tokens per millisecond reported as tokens per second",
    "a speed a thousand times too low", "a clock on the wall", "medium/13_training.ipynb", "",
    snail, (
        ("the tokens are divided by milliseconds",
         "tokens of all steps over seconds on the wall give a thousand times the logged speed"),
        ("only one of the four micro-batches is counted",
         "then it would be off by a factor of 4, not of 1000"),
        ("it counts sequences instead of tokens",
         "then it would be off by the 32 tokens of a row"),
        ("the machine was busy with something else",
         "the wall clock agrees with the milliseconds of the log: the steps are as fast as they "
         "are, only the division is wrong")),
    answer="tokens_per_second",
    task="Tokens a second of all processes together, for a step of `accumulate` micro-batches of "
         "B rows of T tokens in each of `world` processes that took `seconds`.",
    inputs=lambda seed: [(B, T, a, w, float(np.random.default_rng(seed).uniform(0.1, 3)))
                         for B, T, a, w in ((4, 32, 2, 2), (16, 1024, 5, 8), (1, 8, 1, 1))],
    oracle=lambda *a: math.prod(a[:4]) / a[4],
    wrongs=(
        Wrong("the seconds became milliseconds", slow_speed,
              "The log shows dt in milliseconds, and the same variable is divided by: a thousand "
              "times too slow, and the estimate of the end a thousand times too far."),
        Wrong("one micro-batch stands for the whole step",
              lambda B, T, a, w, s: B * T * w / s,
              "With accumulation the step has more tokens than a pass: the speed seems to fall "
              "as you accumulate."),
        Wrong("it is the speed of one process", lambda B, T, a, w, s: B * T * a / s,
              "Set beside the run's tokens it gives an end too far away by the number of "
              "processes."),
        Wrong("it is seconds a token", lambda B, T, a, w, s: s / (B * T * a * w),
              "Check the units: tokens over seconds.")),
    hints=("Count the tokens of the whole step first.", "B * T * accumulate * world of them."))


def override(
    defaults:dict, # name -> value: an int, float, bool or str
    args:list,     # "--name=value"
) -> tuple[dict, list]: # the config, and the names that nothing knows
    "Defaults with what was asked for, each value of its default's type"
    config, strangers = dict(defaults), []
    for arg in args:
        name, _, value = arg.removeprefix("--").partition("=")
        if name not in defaults: strangers.append(name)
        elif isinstance(defaults[name], bool): config[name] = value.lower() in ("true", "1", "yes")
        else: config[name] = type(defaults[name])(value)
    return config, strangers

def deaf_to(defaults, args): return dict(defaults), []

def deaf() -> str:
    "Two launches of one script"
    told = []
    for args in (["--n_layer=2", "--lr=0.003"], ["--n_layer=6", "--lr=0.0001", "--warmpu=100"]):
        c, _ = deaf_to(dict(n_layer=2, lr=3e-3, bias=True), args)
        model, loader = tiny(L=c["n_layer"]), stream()
        opt = torch.optim.AdamW(model.parameters(), lr=c["lr"])
        losses, _ = learn(model, 4, lambda s: loader.next(), opt)
        told += [f"$ train {' '.join(args)}", f"{count_params(model):,} parameters",
                 "loss " + "  ".join(f"{v:.7f}" for v in losses), ""]
    return "\n".join(told[:-1])

def orders(seed):
    "Defaults and command lines"
    r = np.random.default_rng(seed)
    d = dict(n_layer=int(r.integers(2, 9)), lr=float(r.uniform(0, 1)), bias=True, name="nano")
    return [(d, [f"--n_layer={r.integers(10, 20)}", "--bias=false", f"--lr={r.uniform(1, 2):.4f}"]),
            (d, ["--warmpu=100", "--name=big", "--bias=False"]), (d, ["--bias=true", "--lr=7"])]

def parse_with_json(defaults, args):
    "The oracle: values read as JSON where the default is no text"
    config, unknown = {**defaults}, []
    for flag in (a[2:].split("=", 1) for a in args):
        if flag[0] not in config: unknown += flag[:1]
        elif isinstance(defaults[flag[0]], str): config[flag[0]] = flag[1]
        else: config[flag[0]] = type(defaults[flag[0]])(json.loads(flag[1].lower()))
    return config, unknown

def each_flag(defaults, args, value, strangers=True):
    "A mistaken parser: `value` makes a value of a default and a text"
    config, unknown = dict(defaults), []
    for n, v in (a[2:].split("=") for a in args):
        if n in defaults: config[n] = value(defaults[n], v)
        elif strangers: unknown.append(n)
    return config, unknown

lab("deaf", "command-line flags silently ignored", "two launches, one and the same run",
    "parameter count, and the first losses to the last digit", "tough/20_trainer.ipynb",
    "https://github.com/google-research/bert/issues/1272", deaf, (
        ("nothing reads the flags: the defaults run",
         "six layers would have more parameters than two, and a misspelt flag met no complaint"),
        ("the seed is fixed, so every run gives the same numbers",
         "a fixed seed repeats a run of the same settings; a deeper model has other parameters, "
         "and here even their number is the same"),
        ("the learning rates are too close to show after four steps",
         "they differ by a factor of 30; and the number of layers differs too"),
        ("both runs resumed from one checkpoint",
         "the first loss is that of an untrained model")),
    answer="override",
    task="Defaults with the values of \"--name=value\" arguments, each of its default's type, and "
         "the list of names that the defaults do not know.",
    inputs=orders, oracle=parse_with_json,
    wrongs=(
        Wrong("the arguments are not read", deaf_to,
              "Every run is the default run, whatever was asked for."),
        Wrong("bool(\"false\") is True",
              lambda d, a: each_flag(d, a, lambda old, v: type(old)(v)),
              "Any text that is not empty is true: the flag that should turn something off turns "
              "it on."),
        Wrong("the values stay text", lambda d, a: each_flag(d, a, lambda old, v: v),
              "\"0.1\" is no number; the failure comes later and elsewhere, or a comparison "
              "quietly goes wrong."),
        Wrong("unknown names are swallowed",
              lambda d, a: each_flag(d, a, lambda old, v: v.lower() == "true" if isinstance(
                  old, bool) else type(old)(v), strangers=False),
              "A misspelt flag changes nothing and nobody hears of it: --warmpu=100 trains "
              "without a warm-up.")),
    hints=("type(default)(text) makes the value, for all types but one.",
           "For a bool, compare the text with \"true\".",
           "Collect every name that is not in defaults."))


def windows(
    ids,   # (n,) tensor of token ids
    T:int, # tokens of a row
):         # x, y: (W, T) each, W = (n - 1) // T rows without overlap
    "Inputs and what follows each of them"
    W = (len(ids) - 1) // T
    return ids[:W * T].view(W, T), ids[1:W * T + 1].view(W, T)

def same_windows(ids, T): x, y = windows(ids, T); return x, x.clone()

def parrot() -> dict:
    "Train on such windows; compare with a bigram, with unseen text, with a changed token"
    tok, train, val = letters()
    rows = {n: same_windows(torch.from_numpy(ids[:40_000].astype(np.int64)), 32)
            for n, ids in (("train", train), ("val", val))}
    model, r = tiny(), np.random.default_rng(0)
    def batch(s):
        i = r.integers(len(rows["train"][0]), size=16)
        return [t[i] for t in rows["train"]]
    losses, _ = learn(model, 120, batch)
    with torch.no_grad(): unseen = model(*(t[:64] for t in rows["val"])).item()
    prompt = torch.tensor([tok.encode("To be, or not")])
    out = prompt.clone()
    for _ in range(20): out = torch.cat([out, model(out[:, -32:])[:, -1].argmax(-1)[None]], 1)
    return dict(losses=losses, unseen=unseen, leak=before_change(model),
                bigram=bigram_baseline(train, val[:8192], tok.n_vocab),
                text=tok.decode(out[0].tolist()))

@torch.no_grad()
def before_change(model, at:int=20) -> float: # largest change of a logit ahead of a changed token
    x = stream(1, split=2).next()[0]
    other = x.clone()
    other[0, at] = (other[0, at] + 1) % model.cfg.vocab_size
    return float((model.eval()(x) - model(other))[0, :at].abs().max())

def id_rows(seed):
    "Streams of ids whose length leaves something over"
    r = np.random.default_rng(seed)
    return [(torch.from_numpy(r.integers(0, 50, T * W + 3)), T)
            for T, W in ((4, 3), (5, 2), (3, 1))]

def strided(ids, T, by):
    "(W, T) views of NumPy's, from token `by` on"
    W = (len(ids) - 1) // T
    views = np.lib.stride_tricks.sliding_window_view(ids.numpy(), T)
    return torch.from_numpy(views[by::T][:W].copy())

lab("parrot", "targets not shifted", "a loss far below any bigram, and text that repeats itself",
    "one batch, a bar from counting, a changed token", "easy/02_data.ipynb",
    "https://github.com/huggingface/transformers/issues/3711", parrot, (
        ("the target of a token is the token itself",
         "copying is learnt in a few dozen steps, on any text, and the sample repeats its last "
         "letter for ever"),
        ("the model has overfitted the training text",
         "it scores as well on text that it never saw"),
        ("attention sees the future",
         "a changed token changes nothing before it; and a model that saw the next letter would "
         "need time to learn to use it"),
        ("the validation set overlaps the training set",
         "that explains a small gap between the two, not a loss near 0 after a hundred steps")),
    answer="windows",
    task="Cut a stream of ids into (n - 1) // T rows of inputs and targets, (W, T) each: the "
         "target of a token is the one after it.",
    inputs=id_rows, oracle=lambda ids, T: (strided(ids, T, 0), strided(ids, T, 1)),
    wrongs=(
        Wrong("the targets are the inputs", same_windows,
              "The model learns to copy: loss near 0, text of one letter."),
        Wrong("the targets lie two ahead", lambda ids, T: (strided(ids, T, 0), strided(ids, T, 2)),
              "Shifted once by the loader and once inside the model: it learns to skip a token, "
              "with a loss that is a little too high and samples that are nonsense."),
        Wrong("each row is rolled", lambda ids, T: (windows(ids, T)[0],
                                                    windows(ids, T)[0].roll(-1, 1)),
              "The last target of a row is the row's first token, which no model can guess: one "
              "target in T is noise."),
        Wrong("the targets lie one behind",
              lambda ids, T: (strided(ids, T, 1), strided(ids, T, 0)),
              "The model learns the past, which it can see: the loss goes to 0 as if it copied.")),
    hints=("Both come from one stream; y starts one token later.",
           "ids[:W * T] and ids[1:W * T + 1], each viewed as (W, T)."))


def shares(
    scores, # (..., T, T) a row for each query, a column for each key
):          # (..., T, T) attention weights
    "Causal softmax: each query divides 1 among the keys of its past"
    T = scores.size(-1)
    return scores.masked_fill(~causal_mask(T, T), -torch.inf).softmax(-1)

def column_shares(scores):
    T = scores.size(-1)
    return scores.masked_fill(~causal_mask(T, T), -torch.inf).softmax(-2)

def through(weights): # an attention function (q, k, v, dropout) -> mix, made of scores -> weights
    return lambda q, k, v, dropout=0.0: weights(q @ k.mT / math.sqrt(q.size(-1))) @ v

def prophet() -> dict:
    "Train with it, then change one token at a time and see which outputs move"
    model, loader = tiny(attention=through(column_shares)), stream()
    losses, _ = learn(model, 300, lambda s: loader.next())
    x = stream(1, split=2).next()[0]
    moved = np.zeros((32, 32))
    with torch.no_grad():
        base = model.eval()(x)
        for at in range(32):
            other = x.clone()
            other[0, at] = (other[0, at] + 1) % model.cfg.vocab_size
            moved[:, at] = (model(other) - base)[0].abs().amax(-1)
        unseen = model(*stream(64, split=2).next()).item()
        sums = column_shares(torch.zeros(6, 6)).sum(-1)
    tok, train, val = letters()
    return dict(loss=losses[-1], unseen=unseen, moved=moved,
                rows=[round(v, 2) for v in sums.tolist()],
                bigram=bigram_baseline(train, val[:8192], tok.n_vocab))

def softmax_numpy(scores):
    "Row by row in float64"
    s = scores.double().numpy()
    out = np.zeros_like(s)
    for i in range(s.shape[-1]):
        e = np.exp(s[..., i, :i + 1])
        out[..., i, :i + 1] = e / e.sum(-1, keepdims=True)
    return torch.from_numpy(out).float()

lab("prophet", "softmax over the wrong axis", "outputs that move when a later token changes",
    "causality by changing one token", "medium/07_attention.ipynb",
    "https://github.com/karpathy/ng-video-lecture/issues/42", prophet, (
        ("the softmax runs over the queries, not over the keys",
         "columns add up to 1 and rows do not: a weight then depends on queries that come later, "
         "and that is how the future gets in, mask or no mask"),
        ("there is no mask",
         "without one the rows would still add up to 1; the printed sums do not"),
        ("the positions are off by one",
         "then only the next neighbour could leak; here all later tokens do"),
        ("the targets are not shifted",
         "the test compares logits: no target enters it")),
    answer="shares",
    task="Attention weights (..., T, T) from scores (..., T, T), a row for each query: a softmax "
         "over the keys that are not in its future; 0 for the others.",
    inputs=lambda seed: [(normal(seed)(*s),) for s in ((5, 5), (2, 3, 4, 4), (3, 3))],
    oracle=softmax_numpy,
    wrongs=(
        Wrong("the softmax runs over the queries", column_shares,
              "Each column adds up to 1: the weight that a query gives depends on later queries, "
              "so the future leaks, and rows do not add up."),
        Wrong("the mask comes after the softmax",
              lambda s: s.softmax(-1) * causal_mask(s.size(-1), s.size(-1)),
              "Rows no longer add up to 1, and each weight depends on masked scores: a leak."),
        Wrong("masked scores are set to 0",
              lambda s: (s * causal_mask(s.size(-1), s.size(-1))).softmax(-1),
              "e to the 0 is 1, not 0: the future keeps a share."),
        Wrong("the mask is upside down",
              lambda s: s.masked_fill(causal_mask(s.size(-1), s.size(-1)).mT.logical_not(),
                                      -torch.inf).softmax(-1),
              "Each query sees itself and its future, never its past.")),
    hints=("Which sums must be 1: those of rows or of columns?",
           "Keys are the last dimension.", "masked_fill with -inf, then softmax(-1)."))


def mixed(
    q,   # (B, nh, T, hs) queries of the newest T positions
    k,   # (B, nh, S, hs) keys of all S positions, S >= T
    v,   # (B, nh, S, hs) their values
):       # (B, nh, T, hs)
    "Causal attention where the past is in a cache"
    mask = causal_mask(q.size(-2), k.size(-2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

def told_twice(q, k, v, dropout=0.0):
    mask = causal_mask(q.size(-2), k.size(-2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=True)

def short_memory() -> str:
    "A prompt of 12 letters read at once and in two helpings"
    x, told = stream(1, split=2).next()[0][:, :12], []
    model = trained()
    whole = model(x).detach()
    for cut in (12, 6, 11):
        cache, kept = KVCache(model.cfg, 1), [b.attn.attention for b in model.transformer.h]
        for b in model.transformer.h: b.attn.attention = told_twice
        try:
            with torch.no_grad():
                parts = [model(p, cache=cache) for p in (x[:, :cut], x[:, cut:]) if p.numel()]
            off = (torch.cat(parts, 1) - whole).abs()[0].amax(-1)
            said = " ".join(f"{v:.2f}" for v in off)
        except RuntimeError as e: said = f"{type(e).__name__}: {str(e)[:80]}"
        finally:
            for b, a in zip(model.transformer.h, kept): b.attn.attention = a
        told.append(f"read as {cut} + {12 - cut}: logits off by, at each position:\n   {said}")
    return "\n".join(told)

def attention_numpy(q, k, v):
    "Query by query in float64: query t of T sees keys 0 … S - T + t"
    q, k, v = (t.double().numpy() for t in (q, k, v))
    T, S = q.shape[-2], k.shape[-2]
    out = np.zeros(q.shape)
    for t in range(T):
        s = np.einsum("bhc,bhsc->bhs", q[:, :, t], k[:, :, :S - T + t + 1]) / math.sqrt(q.shape[-1])
        w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        out[:, :, t] = np.einsum("bhs,bhsc->bhc", w, v[:, :, :S - T + t + 1])
    return torch.from_numpy(out).float()

def with_mask(mask): # a mistaken `mixed`: mask(T, S) says what a query may see
    return lambda q, k, v: attend_by(q, k, v, mask(q.size(-2), k.size(-2)))

def attend_by(q, k, v, mask):
    scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v

lab("short_memory", "a mask and is_causal given together",
    "a cached prompt, read in two helpings, gives other logits (older kernels refuse the call)",
    "cache against no cache", "medium/07_attention.ipynb",
    "https://github.com/huggingface/nanoVLM/issues/80", short_memory, (
        ("is_causal is given where queries and keys differ in number: its triangle starts at the "
         "first key",
         "the new queries are treated as the first positions and lose most of their past; with "
         "equally many of both nothing shows"),
        ("the cache stores keys of the wrong layer",
         "12 + 0 writes and reads the same cache, and is right everywhere"),
        ("the cache is full and loses its oldest keys",
         "it has room for 32 positions, and only 12 are ever in it"),
        ("rounding: the sums are taken in another order",
         "rounding is a millionth; these are tenths")),
    answer="mixed",
    task="Causal attention of the newest T queries over all S >= T keys (shapes (B, nh, T, hs) and "
         "(B, nh, S, hs)): query t sees keys 0 to S - T + t.",
    inputs=lambda seed: [tuple(normal(seed + i)(1, 2, n, 4) for i, n in enumerate((T, S, S)))
                         for T, S in ((3, 6), (4, 4), (1, 5), (2, 3))],
    oracle=attention_numpy,
    wrongs=(
        Wrong("the triangle starts at the first key", with_mask(lambda T, S: causal_mask(S, S)[:T]),
              "is_causal counts from the upper left: with a cache the new queries see the oldest "
              "keys only. Some versions refuse is_causal beside a mask, others apply both."),
        Wrong("nothing is masked", with_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool)),
              "One query may see all; several at once then see each other's future."),
        Wrong("the mask is inverted", with_mask(lambda T, S: ~causal_mask(T, S)),
              "For this kernel True means: may look. In other libraries it means the opposite."),
        Wrong("a query does not see itself",
              with_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)),
              "The diagonal is off by one: the newest token is read, but never used.")),
    hints=("The last query is the newest position: it sees all S keys.",
           "A boolean mask (T, S): ones, lower triangle, moved by S - T.",
           "torch.ones(T, S, dtype=torch.bool).tril(S - T), and no is_causal."))


def angles(
    T:int,       # positions now
    past:int,    # positions before them, in the cache
    hs:int,      # head size, even
    block:int,   # longest row; the answer does not depend on it
):               # (T, hs / 2) rotation angles of RoPE (Su et al. 2021): p / 10000^(2 i / hs)
    "The angles of these positions, whatever their number"
    rates = 10_000.0 ** (-torch.arange(0, hs, 2) / hs)
    return torch.arange(past, past + T)[:, None] * rates

def whole_table(T, past, hs, block): return angles(block, 0, hs, block)

def one_size() -> str:
    "Rotate rows of several lengths in a model of block size 32"
    told = []
    for T in (32, 31, 16, 2, 1):
        q, a = normal(0)(1, 2, T, 8), whole_table(T, 0, 8, 32)
        try:
            even, odd = q[..., ::2], q[..., 1::2]
            said = f"{tuple((even * a.cos() - odd * a.sin()).shape)}"
        except RuntimeError as e: said = str(e)[:90]
        told.append(f"T = {T:2}: {said}")
    return "\n".join(told)

def angles_numpy(T, past, hs, block):
    "Position by position, in float64"
    return torch.tensor([[p * 10_000 ** (-2 * i / hs) for i in range(hs // 2)]
                         for p in range(past, past + T)])

lab("one_size", "RoPE's table is never cut to the row",
    "rows of one length only; a row of one comes back as 32", "another length",
    "tough/23_variants.ipynb",
    "https://github.com/lucidrains/rotary-embedding-torch/issues/11", one_size, (
        ("the table of angles always has block_size rows",
         "only the full length fits, and a single row is silently stretched to 32 by broadcasting"),
        ("the length must be a power of two", "16 and 2 fail too"),
        ("the head size is odd", "then the full length would fail as well"),
        ("the block size in the config is too small", "shorter rows fail, not longer ones")),
    answer="angles",
    task="RoPE's angles (T, hs / 2) for positions past … past + T - 1: position p, pair i has "
         "p / 10000^(2 i / hs).",
    inputs=lambda seed: [(3 + seed % 3, 5, 8, 16), (1, 9, 4, 16), (4, 0, 6, 12)],
    oracle=angles_numpy,
    wrongs=(
        Wrong("the whole table is returned", whole_table,
              "Only rows of exactly block_size work; a row of one is broadcast to all positions."),
        Wrong("the past is forgotten", lambda T, past, hs, b: angles(T, 0, hs, b),
              "Right in training; in cached generation every new token stands at position 0."),
        Wrong("the exponent is i / hs",
              lambda T, past, hs, b: torch.arange(past, past + T)[:, None]
              * 10_000.0 ** (-torch.arange(hs // 2) / hs),
              "The pairs turn too fast: consistent in training, but no longer RoPE, and weights of "
              "others do not load.")),
    hints=("Positions are torch.arange(past, past + T).", "One rate for each of hs / 2 pairs; an "
           "outer product of both."))


def positions(
    past:int, # tokens in the cache
    T:int,    # tokens given now
):            # (T,) int64
    "Where the given tokens stand in the text"
    return torch.arange(past, past + T)

def one_behind(past, T): return torch.arange(T) + max(past - 1, 0)

def stammer() -> dict:
    "The same text with and without a cache: how far apart the logits are, by step"
    model = trained()
    wpe, x = model.transformer.wpe, stream(1, split=2).next()[0]
    class Shifted(torch.nn.Module):
        def forward(self, pos): return wpe(one_behind(int(pos[0]), len(pos)))
    full, off, cache = model(x).detach(), [], KVCache(model.cfg, 1)
    model.transformer.wpe = Shifted()
    try:
        with torch.no_grad():
            for t in range(32):
                got = model(x[:, t:t + 1], cache=cache)
                off.append(float((got[0, 0] - full[0, t]).abs().max()))
    finally: model.transformer.wpe = wpe
    return dict(off=off)

lab("stammer", "the cached positions are off by one",
    "logits right at the first tokens, wrong from then on, with a cache only",
    "cache against no cache, token by token", "medium/11_generation.ipynb",
    "https://github.com/ml-explore/mlx-lm/pull/93", stammer, (
        ("with a cache, new tokens get the position of the one before them",
         "the first token stands at 0 either way; every later one is embedded a place too early"),
        ("the cache drops the oldest token",
         "then the difference would begin small and grow as more is lost; it is there in full at "
         "the second token"),
        ("keys and values are exchanged in the cache",
         "then the very first cached token would be wrong too"),
        ("rounding: the cached sums are taken in another order",
         "rounding is a millionth, as at the first token; these are tenths")),
    answer="positions",
    task="The positions of T given tokens, (T,), when `past` tokens are in the cache already.",
    inputs=lambda seed: [(0, 5), (3 + seed % 4, 1), (7, 2), (1, 3)],
    oracle=lambda past, T: torch.tensor([past + i for i in range(T)]),
    wrongs=(
        Wrong("they lag by one", one_behind,
              "The length of the cache is taken for the last position: all new tokens are embedded "
              "a place too early, and the text stammers."),
        Wrong("they start at 0 again", lambda past, T: torch.arange(T),
              "Right without a cache and for the prompt; each new token then claims to be the "
              "first of the text."),
        Wrong("they are one ahead", lambda past, T: torch.arange(past + 1, past + T + 1),
              "Position 0 is never used, and the last one falls off the table."),
        Wrong("all get the same position", lambda past, T: torch.full((T,), past),
              "Right for one token at a time; a prompt loses its order.")),
    hints=("The first new token follows `past` others: how many positions are taken?",
           "torch.arange from past, T of them."))


def descend(
    w,        # (D,) weights, requires_grad
    batches,  # list of x (n, D), y (n,)
    lr:float,
):            # (D,) weights after one step of gradient descent on each batch's F.mse_loss(x @ w, y)
    "A step for each batch, each by its own gradient"
    for x, y in batches:
        w.grad = None
        F.mse_loss(x @ w, y).backward()
        with torch.no_grad(): w -= lr * w.grad
    return w.detach()

def snowball_descend(w, batches, lr):
    for x, y in batches:
        F.mse_loss(x @ w, y).backward()
        with torch.no_grad(): w -= lr * w.grad
    return w.detach()

def snowball() -> dict:
    "Loss and gradient norm of three runs: the bug at two learning rates, and last week's code"
    out = {}
    for name, lr, clear in (("lr 0.003", 3e-3, False), ("lr 0.0003", 3e-4, False),
                            ("last week's code, lr 0.003", 3e-3, True)):
        model, loader = tiny(), stream()
        opt = torch.optim.AdamW(model.parameters(), lr=lr)
        out[name] = learn(model, 90, lambda s: loader.next(), opt, clear=clear)
    return out

def lines_of_points(seed):
    "Weights and batches of a linear model, a step size"
    draw, out = normal(seed), []
    for D, n, k in ((3, 4, 3), (2, 5, 4), (4, 2, 2)):
        out.append((draw(D).requires_grad_(), [(draw(n, D), draw(n)) for _ in range(k)], 0.05))
    return out

def descend_numpy(w, batches, lr):
    "By the formula of the gradient, in float64"
    w = w.detach().double().numpy()
    for x, y in batches:
        x, y = x.double().numpy(), y.double().numpy()
        w = w - lr * 2 / len(y) * x.T @ (x @ w - y)
    return torch.from_numpy(w).float()

def one_big_step(w, batches, lr):
    return descend(w, [tuple(torch.cat(t) for t in zip(*batches))], lr)

lab("snowball", "optimizer.zero_grad() is missing",
    "the gradient norm grows with the steps while the loss stops falling", "gradient norm by step",
    "medium/13_training.ipynb", "https://github.com/karpathy/llm.c/pull/548", snowball, (
        ("the gradients of old steps are never cleared and add up",
         "each step follows the sum of all gradients so far: the norm grows with their number, at "
         "any learning rate"),
        ("the learning rate is too high",
         "a tenth of it shows the same growing norm; and last week's code liked the higher one"),
        ("the gradients explode because the network is deep",
         "two blocks are not deep, and an explosion is there at the first step, not after eighty"),
        ("the batches become harder", "last week's code read the same ones")),
    answer="descend",
    task="The weights after one step of plain gradient descent for each batch: "
         "w - lr * gradient of F.mse_loss(x @ w, y), detached.",
    inputs=lines_of_points, oracle=descend_numpy,
    wrongs=(
        Wrong("the old gradient is never cleared", snowball_descend,
              "backward adds into .grad: step 100 follows the sum of a hundred gradients."),
        Wrong("it is cleared between backward and the step", lambda w, b, lr: w.detach(),
              "Nothing is left to follow: the weights never move."),
        Wrong("all batches make one step", one_big_step,
              "That is accumulation: right if you want it, but here each batch gets a step.")),
    hints=("What is in w.grad when the second backward begins?",
           "w.grad = None (or optimizer.zero_grad()) once a step, ahead of backward."))


def whole_gradient(
    w,       # (D,) weights, requires_grad
    batches, # micro-batches of one step: x (n, D), y (n,), all with the same n
):           # (D,) gradient of F.mse_loss over all rows
    "One backward for each micro-batch, each with its share of the mean"
    for x, y in batches: (F.mse_loss(x @ w, y) / len(batches)).backward()
    return w.grad

def undivided(w, batches):
    for x, y in batches: F.mse_loss(x @ w, y).backward()
    return w.grad

def brass_band() -> str:
    "The first gradient of one model on the same 64 rows, cut into more and more micro-batches"
    x, y = stream(64).next()
    told = []
    for n in (1, 2, 4, 8, 16):
        model = tiny()
        for a, b in zip(x.chunk(n), y.chunk(n)): model(a, b).backward()
        told.append(f"{n:2} micro-batches of {64 // n:2} rows: gradient norm "
                    f"{length([p.grad for p in model.parameters()]):8.4f}, clipped to 1")
    return "\n".join(told)

def gradient_of_rows(w, batches):
    "By the formula, over all rows at once, in float64"
    x, y = (torch.cat(t).double().numpy() for t in zip(*batches))
    return torch.from_numpy(2 / len(y) * x.T @ (x @ w.detach().double().numpy() - y)).float()

def step_batches(seed, sizes=((3, 3, 3), (2, 2), (4, 4, 4, 4))):
    "Weights and the micro-batches of a step"
    draw = normal(seed)
    return [(draw(3).requires_grad_(), [(draw(n, 3), draw(n)) for n in ns]) for ns in sizes]

lab("brass_band", "accumulated losses not divided by their number",
    "the gradient norm grows with the number of micro-batches", "gradient norm of one big batch",
    "medium/13_training.ipynb", "https://github.com/karpathy/nanoGPT/issues/168", brass_band, (
        ("the micro-batches' mean losses are added up, not averaged",
         "the norm is proportional to their number, to the last digit"),
        ("more rows have a longer gradient", "it is the same 64 rows each time"),
        ("gradients of the step before were not cleared", "each line is the first step of a fresh "
         "model"),
        ("rounding: short sums are less exact",
         "rounding changes the sixth digit, not the first")),
    answer="whole_gradient",
    task="The gradient (D,) of F.mse_loss over all rows of a step, by one backward for each "
         "micro-batch; all have the same number of rows.",
    inputs=step_batches, oracle=gradient_of_rows,
    wrongs=(
        Wrong("the losses are added up", undivided,
              "The gradient is as many times too long. AdamW hides it, clipping then cuts every "
              "step, and plain descent flies off."),
        Wrong("it is divided twice", lambda w, b: undivided(w, b) / len(b)**2,
              "Once in the loss and once again in the gradient: steps shrink as you accumulate."),
        Wrong("only the last micro-batch is left", lambda w, b: undivided(w, b[-1:]),
              "zero_grad stands inside the loop over micro-batches: all but one are computed for "
              "nothing.")),
    hints=("Four means of 16 rows each: their mean is the mean of 64 rows.",
           "Divide each loss by len(batches) before backward."))


def token_gradient(
    w,       # (D,) weights, requires_grad
    batches, # micro-batches of one step: x (n, D), y (n,), n differs
):           # (D,) gradient of F.mse_loss over all rows
    "Every row counts the same, wherever it stands"
    n = sum(len(y) for _, y in batches)
    for x, y in batches: (F.mse_loss(x @ w, y, reduction="sum") / n).backward()
    return w.grad

@torch.no_grad()
def small_voices() -> str:
    "One model, the same 64 padded passages of unequal length, two groupings"
    x, y = (t.clone() for t in stream(64, split=2).next())
    lengths = torch.from_numpy(np.random.default_rng(0).choice([2, 4, 8, 32], 64))
    y[torch.arange(32) >= lengths[:, None]] = -1
    told = []
    for name, i in (("as they come", torch.arange(64)), ("sorted by length", lengths.argsort())):
        for n in (1, 4, 16):
            parts = zip(x[i].chunk(n), y[i].chunk(n))
            loss = np.mean([trained()(a, b).item() for a, b in parts])
            told.append(f"{name:16} {n:2} micro-batches: loss {loss:.4f}")
    return "\n".join(told)

lab("small_voices", "a mean of means where micro-batches have unequal numbers of tokens",
    "the loss of the same rows depends on how they are grouped", "one big batch, other groupings",
    "easy/04_loss.ipynb", "https://github.com/huggingface/transformers/pull/34191", small_voices, (
        ("each micro-batch's mean counts the same, however few tokens are in it",
         "tokens of short passages get louder the more passages of their kind are grouped; with "
         "one group nothing shows"),
        ("padding is attended to", "it lies behind the text, and attention looks back only; and "
         "the grouping would not matter"),
        ("dropout", "the model is in eval mode, and one group gives the same number twice"),
        ("the losses are not divided by the number of micro-batches",
         "then 16 would give 16 times the loss of one")),
    answer="token_gradient",
    task="The gradient (D,) of F.mse_loss over all rows of a step, by one backward for each "
         "micro-batch; their numbers of rows differ.",
    inputs=lambda seed: step_batches(seed, ((1, 5), (2, 3, 7), (4, 1, 1, 2))),
    oracle=gradient_of_rows,
    wrongs=(
        Wrong("it is a mean of means", whole_gradient,
              "A row in a small micro-batch weighs more than one in a large: training follows the "
              "short documents, and two groupings of one batch disagree."),
        Wrong("each micro-batch is divided by the largest one's rows",
              lambda w, b: token_sum(w, b) / (len(b) * max(len(y) for _, y in b)),
              "Padding is counted as if it were text: the gradient is too short."),
        Wrong("the sum is divided by the number of micro-batches",
              lambda w, b: token_sum(w, b) / len(b),
              "The gradient grows with the tokens: longer documents, larger steps.")),
    hints=("Which number of rows belongs under the sum of all squares?",
           "reduction=\"sum\", and divide by the rows of the whole step: count them first."))

def token_sum(w, batches): # gradient of the sum over all rows
    for x, y in batches: F.mse_loss(x @ w, y, reduction="sum").backward()
    return w.grad


def plan(
    n:int,      # micro-batches of an epoch
    k:int,      # micro-batches of a step
    epochs:int,
) -> list:      # for each step, the (epoch, micro-batch) pairs whose gradients it uses
    "Steps end where their epoch ends; the last of an epoch may be small"
    return [[(e, i) for i in range(first, min(first + k, n))]
            for e in range(epochs) for first in range(0, n, k)]

def spilt(n, k, epochs):
    steps, held = [], []
    for e in range(epochs):
        for i in range(n):
            held.append((e, i))
            if (i + 1) % k == 0: steps, held = steps + [held], []
    return steps

def heartbeat() -> list:
    "Gradient norms of five epochs of ten micro-batches, four a step; each loss is divided by four"
    x, y = (t.chunk(10) for t in stream(160).next())
    model, norms = tiny(), []
    for step in spilt(10, 4, 5):
        model.zero_grad()
        for _, i in step: (model(x[i], y[i]) / 4).backward()
        norms.append(length([p.grad for p in model.parameters()]))
        with torch.no_grad():
            for p in model.parameters(): p -= 1e-3 * p.grad
    return norms

def plan_by_counting(n, k, epochs):
    "One micro-batch at a time"
    steps = []
    for e in range(epochs):
        for i in range(n):
            if i % k == 0: steps.append([])
            steps[-1].append((e, i))
    return steps

lab("heartbeat", "leftover micro-batches spill into the next epoch's first step",
    "a gradient norm that is half as long again at one step of each epoch",
    "gradient norm by step", "medium/13_training.ipynb",
    "https://github.com/WalkingMeatAxolotl/AnimaLoraStudio/pull/305", heartbeat, (
        ("what is left of an epoch stays in .grad and joins the next epoch's first step",
         "ten micro-batches make two steps of four and leave two: the first step of each later "
         "epoch has six, half as many again"),
        ("one batch of the data is odd", "then the peak would be there in the first epoch too, and "
         "it is missing"),
        ("the learning rate is warmed up anew each epoch", "the norm is taken before the update: "
         "the rate does not enter"),
        ("the gradients are never cleared", "then the norm would grow from step to step")),
    answer="plan",
    task="For each step, the (epoch, micro-batch) pairs whose gradients it uses: k in a row of one "
         "epoch's n, and what is left of an epoch makes a smaller step of its own.",
    inputs=lambda seed: [(7 + seed % 2 * 3, 3, 2), (10, 4, 3), (5, 2, 2), (6, 3, 2)],
    oracle=plan_by_counting,
    wrongs=(
        Wrong("what is left joins the next epoch's first step", spilt,
              "The counter starts anew, .grad does not: one step an epoch has too long a gradient, "
              "and the last leftovers are lost."),
        Wrong("what is left is thrown away",
              lambda n, k, E: [s for s in plan(n, k, E) if len(s) == k],
              "Up to k - 1 micro-batches of each epoch are computed and never used; with a short "
              "epoch nothing is trained at all."),
        Wrong("the count runs on across epochs",
              lambda n, k, E: [[(j // n, j % n) for j in range(f, min(f + k, n * E))]
                               for f in range(0, n * E, k)],
              "Steps of equal size, but one of them mixes two epochs, and a schedule in steps an "
              "epoch no longer fits.")),
    hints=("range(0, n, k) gives the first micro-batch of each step of an epoch.",
           "The last step ends at n at the latest: min(first + k, n). Its losses are divided by "
           "its own size."))


def ready(
    grads,          # list of tensors: gradients of scale x loss
    scale:float,    # of the loss, as GradScaler has it
    max_norm:float, # longest gradient allowed
) -> list:          # tensors for the optimiser
    "Unscale, then clip all together"
    grads = [g / scale for g in grads]
    return clip(grads, max_norm)

def clip(grads, max_norm): # all shortened by one factor, if they are too long together
    factor = min(1.0, max_norm / length(grads))
    return [g * factor for g in grads]

def clip_first(grads, scale, max_norm): return [g / scale for g in clip(grads, max_norm)]

def standstill() -> dict:
    "Losses and logged norms of a run with a scaled loss, and how far the weights came"
    model, loader, start = tiny(), stream(), tiny()
    out = dict(losses=[], norms=[])
    for s in range(60):
        model.zero_grad()
        loss = model(*loader.next())
        (loss * 2.0**16).backward()
        params = list(model.parameters())
        out["losses"].append(loss.item())
        out["norms"].append(length([p.grad for p in params]))
        with torch.no_grad():
            for p, g in zip(params, clip_first([p.grad for p in params], 2.0**16, 1.0)):
                p -= 0.5 * g
    moved = [a.detach() - b.detach() for a, b in zip(model.parameters(), start.parameters())]
    return dict(out, moved=length(moved), weights=length(start.parameters()))

def scaled_gradients(seed):
    "Two gradients longer than max_norm and one shorter, all of a scaled loss"
    draw = normal(seed)
    return [([draw(3, 2) * s, draw(4) * s], float(s), m)
            for s, m in ((1024, 1.0), (65536, 0.5), (256, 50.0))]

def ready_numpy(grads, scale, max_norm):
    "One long vector in float64"
    v = np.concatenate([g.double().numpy().ravel() for g in grads]) / scale
    v *= min(1.0, max_norm / np.linalg.norm(v))
    parts = np.split(v, np.cumsum([g.numel() for g in grads])[:-1])
    return [torch.from_numpy(p).float().view(g.shape) for p, g in zip(parts, grads)]

lab("standstill", "gradients clipped before they are unscaled",
    "a flat loss beside an enormous gradient norm", "gradient norm, and the way the weights went",
    "medium/12_optim.ipynb", "https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
    standstill, (
        ("the gradient is clipped while it is still scaled, then unscaled",
         "its length becomes 1 / 65536 after unscaling: the weights move, by next to nothing"),
        ("the gradients explode", "divided by the scale of 65536 their norm is an ordinary one"),
        ("the scaler finds infinities and skips every step",
         "then the weights would not have moved at all; they did, a little"),
        ("the learning rate is too small",
         "0.5 times an ordinary gradient of length 1 would move the weights visibly in one step")),
    answer="ready",
    task="Gradients for the optimiser, as a list: those of a loss that was multiplied by `scale`, "
         "unscaled, then all shortened by one factor if together they are longer than max_norm.",
    inputs=scaled_gradients, oracle=ready_numpy, atol=1e-8,
    wrongs=(
        Wrong("clipped first, unscaled afterwards", clip_first,
              "The scaled norm is always above the limit: every gradient is cut to max_norm / "
              "scale, and nothing moves. AdamW hides it, descent stands still."),
        Wrong("never unscaled", lambda g, s, m: clip(g, m),
              "The direction is right, the length is max_norm at every step, however small the "
              "gradient was."),
        Wrong("each tensor is clipped by itself",
              lambda g, s, m: [clip([t / s], m)[0] for t in g],
              "The gradient's direction changes: long tensors are cut, short ones are not.")),
    hints=("In which units is max_norm: those of the loss, or of scale x loss?",
           "Divide every tensor by scale before you measure anything.",
           "One factor for all: min(1, max_norm / length of all together)."))


def through_half(
    grads,       # list of float32 gradients
    scale:float, # a power of two
):               # (list of float32 gradients, whether the step must be skipped)
    "Scale, cast to float16, look for infinities, unscale in float32"
    half = [(g * scale).half() for g in grads]
    skip = not all(bool(h.isfinite().all()) for h in half)
    return [h.float() / scale for h in half], skip

def unscaled_half(grads, scale): return through_half(grads, 1.0)

def ghosts() -> str:
    "Share of the logits' gradient that is exactly 0, by size of the batch and by type"
    model, told = trained(), []
    for B in (4, 16, 64, 256):
        x, y = stream(B, split=2).next()
        z = model(x).detach().requires_grad_()
        loss = F.cross_entropy(z.flatten(0, 1), y.flatten())
        loss.backward()
        (half,), _ = unscaled_half([z.grad], 1.0)
        zeros = [(g == 0).float().mean() for g in (z.grad, half)]
        told.append(f"{B:3} rows: loss {loss.item():.3f}   zeros in float32 {zeros[0]:5.1%}, "
                    f"in float16 {zeros[1]:5.1%}")
    return "\n".join(told)

def faint_gradients(seed):
    "Gradients that float16 cannot hold unscaled, ordinary ones, and one that overflows scaled"
    draw = normal(seed)
    return [([draw(4, 3) * 1e-8, draw(5) * 1e-6], 65536.0),
            ([draw(6).sign() * 10, draw(2)], 65536.0), ([draw(3) * 1e-7], 1024.0)]

def half_numpy(grads, scale):
    "NumPy's float16"
    with np.errstate(over="ignore"): half = [(g.numpy() * np.float32(scale)).astype(np.float16)
                                             for g in grads]
    return ([torch.from_numpy(h.astype(np.float32) / np.float32(scale)) for h in half],
            not all(np.isfinite(h).all() for h in half))

lab("ghosts", "float16 without a gradient scaler", "gradients that are exactly 0, more of them the "
    "larger the batch", "share of zeros in the gradient", "medium/13_training.ipynb",
    "https://github.com/karpathy/nanoGPT/issues/167", ghosts, (
        ("the numbers are too small for float16, which ends near 0.00000006",
         "float32 holds the same gradients without a zero; more rows divide them further"),
        ("the model has converged", "the loss is far from 0, and in float32 no gradient is 0"),
        ("dead units: their inputs are negative", "logits have no nonlinearity behind them, and "
         "the type of the numbers would not matter"),
        ("those targets are ignored", "then float32 would show the same zeros")),
    answer="through_half",
    task="What is left of float32 gradients that travel as float16 times `scale`: (the list, "
         "unscaled in float32; True if any of them overflowed, so that the step must be skipped).",
    inputs=faint_gradients, oracle=half_numpy, atol=0.0,
    wrongs=(
        Wrong("no scale is used", unscaled_half,
              "What is smaller than 6e-8 becomes 0, without a warning: training flattens early."),
        Wrong("the result is not unscaled", lambda g, s: ([t * s for t in through_half(g, s)[0]],
                                                         through_half(g, s)[1]),
              "The optimiser gets gradients that are 65536 times too long; AdamW hides it, "
              "clipping does not."),
        Wrong("infinities are not noticed", lambda g, s: (through_half(g, s)[0], False),
              "One overflow, one step with it, and every weight is NaN."),
        Wrong("infinities are cut to the largest number",
              lambda g, s: ([torch.nan_to_num(t, posinf=65504 / s, neginf=-65504 / s)
                             for t in through_half(g, s)[0]], False),
              "The step is taken with a wrong direction; a scaler skips it and halves the scale.")),
    hints=("Multiply first, in float32; then .half().",
           "isfinite on the halves tells whether to skip.", "Back to float32 before dividing."))


def decayed(
    shapes:dict, # name of a parameter -> its shape
) -> list:       # sorted names of those that weight decay shrinks
    "Matrices and embeddings; never a LayerNorm, never a bias"
    return sorted(n for n, s in shapes.items() if len(s) >= 2)

def by_name(shapes): return sorted(n for n in shapes if "norm" not in n and "bias" not in n)

def wither() -> dict:
    "The mean of each LayerNorm's weight through a run with weight decay"
    model, loader = tiny(), stream()
    params = dict(model.named_parameters())
    hit = set(by_name({n: p.shape for n, p in params.items()}))
    groups = [dict(params=[p for n, p in params.items() if n in hit], weight_decay=3.0),
              dict(params=[p for n, p in params.items() if n not in hit], weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=3e-3)
    out = {n: [] for n in params if "ln_" in n and n.endswith("weight")}
    def note(model):
        for n in out: out[n].append(params[n].mean().item())
    losses, _ = learn(model, 150, lambda s: loader.next(), opt, before=note)
    return dict(means=out, loss=losses[-1])

def shapes_of(seed):
    "Names and shapes of small models, in GPT-2's names and in another's"
    r = np.random.default_rng(seed)
    C, V, out = int(r.integers(2, 9)), int(r.integers(10, 99)), []
    for ln, lin in (("ln_1", "attn.c_attn"), ("norm1", "mlp.c_fc")):
        out.append(({"wte.weight": (V, C), f"h.0.{ln}.weight": (C,), f"h.0.{ln}.bias": (C,),
                     f"h.0.{lin}.weight": (3 * C, C), f"h.0.{lin}.bias": (3 * C,),
                     "ln_f.weight": (C,)},))
    return out

lab("wither", "LayerNorm weights decayed", "LayerNorm weights shrink together, step by step",
    "means of parameters by step", "medium/12_optim.ipynb",
    "https://github.com/karpathy/minGPT/pull/16", wither, (
        ("weight decay pulls them to 0: the rule that should spare them looks for another name",
         "it looks for \"norm\", and they are called ln_1, ln_2 and ln_f: all of them sink"),
        ("the gradients vanish", "a weight without a gradient stays where it is; these move every "
         "step"),
        ("the learning rate is too high", "then they would jump about, not sink smoothly"),
        ("the loss wants small activations", "then they would sink while it helps and come to "
         "rest; these sink from the very first step, and go on")),
    answer="decayed",
    task="The sorted names of the parameters that weight decay shall shrink: matrices and "
         "embeddings, from a dict of names and shapes.",
    inputs=shapes_of, oracle=lambda shapes: sorted(k for k in shapes if len(shapes[k]) > 1),
    wrongs=(
        Wrong("a LayerNorm is known by \"norm\" in its name", by_name,
              "GPT-2 calls them ln_1, ln_2, ln_f: they are decayed like matrices, their gain "
              "sinks, and the next layers must make up for it."),
        Wrong("everything is decayed", lambda s: sorted(s),
              "Biases and gains have no reason to be near 0."),
        Wrong("only biases are spared", lambda s: sorted(n for n in s if "bias" not in n),
              "The weights of LayerNorms are vectors too."),
        Wrong("embeddings are spared too",
              lambda s: sorted(n for n in decayed(s) if not n.startswith("w")),
              "A choice some make; GPT-2's tied table is a matrix like the others.")),
    hints=("Names differ from model to model. What do gains and biases have in common?",
           "They have one dimension: keep what has two or more."))


def order(
    n:int,     # windows of the training set
    seed:int,
    epoch:int, # 0, 1, 2 …
):             # (n,) int64: the windows in the order of this epoch
    "Every epoch another order, and always the same one for the same seed and epoch"
    return np.random.default_rng([seed, epoch]).permutation(n)

def in_order(n, seed, epoch): return np.arange(n)

def tide() -> list:
    "Rows of metrics of eight epochs over a corpus of three unlike shards"
    tok, train, _ = letters()
    text = tok.decode(train[5000:10_121])
    odd = "".join(sorted(text[:5120])) # a shard of tables, say
    ids = [torch.tensor(tok.encode(t)) for t in (text, text.upper(), odd + " ")]
    x, y = (torch.cat(t) for t in zip(*(windows(i, 32) for i in ids)))
    model, n = tiny(), len(x)
    def batch(s):
        at = in_order(n, 0, 16 * s // n)[np.arange(16 * s, 16 * s + 16) % n]
        return x[at], y[at]
    losses, norms = learn(model, 8 * n // 16, batch)
    return [dict(step=s, split="train", loss=l, grad_norm=g)
            for s, (l, g) in enumerate(zip(losses, norms), 1)]

lab("tide", "shards read in their own order, epoch after epoch", "a loss that rises and falls with "
    "a fixed period", "doctor: the period of the loss", "easy/02_data.ipynb",
    "https://github.com/karpathy/build-nanogpt/pull/52", tide, (
        ("unlike shards are read one after the other, in the same order each epoch",
         "the period is the length of an epoch in steps, and each stretch of it has a level of "
         "its own"),
        ("the learning rate is too high", "noise of too large steps has no period"),
        ("the schedule of the learning rate restarts", "this run has a constant one; a restart "
         "would also lift all of an epoch, not a third of it"),
        ("the model overfits", "that bends validation upwards; the training loss would fall")),
    answer="order",
    task="The order in which an epoch reads n windows: np.random.default_rng([seed, epoch])'s "
         "permutation, another one each epoch.",
    inputs=lambda seed: [(20, seed, 0), (20, seed, 1), (33, seed + 7, 2), (20, seed, 5)],
    oracle=lambda n, s, e: np.random.Generator(np.random.PCG64([s, e])).permutation(np.arange(n)),
    wrongs=(
        Wrong("the windows come as they lie", in_order,
              "Neighbours are alike: the loss follows the shards, and steps follow one shard for "
              "long."),
        Wrong("every epoch has the same order",
              lambda n, s, e: np.random.default_rng(s).permutation(n),
              "Shuffled once, so the tide is gone; but each epoch repeats the same batches, and "
              "rare accidents of them too."),
        Wrong("the seed plays no part", lambda n, s, e: np.random.default_rng(e).permutation(n),
              "Two seeds then read the same data in the same order: they are not two experiments."),
        Wrong("windows are drawn with repeats",
              lambda n, s, e: np.random.default_rng([s, e]).integers(0, n, n),
              "A third of the windows is missed in an epoch and others come twice. A fair choice, "
              "but not an epoch.")),
    hints=("A generator made of both numbers: default_rng([seed, epoch]).", ".permutation(n)"))


def due(
    step:int,  # updates done: 1, 2, 3 …
    every:int,
    steps:int, # of the run
) -> bool:     # whether to validate now
    "At every multiple, and at the end"
    return step % every == 0 or step == steps

def never_due(step, every, steps): return step % every == 0 and step % every == every - 1

def night_watch() -> list:
    "Rows of metrics of a run that was told to validate every ten steps"
    model, loader, rows = tiny(), stream(), []
    val = stream(16, split=2).next()
    losses, norms = learn(model, 60, lambda s: loader.next())
    for s, (l, g) in enumerate(zip(losses, norms), 1):
        rows.append(dict(step=s, split="train", loss=l, grad_norm=g))
        if never_due(s, 10, 60): rows.append(dict(step=s, split="val", loss=model(*val).item()))
    return rows

lab("night_watch", "a condition for validation that can never hold", "no row of validation in the "
    "whole log, and a doctor who finds nothing", "counting the rows by split",
    "medium/13_training.ipynb", "https://github.com/espnet/espnet/pull/1388", night_watch, (
        ("validation never runs: its condition cannot hold",
         "sixty steps, validation due every ten, and the log has not one row of it"),
        ("all is well: the doctor says so", "the doctor reads what is in the log; a check that "
         "never ran leaves no trace. Ask what ought to be there"),
        ("validation ran, and its rows come later", "rows are written when they are known, and the "
         "run is over"),
        ("the validation loss was NaN and was left out", "a NaN is a row like any other, and the "
         "doctor would name it")),
    answer="due",
    task="Whether to validate after `step` updates of `steps`: at each multiple of `every`, and "
         "after the last.",
    inputs=lambda seed: [(10, 10, 45), (45, 10, 45), (9, 10, 45), (20 + 10 * (seed % 2), 10, 45),
                         (1, 10, 45)],
    oracle=lambda step, every, steps: step in {*range(every, steps + 1, every), steps},
    wrongs=(
        Wrong("it can never hold", never_due,
              "Two conditions that exclude each other, such as one in steps and one in "
              "micro-batches: no validation, no best checkpoint, no early warning."),
        Wrong("the end is forgotten", lambda s, e, n: s % e == 0,
              "Unless the length is a multiple, the final model is never examined."),
        Wrong("the count is off by one", lambda s, e, n: (s + 1) % e == 0 or s == n,
              "Steps counted from 0 in one place and from 1 in another."),
        Wrong("it is always due", lambda s, e, n: True,
              "Right numbers, and most of the time is spent on them.")),
    hints=("Two cases, joined by or.", "step % every == 0 or step == steps"))


def safe_mean(
    logits,  # (n, V)
    targets, # (n,); -1 is ignored
) -> float:  # nats a token; 0 where no target is left
    "The sum over the targets there are, divided by their number or by 1"
    total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return float(total / max(1, int((targets != -1).sum())))

def plain_mean(logits, targets):
    return float(F.cross_entropy(logits, targets, ignore_index=-1))

def black_hole() -> list:
    "Rows of metrics; each counts the targets of its batch"
    model, loader, rows = tiny(), stream(4), []
    def batch(s):
        x, y = loader.next()
        y = y.clone()
        y[:, 32 - s % 7:] = -1
        if s == 40: y[:] = -1 # four passages that are padding from end to end
        rows.append(int((y != -1).sum()))
        return x, y
    losses, norms = learn(model, 48, batch)
    return [dict(step=s, split="train", loss=l, grad_norm=g, targets=n)
            for s, (l, g, n) in enumerate(zip(losses, norms, rows), 1)]

def some_targets(seed):
    "Logits and targets: some ignored, all ignored, none ignored"
    draw, r = normal(seed), np.random.default_rng(seed)
    y = [torch.from_numpy(r.integers(0, 4, 5)) for _ in range(3)]
    y[0][1], y[0][3], y[1][:] = -1, -1, -1
    return [(draw(5, 4), t) for t in y]

def surprise(logits, targets):
    "Token by token, in float64"
    z = logits.double().numpy()
    s = [np.log(np.exp(r).sum()) - r[t] for r, t in zip(z, targets.tolist()) if t >= 0]
    return float(np.mean(s)) if s else 0.0

lab("black_hole", "a batch of padding only: 0 / 0", "one NaN, with a quiet gradient before it and "
    "after", "doctor, and the rows before the first NaN", "easy/04_loss.ipynb",
    "https://github.com/pytorch/pytorch/issues/70348", black_hole, (
        ("a batch has no target at all, and the mean of nothing is 0 / 0",
         "the row counts 0 targets; before and after it all is calm"),
        ("the learning rate is too high", "then loss and gradient norm would climb for some steps "
         "before, and nothing would be well afterwards"),
        ("float16 overflows", "this run is in float32; and an overflow shows in the norm first"),
        ("a token id is outside the vocabulary", "that raises an error and makes no NaN")),
    answer="safe_mean",
    task="The mean cross-entropy, as a float, over the targets that are not -1; 0.0 if there is "
         "none.",
    inputs=some_targets, oracle=surprise,
    wrongs=(
        Wrong("nothing is divided by nothing", plain_mean,
              "0 / 0 is NaN. No gradient comes of it here, but every average that meets it is NaN, "
              "and a trainer that stops at NaN stops."),
        Wrong("it is divided by all positions",
              lambda z, y: float(F.cross_entropy(z, y, ignore_index=-1, reduction="sum") / len(y)),
              "No NaN any more, but padding dilutes the loss: the fix breaks what was right."),
        Wrong("padding is scored as token 0",
              lambda z, y: float(F.cross_entropy(z, y.clamp_min(0))),
              "No NaN, and the model learns to predict padding.")),
    hints=("reduction=\"sum\" of no target is 0, a good number.",
           "Divide by the number of targets, but at least by 1."))


CASES = {} # name -> function (rank, world, say, talk)

def case(fn):
    "Something that two ranks do"
    CASES[fn.__name__] = fn
    return fn

def plainly(message): # the first line, without places in gloo's code and ports
    return re.sub(r"\[[^]\s]*[/.][^]]*\]\S* ?|\. .*", "", message.splitlines()[0])[:75]

def one_rank(names, rank, world, folder, patience):
    "The life of one process: one case after the other"
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


def micro_batches(
    ddp,     # a DistributedDataParallel: called with a batch it returns a loss
    batches, # micro-batches of one step
) -> list:   # ddp.log of the stand-in that the check uses
    "Average the gradients in the last micro-batch only; the wish is read by the forward pass"
    for i, batch in enumerate(batches):
        ddp.require_backward_grad_sync = i == len(batches) - 1
        ddp(batch).backward()
    return ddp.log

def wish_too_late(ddp, batches):
    for i, batch in enumerate(batches):
        loss = ddp(batch)
        ddp.require_backward_grad_sync = i == len(batches) - 1
        loss.backward()
    return getattr(ddp, "log", None)

class Recorder:
    "Stands in for DistributedDataParallel: notes which backward passes would average"
    def __init__(self): self.require_backward_grad_sync, self.log = True, []
    def __call__(self, batch): return Pass(self, batch, self.require_backward_grad_sync)

class Pass:
    "A forward pass: it has read the wish, as the real one does"
    def __init__(self, ddp, batch, wish): self.ddp, self.row = ddp, (batch, wish)
    def backward(self): self.ddp.log.append(self.row)

@case
def drifting_twins(rank, world, say, group):
    from torch.nn.parallel import DistributedDataParallel
    model = tiny()
    ddp = DistributedDataParallel(model)
    opt, loader = torch.optim.AdamW(model.parameters(), lr=3e-3), stream(4, rank=rank, world=world)
    for s in range(1, 9):
        opt.zero_grad()
        wish_too_late(lambda_ddp(ddp), [loader.next() for _ in range(4)])
        opt.step()
        say(step=s, weights=digest(*model.parameters()),
            norm=round(length(model.parameters()), 4))

def lambda_ddp(ddp): # a DDP that takes a micro-batch as one argument
    class One:
        def __call__(self, batch): return ddp(*batch) / 4
        def __setattr__(self, name, value): setattr(ddp, name, value)
    return One()

def always(ddp, batches):
    for batch in batches: ddp(batch).backward()
    return ddp.log

def never(ddp, batches):
    ddp.require_backward_grad_sync = False
    return always(ddp, batches)

lab("drifting_twins", "require_backward_grad_sync set after the forward pass",
    "ranks whose weights differ, a little more at every step", "digests of the weights by rank",
    "tough/18_distributed.ipynb", "https://github.com/karpathy/build-nanogpt/pull/30",
    lambda: rows_of("drifting_twins"), (
        ("the last micro-batch's gradients are not averaged: the wish came after its forward pass",
         "DDP reads it when the forward pass begins; each rank then follows gradients of its own"),
        ("the ranks started from different weights", "DDP sends rank 0's weights to all when it "
         "wraps the model; they would be equal before the first step"),
        ("each rank has data of its own, so its weights differ", "that is how it should be: the "
         "gradients are averaged, and the weights stay equal to the last bit"),
        ("rounding: sums are taken in another order on each rank",
         "the average is computed once and sent to all: not a bit may differ")),
    answer="micro_batches",
    task="Run forward and backward for each micro-batch so that gradients are averaged in the last "
         "one only (ddp.require_backward_grad_sync is read when ddp(batch) is called), then "
         "return ddp.log.",
    inputs=lambda seed: [(Recorder(), list(range(seed % 5, seed % 5 + n))) for n in (4, 2, 3)],
    oracle=lambda ddp, batches: [(b, i + 1 == len(batches)) for i, b in enumerate(batches)],
    wrongs=(
        Wrong("the wish is set after the forward pass", wish_too_late,
              "The forward pass has read the old wish: the first micro-batch is averaged and the "
              "last is not. The replicas drift apart, and no error is raised."),
        Wrong("every micro-batch is averaged", always,
              "Right numbers, paid for as many times as there are micro-batches. no_sync around "
              "backward alone has this effect too."),
        Wrong("no micro-batch is averaged", never,
              "Each rank trains a model of its own; rank 0's is saved.")),
    hints=("Which of the two passes reads the wish?",
           "Set ddp.require_backward_grad_sync, then call ddp(batch), then backward."))


@case
def chorus(rank, world, say, group):
    import torch.distributed as dist
    model, loader = tiny(), stream(8) # every rank takes the same windows
    for s in range(1, 5):
        model.zero_grad()
        x, y = loader.next()
        loss = model(x, y)
        loss.backward()
        own = length([p.grad for p in model.parameters()])
        for p in model.parameters(): dist.all_reduce(p.grad); p.grad /= world
        with torch.no_grad():
            for p in model.parameters(): p -= 0.1 * p.grad
        averaged = length([p.grad for p in model.parameters()])
        say(step=s, weights=digest(*model.parameters()), loss=loss.item(),
            own_norm=round(own, 8), averaged_norm=round(averaged, 8))

def share_numpy(position, B, rank, world):
    "Rows of a table"
    table = np.arange(position, position + B * world).reshape(world, B)
    return table[rank], position + B * world

lab("chorus", "the same data on every rank", "equal losses on all ranks, to the last digit",
    "losses and gradient norms by rank", "easy/02_data.ipynb",
    "https://github.com/Shark-NLP/DiffuSeq/issues/37", lambda: rows_of("chorus"), (
        ("all ranks read the same batch",
         "their losses agree to the last digit, and averaging changes nothing: the second process "
         "only warms the room"),
        ("the losses were averaged over the ranks before they were printed",
         "then the norms before and after averaging would differ; they are equal"),
        ("the weights are equal, so the losses must be",
         "equal weights are right; on other text they still give another loss"),
        ("the gradients are not averaged",
         "with different batches the weights would then differ after one step")),
    answer="share",
    task="Which B windows of the stream rank `rank` of `world` takes next (an array), when all "
         "ranks together have consumed `position`; and the position after it.",
    inputs=lambda seed: [(0, 4, 1, 2), (16, 2, seed % 4, 4), (8, 3, 0, 2), (24, 2, 3, 4)],
    oracle=share_numpy,
    wrongs=(
        Wrong("the rank plays no part", lambda p, B, r, w: (p + np.arange(B), p + B),
              "All ranks read the same windows: as many processes, one process's gradient."),
        Wrong("the position moves by one rank's share only",
              lambda p, B, r, w: (p + r * B + np.arange(B), p + B),
              "Rank 1's windows of this step are rank 0's of the next: everything is read as many "
              "times as there are ranks."),
        Wrong("the share of rank 0 is taken by all, the rest is skipped",
              lambda p, B, r, w: (p + np.arange(B), p + w * B),
              "The epoch seems to have the right length, but most of the data is never read.")),
    hints=("Of the next world * B windows, rank 0 takes the first B, rank 1 the next B, …",
           "(position + rank * B + np.arange(B), position + world * B)"))


def seeds(
    seed:int, # of the run
    rank:int,
) -> tuple:   # of the weights: seed itself; of the noise (dropout): seed + 1 + rank
    "The same weights everywhere, other noise on each rank"
    return seed, seed + 1 + rank

def one_seed(seed, rank): return seed, seed

@case
def loaded_dice(rank, world, say, group):
    weights, noise = one_seed(1337, rank)
    model, (x, _) = tiny(weights, dropout=0.5), stream(2, rank=rank, world=world).next()
    torch.manual_seed(noise)
    for s in range(1, 4):
        kept = model.transformer.drop(torch.ones(48)) > 0
        say(step=s, weights=digest(*model.parameters()), batch=digest(x),
            kept="".join(".#"[int(k)] for k in kept))

lab("loaded_dice", "the same dropout seed on every rank",
    "the same numbers dropped on all ranks, on different data", "dropout masks by rank",
    "tough/18_distributed.ipynb", "https://github.com/huggingface/transformers/issues/31412",
    lambda: rows_of("loaded_dice"), (
        ("all ranks draw their noise from the same seed",
         "the batches differ and the masks do not: eight ranks then try one way of dropping out, "
         "not eight"),
        ("all ranks read the same data", "the digests of their batches differ"),
        ("dropout is off", "half of the numbers are gone"),
        ("the masks are sent from rank 0 with the weights", "DDP sends parameters and buffers; a "
         "mask is neither")),
    answer="seeds",
    task="Two seeds for rank `rank`: of the weights (seed, on every rank) and of the noise "
         "(seed + 1 + rank).",
    inputs=lambda seed: [(1337, 0), (1337 + seed, 1), (7, 3 + seed)],
    oracle=lambda seed, rank: (seed, sum([seed, 1, rank])),
    wrongs=(
        Wrong("one seed for everything", one_seed,
              "Equal masks on all ranks: the noise of a large batch is that of a small one, and "
              "runs on eight GPUs do worse than on one."),
        Wrong("the weights' seed depends on the rank", lambda s, r: (s + r, s + 1 + r),
              "Without a broadcast every rank starts from other weights, and equal gradients keep "
              "them apart for ever."),
        Wrong("the rank multiplies the seed", lambda s, r: (s, s * r),
              "Rank 0 always gets 0, and rank 1 the seed of the weights: no two runs differ on "
              "rank 0.")),
    hints=("One of the two must be equal on all ranks.", "(seed, seed + 1 + rank)"))


def last_steps(
    wishes, # for each rank, for each step: whether it would like to stop after this step
) -> list:  # for each rank, how many steps it takes
    "A wish of anyone, agreed on in the step in which it is had, stops all; nobody's: all steps"
    for step, now in enumerate(zip(*wishes), 1):
        if any(now): return [step] * len(wishes)
    return [len(wishes[0])] * len(wishes)

def each_for_itself(wishes):
    return [row.index(True) + 1 if True in row else len(row) for row in wishes]

@case
def silence(rank, world, say, group):
    import torch.distributed as dist
    wishes = [[s == 4 and r == 0 for s in range(8)] for r in range(world)]
    for s in range(1, each_for_itself(wishes)[rank] + 1):
        say(step=s, at="averages gradients")
        dist.all_reduce(torch.ones(1000), group=group)
    say(step=s, at="is done, waits for the others")
    dist.barrier(group=group)
    say(step=s, at="goes home")

def wishes_of(seed):
    "Wishes of 2 to 4 ranks: one rank's, several ranks', nobody's"
    r = np.random.default_rng(seed)
    late = [[False] * 8 for _ in range(3)]
    late[1][1] = late[0][2] = late[0][4] = late[1][4] = late[2][4] = True
    one = [[False] * 6 for _ in range(2)]
    one[1][int(r.integers(1, 5))] = True
    return [(late,), (one,), ([[False] * 4] * 4,)]

lab("silence", "one rank leaves the loop alone", "a run that stands still without a word",
    "the last thing each rank said", "tough/18_distributed.ipynb",
    "https://github.com/huggingface/accelerate/issues/3861", lambda: rows_of("silence"), (
        ("rank 0 left the loop by itself, and rank 1 waits for it to average gradients",
         "the last words of both: each waits for the other, in different places"),
        ("the network is broken", "five averages went through on the same connection"),
        ("rank 1 is slow", "it has asked for the sixth average; it is waiting, not computing"),
        ("rank 0 has crashed", "it says that it is done, and waits")),
    answer="last_steps",
    task="From each rank's wishes to stop after each step, how many steps each rank takes if all "
         "leave together, in the step in which the first wish of anyone is had.",
    inputs=wishes_of,
    oracle=lambda wishes: [int(np.r_[np.array(wishes).any(0), True].argmax() + 1
                               if np.array(wishes).any() else len(wishes[0]))] * len(wishes),
    wrongs=(
        Wrong("each rank leaves when it likes", each_for_itself,
              "Whoever stays waits for ever in the next collective; after ten minutes a timeout "
              "blames the network."),
        Wrong("only rank 0 is asked",
              lambda w: [(w[0].index(True) + 1) if True in w[0] else len(w[0])] * len(w),
              "A signal reaches one rank, often not rank 0: it goes unheard."),
        Wrong("all have to wish it at once",
              lambda w: next(([s] * len(w) for s, now in enumerate(zip(*w), 1) if all(now)),
                             [len(w[0])] * len(w)),
              "MIN where MAX is meant: the run never stops early.")),
    hints=("Reduce the wishes of a step with MAX: any.",
           "for step, now in enumerate(zip(*wishes), 1): if any(now): …"))


def steps_in(
    n:int,        # tokens of a shard
    B:int, T:int, # rows and tokens of a batch, in each rank
    world:int,
) -> int:         # steps for which every rank finds a whole batch, its last target included
    "A step takes world * B * T tokens; the last target is one token more"
    return max(0, n - 1) // (B * T * world)

def as_rank_0_sees_it(n, B, T, world): return max(0, (n - 1 - B * T) // (B * T * world) + 1)

@case
def short_rations(rank, world, say, group):
    import torch.distributed as dist
    ids, B, T = letters()[1][:1200], 4, 32
    for s in range(as_rank_0_sees_it(len(ids), B, T, world)):
        first = (s * world + rank) * B * T
        row = torch.from_numpy(ids[first:first + B * T + 1].astype(np.int64))
        say(step=s + 1, at=f"read {len(row)} tokens, from {first} on")
        x = row[:-1].view(B, T)
        dist.all_reduce(torch.ones(1000), group=group)

lab("short_rations", "the last, short shard has no whole batch for the high ranks",
    "one rank dies of a shape, another of waiting", "the last thing each rank said",
    "easy/02_data.ipynb", "https://github.com/karpathy/build-nanogpt/issues/105",
    lambda: rows_of("short_rations"), (
        ("the shard ends inside the step: rank 0 still finds a batch, rank 1 does not",
         "rank 1 read fewer tokens than a batch has and could not fold them into rows; rank 0 "
         "waits for a partner that is gone"),
        ("rank 1 has another batch size", "four steps went well with the same one"),
        ("rank 0 is too slow and rank 1 gave up", "rank 1's last words are about a shape"),
        ("the shard is damaged", "all that is there was read; there is not enough of it")),
    answer="steps_in",
    task="For how many steps a shard of n tokens gives each of `world` ranks a whole batch of B "
         "rows of T tokens, the target of the last token included.",
    inputs=lambda seed: [(B * T * w * k + extra, B, T, w) for B, T, w, k, extra in
                         ((4, 8, 2, 3 + seed % 4, 0), (2, 4, 4, 5, 9), (4, 8, 2, 3, 33),
                          (1, 8, 1, 2, 1))],
    oracle=lambda n, B, T, w: sum(1 for s in range(n) if (s + 1) * B * T * w + 1 <= n),
    wrongs=(
        Wrong("it is counted as rank 0 sees it", as_rank_0_sees_it,
              "The first rank's batch fits, the others' does not: they crash on a shape, or wrap "
              "around, and rank 0 waits."),
        Wrong("the last target is forgotten", lambda n, B, T, w: n // (B * T * w),
              "Where the shard ends exactly with a batch, the last rank is one token short."),
        Wrong("the other ranks are forgotten", lambda n, B, T, w: max(0, n - 1) // (B * T),
              "Each rank expects the whole shard for itself."),
        Wrong("a step is reserved for nothing",
              lambda n, B, T, w: max(0, (n - 1) // (B * T * w) - 1),
              "A check that looks one step too far ahead: the end of every shard is never read.")),
    hints=("Tokens of a step, of all ranks together?", "The last target needs one token more: "
           "n - 1 of them start something."))


def rate_of_dropout(
    p:float,       # of the config
    training:bool, # of the module
) -> float:        # what to hand to scaled_dot_product_attention as dropout_p
    "The kernel drops whatever it is told: it knows no eval mode"
    return p if training else 0.0

def restless() -> dict:
    "Ten evaluations of one model in eval mode on one batch"
    model = tiny(dropout=0.2, attention=lambda q, k, v, dropout: sdpa(q, k, v, 0.5))
    loader, val = stream(), stream(32, split=2).next()
    learn(model, 100, lambda s: loader.next())
    model.eval()
    with torch.no_grad(): again = [model(*val).item() for _ in range(10)]
    return dict(losses=again, training=model.training)

lab("restless", "the fused attention keeps dropping in eval mode",
    "another validation loss each time it is asked", "evaluating twice",
    "medium/07_attention.ipynb", "https://github.com/karpathy/nanoGPT/pull/240", restless, (
        ("attention goes on dropping: the kernel is a function and has no eval mode",
         "the model says that it is not training, and still its answer is random; what else could "
         "draw a number here?"),
        ("model.eval() was forgotten", "the model says training: False"),
        ("the validation batches differ", "it is one batch, ten times"),
        ("the kernel is not deterministic", "on one core the same sums give the same bits; and the "
         "losses differ in the fourth digit, not the last")),
    answer="rate_of_dropout",
    task="The dropout_p to hand to F.scaled_dot_product_attention, from the config's p and the "
         "module's `training`.",
    inputs=lambda seed: [(0.1 + seed % 5 / 10, True), (0.1 + seed % 5 / 10, False), (0.0, True)],
    oracle=lambda p, training: p * int(training),
    wrongs=(
        Wrong("p is handed over as it is", lambda p, training: p,
              "Evaluation and samples are random, and validation looks worse than it is."),
        Wrong("it is the share kept", lambda p, training: 1 - p if training else 1.0,
              "Other libraries ask for the probability of keeping; this one drops almost all."),
        Wrong("nothing is ever dropped", lambda p, training: 0.0,
              "The kernel is right in eval mode, and training lost its dropout."),
        Wrong("training and eval are exchanged", lambda p, training: 0.0 if training else p,
              "Dropout only where it hurts.")),
    hints=("F.dropout has an argument `training`; scaled_dot_product_attention has none.",
           "p if training else 0.0"))


def log_likelihood(
    x, # (T, C) float32: the last hidden states
    W, # (V, C) float32: the head
    y, # (T,) targets
) -> float: # sum of log-probabilities of the targets
    "Logits and softmax in float32"
    return float((x @ W.T).log_softmax(-1)[range(len(y)), y].sum())

def rounded_likelihood(x, W, y):
    return float((x.bfloat16() @ W.bfloat16().T).log_softmax(-1)[range(len(y)), y].sum())

@torch.no_grad()
def coin_toss() -> str:
    "200 questions with four endings that differ in one letter: answers by two ways of scoring"
    model, r = trained(), np.random.default_rng(0)
    V, ids = model.cfg.vocab_size, letters()[2].astype(np.int64)
    answers, margins = [], []
    for _ in range(200):
        at, scores = int(r.integers(len(ids) - 33)), []
        for _ in range(4):
            row = torch.from_numpy(ids[at:at + 33].copy())
            row[int(r.integers(10, 32))] = int(ids[int(r.integers(len(ids)))])
            h = model.hidden(row[None, :-1])[0, 8:]
            scores.append([f(h, model.lm_head.weight[:V], row[9:])
                           for f in (log_likelihood, rounded_likelihood)])
        answers.append(np.argmax(scores, 0))
        margins.append(np.diff(np.sort(np.array(scores)[:, 0]))[-1])
    flips, margins = np.array([a != b for a, b in answers]), np.array(margins)
    rows = [", ".join(f"{s[k]:.6g}" for s in scores) for k in (0, 1)]
    return (f"{flips.sum()} of {len(flips)} answers differ between the two scorings\n"
            f"margin of the best ending: {margins[flips].mean():.2f} where they differ, "
            f"{margins[~flips].mean():.2f} elsewhere\n"
            f"the last question, first way:  {rows[0]}\n                   second way: {rows[1]}")

def head_and_targets(seed):
    "Hidden states, a head, targets"
    draw, r = normal(seed), np.random.default_rng(seed)
    return [(draw(T, 8), draw(V, 8), torch.from_numpy(r.integers(0, V, T)))
            for T, V in ((3, 20), (5, 50), (2, 11))]

def likelihood_numpy(x, W, y):
    "In float64"
    z = x.double().numpy() @ W.double().numpy().T
    return float(sum(r[t] - np.log(np.exp(r).sum()) for r, t in zip(z, y.tolist())))

lab("coin_toss", "log-likelihoods from bfloat16 logits",
    "answers that flip between two scorings of one model", "the same evaluation in float32",
    "tough/22_evaluation.ipynb",
    "https://github.com/EleutherAI/lm-evaluation-harness/pull/2921", coin_toss, (
        ("the second scoring is computed in bfloat16: three digits",
         "its scores stand on a coarse grid, and the answers flip where the best two are close"),
        ("the endings were drawn anew for the second scoring",
         "both score the same rows: most scores agree to two digits"),
        ("dropout", "nothing is drawn between the two: the model is in eval mode"),
        ("one of them divides by the length", "all endings have the same length: dividing would "
         "change no answer")),
    answer="log_likelihood",
    task="The sum of the log-probabilities of targets y (T,), from hidden states x (T, C) and the "
         "head W (V, C), in float32 throughout.",
    inputs=head_and_targets, oracle=likelihood_numpy, rtol=1e-5,
    wrongs=(
        Wrong("all of it is in bfloat16", rounded_likelihood,
              "Autocast was left on around the evaluation: answers whose margin is below a "
              "hundredth are decided by rounding."),
        Wrong("the logits are rounded before they become float32",
              lambda x, W, y: float((x.bfloat16() @ W.bfloat16().T).float()
                                    .log_softmax(-1)[range(len(y)), y].sum()),
              ".float() after the product cannot bring the lost digits back."),
        Wrong("the mean is taken", lambda x, W, y: log_likelihood(x, W, y) / len(y),
              "That is another protocol (per token): state which one a number is.")),
    hints=("Where are digits lost: in the product, in the softmax, or in both?",
           "Leave autocast, or call .float() before the product; then log_softmax."))


def next_shares(
    logits, # (..., padded V)
    V:int,  # tokens of the tokenizer
):          # (..., V) probabilities
    "Ids that no token has take no part"
    return logits[..., :V].softmax(-1)

def padded_shares(logits, V): return logits.softmax(-1)

def foreign_tongue() -> str:
    "A vocabulary padded to 128: the first loss, and 2000 samples after some training"
    tok, model, loader = letters()[0], tiny(V=128), stream()
    with torch.no_grad(): told = [f"loss before training {model(*loader.next()).item():.3f}, "
                                  f"ln {tok.n_vocab} = {math.log(tok.n_vocab):.3f}"]
    for steps in (0, 20, 60):
        learn(model, steps, lambda s: loader.next())
        with torch.no_grad(): logits = model(stream(1, split=2).next()[0])[0, -1]
        g = torch.Generator().manual_seed(0)
        ids = torch.multinomial(padded_shares(logits, tok.n_vocab), 2000, True, generator=g)
        try: said = repr(tok.decode(ids.tolist()))[:30]
        except IndexError as e: said = f"decode: {type(e).__name__}: {e}"
        told.append(f"after {steps:2} more steps: ids from {int(ids.min())} to "
                    f"{int(ids.max())}; {said}")
    return "\n".join(told)

def shares_of_real_ids(logits, V):
    "In float64, over the first V"
    e = np.exp(logits.double().numpy()[..., :V])
    return torch.from_numpy(e / e.sum(-1, keepdims=True)).float()

lab("foreign_tongue", "ids of the padded vocabulary are sampled",
    "a sample that cannot be decoded, now and then", "loss at initialisation; the largest id",
    "medium/09_model.ipynb",
    "https://github.com/karpathy/build-nanogpt/issues/81", foreign_tongue, (
        ("the model has more rows than the tokenizer has tokens, and all of them can be drawn",
         "the first loss is the logarithm of the padded size, and training makes the strangers "
         "rare, never impossible"),
        ("the tokenizer's file is damaged", "the ids that it cannot decode lie beyond its size: "
         "it never had them"),
        ("the training text holds wrong ids", "it was written by this tokenizer; and untrained, "
         "the model says them most of all"),
        ("the temperature is too high", "heat makes rare tokens more frequent; an id that is no "
         "token must have probability 0 at any temperature")),
    answer="next_shares",
    task="Probabilities (..., V) of the next token from logits over a padded vocabulary, whose "
         "first V ids are real.",
    inputs=lambda seed: [(normal(seed)(*s), V) for s, V in (((2, 12), 9), ((8,), 5), ((3, 6), 4))],
    oracle=shares_of_real_ids,
    wrongs=(
        Wrong("the padding takes part", padded_shares,
              "Its ids are drawn now and then, and decoding fails; in the loss they cost a little "
              "probability at every token."),
        Wrong("the padding is cut off after the softmax",
              lambda z, V: z.softmax(-1)[..., :V],
              "The rest no longer adds up to 1: whoever samples by a running sum draws the last "
              "token too often."),
        Wrong("the padding's share goes to the last real token",
              lambda z, V: torch.cat([z.softmax(-1)[..., :V - 1],
                                      z.softmax(-1)[..., V - 1:].sum(-1, keepdim=True)], -1),
              "That is what clamping the drawn ids to V - 1 does: no error, and one token too "
              "often.")),
    hints=("Cut before the softmax or after it?", "logits[..., :V].softmax(-1)"))


def targets_of(
    rows,    # (B, T + 1) token ids, each a document filled up with eot
    n,       # (B,) tokens of the document in each row, its own closing eot included
    eot:int, # id of <|endoftext|>
):           # (B, T) what follows each position; -1 behind the document
    "The closing eot is a target like any other; the filling is none"
    y = rows[:, 1:].clone()
    y[torch.arange(y.size(1)) >= (n - 1)[:, None]] = -1
    return y

def no_end(rows, n, eot): return rows[:, 1:].masked_fill(rows[:, 1:] == eot, -1)

def lines_of_hamlet(): # (lines, 33) ids, each a line closed and filled with eot; their lengths
    tok = letters()[0]
    text = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    lines = [t for t in (line.strip() for line in text.splitlines()) if 4 < len(t) < 32][:800]
    rows = torch.full((len(lines), 33), tok.eot_token)
    for row, t in zip(rows, lines): row[:len(t)] = torch.tensor(tok.encode(t))
    return rows, torch.tensor([len(t) + 1 for t in lines])

def babbler() -> str:
    "Train on documents of one line each; let it write; ask it at true ends"
    from gpt2_course.generation import generate
    (rows, n), tok = lines_of_hamlet(), letters()[0]
    y, model, r = no_end(rows, n, tok.eot_token), tiny(), np.random.default_rng(0)
    def batch(s):
        i = r.integers(len(rows), size=16)
        return rows[i, :-1], y[i]
    losses, _ = learn(model, 200, batch)
    out = generate(model, rows[:40, :1], 31, stop=tok.eot_token,
                   generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): p = model.eval()(rows[:200, :-1]).softmax(-1)
    at_ends = p[torch.arange(200), n[:200] - 2, tok.eot_token]
    stopped = int((out == tok.eot_token).any(1).sum())
    return (f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end\n"
            f"lines in the text end after {n.float().mean():.0f} letters; of 40 written, {stopped} "
            f"came to an end\nprobability of the end where a line does end: {at_ends.mean():.1e}\n"
            + "\n".join(repr(tok.decode(o.tolist())) for o in out[:3]))

def filled_rows(seed):
    "Rows with short documents and one that is cut, so that no eot closes it"
    r = np.random.default_rng(seed)
    rows, n = torch.full((3, 7), 9), torch.tensor([4, 7, int(r.integers(2, 7))])
    for row, k, closed in zip(rows, n, (1, 0, 1)):
        row[:k - closed] = torch.from_numpy(r.integers(0, 9, int(k) - closed))
    return [(rows, n, 9), (rows[:2], n[:2], 9)]

def targets_by_hand(rows, n, eot):
    "Position by position"
    return torch.tensor([[int(row[t + 1]) if t + 1 < k else -1 for t in range(len(row) - 1)]
                         for row, k in zip(rows, n.tolist())])

def cut_targets(shift): # a mistaken `targets_of`: ignores what lies `shift` too far or too early
    return lambda rows, n, eot: targets_of(rows, n + shift, eot)

lab("babbler", "end-of-text is the ignored target", "a model that never stops",
    "probability of the end at true ends", "easy/02_data.ipynb",
    "https://github.com/huggingface/trl/issues/976", babbler, (
        ("the end of a document is never a target: it is taken for padding",
         "the loss falls, the words are there, and the end has the probability of a token that "
         "was never seen"),
        ("it was trained too briefly", "the loss has fallen far; and even an untrained model gives "
         "the end a share of one in the size of the vocabulary, which is more"),
        ("the sampler ignores the end", "the probability is read from the model, before any "
         "sampling"),
        ("the documents are longer than the block", "all of them are shorter, by choice")),
    answer="targets_of",
    task="Targets (B, T) from rows (B, T + 1) of documents filled up with eot, n tokens of each "
         "real, its closing eot included: -1 behind the document only.",
    inputs=filled_rows, oracle=targets_by_hand,
    wrongs=(
        Wrong("every end-of-text is ignored", no_end,
              "The padding has the same id as the end: ignoring the id loses both, and the model "
              "never learns to stop."),
        Wrong("the filling is learnt too", lambda rows, n, eot: rows[:, 1:],
              "Most of the targets are then the end after the end: an easy task that hides the "
              "real loss."),
        Wrong("the last real target is ignored", cut_targets(-1),
              "One position too early: the end is lost again."),
        Wrong("one filling is learnt", cut_targets(1),
              "One position too late: the end is followed by another end.")),
    hints=("n tokens have n - 1 that follow another.", "Ignore positions t >= n - 1, whatever id "
           "stands there."))


def top_k_shares(
    logits, # (V,)
    k:int,
):          # (V,) probabilities: 0 but for the k largest
    "A softmax over the k largest alone"
    kept = logits.topk(k)
    return torch.zeros_like(logits).scatter(0, kept.indices, kept.values.softmax(-1))

def cut_shares(logits, k):
    p = logits.softmax(-1)
    return torch.where(p >= p.topk(k).values[-1], p, 0.0)

def lottery() -> dict:
    "5000 draws by the running sum, and what top-k should give"
    logits = normal(3)(10)
    logits[-1] = -2.0
    bounds = cut_shares(logits, 3).cumsum(-1).numpy()
    drawn = np.searchsorted(bounds, np.random.default_rng(0).random(5000)).clip(max=9)
    return dict(drawn=np.bincount(drawn, minlength=10) / 5000, full=logits.softmax(-1).numpy())

def top_k_numpy(logits, k):
    "In float64"
    z = logits.double().numpy()
    e = np.exp(z) * (z >= np.sort(z)[-k])
    return torch.from_numpy(e / e.sum()).float()

lab("lottery", "top-k after the softmax, not renormalised",
    "an unlikely token that is drawn far too often", "counting draws", "medium/11_generation.ipynb",
    "https://github.com/ml-explore/mlx-lm/pull/388", lottery, (
        ("what top-k cut away was not given back to the rest, and falls to the last token",
         "the running sum ends below 1, and every draw above it lands on the last id, which is not "
         "even among the three"),
        ("the temperature is too high", "then all unlikely tokens would gain, not one of them"),
        ("the random numbers are not uniform", "the three likely tokens are drawn in the right "
         "proportion to each other"),
        ("k is one too large", "the fourth likeliest would be drawn about as often as its "
         "probability; the winner here is among the least likely")),
    answer="top_k_shares",
    task="Probabilities (V,) of top-k sampling from logits (V,): 0 but for the k largest, which "
         "add up to 1.",
    inputs=lambda seed: [(normal(seed)(9), 3), (normal(seed + 1)(6), 2), (normal(seed + 2)(5), 4)],
    oracle=top_k_numpy,
    wrongs=(
        Wrong("the rest is not renormalised", cut_shares,
              "torch.multinomial forgives it; a running sum, top-p afterwards or a log-likelihood "
              "do not."),
        Wrong("the probabilities go through a second softmax",
              lambda z, k: top_k_shares(z.softmax(-1), k),
              "Probabilities are not logits: the result is nearly flat."),
        Wrong("the k-th is lost", lambda z, k: top_k_shares(z, k - 1),
              "A strict > where >= is meant."),
        Wrong("the others keep a share", lambda z, k: torch.where(
            z >= z.topk(k).values[-1], z, 0.0).softmax(-1),
              "A logit of 0 is not a probability of 0: masked means -inf.")),
    hints=("Cut first, softmax afterwards.", "topk, softmax of its values, scattered back."))


def split(
    lengths:list,   # tokens of each document, in order
    val_tokens:int, # at least so many for validation
) -> list:          # for each document, how many of its tokens are for validation: all or none
    "Whole documents from the first on, until there are enough"
    out, left = [], val_tokens
    for n in lengths:
        out.append(n if left > 0 else 0)
        left -= n
    return out

def cut_split(lengths, val_tokens):
    out, left = [], val_tokens
    for n in lengths:
        out.append(min(n, max(left, 0)))
        left -= n
    return out

def deja_vu() -> str:
    "The speeches of Hamlet, divided into validation and training; what meets at the border"
    text = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    docs = [" ".join(d.split()) + " ¶ " for d in text[10_000:].split("\n\n") if len(d) > 60][:60]
    n = sum(cut_split([len(d) for d in docs], 4000))
    whole = "".join(docs)
    return (f"validation, {n} letters, ends with:\n   …{whole[n - 75:n]}\n"
            f"training, {len(whole) - n} letters, begins with:\n   {whole[n:n + 75]}…\n"
            f"¶ closes a document: {whole[:n].count('¶')} in validation, {whole[n:].count('¶')} in "
            f"training, {len(docs)} in all")

lab("deja_vu", "a document straddles the border of training and validation",
    "a validation text that breaks off and goes on in training", "reading the border",
    "tough/21_prepare.ipynb", "https://github.com/openai/parameter-golf/issues/2127", deja_vu, (
        ("the border is drawn by tokens and cuts a document in two",
         "the sentence that validation breaks off goes on in training: what is examined was half "
         "learnt"),
        ("the end mark is missing", "it is there behind every document, on both sides"),
        ("the text was shuffled", "a shuffle of documents would not tear a sentence apart at the "
         "very border"),
        ("the two overlap", "no letter is on both sides; it is the document that is")),
    answer="split",
    task="How many tokens of each document go to validation, all or none of it: documents from the "
         "first on, until there are at least val_tokens.",
    inputs=lambda seed: [([5, 7, 4, 9 + seed % 3, 3], 10), ([8, 3, 6], 4), ([2, 2, 5, 6], 4)],
    oracle=lambda lengths, v: [n if sum(lengths[:i]) < v else 0 for i, n in enumerate(lengths)],
    wrongs=(
        Wrong("the border cuts a document", cut_split,
              "Its first half is examined, its second half learnt, or the other way round: names, "
              "style and whole phrases leak."),
        Wrong("the document at the border goes to training",
              lambda ls, v: [n if sum(ls[:i + 1]) <= v else 0 for i, n in enumerate(ls)],
              "Clean, but validation is smaller than asked, and empty if the first document is "
              "long."),
        Wrong("the last documents are taken",
              lambda ls, v: split(ls[::-1], v)[::-1],
              "Clean too, but a stream that is still growing has no last document: the split "
              "changes whenever text is added.")),
    hints=("Decide document by document: are there enough already?",
           "n if left > 0 else 0; then left -= n."))


def shard_sizes(
    lengths:list, # tokens of each document
    size:int,     # tokens of a shard
) -> list:        # tokens of each shard; only the last may be smaller
    "A shard is a piece of the stream, wherever documents begin and end"
    total = sum(lengths)
    return [size] * (total // size) + [total % size] * (total % size > 0)

def write_shards(lengths, size): # as a well-known script does it; returns the shards' sizes
    buffer, used, out = np.empty(size, np.uint16), 0, []
    for n in lengths:
        doc, room = np.zeros(n, np.uint16), size - used
        if n < room:
            buffer[used:used + n] = doc
            used += n
        else:
            buffer[used:] = doc[:room]
            out.append(size)
            buffer[:n - room] = doc[room:]
            used = n - room
    return out + [used] * (used > 0)

def big_fish() -> str:
    "Write shards of 1000 tokens from documents of several sizes"
    told = []
    for lengths in ([300] * 9, [300, 900, 900, 300], [300, 300, 2100, 300]):
        try: said = f"shards of {write_shards(lengths, 1000)}"
        except ValueError as e: said = f"{type(e).__name__}: {e}"
        told.append(f"documents of {lengths}\n   {said}")
    return "\n".join(told)

def cut_once(lengths, size):
    "The mistaken fix: what does not fit into the second shard is lost"
    out, used = [], 0
    for n in lengths:
        if used + n < size: used += n
        else: out, used = out + [size], min(n - (size - used), size)
    return out + [used] * (used > 0)

def never_cut(lengths, size):
    "The mistaken fix: a document that does not fit begins a shard of its own"
    out, used = [], 0
    for n in lengths:
        if used and used + n > size: out, used = out + [used], 0
        used += n
    return out + [used] * (used > 0)

lab("big_fish", "a document longer than a shard", "a crash in data preparation, on some texts only",
    "documents of several sizes", "tough/21_prepare.ipynb", "", big_fish, (
        ("a document is cut in two at most, and its second part may not fit into a shard either",
         "it needs one of more than a shard's room: 2100 into shards of 1000, with 600 in use"),
        ("the type uint16 overflows", "sizes are counted in ordinary integers; the message speaks "
         "of shapes"),
        ("a document is empty", "none is"),
        ("the shards are too small for the vocabulary", "a shard holds any ids; its size is a "
         "number of tokens")),
    answer="shard_sizes",
    task="Sizes of the shards of a stream of documents of these lengths: all `size`, only the last "
         "may be smaller, and no token is lost.",
    inputs=lambda seed: [([3, 2, 21 + seed % 5, 4], 10), ([4, 4, 4], 6), ([25], 8), ([5, 5], 10)],
    oracle=lambda ls, size: [len(p) for p in
                             (range(sum(ls))[i:i + size] for i in range(0, sum(ls), size))],
    wrongs=(
        Wrong("the rest of a long document is lost", cut_once,
              "The crash is gone, and so is text, without a word."),
        Wrong("long documents are cut to a shard",
              lambda ls, size: shard_sizes([min(n, size) for n in ls], size),
              "Books lose their endings; the count of tokens in meta.json no longer fits the "
              "source."),
        Wrong("no document is ever cut", never_cut,
              "Shards of all sizes, one of them as long as the longest book: a loader that was "
              "promised equal shards trips.")),
    hints=("Forget the documents: how long is the stream?", "total // size full shards, and one of "
           "total % size if that is not 0."))


def checkpoints(
    w,          # (D,) weights
    grads,      # list of (D,) gradients, one a step
    lr:float,
    every:int,
) -> dict:      # number of updates done -> (D,) weights then, at every multiple and at the end
    "Save after the update, and a copy"
    saved = {}
    for s, g in enumerate(grads, 1):
        w = w - lr * g
        if s % every == 0 or s == len(grads): saved[s] = w.clone()
    return saved

def early_checkpoints(w, grads, lr, every):
    saved = {}
    for s, g in enumerate(grads, 1):
        if s % every == 0 or s == len(grads): saved[s] = w.clone()
        w = w - lr * g
    return saved

def yesterday() -> str:
    "Train 30 steps, save at the end, load, compare"
    model, loader, kept = tiny(), stream(), {}
    val = stream(32, split=2).next()
    def save(model): kept.update({k: v.clone() for k, v in model.state_dict().items()})
    learn(model, 30, lambda s: loader.next(), before=save)
    new = tiny()
    new.load_state_dict(kept)
    again, loader = tiny(), stream()
    learn(again, 29, lambda s: loader.next())
    with torch.no_grad():
        return "\n".join(f"{name:28} weights {weights_of(m)}   validation loss {m(*val):.5f}"
                         for name, m in (("at the end, after 30 steps", model),
                                         ("checkpoint step 30, loaded", new),
                                         ("a second run, after 29 steps", again)))

def some_gradients(seed):
    "Weights, gradients of 7, 6 and 1 steps, a step size, an interval"
    draw = normal(seed)
    return [(draw(3), [draw(3) for _ in range(n)], 0.1, every) for n, every in
            ((7, 3), (6, 2), (1, 5))]

def by_sums(w, grads, lr, every):
    "Weights after s steps are w - lr times the sum of s gradients, in float64"
    g = np.stack([t.double().numpy() for t in grads]).cumsum(0)
    at = {*range(every, len(grads) + 1, every), len(grads)}
    return {s: torch.from_numpy(w.double().numpy() - lr * g[s - 1]).float() for s in sorted(at)}

def one_tensor(w, grads, lr, every):
    "Mistaken: what is saved is the live tensor"
    saved = {}
    for s, g in enumerate(grads, 1):
        w -= lr * g
        if s % every == 0 or s == len(grads): saved[s] = w
    return saved

lab("yesterday", "the checkpoint is written before the last update",
    "a loaded model that scores a little worse than the one that was saved",
    "digests before saving and after loading", "tough/19_checkpoint.ipynb",
    "https://github.com/snowflakedb/ArcticTraining/pull/323", yesterday, (
        ("it was saved before the last update",
         "its digest is that of the weights after 29 steps, to the last bit"),
        ("the file lost digits", "rounding would give weights of no step at all"),
        ("the model was left in training mode", "there is no dropout in it, and digests do not "
         "depend on modes"),
        ("an older file was loaded by mistake", "there is only this one")),
    answer="checkpoints",
    task="A dict from the number of updates to the weights after them, at each multiple of `every` "
         "and at the end; an update is w - lr * g.",
    inputs=some_gradients, oracle=by_sums,
    wrongs=(
        Wrong("it is saved before the update", early_checkpoints,
              "The name says step 30, the weights are those of step 29: a resume repeats an "
              "update, and the best loss belongs to no file."),
        Wrong("the live tensor is kept, not a copy", one_tensor,
              "All checkpoints are the last one."),
        Wrong("the end is not saved",
              lambda w, g, lr, every: {s: v for s, v in by_sums(w, g, lr, every).items()
                                       if s % every == 0},
              "Up to every - 1 steps of work are thrown away when the run ends well.")),
    hints=("First the update, then the question whether to save.",
           "s % every == 0 or s == len(grads); save w.clone() unless w is never changed in place."))


def best_weights(
    model,  # a module
    epochs, # list of (change of its weight, validation loss after that change)
) -> dict:  # state_dict with the lowest validation loss
    "A copy, taken when it was the best"
    best, kept = math.inf, None
    for change, loss in epochs:
        with torch.no_grad(): model.weight += change
        if loss < best: best, kept = loss, {k: v.clone() for k, v in model.state_dict().items()}
    return kept

def best_reference(model, epochs):
    best, kept = math.inf, None
    for change, loss in epochs:
        with torch.no_grad(): model.weight += change
        if loss < best: best, kept = loss, model.state_dict()
    return kept

def mirror() -> str:
    "Overfit eight rows, keep the best weights in memory, load them at the end"
    model, batch = tiny(), stream(8).next()
    val, told, best, kept = stream(64, split=2).next(), [], math.inf, None
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for s in range(8, 97, 8):
        learn(model, 8, lambda s: batch, opt)
        with torch.no_grad(): loss = model(*val).item()
        if loss < best: best, kept = loss, model.state_dict()
        told.append(f"step {s:3}   validation {loss:.4f}" + "   best so far" * (loss == best))
    last = weights_of(model)
    model.load_state_dict(kept)
    with torch.no_grad(): loss = model(*val).item()
    return "\n".join([*told, f"the best, loaded: validation {loss:.4f}, weights "
                             f"{weights_of(model)}; the last had {last}"])

def layers_and_changes(seed):
    "A layer and its epochs; the best is neither the first nor the last"
    draw = normal(seed)
    def layer():
        m = torch.nn.Linear(2, 2, bias=False)
        m.weight.data = draw(2, 2)
        return m
    return [(layer(), [(draw(2, 2), v) for v in losses])
            for losses in ((3.0, 2.0, 1.5, 1.8, 2.5), (2.0, 1.0, 3.0), (2.5, 2.4, 2.2, 2.3))]

def best_numpy(model, epochs):
    "Running sums in float64"
    moves = np.cumsum([c.double().numpy() for c, _ in epochs], 0)
    w = model.weight.detach().double().numpy() + moves[np.argmin([v for _, v in epochs])]
    return dict(weight=torch.from_numpy(w).float())

def last_of(pick): # a mistaken version: weights where pick(losses) points
    return lambda model, epochs: best_numpy(model, [(c, -(i == pick([v for _, v in epochs])))
                                                    for i, (c, _) in enumerate(epochs)])

lab("mirror", "the best weights are a reference, not a copy",
    "the best checkpoint is the last", "digests of best and last", "tough/19_checkpoint.ipynb",
    "https://github.com/pytorch/tutorials/pull/188", mirror, (
        ("state_dict() holds the live tensors: what was kept went on training",
         "the best has the very digest of the last weights"),
        ("the last weights are the best", "the log says otherwise, by a wide margin"),
        ("the comparison is the wrong way round", "the marks \"best so far\" stand at falling "
         "losses"),
        ("load_state_dict did nothing", "it copied the tensors onto themselves")),
    answer="best_weights",
    task="Apply each change to model.weight in place; return the state_dict of the moment with the "
         "lowest validation loss, as it was then.",
    inputs=layers_and_changes, oracle=best_numpy,
    wrongs=(
        Wrong("it is a reference to the live weights", best_reference,
              "state_dict() does not copy: the best weights train on, and early stopping returns "
              "the overfitted model. dict(...) and .copy() copy the names only."),
        Wrong("the highest loss is kept", last_of(lambda v: int(np.argmax(v))),
              "A > from the days when it was an accuracy."),
        Wrong("the first is kept", last_of(lambda v: 0),
              "The best value is never updated: every later comparison is with the first.")),
    hints=("What do the tensors of a state_dict share with the model?",
           "{k: v.clone() for k, v in model.state_dict().items()}, or copy.deepcopy."))


def where(
    step:int,  # updates done
    B:int,     # windows of a batch, in each rank
    world:int, # ranks
    W:int,     # windows of an epoch
) -> tuple:    # epoch, and windows of it consumed by all ranks
    "The place in the data is a consequence of the step"
    return divmod(step * B * world, W)

def at_the_start(step, B, world, W): return 0, 0

def groundhog() -> str:
    "Forty steps, a checkpoint at 24, a resume; each line shows how its batch begins"
    tok, told = letters()[0], []
    model, loader = tiny(), stream(8)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for s in range(40):
        if s == 24: # the process is killed; model and optimiser come back from the checkpoint
            loader = stream(8, position=at_the_start(s, 8, 1, loader.W)[1])
            told.append("--- killed and resumed: weights and optimiser restored ---")
        x, y = loader.next()
        losses, _ = learn(model, 1, lambda s: (x, y), opt)
        if s in (0, 1, 2, 22, 23, 24, 25, 26):
            told.append(f"step {s:2}   loss {losses[0]:.3f}   {tok.decode(x[0].tolist())!r}")
    return "\n".join(told)

lab("groundhog", "a resume that forgets its place in the data",
    "after a resume the run sees what it saw on its first day", "the batches themselves",
    "tough/19_checkpoint.ipynb",
    "https://github.com/KempnerInstitute/KempnerForge/issues/51", groundhog, (
        ("the loader starts again at the beginning",
         "the batches after the resume are those of steps 0, 1, 2, letter by letter"),
        ("the optimiser was not restored", "the log says that it was; and no optimiser chooses the "
         "text"),
        ("the weights were not restored", "then the loss would be that of step 0"),
        ("the epoch is over, and a new one has begun in the same order",
         "24 steps of 8 windows are a small part of the text")),
    answer="where",
    task="After `step` updates of `world` ranks with B windows each: (epoch, windows consumed in "
         "it), with W windows an epoch.",
    inputs=lambda seed: [(24 + seed % 9, 8, 2, 500), (100, 8, 4, 1000), (63, 4, 2, 100)],
    oracle=lambda step, B, world, W: ((n := step * B * world) // W, n - n // W * W),
    wrongs=(
        Wrong("it starts from the beginning", at_the_start,
              "The first shards are read again, the last never; the loss looks better than it is, "
              "until new text comes."),
        Wrong("only this rank's windows are counted", lambda s, B, w, W: divmod(s * B, W),
              "The run goes back by a factor of the world's size, and resumes on other hardware "
              "disagree."),
        Wrong("the epoch is forgotten", lambda s, B, w, W: (0, s * B * w % W),
              "Right in the first epoch; later the order is that of epoch 0 again."),
        Wrong("the start of the epoch is taken", lambda s, B, w, W: (s * B * w // W, 0),
              "Right epoch, wrong place: a part of it is read twice.")),
    hints=("How many windows have all ranks read?", "divmod of that by W."))


CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

def to_linear(
    state:dict, # names and tensors of a GPT-2 whose layers are Conv1D: (in, out)
) -> dict:      # the same for nn.Linear: (out, in)
    "By name: shapes cannot tell for a square matrix"
    return {n: t.T if n.endswith(CONV1D) else t for n, t in state.items()}

def by_shape(state):
    flip = lambda n, t: n.endswith(CONV1D) and t.size(0) != t.size(1)
    return {n: t.T if flip(n, t) else t for n, t in state.items()}

@torch.no_grad()
def sideways() -> str:
    "Weights in OpenAI's layout are loaded; how far each layer of block 0 is from the original's"
    model, x = trained(), stream(4, split=2).next()
    saved = {n: t.T.clone() if n.endswith(CONV1D) else t for n, t in model.state_dict().items()}
    new, seen = tiny(), {}
    told = [str(new.load_state_dict(by_shape(saved)))]
    def listen(m, name):
        seen[name] = seen.get(name, [])
        return m.register_forward_hook(lambda m, i, o: seen[name].append(o))
    for m in (model, new.eval()):
        hooks = [listen(part, n) for n, part in m.transformer.h[0].named_modules()
                 if n in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
        m(x[0])
        for h in hooks: h.remove()
    told += [f"block 0, {n:12} off by {float((a - b).abs().max()):.5f}"
             for n, (a, b) in seen.items()]
    return "\n".join([*told, f"loss {model(*x):.3f} as it was, {new(*x):.3f} as loaded"])

def conv_states(seed):
    "State dicts of a layer or two, one of the matrices square"
    draw = normal(seed)
    return [({"wte.weight": draw(5, C), "h.0.attn.c_attn.weight": draw(C, 3 * C),
              "h.0.attn.c_attn.bias": draw(3 * C), "h.0.attn.c_proj.weight": draw(C, C),
              "h.0.mlp.c_fc.weight": draw(C, 4 * C), "h.0.mlp.c_proj.weight": draw(4 * C, C)},)
            for C in (2, 3)]

def transposed_numpy(state):
    "Matrices of blocks, transposed by NumPy"
    inner = lambda n, t: n.startswith("h.") and t.dim() > 1
    return {n: torch.from_numpy(np.ascontiguousarray(t.numpy().T)) if inner(n, t) else t
            for n, t in state.items()}

lab("sideways", "Conv1D weights not transposed where the matrix is square",
    "weights that load without a complaint, and a loss that is too high",
    "layer by layer against the original", "medium/10_pretrained.ipynb",
    "https://github.com/AutoGPTQ/AutoGPTQ/pull/139", sideways, (
        ("the square matrix is the wrong way round: its shape could not tell",
         "everything agrees up to c_attn, and attn.c_proj, the only square one, is the first that "
         "does not"),
        ("some weights were not loaded", "the report says that all keys match"),
        ("the file holds float16", "the first two layers agree to the last printed digit"),
        ("the heads are in another order", "that would be made by c_attn, which agrees")),
    answer="to_linear",
    task="A state dict for nn.Linear from one for Conv1D, whose weights (names that end in "
         "attn.c_attn, attn.c_proj, mlp.c_fc or mlp.c_proj, then .weight) are stored as (in, out).",
    inputs=conv_states, oracle=transposed_numpy,
    wrongs=(
        Wrong("only what does not fit is transposed", by_shape,
              "attn.c_proj is square: it fits either way, loads without a word and is wrong."),
        Wrong("every matrix is transposed",
              lambda s: {n: t.T if t.dim() > 1 else t for n, t in s.items()},
              "The embedding is no Conv1D: it already is (V, C)."),
        Wrong("it is reshaped instead of transposed",
              lambda s: {n: t.reshape(t.size(1), t.size(0)) if n.endswith(CONV1D) else t
                         for n, t in s.items()},
              "The shape is right and the numbers are scrambled."),
        Wrong("the MLP is forgotten",
              lambda s: {n: t.T if n.endswith(CONV1D[:2]) else t for n, t in s.items()},
              "Four matrices of each block are Conv1D, not two.")),
    hints=("For which of the four do (in, out) and (out, in) have the same shape?",
           "Go by the name: name.endswith(...)."))


class Pair(torch.nn.Module):
    "An embedding and a head that share one table"
    def __init__(self, table):
        super().__init__()
        self.wte = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.head = torch.nn.Linear(*table.shape[::-1], bias=False)
        self.head.weight = self.wte.weight

    def probe(self): # both tables after the embedding's has been moved by 1
        with torch.no_grad(): self.wte.weight += 1
        return [self.wte.weight.detach().clone(), self.head.weight.detach().clone()]

def load_table(
    pair:Pair,
    table,  # (V, C) new numbers
) -> list:  # pair.probe()
    "Numbers go into the parameter that is there; whoever holds it sees them"
    with torch.no_grad(): pair.wte.weight.copy_(table)
    return pair.probe()

def assigned(pair, table):
    pair.wte.weight = torch.nn.Parameter(table.clone())
    pair.head.weight = torch.nn.Parameter(table.clone())
    return pair.probe()

def divorce() -> str:
    "A checkpoint is loaded with assign=True; then ten steps"
    model, fresh = trained(), tiny(1)
    def say(when):
        a, b = fresh.transformer.wte.weight, fresh.lm_head.weight
        n = sum(p.numel() for p in fresh.parameters())
        return f"{when:13} {n:,} parameters   wte {digest(a)}   lm_head {digest(b)}"
    told = [say("before")]
    fresh.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    told.append(say("loaded"))
    loader = stream()
    learn(fresh, 10, lambda s: loader.next())
    return "\n".join([*told, say("ten steps on")])

def half_assigned(name):
    "Mistaken: one of the two gets a parameter of its own"
    def fn(pair, table):
        getattr(pair, name).weight = torch.nn.Parameter(table.clone())
        return pair.probe()
    return fn

lab("divorce", "tied weights come apart on loading", "two tables where one should be",
    "parameter count, digests of both tables", "medium/09_model.ipynb",
    "https://github.com/TransformerLensOrg/TransformerLens/issues/1725", divorce, (
        ("loading gave each of the two names a tensor of its own",
         "equal numbers at first, in two tables: the count grows, and training moves them apart"),
        ("the checkpoint holds two different tables", "just after loading both digests are equal"),
        ("the head has a bias", "then there would be as many new parameters as tokens, not a whole "
         "table"),
        ("the vocabulary was padded while loading", "padding is in the count before, too; and the "
         "two tables would still be one")),
    answer="load_table",
    task="Put a table into a Pair so that wte.weight and head.weight stay one parameter, then "
         "return pair.probe().",
    inputs=lambda seed: [(Pair(normal(seed)(*shape)), normal(seed + 1)(*shape))
                         for shape in ((4, 3), (5, 2))],
    oracle=lambda pair, table: [table + 1, table + 1],
    wrongs=(
        Wrong("each name gets a parameter of its own", assigned,
              "Equal on the day of loading; from the first step on they are two models' tables."),
        Wrong("only the embedding is replaced", half_assigned("wte"),
              "The head keeps the old table: the loss is that of an untrained head."),
        Wrong("only the head is replaced", half_assigned("head"),
              "The embedding keeps the old table.")),
    hints=("Change the numbers, not the parameter.", "with torch.no_grad(): parameter.copy_(table)",
           "Or assign one new Parameter to both names."))


def clean(
    state:dict, # names that may contain _orig_mod.
) -> dict:      # without it
    "What torch.compile adds to names, wherever a module was compiled"
    return {n.replace("_orig_mod.", ""): t for n, t in state.items()}

def stranger() -> str:
    "A compiled model's state, loaded by a script that insists on nothing"
    model, val = trained(), stream(32, split=2).next()
    state = torch.compile(model).state_dict() # compiling is put off until the first call
    new = tiny(1)
    found = new.load_state_dict(state, strict=False)
    with torch.no_grad(): losses = model(*val).item(), new(*val).item()
    return (f"loaded without an error; loss {losses[1]:.3f}, it was {losses[0]:.3f} when it was "
            f"saved\nln V = {math.log(model.cfg.vocab_size):.3f}\n{len(state)} tensors in the "
            f"file, {len(found.missing_keys)} keys missing, {len(found.unexpected_keys)} "
            "unexpected")

def compiled_states(seed):
    "States of a compiled model, of one with compiled blocks, of an ordinary one"
    t = lambda: normal(seed)(2)
    return [({"_orig_mod.wte.weight": t(), "_orig_mod.mod.bias": t()},),
            ({"h.0._orig_mod.ln_1.weight": t(), "_orig_mod.h.1._orig_mod.ln_1.weight": t()},),
            ({"wte.weight": t(), "d_model.weight": t()},)]

lab("stranger", "_orig_mod. in the names of a compiled model's checkpoint",
    "a model that has forgotten everything, loaded without an error",
    "loss after loading against ln V; missing keys", "tough/19_checkpoint.ipynb",
    "https://github.com/karpathy/nanoGPT/issues/325", stranger, (
        ("no name in the file fits, and strict=False says nothing",
         "every key is missing, every key is unexpected, and the loss is that of a model that "
         "knows nothing"),
        ("the file is damaged", "it holds all tensors"),
        ("the tied weights came apart", "then one table would be missing, not everything"),
        ("the model is in training mode", "there is no dropout in it; and no dropout brings a loss "
         "to ln V")),
    answer="clean",
    task="The same dict with every \"_orig_mod.\" removed from its names.",
    inputs=compiled_states,
    oracle=lambda state: {".".join(p for p in n.split(".") if p != "_orig_mod"): t
                          for n, t in state.items()},
    wrongs=(
        Wrong("nothing is removed", lambda s: dict(s),
              "Loading fails with a long list of names, or, with strict=False, does nothing at "
              "all."),
        Wrong("it is removed at the front only",
              lambda s: {n.removeprefix("_orig_mod."): t for n, t in s.items()},
              "A model whose blocks were compiled one by one has it in the middle of names."),
        Wrong("lstrip is used",
              lambda s: {n.lstrip("_orig_mod."): t for n, t in s.items()},
              "lstrip takes a set of letters: it eats the beginnings of names that begin with any "
              "of them, such as mod.bias."),
        Wrong("module. is removed instead",
              lambda s: {n.replace("module.", "").replace("_orig_mod", ""): t
                         for n, t in s.items()},
              "That is DDP's prefix, and a dot was left behind.")),
    hints=("It can stand anywhere in a name.", "name.replace(\"_orig_mod.\", \"\")"))


@dataclass
class OldModel:
    "A config of a model, nested in the other one"
    n_layer: int = 2
    betas: tuple = (0.9, 0.95)

@dataclass
class OldConfig:
    "A config as scripts have it"
    name: str = "nano"
    out: Path = Path("runs")
    lr: float = 3e-3
    model: OldModel = None

def portable(
    config, # a dataclass: fields are numbers, texts, Paths, tuples and other dataclasses
) -> dict:  # the same of dicts, lists, texts and numbers only
    "What every program can read"
    def plain(v):
        if isinstance(v, dict): return {k: plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)): return [plain(x) for x in v]
        return v.as_posix() if isinstance(v, Path) else v
    return plain(asdict(config))

def essence(message): # the line that names a class, without addresses of this machine
    lines = [line for line in message.splitlines() if "OldConfig" in line] or [message]
    return lines[0].strip().split(" on <")[0].split(" by default")[0][:140]

def heirloom() -> str:
    "Save a checkpoint with its config; load it safely, and after the class was renamed"
    told = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"model.pt"
        torch.save(dict(model=tiny().state_dict(), config=OldConfig(model=OldModel())), path)
        cls = globals().pop("OldConfig") # next month the class has another name
        for safely in (True, False):
            try: said = str(torch.load(path, weights_only=safely)["config"])
            except Exception as e: said = f"{type(e).__name__}: {essence(str(e))}"
            told.append(f"torch.load(weights_only={safely}):\n   {said}")
        globals()["OldConfig"] = cls
    return "\n".join(told)

def old_configs(seed):
    "Configs with and without an inner one"
    r = np.random.default_rng(seed)
    return [(OldConfig("a", Path("runs")/"a", r.uniform(), OldModel(int(r.integers(2, 9)))),),
            (OldConfig("b", Path("x"), 0.1, OldModel()),)]

lab("heirloom", "a pickled config class in the checkpoint", "a checkpoint that loads on no other "
    "day, in no other program", "loading elsewhere, with weights_only", "tough/19_checkpoint.ipynb",
    "https://github.com/pytorch/pytorch/issues/112944", heirloom, (
        ("the file holds an object of a class, and needs that class to be read",
         "the safe way refuses unknown classes, the other one looks for a name that is gone"),
        ("the file is damaged", "both messages name a class; a damaged file gives no names"),
        ("the file comes from another version of torch", "it was written a moment ago"),
        ("the weights are of a type that torch does not know", "weights are tensors: the messages "
         "speak of a config")),
    answer="portable",
    task="A dataclass as dicts, lists, texts and numbers: nested dataclasses become dicts, tuples "
         "lists, Paths texts with forward slashes.",
    inputs=old_configs,
    oracle=lambda c: dict(name=c.name, out=str(c.out).replace("\\", "/"), lr=c.lr,
                          model=dict(n_layer=c.model.n_layer, betas=[*c.model.betas])),
    wrongs=(
        Wrong("the object itself is saved", lambda c: c,
              "Whoever loads it needs the same class under the same name, and runs whatever the "
              "file says."),
        Wrong("only the outer one is taken apart", lambda c: dict(vars(c), out=c.out.as_posix()),
              "The inner config is still an object of a class."),
        Wrong("Paths stay Paths", lambda c: asdict(c),
              "A Path is a class too: weights_only refuses it, and one written on Windows does not "
              "load on Linux."),
        Wrong("it is saved as its repr", lambda c: repr(c),
              "Readable for people; a program would have to evaluate it.")),
    hints=("asdict takes nested dataclasses apart.", "What is left are Paths and tuples: walk "
           "through dicts and lists once."))
