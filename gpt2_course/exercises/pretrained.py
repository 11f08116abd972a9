"""The catalogue of chapter 10: what to write, an oracle that shares no code with the package, and
the classic mistakes with their names, and the open challenge."""

import functools
from collections import Counter

import tiktoken
import torch

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import GPTConfig
from ..model import GPT
from .plays import letter_tensors


TABLES = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
          "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
          "mlp.c_fc.weight", "mlp.c_fc.bias",
          "mlp.c_proj.weight", "mlp.c_proj.bias")

def all_names(
    layer:int,
) -> list[str]: # every name outside the blocks, and those of one block
    "Names of a GPT-2, with the masks that old files keep"
    ends = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    inside = [f"h.{layer}.{t}" for t in (*TABLES, "attn.bias", "attn.masked_bias")]
    return [f"transformer.{n}" for n in ends + inside] + ["lm_head.weight"]

# OpenAI's src/model.py makes these with conv1d(x, scope, n_out); "w" is (1, in, out)
BY_CONV1D = {("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")}

def made_by_conv1d(name):
    *_, part, layer, table = (".." + name).split(".")
    return table == "weight" and (part, layer) in BY_CONV1D


register(Exercise(
    "pretrained.is_conv1d", "10", "True if the parameter of this name is stored as (in, out) and "
    "must be transposed for nn.Linear.",
    inputs=lambda seed: [(n,) for n in all_names(seed % 12)],
    oracle=made_by_conv1d,
    package="gpt2_course.pretrained:is_conv1d",
    wrongs=(
        Wrong("c_proj is left out", lambda n: n.endswith(("c_attn.weight", "c_fc.weight")),
              "The MLP's c_proj does not fit and raises an error; attention's is square, so it "
              "loads, and every logit is wrong."),
        Wrong("attention's square c_proj is left out",
              lambda n: n.endswith(("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight")),
              "It fits both ways: no error is raised, and the generated text is nonsense."),
        Wrong("the MLP is left out",
              lambda n: n.endswith(("attn.c_attn.weight", "attn.c_proj.weight")),
              "Its two layers are Conv1D as well. They are not square, so loading them raises an "
              "error."),
        Wrong("only c_attn counts", lambda n: n.endswith("c_attn.weight"),
              "OpenAI wrote every linear layer of a block as Conv1D: there are four."),
        Wrong("only the two c_proj count", lambda n: n.endswith("c_proj.weight"),
              "c_attn and c_fc are Conv1D as well: all four linear layers of a block."),
        Wrong("the norms' weights count too", lambda n: ".h." in n and n.endswith("weight"),
              "They have one dimension and no layout: .t() leaves them unchanged, but a norm is "
              "not a Conv1D."),
        Wrong("everything inside attention and MLP counts", lambda n: ".attn." in n or ".mlp." in n,
              "Biases have one dimension, and the mask attn.bias of old files is not a weight at "
              "all."),
        Wrong("no name counts", lambda n: False,
              "Then nothing is transposed: three of the four matrices do not fit and raise an "
              "error, and the square one loads in the wrong layout."),
        Wrong("every weight is transposed, even the embeddings",
              lambda n: n.endswith("weight") and ".ln_" not in n,
              "wte, wpe and the head are (rows, C) in both libraries; transposed, they do not "
              "fit."),
        Wrong("the head is transposed too",
              lambda n: n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight",
                                    "lm_head.weight")),
              "The head is wte under a second name, and it is a plain nn.Linear in Hugging Face as "
              "well."),
        Wrong("the biases count too", lambda n: any(c in n for c in ("c_attn", "c_proj", "c_fc")),
              "A bias has one dimension: .t() leaves it unchanged, and .T or transpose(0, 1) warns "
              "or raises an error.")),
    hints=("Which layers of a block are products with a matrix? There are four.",
           "The name ends in .weight; embeddings are looked up, and the head is an embedding.",
           'name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) says it.')))


def hf_state(
    g:torch.Generator,
    L:int, C:int, prefix:str, old:bool, # layers, width, "transformer." or "", with masks
) -> dict:                              # as a file of Hugging Face or OpenAI has it
    "A random state dict, C = 4 or 6, ten tokens, eight positions"
    new = lambda *shape: torch.randn(*shape, generator=g)
    size = {"c_attn": (C, 3 * C), "attn.c_proj": (C, C),
            "c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    state = {"wte.weight": new(10, C), "wpe.weight": new(8, C)}
    for i in range(L):
        for t in TABLES:
            shape = next((s for key, s in size.items() if key in t), (C,))
            state[f"h.{i}.{t}"] = new(*shape) if t.endswith("weight") else new(shape[-1])
        if old:
            state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
            state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    state |= {"ln_f.weight": new(C), "ln_f.bias": new(C)}
    state = {prefix + k: w for k, w in state.items()}
    return state | ({"lm_head.weight": state[prefix + "wte.weight"]} if prefix else {})

def states(seed):
    "New and old files"
    g = torch.Generator().manual_seed(seed)
    return [(hf_state(g, 1, 4, "transformer.", False),), (hf_state(g, 2, 4, "", True),),
            (hf_state(g, 1, 6, "transformer.", True),)]


def linear_numpy(state):
    "Name by name, with NumPy's transpose"
    out = {}
    for name, w in state.items():
        parts = name.split(".")
        if parts[-2:] in (["attn", "bias"], ["attn", "masked_bias"]): continue
        whole = parts[0] in ("transformer", "lm_head")
        out[name if whole else "transformer." + name] = (
            torch.from_numpy(w.numpy().T.copy()) if made_by_conv1d(name) else w)
    return out

def mistaken(turn=lambda n, w: w.t(), other=lambda n, w: w,
             drop=(".attn.bias", ".attn.masked_bias"), prefix="transformer."):
    "A translation with one part exchanged"
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    def fn(state):
        out = {}
        for n, w in state.items():
            if n.endswith(drop): continue
            if not n.startswith(("transformer.", "lm_head.")): n = prefix + n
            out[n] = turn(n, w) if n.endswith(matrices) else other(n, w)
        return out
    return fn

def keys_first(n, w):
    w = w.t()
    if "c_attn" not in n: return w
    q, k, v = w.chunk(3)
    return torch.cat([k, q, v])

def renamed(rule): # the right translation with other names
    return lambda state: {rule(n, state): w for n, w in mistaken()(state).items()}

head_inside = renamed(lambda n, state: "transformer." + n if n.startswith("lm_head.") else n)
prefix_always = renamed(lambda n, state: "transformer." + n if n in state else n)

def without(part): # the right translation without some names
    return lambda state: {n: w for n, w in mistaken()(state).items() if part not in n}

without_head, without_norms = without("lm_head."), without(".ln_")

def in_place(state):
    for name in list(state):
        w = state.pop(name)
        state.update(mistaken()({name: w}))
    return state


register(Exercise(
    "pretrained.to_linear", "10",
    "Translate a state dict: our names, linear layers as (out, in), no masks; what is not "
    "transposed stays as it is.",
    inputs=states, oracle=linear_numpy, package="gpt2_course.pretrained:to_linear",
    wrongs=(
        Wrong("attention's square c_proj is not transposed",
              mistaken(turn=lambda n, w: w if n.endswith("attn.c_proj.weight") else w.t()),
              "It is the only matrix that fits both ways: it loads without an error, and the "
              "logits are wrong."),
        Wrong("matrices are reshaped, not transposed",
              mistaken(turn=lambda n, w: w.reshape(w.shape[::-1])),
              "The shape is right, but nearly every value is in the wrong place."),
        Wrong("wte and wpe are transposed too",
              mistaken(other=lambda n, w: w.t() if w.dim() == 2 else w),
              "An embedding is looked up by row: (V, C) in every library. Transposed, it does not "
              "fit."),
        Wrong("q, k and v are read in the order k, q, v", mistaken(turn=keys_first),
              "Queries and keys are then swapped: the table of scores is transposed, and no error "
              "is raised."),
        Wrong("c_attn.bias is thrown out with the masks",
              mistaken(drop=("attn.bias", "attn.masked_bias")),
              "The names end alike: with strict=False no error is raised, and q, k, v lose their "
              "biases."),
        Wrong("transformer. is not put in front of old names", mistaken(prefix=""),
              "OpenAI's first files lack it: loading raises an error, or with strict=False "
              "silently loads nothing."),
        Wrong("transformer. is put in front of lm_head too", head_inside,
              "The head stands beside the transformer, not in it: lm_head.weight keeps its name."),
        Wrong("transformer. is put in front of every name", prefix_always,
              "Newer files have it already, and transformer.transformer.wte.weight fits nowhere."),
        Wrong("the masks are kept", mistaken(drop=()),
              "attn.bias is the causal mask, not a weight. Our model makes its own, so the name is "
              "unknown and loading raises an error."),
        Wrong("masked_bias is kept", mistaken(drop=".attn.bias"),
              "Old files hold two things that are not weights: the mask attn.bias and "
              "attn.masked_bias, the number that was filled in."),
        Wrong("the head is left out", without_head,
              "It is wte under a second name, and our model can load either; but the task is to "
              "keep what the file has."),
        Wrong("the norms' weights are left out", without_norms,
              "ln_1, ln_2 and ln_f have weights that training has changed: without them the model "
              "keeps ones in their place."),
        Wrong("nothing is transposed", mistaken(turn=lambda n, w: w),
              "The names are right but the layouts are not: three matrices do not fit, and the "
              "square one loads without an error."),
        Wrong("the given dictionary is changed", in_place,
              "The caller may need it again: a second translation would transpose every matrix "
              "back. Fill a new dictionary.")),
    hints=("There are three decisions for each entry: keep it? under which name? transposed or "
           "not?",
           "Masks end in .attn.bias and .attn.masked_bias, with the dot in front.",
           "Use w.t() for the four matrices of a block; reshape is something else.")))


def byte_alphabet():
    "Hugging Face's rule in other words: a byte is visible or takes the next free number from 256"
    table, free = {}, 256
    for b in range(256):
        visible = 33 <= b <= 126 or 161 <= b and b != 173
        table[b] = chr(b if visible else free)
        free += not visible
    return table

def some_bytes(seed):
    "Text with spaces and newlines, then random bytes, then all of them"
    g = torch.Generator().manual_seed(seed)
    noise = bytes(torch.randint(256, (40,), generator=g).tolist())
    return [(" the café\n".encode(),), (b"~\x7f\xa0\xad\xff",), (noise + b"\xad\x00",),
            (bytes(range(256)),), (b"",)]

ALPHABET = byte_alphabet()
INVISIBLE = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b and b != 173)]

def numbered(more=(), less=(), start=256):
    "The rule with some bytes taken for printable that are not, or the other way round"
    hidden = [b for b in range(256) if b in less or b in INVISIBLE and b not in more]
    return lambda raw: "".join(chr(start + hidden.index(b)) if b in hidden else chr(b) for b in raw)


register(Exercise(
    "pretrained.to_chars", "10", "A string of GPT-2's visible characters, one for each byte.",
    inputs=some_bytes, oracle=lambda raw: "".join(ALPHABET[b] for b in raw),
    package="gpt2_course.pretrained:to_chars",
    wrongs=(
        Wrong("every byte is its own character", lambda raw: raw.decode("latin-1"),
              "Spaces and newlines stay invisible, but merges.txt separates the two parts of a "
              "merge by a space."),
        Wrong("the bytes are decoded as UTF-8", lambda raw: raw.decode(errors="replace"),
              "A token may be half a character, whose bytes are not valid UTF-8."),
        Wrong("an unprintable byte gets chr(256 + byte)",
              lambda raw: "".join(chr(256 + b) if b in INVISIBLE else chr(b) for b in raw),
              "The space becomes chr(288), which is Ġ by luck, but bytes from 127 on get the wrong "
              "characters."),
        Wrong("the soft hyphen counts as printable", numbered(more={173}),
              "0xAD is invisible in most fonts; OpenAI gave it the last of the new characters."),
        Wrong("the space counts as printable", numbered(more={32}),
              "It has to become visible, since merges.txt separates the two parts of a merge by a "
              "space; and all later new characters move by one. str.isprintable makes this "
              "mistake."),
        Wrong("byte 127 counts as printable", numbered(more={127}),
              "DEL is a control character; the visible ASCII characters end with ~, which is 126. "
              "range(33, 127) already stops there."),
        Wrong("~ does not count as printable", numbered(less={126}),
              "range(33, 126) ends with 125: the last number of a range is not in it."),
        Wrong("ÿ does not count as printable", numbered(less={255}),
              "range(174, 255) ends with 254: the last number of a range is not in it."),
        Wrong("the no-break space counts as printable", numbered(more={160}),
              "Byte 0xA0 is a space, which is invisible: the visible characters begin again with "
              "¡, which is 161."),
        Wrong("nothing above 127 counts as printable", numbered(less=set(range(128, 256))),
              "The letters and signs of Latin-1 stand for themselves: 161 to 172 and 174 to 255."),
        Wrong("counting begins at 257", numbered(start=257),
              "The first invisible byte, 0, becomes chr(256), and the space must become Ġ."),
        Wrong("the result is a list of characters, not a string",
              lambda raw: [ALPHABET[b] for b in raw],
              "Join them: the names of tokens in tokenizer.json are strings.")),
    hints=("Two kinds of bytes: those that can be seen, and the 68 that cannot.",
           "The first invisible byte, 0, becomes chr(256); the next one chr(257), and so on.",
           "Visible are 33 to 126, 161 to 172 and 174 to 255.")))


def learn(
    seed:int, n:int, # of the text, merges
) -> dict:           # bytes -> rank
    "A small vocabulary, learned from random syllables"
    g = torch.Generator().manual_seed(seed)
    pick = lambda: ("ban", "ana", "na", "nab", "aba")[int(torch.randint(5, (1,), generator=g))]
    words = [[bytes([b]) for b in "".join(pick() for _ in range(4)).encode()] for _ in range(40)]
    ranks = {bytes([b]): b for b in range(256)}
    for _ in range(n):
        pairs = Counter(p for w in words for p in zip(w, w[1:]) if p[0] + p[1] not in ranks)
        if not pairs: break
        a, b = max(pairs, key=lambda p: (pairs[p], p))
        ranks[a + b] = len(ranks)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == (a, b): w[i:i + 2] = [a + b]
                i += 1
    return ranks

def by_rank(
    *merged:bytes, # in the order of learning
) -> dict:         # bytes -> rank
    "A vocabulary of all bytes and these tokens"
    single = [bytes([b]) for b in range(256)]
    return {t: r for r, t in enumerate([*single, *merged])}

SMALL = ( # the same token from other pairs; letters of several bytes; pieces that are no text
    by_rank(b"ab", b"abc"), by_rank(b"bc", b"abc"), by_rank(b"bc", b"ab", b"abc"),
    by_rank(b"ab", b"cd", b"bc", b"abc", b"abcd"), by_rank(b"aa", b"aaaa", b"aaa", b"aaaaa"),
    by_rank(b"\xc3\xa9", b" \xc3\xa9", b"f\xc3\xa9"), by_rank(b" \xc3", b" \xc3\xa9"),
    by_rank(b"xy", b"z!", b"yz", b"xyz", b"xyz!"),
    by_rank(b"de", b"ef", b"fg", b"def", b"efg", b"defg"))

def tokens_to_split(
    seed:int,
) -> list: # of (token, ranks)
    "Every token that was merged, with its vocabulary: a learned one, then small ones"
    return [(t, ranks) for ranks in (learn(seed, 40), *SMALL) for t in ranks if len(t) > 1]

def split_by_tiktoken(token, ranks):
    "tiktoken, given only what was learned before"
    before = {t: r for t, r in ranks.items() if r < ranks[token]}
    enc = tiktoken.Encoding("before", pat_str=r"[\s\S]+", mergeable_ranks=before, special_tokens={})
    return tuple(enc.decode_single_token_bytes(i) for i in enc._encode_single_piece(token))


def cuts(token, ranks):
    "All ways to cut a token into two known ones"
    both = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [p for p in both if p[0] in ranks and p[1] in ranks]

def right_pair(token, ranks): return join(token, ranks, min, 1 << 30)

def join_latest(token, ranks): return join(token, ranks, max, -1)

def join(token, ranks, best, never):
    "Join the pair of the best rank first, until two parts are left"
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = best(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], never))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)

register(Exercise(
    "pretrained.split_token", "10", "The pair of earlier tokens that was merged into this one.",
    inputs=tokens_to_split, oracle=split_by_tiktoken, package="gpt2_course.pretrained:split_token",
    wrongs=(
        Wrong("the first cut into two known tokens is taken", lambda t, ranks: cuts(t, ranks)[0],
              "A token can often be cut in several ways; only one of them is how BPE arrived at "
              "it."),
        Wrong("the longest known beginning is taken", lambda t, ranks: cuts(t, ranks)[-1],
              "Greedy matching from the left is not byte-pair encoding: these merges would give "
              "other ids."),
        Wrong("the pair learned last is merged first", join_latest,
              "A pair of low rank was learned early and is merged early: BPE applies its merges in "
              "the order learned."),
        Wrong("the whole token is returned in one piece", lambda t, ranks: (t,),
              "It was encoded with its own rank still in the vocabulary: leave it out."),
        Wrong("the last byte is cut off", lambda t, ranks: (t[:-1], t[-1:]),
              "Both halves of a merge may be long. What is left of the last byte need not even be "
              "a token."),
        Wrong("the first byte is cut off", lambda t, ranks: (t[:1], t[1:]),
              "Both halves of a merge may be long. What follows the first byte need not even be a "
              "token."),
        Wrong("the two halves are equally long",
              lambda t, ranks: (t[:len(t) // 2], t[len(t) // 2:]),
              "A merge joins tokens of any length; only the ranks say where the seam is."),
        Wrong("the cut into the two tokens with the lowest ranks is taken",
              lambda t, ranks: min(cuts(t, ranks), key=lambda p: max(ranks[p[0]], ranks[p[1]])),
              "Both parts of a cut may be tokens that BPE never has side by side. It merges step "
              "by step, and the first merges decide which parts are left to merge later."),
        Wrong("the parts come in the wrong order", lambda t, ranks: right_pair(t, ranks)[::-1],
              "A merge is an ordered pair: first the left part, then the right one."),
        Wrong("the result is the ranks of the two parts, not their bytes",
              lambda t, ranks: tuple(ranks[p] for p in right_pair(t, ranks)),
              "merges.txt holds the parts themselves, so the task asks for two bytes objects.")),
    hints=("Encode the token as BPE would, but stop before the last merge.",
           "Begin with single bytes and always merge the two neighbours that together have the "
           "lowest rank.",
           "When two parts are left they are the pair: while len(parts) > 2.")))


@functools.cache
def trained(): # what is shrunk, a model that has read Hamlet; and Macbeth, in rows
    tok, data, val = letter_tensors()
    torch.manual_seed(0)
    cfg = GPTConfig(block_size=64, vocab_size=tok.n_vocab, n_layer=2, n_head=4, n_embd=64)
    model, steps = GPT(cfg), 600
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        opt.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = data[torch.randint(len(data) - 65, (16, 1)) + torch.arange(65)]
        loss = model(rows[:, :-1], rows[:, 1:])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model.eval(), val[:len(val) // 65 * 65].view(-1, 65)[::2]


VALUES = 6 # different numbers in a table

def loss_when_shrunk(
    shrink,       # function (name, table) -> the table with few different numbers
    seconds=None, # the budget is a number of values
) -> float:       # nats per character on Macbeth
    "Replace every matrix of a trained model by its shrunk version, and let it read Macbeth"
    model, rows = trained()
    state = {}
    for name, w in model.state_dict().items():
        if name == "lm_head.weight": continue # wte again
        state[name] = w.clone()
        if w.dim() < 2: continue
        small = shrink(name, w.clone())
        if not isinstance(small, torch.Tensor) or small.shape != w.shape:
            got = tuple(small.shape) if isinstance(small, torch.Tensor) else type(small).__name__
            raise ValueError(f"{name}: return a tensor of shape {tuple(w.shape)}, not {got}")
        n = small.float().unique().numel()
        if n > VALUES: raise ValueError(f"{name} has {n} different numbers; {VALUES} are allowed")
        state[name] = small.detach().float()
    other = GPT(model.cfg).eval()
    other.load_state_dict(state)
    with torch.no_grad(): return float(other(rows[:, :-1], rows[:, 1:]))


def plain_shrink(name, w):
    "Equal steps from the smallest number to the largest"
    low, step = w.min(), (w.max() - w.min()) / (VALUES - 1)
    levels = low + step * torch.arange(VALUES)
    return levels[((w - low) / step).round().long()]


set_challenge(Challenge(
    "pretrained.six_numbers", "10", "A function (name, table) -> the table with at most six "
    "different numbers in it, so that a weight needs less than three bits. Every matrix of a model "
    "trained on Hamlet is replaced by the result; then the model is tested on Macbeth.",
    score=loss_when_shrunk, plain=plain_shrink, to_beat=3.367, unit="nats per character on Macbeth",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=45, fixed=True))
