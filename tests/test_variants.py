"""The parts after GPT-2 in the trainer: each trains, resumes, speaks and is evaluated; what cannot be is refused in one line."""

import copy
import json

import pytest
import torch
from gpt2_course.checkpoint import open_model
from gpt2_course.config import CHOICES, GPTConfig
from gpt2_course.generation import generate
from gpt2_course.model import active_params, count_params, crop_block_size, flops_per_token
from gpt2_course.variants import VARIANTS, make_gpt, unfair

from runs import TINY, losses, refused, torchrun, weights

CFG = GPTConfig(block_size=24, vocab_size=60, n_layer=2, n_head=4, n_embd=32)


def test_command_line_offers_what_there_is():
    assert tuple(VARIANTS) == CHOICES["variant"]


@pytest.mark.parametrize("name", VARIANTS)
def test_cache_changes_nothing(name):
    "Greedy text with a cache, beyond the block, for prompts of different lengths, is that without"
    torch.manual_seed(0)
    model = make_gpt(CFG, name).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)  # so that choices are not ties
    ids = torch.randint(0, 60, (3, 7))
    told = [generate(model, ids, 30, temperature=0, use_cache=c, prompt_lengths=[3, 7, 5]).tolist() for c in (True, False)]
    assert told[0] == told[1] and len({tuple(row[-10:]) for row in told[0]}) > 1


@pytest.mark.parametrize("name", VARIANTS)
def test_cropped_models_keep_their_parts(name):
    "A shorter block gives the same logits on what fits; positions of RoPE need no table"
    model = make_gpt(CFG, name).eval()
    ids = torch.randint(0, 60, (2, 10))
    with torch.no_grad():
        torch.testing.assert_close(crop_block_size(model, 10)(ids), model(ids))


@pytest.mark.parametrize("name", [v for v in VARIANTS if v != "gqa"])
def test_match_within_a_thousandth(name):
    "Parameters at work, dropout and initialisation of each part are GPT-2's, at 124M too"
    small = GPTConfig(block_size=64, vocab_size=1024, n_layer=4, n_head=4, n_embd=128, bias=False, dropout=0.1)
    assert unfair(make_gpt(small, name), make_gpt(small)) == []
    with torch.device("meta"):
        n, m = (active_params(make_gpt(GPTConfig(), v)) for v in (name, "gpt2"))
    assert abs(n / m - 1) < 0.001


def test_unfair_says_what_differs():
    small = GPTConfig(block_size=64, vocab_size=1024, n_layer=2, n_head=4, n_embd=64, dropout=0.1)
    base = make_gpt(small)
    other = make_gpt(GPTConfig(block_size=64, vocab_size=1024, n_layer=2, n_head=4, n_embd=64, dropout=0.2))
    assert "dropout" in unfair(other, base)[0]
    deaf = make_gpt(small)
    deaf.transformer.h[1].attn.dropout = 0.0
    assert "dropout" in unfair(deaf, base)[0]
    loud = make_gpt(small)
    with torch.no_grad():
        loud.transformer.h[0].mlp.c_proj.weight.mul_(2)
    (found,) = unfair(loud, base)
    assert "h.0.mlp.c_proj" in found and "standard deviation" in found
    assert "active parameters" in unfair(make_gpt(small, "gqa"), base)[0]


def test_counts_of_a_mixture():
    "Idle experts are stored, not worked with; FLOPs follow the parameters at work"
    model = make_gpt(CFG, "moe")
    expert = sum(p.numel() for p in model.transformer.h[0].mlp.experts[0].parameters())
    assert count_params(model) - active_params(model) == 2 * 6 * expert + model.transformer.wpe.weight.numel()
    assert flops_per_token(model, 24) == 6 * active_params(model) + 12 * 2 * 24 * 32


def test_penalty_is_of_training_alone():
    "The balance loss moves the router; an evaluated loss has none of it; a trained model can be copied"
    torch.manual_seed(0)
    model = make_gpt(CFG, "moe")
    ids = torch.randint(0, 60, (2, 20))
    loss = model(ids[:, :-1], ids[:, 1:])
    plain = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss - plain) == pytest.approx(sum(float(b.mlp.penalty) for b in model.transformer.h), abs=1e-5) and loss > plain
    loss.backward()
    assert all(b.mlp.router.weight.grad.abs().max() > 0 for b in model.transformer.h)
    model.eval()
    assert float(model(ids[:, :-1], ids[:, 1:])) == pytest.approx(float(plain), abs=1e-5)
    copy.deepcopy(model)


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_trains_resumes_and_speaks(run, data, tmp_path, name):
    "Ten steps are five, a new process and five more, to the last bit; then the other commands read the run"
    flags = ["-m", "gpt2_course.train", *TINY, "--variant", name, "--data", data]
    run([*flags, "--out", tmp_path / "a"], OMP_NUM_THREADS="1")
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0]
    run([*flags, "--out", tmp_path / "b", "--steps", "5"], OMP_NUM_THREADS="1")
    refusal = refused(run([*flags, "--out", tmp_path / "b", "--resume", "--variant", "gpt2"], status=2))
    assert f"variant {name} there, gpt2 here" in refusal
    model, tok = open_model(tmp_path / "a")
    assert model.variant == name and json.loads((tmp_path / "a" / "config.json").read_text())["variant"] == name
    said = run(["-m", "gpt2_course.sample", tmp_path / "a", "--prompt", "ROMEO", "--max-new-tokens", "8", "--num-samples", "1"])
    assert said.stdout.startswith("ROMEO")
    assert "no place for" in refused(run(["-m", "gpt2_course.export", tmp_path / "a", tmp_path / "hf"], status=2))
    wrong = refused(run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "c", "--init-from", tmp_path / "a"], status=2))
    assert f"give --variant {name}" in wrong
    run([*flags, "--out", tmp_path / "c", "--init-from", tmp_path / "a", "--steps", "3"])


def test_two_processes_equal_one(run, data, tmp_path):
    "A mixture's experts without tokens do not stall or falsify DDP; the balance loss is of each micro-batch, so only nearly the same"
    flags = ["-m", "gpt2_course.train", *TINY, "--variant", "moe", "--data", data]
    run([*flags, "--out", tmp_path / "one"], OMP_NUM_THREADS="1")
    run(torchrun(2, *flags, "--out", tmp_path / "two"), OMP_NUM_THREADS="1")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-3, rtol=0)


def test_unknown_variant(run, data, tmp_path):
    says = refused(run(["-m", "gpt2_course.train", *TINY, "--data", data, "--out", tmp_path / "x", "--variant", "swigloo"], status=2))
    assert "did you mean swiglu?" in says and not (tmp_path / "x").exists()
