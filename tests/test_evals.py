"""Evaluation against transformers, row by row; shares of ranks add up to one process; a model is opened wherever it lies; bad input is one line."""

import gzip
import json
import math
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpt2_course import evals, tokenizer
from gpt2_course.checkpoint import open_model
from gpt2_course.config import GPTConfig, UserError, packaged
from gpt2_course.model import GPT
from gpt2_course.pretrained import from_hf, to_hf
from gpt2_course.trainer import same_tokenizer

from conftest import REPO
from runs import TINY, refused, torchrun

ROWS = int(os.environ.get("HELLASWAG_ROWS", 250))  # make soak takes 1,000
SHAKESPEARE = REPO / "assets" / "runs" / "look-inside"


@pytest.fixture(scope="module")
def theirs():
    "A random GPT-2 of Hugging Face, small, with opinions: its weights are larger than at the start of training"
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=256)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return from_hf(theirs)


@pytest.fixture(scope="module")
def examples():
    return evals.hellaswag_examples(limit=ROWS)


def independent(model, row, tok) -> tuple[int, int, int]:
    "The three answers for a row, from its text: of ours, only the tokenizer's ids; filling stands at the right, where a causal model cannot see it"
    context = tok.encode(row["ctx"])
    rest = [tok.encode(" " + ending) for ending in row["endings"]]
    longest, s = max(map(len, rest)), []
    ids = torch.tensor([context + r + [0] * (longest - len(r)) for r in rest])
    with torch.inference_mode():
        hidden = model.transformer(ids).last_hidden_state[:, len(context) - 1 : -1]
        for h, r in zip(hidden, rest):
            logits = model.lm_head(h[: len(r)])
            s.append(float((logits[range(len(r)), r].double() - logits.logsumexp(-1).double()).sum()))
    s = np.array(s)
    tokens, chars = [len(r) for r in rest], [len(e) for e in row["endings"]]
    return int(s.argmax()), int((s / tokens).argmax()), int((s / chars).argmax())


def test_answers_are_those_of_transformers(theirs, ours, examples):
    "No answer differs in any row, by any of the three normalisations; and the three are not the same"
    with gzip.open(packaged("hellaswag_val.jsonl.gz"), "rt", encoding="utf-8") as f:
        rows = [json.loads(next(f)) for _ in range(ROWS)]
    tok = tokenizer.gpt2()
    want = np.array([independent(theirs, row, tok) for row in rows])
    have = evals.choices(ours, examples)
    assert (want != have).sum(0).tolist() == [0, 0, 0]
    assert all((have[:, a] != have[:, b]).sum() > 10 for a, b in ((0, 1), (0, 2), (1, 2)))
    labels = np.array([row["label"] for row in rows])[:, None]
    assert evals.choice_sum(ours, examples).tolist() == [ROWS, *(want == labels).sum(0)]


def test_batches_and_ranks_do_not_change_answers(ours, examples):
    "Small batches, one example at a time, three ranks: the same answers; the shares add up"
    some = examples[:90]
    want = evals.choices(ours, some)
    for B in (1, 700):
        assert (evals.choices(ours, some, B) == want).all()
    whole = evals.choice_sum(ours, some)
    assert sum(evals.choice_sum(ours, some, rank=r, world=4) for r in range(4)).tolist() == whole.tolist()
    assert evals.choice_sum(ours, some[:1], rank=1, world=2).tolist() == [0, 0, 0, 0]  # a rank without work


def test_head_is_float32_inside_autocast(ours, examples):
    "The logits of bf16 runs are not bf16 numbers: as many distinct ones as float32 gives; and eval mode is put back"
    seen = []
    linear = F.linear

    def spy(x, w, *more):
        out = linear(x, w, *more)
        if w.size(0) == 50257:
            seen.append((x.dtype, w.dtype, out.dtype))
        return out

    ours.train()
    cast = lambda: torch.autocast("cpu", torch.bfloat16)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(evals.F, "linear", spy)
        evals.choice_sum(ours, examples[:8], autocast=cast)
        with cast():  # and when the caller is inside one
            evals.choice_sum(ours, examples[:8])
    assert ours.training
    ours.eval()
    assert seen and all(types == (torch.float32,) * 3 for types in seen)
    assert torch.get_float32_matmul_precision() == "highest"


def test_short_and_long_contexts(ours):
    "One token of context is enough, none gets <|endoftext|>; one too long loses its beginning, and is counted"
    row = dict(ctx="I", endings=["run", "sleep now", "am", "x"], label="2")
    short = evals.to_choice(row, tokenizer.gpt2())
    assert len(short.context) == 1 and evals.choice_sum(ours, [short])[0] == 1
    assert evals.to_choice({**row, "ctx": ""}, tokenizer.gpt2()).context == [50256]
    T = 8
    model = GPT(GPTConfig(block_size=T, vocab_size=50, n_layer=1, n_head=2, n_embd=32)).eval()
    long, end = [i % 50 for i in range(30)], [3, 1, 4]
    logp, n, _ = evals.ending_logprobs(model, [(long, end)])
    with torch.no_grad():
        z = F.log_softmax(model(torch.tensor([(long + end)[-T - 1 : -1]])), -1)[0, -3:]
    assert float(logp) == pytest.approx(float(z[range(3), end].sum()), abs=1e-5) and n.tolist() == [3]
    fits = evals.Choice([1] * 6, [[1, 2], [1, 2, 3]], [1, 2], 0)  # 6 + 3 - 1 inputs
    over = evals.Choice([1] * 7, [[1, 2], [1, 2, 3]], [1, 2], 0)
    assert evals.overlong([fits], T) == 0 and evals.overlong([fits, over], T) == 1
    assert evals.ending_logprobs(model, [([1], end * 9)])[1].tolist() == [T]  # an ending longer than the block


def test_last_words_are_those_of_transformers(theirs, ours, tmp_path):
    "LAMBADA: log-probability and greedy answer of the last word, and some are right"
    tok = tokenizer.gpt2()
    texts = ["To be or not to be", "all the world is a stage", "Friends, Romans, countrymen lend me your ears", "it was the nightingale"]
    file = tmp_path / "words.jsonl"
    with torch.no_grad():  # a word that the model does expect
        nxt = theirs(torch.tensor([tok.encode(texts[0])])).logits[0, -1]
    space = [i for i in nxt.argsort(descending=True).tolist() if tok.decode([i]).startswith(" ")]
    file.write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    words = evals.lambada_examples(file) + [(tok.encode(texts[0]), [int(nxt.argmax())]), (tok.encode(texts[0]), [space[-1]])]
    logp, right, count = 0.0, 0, 0
    for context, word in words:
        with torch.no_grad():
            z = F.log_softmax(theirs(torch.tensor([context + word])).logits[0].double(), -1)[len(context) - 1 : -1]
        logp += float(z[range(len(word)), word].sum())
        right += z.argmax(-1).tolist() == word
        count += len(word)
    total = evals.last_word_sum(ours, words, B_tokens=16)
    assert right >= 1 and total[:2].tolist() == [len(words), right] and total[3] == count
    assert float(total[2]) == pytest.approx(logp, rel=1e-5)
    assert sum(evals.last_word_sum(ours, words, rank=r, world=3) for r in range(3)).tolist() == pytest.approx(total.tolist(), rel=1e-6)


# --- the commands ---


def shown(done) -> dict:
    "The only line of stdout, as JSON"
    (line,) = done.stdout.strip().splitlines()
    return json.loads(line)


def test_evaluate_validation(run, one, data):
    "The run's last validation loss, when as many windows are taken; bits per byte from the data's counts"
    told = shown(run(["-m", "gpt2_course.evaluate", one, "--data", data, "--limit", "64", "--checkpoint", "last", "--device", "cpu"]))
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    trained = [row["loss"] for row in rows if row["split"] == "val"][-1]
    assert told["tokens"] == 2048 and told["loss"] == pytest.approx(trained, abs=1e-5)
    assert told["perplexity"] == pytest.approx(math.exp(told["loss"]))
    meta = json.loads((data / "meta.json").read_text())
    ratio = meta["tokens"]["val"] / meta["bytes"]["val"]
    assert told["bits_per_byte"] == pytest.approx(told["loss"] / math.log(2) * ratio)
    both = shown(run(torchrun(2, "-m", "gpt2_course.evaluate", one, "--data", data, "--limit", "64", "--checkpoint", "last", "--device", "cpu")))
    assert both["tokens"] == 2048 and both["loss"] == pytest.approx(told["loss"], rel=1e-6)


def test_two_ranks_print_one_answer(run, ours, tmp_path):
    "torchrun with two processes: one JSON object, with the numbers of one process"
    to_hf(ours, tmp_path / "hf", tokenizer.gpt2())
    args = ["-m", "gpt2_course.evaluate", tmp_path / "hf", "--task", "hellaswag", "--limit", "101", "--device", "cpu"]
    alone = shown(run(args))
    both = shown(run(torchrun(2, *args), OMP_NUM_THREADS="1"))
    assert alone["rows"] == 101 and "build-nanogpt" in alone["protocol"]
    assert {**alone, "seconds": 0} == {**both, "seconds": 0}


@pytest.mark.parametrize("args, says", [
    (["no/such/run", "--task", "hellaswag"], "no/such/run does not exist"),
    (["nbs", "--task", "hellaswag"], "holds no model"),
    (["RUN", "--task", "hellaswag", "--limit", "600"], "gz, object "),
    (["RUN"], "--task val needs --data"),
    (["RUN", "--task", "lambada"], "--task lambada needs --data"),
    (["RUN", "--task", "helaswag"], "did you mean hellaswag?"),
    (["RUN", "--data", "no/such/dir"], "--data no/such/dir does not exist"),
    (["RUN", "--task", "lambada", "--data", "no-such.jsonl"], "no-such.jsonl does not exist"),
    (["RUN", "--task", "lambada", "--data", "settings.ini"], "is not JSON lines"),
    (["RUN", "--task", "hellaswag", "--data", "data/gpt2.tiktoken"], "is not JSON lines"),
    (["RUN", "--task", "lambada", "--data", "data/hellaswag_val.jsonl.gz"], "is no LAMBADA row"),
    (["RUN", "--task", "hellaswag", "--data", "data/shakespeare"], "is a directory without"),
    (["RUN", "--task", "hellaswag", "--batch-tokens", "0"], "--batch-tokens is 0"),
    (["RUN", "--task", "hellaswag", "--limit", "-1"], "--limit is -1"),
    (["RUN", "--task", "hellaswag", "--dtype", "int8"], "--dtype 'int8' is unknown"),
])  # fmt: skip
def test_evaluate_refuses(run, args, says):
    args = [SHAKESPEARE if a == "RUN" else a for a in args]
    assert says in refused(run(["-m", "gpt2_course.evaluate", *args, "--device", "cpu"], status=2))


def test_damaged_files_are_named(tmp_path):
    "Cut short, not a zip, empty, not UTF-8, a wrong label"
    whole = packaged("hellaswag_val.jsonl.gz").read_bytes()
    good = json.dumps(dict(ctx="a", endings=["b", "c"], label=1))
    for name, content in {
        "cut.jsonl.gz": whole[:100_000], "no.jsonl.gz": b"hello", "empty.jsonl": b"", "latin.jsonl": b'{"ctx": "\xe9"}',
        "label.jsonl": good.replace("1", "2").encode(), "list.jsonl": b"[1]", "none.jsonl": b'{"ctx": "a", "endings": [], "label": 0}',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            evals.hellaswag_examples(tmp_path / name)
    (tmp_path / "good.jsonl").write_text(good)
    assert evals.hellaswag_examples(tmp_path / "good.jsonl")[0].label == 1


def test_validation_wants_the_models_tokenizer(run, tmp_path):
    "As many characters, but others: every id would mean something else"
    chars = open_model(SHAKESPEARE)[1].chars.replace("Z", "~")
    (tmp_path / "text.txt").write_text(chars * 40)
    run(["-m", "gpt2_course.prepare", tmp_path / "text.txt", "--tokenizer", "char", "--out", tmp_path / "data"])
    assert json.loads((tmp_path / "data/meta.json").read_text())["vocab_size"] == len(chars) + 1
    for args in (["evaluate", SHAKESPEARE, "--data", tmp_path / "data"],
                 ["train", *TINY, "--data", tmp_path / "data", "--out", tmp_path / "run", "--init-from", SHAKESPEARE]):  # fmt: skip
        says = refused(run(["-m", f"gpt2_course.{args[0]}", *args[1:], "--device", "cpu"], status=2))
        assert "another tokenizer" in says


def test_weights_that_are_not_finite(run, tmp_path):
    model = GPT(GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        model.transformer.ln_f.weight[3] = math.nan
    to_hf(model, tmp_path / "nan", tokenizer.gpt2())
    says = refused(run(["-m", "gpt2_course.evaluate", tmp_path / "nan", "--task", "hellaswag", "--limit", "4"], status=2))
    assert "not finite" in says


def test_export_and_every_way_back(run, data, one, tmp_path):
    "transformers gives our logits and ids; evaluate and sample take the directory; what lies there is not overwritten"
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    run(["-m", "gpt2_course.export", one, out])
    model, tok = open_model(one)
    back, back_tok = open_model(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    text = "Enter HAMLET."
    ids = torch.tensor([tok.encode(text)])
    assert transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"] == ids[0].tolist() == back_tok.encode(text)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
        assert torch.equal(back(ids), model(ids))
    told = [run(["-m", "gpt2_course.sample", where, "--prompt", text, "--num-samples", "1", "--max-new-tokens", "20", "--device", "cpu"]).stdout
            for where in (one, out)]  # fmt: skip
    assert told[0] == told[1] and told[0].startswith(text)
    run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "tuned", "--init-from", out, "--steps", "3"])
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    assert "is not empty" in refused(run(["-m", "gpt2_course.export", one, out], status=2))
    assert "is a file" in refused(run(["-m", "gpt2_course.export", one, out / "config.json"], status=2))
    assert "does not exist" in refused(run(["-m", "gpt2_course.export", "no/such/run", tmp_path / "x"], status=2))
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) and not (tmp_path / "x").exists()


def test_open_model_finds_the_tokenizer(one, tmp_path):
    "A run, one of its checkpoints, and each of our tokenizers behind an exported directory"
    step = one / "checkpoints" / "step_00000010"
    assert open_model(step)[1].chars == open_model(one)[1].chars
    text = "what's in a name? naïve 1234  \n\n東京"
    bpe = tokenizer.BPETokenizer.train("a rose by any other name would smell as sweet " * 5, 300)
    for i, tok in enumerate((bpe, tokenizer.gpt2())):
        model = GPT(GPTConfig(block_size=16, vocab_size=tok.n_vocab, n_layer=1, n_head=2, n_embd=16))
        where = to_hf(model, tmp_path / str(i), tok)
        assert same_tokenizer(open_model(where)[1], tok) and open_model(where)[1].encode(text) == tok.encode(text)
    for empty in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no model|does not exist"):
            open_model(empty)


def test_tokenizers_are_told_apart():
    "Equally many characters are not the same characters: the ids would mean something else"
    a, b = (tokenizer.CharTokenizer(c) for c in ("abc ", "abd "))
    assert a.n_vocab == b.n_vocab and not same_tokenizer(a, b) and same_tokenizer(a, tokenizer.CharTokenizer("cba "))
    assert same_tokenizer(tokenizer.gpt2(), tokenizer.gpt2()) and not same_tokenizer(a, tokenizer.gpt2())


def readers(model, shards):
    "Everything that switches dropout off for a while: its name and a call"
    from gpt2_course.generation import generate
    from gpt2_course.viz import streams

    ids = torch.zeros(1, 4, dtype=torch.int64)
    choice = evals.Choice([1, 2], [[3], [4]], [1, 1], 0)
    return dict(
        validation_sum=lambda: evals.validation_sum(model, shards, 2),
        choices=lambda: evals.choices(model, [choice]),
        last_word_sum=lambda: evals.last_word_sum(model, [([1, 2], [3])]),
        generate=lambda: generate(model, ids, 3, temperature=0),
        streams=lambda: streams(model, ids),
    )


@pytest.mark.parametrize("name", ["validation_sum", "choices", "last_word_sum", "generate", "streams"])
@pytest.mark.parametrize("training", [True, False])
def test_an_interrupted_reader_puts_dropout_back(monkeypatch, name, training):
    "Ctrl-C in the middle of validation must not leave a model that trains on without dropout"
    model = GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=1, n_head=2, n_embd=8, dropout=0.5)).train(training)
    seen = []

    def interrupt(module, *args):
        seen.append(module.training)
        raise KeyboardInterrupt

    call = readers(model, [np.arange(17, dtype=np.uint16)])[name]
    call()
    assert model.training == training
    hook = model.transformer.h[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        call()
    hook.remove()
    assert seen == [False] and all(m.training == training for m in model.modules())
