"""The catalogue of chapter 10: what to write, an oracle that shares no code with the package, and
the classic mistakes with their names."""

from collections import Counter

import tiktoken
import torch

from ..check import Exercise, Wrong, register


TABLES = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
          "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
          "mlp.c_fc.weight", "mlp.c_fc.bias",
          "mlp.c_proj.weight", "mlp.c_proj.bias")

def all_names(
    layer:int,
) -> list[str]: # every name outside the blocks, and those of one block
    "Names of a GPT-2"
    ends = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    inside = [f"h.{layer}.{t}" for t in TABLES]
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
              "The MLP's c_proj does not fit and raises; attention's is square, so it loads, and "
              "every logit is wrong."),
        Wrong("attention's square c_proj is left out",
              lambda n: n.endswith(("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight")),
              "It fits both ways: nothing complains, and the text is nonsense."),
        Wrong("every weight is transposed, embeddings too",
              lambda n: n.endswith("weight") and ".ln_" not in n,
              "wte, wpe and the head are (rows, C) in both libraries; turned, they do not fit."),
        Wrong("the head is transposed too",
              lambda n: n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight",
                                    "lm_head.weight")),
              "The head is wte under a second name, and a plain nn.Linear in Hugging Face as "
              "well."),
        Wrong("biases are counted in", lambda n: any(c in n for c in ("c_attn", "c_proj", "c_fc")),
              "A bias has one dimension: .t() leaves it alone, and .T or transpose(0, 1) warns or "
              "raises.")),
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

register(Exercise(
    "pretrained.to_linear", "10",
    "Translate a state dict: our names, linear layers (out, in), no masks.",
    inputs=states, oracle=linear_numpy, package="gpt2_course.pretrained:to_linear",
    wrongs=(
        Wrong("attention's square c_proj is not transposed",
              mistaken(turn=lambda n, w: w if n.endswith("attn.c_proj.weight") else w.t()),
              "It is the only matrix that fits both ways: it loads without a word, and the logits "
              "are wrong."),
        Wrong("matrices are reshaped, not transposed",
              mistaken(turn=lambda n, w: w.reshape(w.shape[::-1])),
              "The shape is right and nearly every number is in the wrong place."),
        Wrong("wte and wpe are transposed too",
              mistaken(other=lambda n, w: w.t() if w.dim() == 2 else w),
              "An embedding is looked up by row: (V, C) in every library. Turned, it does not "
              "fit."),
        Wrong("q, k and v are read in the order k, q, v", mistaken(turn=keys_first),
              "Queries answer and keys ask: attention is transposed before its mask."),
        Wrong("c_attn.bias is thrown out with the masks",
              mistaken(drop=("attn.bias", "attn.masked_bias")),
              "The names end alike: with strict=False nobody notices, and q, k, v lose their "
              "biases."),
        Wrong("transformer. is not put in front of old names", mistaken(prefix=""),
              "OpenAI's first files lack it: nothing would load, or with strict=False nothing is "
              "loaded and nobody notices.")),
    hints=("Three decisions for each entry: keep it? under which name? turned or not?",
           "Masks end in .attn.bias and .attn.masked_bias, with the dot in front.",
           "w.t() for the four matrices of a block; reshape is something else.")))


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
    return [(" the café\n".encode(),), (noise + b"\xad\x00",), (bytes(range(256)),), (b"",)]

ALPHABET = byte_alphabet()
NO_SOFT_HYPHEN = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b)]
INVISIBLE = [*NO_SOFT_HYPHEN, 173]

register(Exercise(
    "pretrained.to_chars", "10", "Bytes as GPT-2's visible characters, one for each.",
    inputs=some_bytes, oracle=lambda raw: "".join(ALPHABET[b] for b in raw),
    package="gpt2_course.pretrained:to_chars",
    wrongs=(
        Wrong("every byte is its own character", lambda raw: raw.decode("latin-1"),
              "Spaces and newlines stay invisible, and merges.txt separates its two parts by a "
              "space."),
        Wrong("the bytes are decoded as UTF-8", lambda raw: raw.decode(errors="replace"),
              "A token may be half a character: it has bytes, but no text."),
        Wrong("an unprintable byte gets chr(256 + byte)",
              lambda raw: "".join(chr(256 + b) if b in INVISIBLE else chr(b) for b in raw),
              "The space becomes chr(288), which is Ġ by luck, and bytes from 127 on get others' "
              "characters."),
        Wrong("the soft hyphen counts as printable",
              lambda raw: "".join(chr(256 + NO_SOFT_HYPHEN.index(b)) if b in NO_SOFT_HYPHEN
                                  else chr(b) for b in raw),
              "0xAD is invisible in most fonts; OpenAI gave it the last of the new characters.")),
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

def tokens_to_split(seed):
    "Every token that was merged, with its vocabulary"
    ranks = learn(seed, 40)
    return [(t, ranks) for t in ranks if len(t) > 1]

def split_by_tiktoken(token, ranks):
    "tiktoken, given only what was learned before"
    before = {t: r for t, r in ranks.items() if r < ranks[token]}
    enc = tiktoken.Encoding("before", pat_str=r"[\s\S]+", mergeable_ranks=before, special_tokens={})
    return tuple(enc.decode_single_token_bytes(i) for i in enc.encode_ordinary(token.decode()))


def cuts(token, ranks):
    "All ways to cut a token into two known ones"
    both = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [p for p in both if p[0] in ranks and p[1] in ranks]

def join_latest(token, ranks):
    "Join the pair of the highest rank first"
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = max(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], -1))
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
              "Greedy from the left is not byte-pair encoding: the merges would give other ids."),
        Wrong("the latest learned pair is joined first", join_latest,
              "A low rank was learned early and is joined early: BPE repeats its own history."),
        Wrong("the whole token comes back in one piece", lambda t, ranks: (t,),
              "It was encoded with its own rank still in the vocabulary: leave it out.")),
    hints=("Encode the token as BPE would, but stop before the last merge.",
           "Begin with single bytes and always join the neighbours whose union has the lowest "
           "rank.",
           "When two parts are left they are the pair: while len(parts) > 2.")))
