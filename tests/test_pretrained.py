"""Weights and tokenizers in and out of Hugging Face's format: the same logits, the same text, the same ids; what cannot be held is refused."""

import hashlib
import http.server
import json
import os
import threading
import time
from dataclasses import replace

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import pytest
import torch
from gpt2_course import pretrained
from gpt2_course.config import GPTConfig, UserError, packaged
from gpt2_course.generation import generate
from gpt2_course.model import GPT
from gpt2_course.pretrained import from_hf, to_hf
from gpt2_course.tokenizer import EOT, BPETokenizer, CharTokenizer, gpt2
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SHAPES = [(32, 101, 2, 4, 48), (64, 1000, 3, 3, 96), (16, 50257, 1, 2, 32)]  # T, V, L, nh, C
TINY = GPTConfig(block_size=32, vocab_size=101, n_layer=2, n_head=4, n_embd=48)
ODD = (
    "naïve café — 東京 🙂 👩‍👩‍👧 Привет! don't  we'll \t\ttabs\r\n\u00a0nbsp\u2003em ½ ²³ १२३ ﷽ e\u0301 \x00\x1c\x85\u200b\u3000 \ufeff end   "
    + "".join(chr(c) for c in range(0x20, 0x2FFF, 7))
)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def hf_model(T=32, V=101, L=2, H=4, C=48, **more):
    "A random model of Hugging Face whose norms and biases are not the trivial ones"
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=H, bos_token_id=None, eos_token_id=None, **more)
    return shaken(transformers.GPT2LMHeadModel(config)).eval()


def shaken(model):
    "Every parameter moved, so that a bias that is lost shows"
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn_like(p)
    return model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text():
    return packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizers(text):
    return dict(char=CharTokenizer(text), bpe=BPETokenizer.train(text, 400), gpt2=gpt2())


# --- weights ---


@pytest.mark.parametrize("shape", SHAPES)
def test_from_a_model(shape):
    theirs = hf_model(*shape)
    ours = from_hf(theirs)
    idx = torch.randint(shape[1], (2, shape[0]))
    assert not ours.training
    with torch.no_grad():
        close(ours(idx), theirs(idx).logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_to_a_directory_and_back(shape, tmp_path):
    T, V, L, H, C = shape
    ours = shaken(GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=0.1))).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to_hf(ours, tmp_path / "deep" / "hf"))
    assert isinstance(theirs, transformers.GPT2LMHeadModel) and theirs.dtype == torch.float32
    assert theirs.transformer.wte.weight.shape == (V, C)
    idx = torch.randint(V, (2, T))
    with torch.no_grad():
        close(ours(idx), theirs(idx).logits)
    for back in (from_hf(tmp_path / "deep" / "hf"), from_hf(str(tmp_path / "deep" / "hf")), from_hf(theirs)):
        assert back.cfg == ours.cfg
        assert all(torch.equal(w, back.state_dict()[k]) for k, w in ours.state_dict().items())


def test_file_has_their_names_and_layout(tmp_path):
    "GPT2LMHeadModel's names, matrices (in, out), vocab_size rows, the tied head once"
    file = load_file(to_hf(GPT(TINY), tmp_path) / "model.safetensors")
    theirs = {k: w.shape for k, w in hf_model().state_dict().items() if k != "lm_head.weight"}
    assert {k: w.shape for k, w in file.items()} == theirs


def test_their_directory(tmp_path):
    "What save_pretrained writes, whole and in shards"
    theirs = hf_model()
    idx = torch.randint(101, (2, 32))
    for name, size in (("whole", "1GB"), ("shards", "100KB")):
        theirs.save_pretrained(tmp_path / name, max_shard_size=size)
        with torch.no_grad():
            close(from_hf(tmp_path / name)(idx), theirs(idx).logits)
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()


def test_openai_file(tmp_path):
    "No prefix, masks among the weights, as on the hub"
    theirs = hf_model()
    state = {k.removeprefix("transformer."): w.clone() for k, w in theirs.state_dict().items() if k != "lm_head.weight"}
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    idx = torch.randint(101, (2, 32))
    with torch.no_grad():
        close(from_hf(tmp_path)(idx), theirs(idx).logits)


def test_half_precision_becomes_float32(tmp_path):
    theirs = hf_model().half()
    ours = from_hf(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    idx = torch.randint(101, (2, 8))
    with torch.no_grad():
        close(ours(idx), theirs.float()(idx).logits)


def test_a_directory_needs_no_transformers(tmp_path, run):
    "In and out with safetensors alone: a GPU box may lack transformers"
    code = f"""
import sys
for name in ("transformers", "tokenizers", "huggingface_hub"): sys.modules[name] = None
from gpt2_course.pretrained import from_hf, to_hf
from gpt2_course.model import GPT, GPTConfig
from gpt2_course.tokenizer import gpt2
model = GPT(GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=8))
assert from_hf(to_hf(model, {str(tmp_path / "hf")!r}, gpt2())).cfg == model.cfg
try: from_hf("gpt2")
except ValueError as e: print(e)
"""
    assert "pip install huggingface_hub" in run(["-c", code]).stdout


# --- text ---


def test_the_same_greedy_text(tmp_path):
    ours = shaken(GPT(TINY)).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to_hf(ours, tmp_path))
    idx = torch.randint(101, (1, 5))
    for cache in (True, False):
        said = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=20, do_sample=False, use_cache=cache, pad_token_id=0)
        assert torch.equal(said, generate(ours, idx, 20, temperature=0, use_cache=cache))


@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_ids_are_ours(kind, tokenizers, text, tmp_path):
    tok = tokenizers[kind]
    model = GPT(GPTConfig(block_size=16, vocab_size=tok.n_vocab, n_layer=1, n_head=2, n_embd=8))
    theirs = transformers.AutoTokenizer.from_pretrained(to_hf(model, tmp_path, tok))
    for sample in (text, "", " ", "\n\n", "  two") + ((ODD,) if kind != "char" else ()):
        ids = theirs(sample)["input_ids"]
        assert ids == tok.encode_ordinary(sample) and theirs.decode(ids) == sample
    assert len(theirs) == tok.n_vocab and theirs.eos_token_id == theirs.bos_token_id == tok.eot_token
    assert theirs(f"a{EOT}b")["input_ids"] == [*tok.encode_ordinary("a"), tok.eot_token, *tok.encode_ordinary("b")]
    assert theirs.decode(range(tok.n_vocab)[-3:]) == tok.decode(range(tok.n_vocab)[-3:])
    assert theirs.model_max_length == 16 and "token_type_ids" not in theirs("a")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == tok.eot_token


def test_a_character_of_another_alphabet_is_an_error_in_both(tokenizers, tmp_path):
    tok = tokenizers["char"]
    pretrained_tok = transformers.AutoTokenizer.from_pretrained(
        to_hf(GPT(replace(TINY, vocab_size=tok.n_vocab)), tmp_path, tok)
    )
    for encode in (tok.encode, pretrained_tok):
        with pytest.raises(Exception, match="東|UNK"):
            encode("東")


def test_all_of_gpt2s_merges_are_found():
    parts = pretrained.tokenizer_json(gpt2())["model"]
    assert len(parts["merges"]) == 50000 == len(set(parts["merges"])) and parts["merges"][0] == "Ġ t"
    assert len(parts["vocab"]) == 50257 and parts["vocab"]["<|endoftext|>"] == 50256
    assert all("".join(m.split(" ")) in parts["vocab"] for m in parts["merges"])


# --- refusals ---


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(activation_function="relu"), "tanh GELU"),
        (dict(activation_function="gelu"), "tanh GELU"),
        (dict(scale_attn_by_inverse_layer_idx=True), "all layers alike"),
        (dict(reorder_and_upcast_attn=True), "precision"),
        (dict(scale_attn_weights=False), "sqrt"),
        (dict(add_cross_attention=True), "encoder"),
        (dict(n_inner=100), "4 n_embd"),
        (dict(layer_norm_epsilon=1e-6), "1e-5"),
        (dict(tie_word_embeddings=False), "one table"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_another_computation_is_refused(change, why):
    with pytest.raises(UserError, match=f"{next(iter(change))}=.*{why}"):
        from_hf(hf_model(**change))


def test_n_inner_may_be_said_outright():
    from_hf(hf_model(n_inner=4 * 48))


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="llama")))
    with pytest.raises(UserError, match="model_type 'llama'"):
        from_hf(tmp_path)
    with pytest.raises(UserError, match="not a model of transformers"):
        from_hf(GPT(TINY))


def test_damaged_directories_are_refused_in_one_line(tmp_path):
    to_hf(GPT(TINY), tmp_path)
    weights = tmp_path / "model.safetensors"
    state = {k: w.clone() for k, w in load_file(weights).items()}  # the file itself is about to be cut

    def refused(saying):
        with pytest.raises(UserError, match=saying) as e:
            from_hf(tmp_path)
        assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)

    weights.write_bytes(weights.read_bytes()[:1000])
    refused("damaged")
    weights.unlink()
    refused("does not exist")
    save_file({k: w for k, w in state.items() if "ln_f.bias" not in k}, weights)
    refused("ln_f.bias is missing")
    save_file({**state, "transformer.h.9.x": torch.zeros(2)}, weights)
    refused("h.9.x is unknown")
    save_file({**state, "transformer.wpe.weight": torch.zeros(31, 48)}, weights)
    refused(r"wpe.weight is \(31, 48\), not \(32, 48\)")
    save_file({**state, "lm_head.weight": torch.zeros(101, 48)}, weights)
    refused("head of its own")
    (tmp_path / "config.json").write_text("{")
    refused("not valid JSON")
    (tmp_path / "config.json").unlink()
    refused("config.json does not exist")


@pytest.mark.parametrize("name", ["gpt2", "someone/gpt2", "no/such/directory", "../nowhere"])
def test_without_a_network_one_line_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match="directory") as e:
        from_hf(name)
    assert "\n" not in str(e.value) and name in str(e.value) and e.value.__suppress_context__
    assert time.monotonic() - began < 10


def test_a_dead_network_is_asked_once(run, tmp_path):
    "Without HF_HUB_OFFLINE, the hub's own five retries would take more than twenty seconds"
    code = "from gpt2_course.pretrained import from_hf; from_hf('gpt2')"
    began = time.monotonic()
    said = run(["-c", code], status=1, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path)).stderr
    assert "UserError: 'gpt2' is no directory here and the hub does not answer" in said and "Retrying" not in said
    assert time.monotonic() - began < 20  # Python, torch and one question


def test_a_cached_model_needs_no_network(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    to_hf(GPT(TINY), tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns, local_files_only: str(tmp_path))
    assert from_hf("gpt2").cfg == TINY


def test_what_cannot_leave_is_refused(tmp_path, tokenizers):
    with pytest.raises(UserError, match="bias=False"):
        to_hf(GPT(replace(TINY, bias=False)), tmp_path / "hf")

    class OtherBlock(pretrained.Block):
        pass

    with pytest.raises(UserError, match="no place for OtherBlock"):
        to_hf(GPT(TINY, block=OtherBlock), tmp_path / "hf")
    with pytest.raises(UserError, match="50257 tokens and the model 101"):
        to_hf(GPT(TINY), tmp_path / "hf", tokenizers["gpt2"])
    with pytest.raises(UserError, match="cannot be exported"):
        pretrained.tokenizer_json(object())
    assert not (tmp_path / "hf").exists(), "a refusal writes nothing"


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "sub/model.safetensors", "..\\model.safetensors", "", 3])
def test_an_index_names_files_beside_it(tmp_path, name):
    to_hf(GPT(TINY), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(UserError, match="is not the name of a file beside it"):
        from_hf(tmp_path / "hf")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": ["model.safetensors"]}'])
def test_an_index_that_is_none(tmp_path, content):
    to_hf(GPT(TINY), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="has no weight_map"):
        from_hf(tmp_path)


def test_parts_that_an_index_names_are_read(tmp_path):
    state = load_file(to_hf(GPT(TINY).eval(), tmp_path) / "model.safetensors")
    whole, names = from_hf(tmp_path), sorted(state)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, mine in parts.items():
        save_file({k: state[k] for k in mine}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {k: file for file, mine in parts.items() for k in mine}}))
    assert all(torch.equal(w, whole.state_dict()[k]) for k, w in from_hf(tmp_path).state_dict().items())


def test_without_a_tokenizer(tmp_path, capsys):
    "GPT-2's vocabulary brings GPT-2's tokenizer; for any other, what is missing is said"
    gpt2_sized = GPT(GPTConfig(block_size=16, vocab_size=50257, n_layer=1, n_head=2, n_embd=8))
    theirs = transformers.AutoTokenizer.from_pretrained(to_hf(gpt2_sized, tmp_path / "gpt2"))
    assert len(theirs) == 50257 and theirs("To be, or not")["input_ids"] == gpt2().encode_ordinary("To be, or not")
    assert capsys.readouterr().out == ""
    to_hf(GPT(TINY), tmp_path / "tiny")
    assert "tiny has no tokenizer: AutoTokenizer cannot read it right; give to_hf the one" in capsys.readouterr().out


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(preset="nano")))
    with pytest.raises(UserError, match="another directory"):
        to_hf(GPT(TINY), tmp_path)
    with pytest.raises(UserError, match="not a GPT-2 of Hugging Face"):
        from_hf(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        to_hf(GPT(TINY), tmp_path / "file" / "hf")


def test_zero_biases_are_the_way_out(tmp_path):
    "What the refusal of bias=False advises"
    lean = GPT(replace(TINY, bias=False)).eval()
    full = GPT(TINY).eval()
    assert not full.load_state_dict(lean.state_dict(), strict=False).unexpected_keys
    idx = torch.randint(101, (2, 32))
    with torch.no_grad():
        close(from_hf(to_hf(full, tmp_path))(idx), lean(idx))


# --- a hub on this machine ---


class Hub(http.server.BaseHTTPRequestHandler):
    "The little of huggingface.co that a download needs; `folder` is the only model, named gpt2"

    folder = None
    asked: list = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        self.asked.append(self.path)
        name = self.path.split("?")[0].removeprefix(f"/gpt2/resolve/{'main' if '/main/' in self.path else 'c' * 40}/")
        if self.path.startswith("/api/models/gpt2/tree/"):
            rows = [dict(type="file", path=p.name, size=p.stat().st_size, oid="d" * 40) for p in self.folder.iterdir()]
            content, kind = json.dumps(rows).encode(), 200
        elif self.path.startswith("/api/models/gpt2/"):
            files = [dict(rfilename=p.name) for p in self.folder.iterdir()]
            content, kind = json.dumps(dict(id="gpt2", sha="c" * 40, siblings=files, tags=[], downloads=0, likes=0, private=False)).encode(), 200
        elif (self.folder / name).is_file():
            content, kind = (self.folder / name).read_bytes(), 200
        else:
            content, kind = b"", 404
        self.send_response(kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if kind == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)


def test_from_a_hub_and_then_from_its_cache(tmp_path, run):
    "config.json and the weights are fetched, nothing else; the second time no question is asked"
    Hub.folder, Hub.asked = to_hf(GPT(TINY), tmp_path / "served"), []
    (Hub.folder / "rust_model.ot").write_text("half a gigabyte that nobody wants")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    code = "from gpt2_course.pretrained import from_hf; print(from_hf('{}').cfg)"
    try:
        assert str(TINY) in run(["-c", code.format("gpt2")], **env).stdout
        assert any("model.safetensors" in path for path in Hub.asked) and not any("rust" in path for path in Hub.asked)
        Hub.asked.clear()
        assert str(TINY) in run(["-c", code.format("gpt2")], **env).stdout
        assert not Hub.asked
        said = run(["-c", code.format("gpt3")], status=1, **env).stderr
        assert "UserError: 'gpt3' is neither a directory here nor a model of the hub" in said
    finally:
        server.shutdown()
