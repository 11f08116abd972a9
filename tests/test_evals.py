"""Evaluation against an independent computation through transformers, and its commands."""

import json
import math

import pytest
import torch
from gpt2_course.evals import choice_sum, ending_logprobs, hellaswag_examples, lambada_sum
from gpt2_course.pretrained import from_hf
from test_commands import refused
from test_trainer import TINY, data, losses, one, torchrun  # noqa: F401 (fixtures)

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs():
    "A small GPT-2 of Hugging Face's own, with weights large enough to have opinions"
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(config).eval()


def their_logprobs(model, context, endings):
    "Summed log-probabilities of endings, in float64; the filling stands at the right, where a causal model cannot see it"
    rows = [(context + e)[-129:] for e in endings]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, filled in zip(rows, ids):
        filled[: len(row)] = torch.tensor(row)
    with torch.no_grad():
        hidden = model.transformer(ids[:, :-1]).last_hidden_state
        out = []
        for row, e, h in zip(rows, endings, hidden):
            logits = model.lm_head(h[len(row) - 1 - len(e) : len(row) - 1]).double()
            out.append(float(logits.log_softmax(-1).gather(1, torch.tensor(row[-len(e) :])[:, None]).sum()))
    return out


def their_logprob(model, context, ending):
    return their_logprobs(model, context, [ending])[0]


def test_a_thousand_rows_of_hellaswag(theirs):
    "0 differing answers, in each of the three ways of comparing endings"
    rows = hellaswag_examples(limit=1000)
    ours, differ = from_hf(theirs), [0, 0, 0]
    pairs = [(c.context, e) for c in rows for e in c.endings]
    mine, _ = ending_logprobs(ours, pairs)
    reference = torch.tensor([p for c in rows for p in their_logprobs(theirs, c.context, c.endings)], dtype=torch.float64)
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-3)
    right = [0.0, 0.0, 0.0]
    for i, c in enumerate(rows):
        ways = (torch.ones(4), torch.tensor([len(e) for e in c.endings]), torch.tensor(c.chars))
        for k, way in enumerate(ways):
            answers = [int((p[4 * i : 4 * i + 4] / way).argmax()) for p in (mine, reference)]
            differ[k] += answers[0] != answers[1]
            right[k] += answers[1] == c.label
    assert differ == [0, 0, 0]
    assert choice_sum(ours, rows).tolist() == [1000.0, *right]
    assert len(set(right)) > 1, "the three ways differ on this model, so each was compared"


def test_shares_of_ranks_add_up(theirs):
    ours, rows = from_hf(theirs), hellaswag_examples(limit=50)
    whole = choice_sum(ours, rows)
    assert torch.equal(sum(choice_sum(ours, rows, B_tokens=300, rank=r, world=3) for r in range(3)), whole)


def test_short_and_empty_contexts(theirs):
    "A context of one token, or none, is no trouble"
    logp, _ = ending_logprobs(from_hf(theirs), [([7], [8, 9]), ([], [8, 9]), ([5] * 300, [8])])
    assert logp.isfinite().all() and logp[0] == pytest.approx(their_logprob(theirs, [7], [8, 9]), abs=1e-4)
    assert logp[2] == pytest.approx(their_logprob(theirs, [5] * 300, [8]), abs=1e-4)


def test_lambada_is_what_greedy_choice_writes(theirs):
    "Texts whose last word is the model's own continuation are all right; others are not"
    from gpt2_course import tokenizer

    ours, tok = from_hf(theirs), tokenizer.gpt2()
    words = [" the", " a", " moon", " sea", " old", " king"]
    context = "Once upon a time there was"
    ids = tok.encode_ordinary(context)
    with torch.no_grad():
        best = max(words, key=lambda w: their_logprob(theirs, ids, tok.encode_ordinary(w)))
        top = int(theirs(torch.tensor([ids])).logits[0, -1].argmax())
    n, right, logp = lambada_sum(ours, [context + w for w in words]).tolist()
    assert n == 6 and right == sum(tok.encode_ordinary(w) == [top] for w in words)
    assert logp == pytest.approx(sum(their_logprob(theirs, ids, tok.encode_ordinary(w)) for w in words), abs=1e-3) and best in words


def test_evaluate_command(run, data, one, tmp_path):  # noqa: F811
    "One JSON object; two processes say what one says; the validation loss is the trainer's"
    common = ["-m", "gpt2_course.evaluate", one, "--data", data, "--device", "cpu", "--limit", "2048"]
    alone = json.loads(run(common).stdout)
    assert alone["loss"] == pytest.approx(min(losses(one, "val")), rel=1e-5) and alone["perplexity"] == pytest.approx(math.exp(alone["loss"]))
    both = run(torchrun(2, *common)).stdout
    assert json.loads(both)["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_export_sample_and_evaluate_a_hugging_face_directory(run, data, one, tmp_path):  # noqa: F811
    "What we export, our own commands and transformers read alike"
    hf = tmp_path / "hf"
    run(["-m", "gpt2_course.export", one, hf])
    flags = ["--data", data, "--device", "cpu", "--limit", "2048"]
    found = [json.loads(run(["-m", "gpt2_course.evaluate", m, *flags]).stdout)["loss"] for m in (one, hf)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    said = [run(["-m", "gpt2_course.sample", m, "--prompt", "ROMEO", "--temperature", "0", "--max-new-tokens", "20"]).stdout for m in (one, hf)]
    assert said[0] == said[1] != ""
    model = transformers.AutoModelForCausalLM.from_pretrained(hf)
    assert model.config.n_layer == 2
    run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "tuned", "--init-from", hf, "--steps", "3"])


@pytest.mark.parametrize(
    "args, says",
    [
        (["evaluate", "runs/none", "--task", "hellaswag"], "runs/none"),
        (["evaluate", "no/such/run", "--task", "hellaswag"], "no/such/run does not exist"),
        (["evaluate", ".", "--task", "hellaswag"], "holds no model"),
        (["evaluate", ".", "--task", "helaswag"], "did you mean hellaswag?"),
        (["evaluate", "."], "--task val needs --data"),
        (["evaluate", ".", "--task", "hellaswag", "--limit", "-1"], "--limit is -1"),
        (["export", "no/such/run", "out"], "no/such/run does not exist"),
        (["export", ".", ".."], "is not empty"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_bad_input_gets_one_line(run, args, says, tmp_path):
    (tmp_path / "runs").mkdir()
    assert says in refused(run(["-m", f"gpt2_course.{args[0]}", *args[1:]], status=2, cwd=tmp_path))


def test_damaged_task_files_get_one_line(run, one, tmp_path):  # noqa: F811
    bad = tmp_path / "bad.jsonl"
    for content, task, says in (("{", "hellaswag", "lines of JSON"), ('{"a": 1}', "hellaswag", "is not HellaSwag"), ('{"a": 1}', "lambada", "is not LAMBADA")):
        bad.write_text(content)
        assert says in refused(run(["-m", "gpt2_course.evaluate", one, "--task", task, "--data", bad], status=2))
