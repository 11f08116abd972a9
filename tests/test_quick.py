"""The parts that write faster against the plain model: the same tokens in float32, bounded errors in bfloat16 and int8."""

import copy
from functools import partial

import pytest
import torch
from gpt2_course import quick, tokenizer
from gpt2_course.checkpoint import load_model
from gpt2_course.config import WEIGHTS, GPTConfig, UserError, packaged
from gpt2_course.generation import generate
from gpt2_course.quick import Decoder, Rows, Table, decoder, quicken
from gpt2_course.variants import make_gpt

from conftest import REPO
from runs import refused

CFG = GPTConfig(block_size=24, vocab_size=101, n_layer=2, n_head=4, n_embd=64)
RUN = REPO / "assets/runs/look-inside"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    "And weights of any size count as large ones"
    monkeypatch.setattr(quick, "LARGE", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def opinionated(variant="gpt2", **kw):
    "Scores far apart, so that greedy choices have no ties"
    torch.manual_seed(0)
    model = make_gpt(GPTConfig(**{**vars(CFG), **kw}), variant).eval()
    for p in model.parameters():
        p.data *= 4
    return model


def with_slots(model, made=None):
    "What `quicken` sets up on a GPU, without a recording; `made` collects the decoders"
    model.new_cache = partial(decoder, model, {} if made is None else made, False)
    return model


@pytest.mark.parametrize("variant", ["gpt2", "rope", "llama", "gqa", "qk-norm", "moe"])
@pytest.mark.parametrize("B,T,new", [(1, 1, 6), (1, 20, 3), (3, 5, 30), (2, 24, 2), (20, 3, 4)])
def test_greedy_tokens_are_those_without_a_cache(variant, B, T, new):
    "Inside the block, up to its edge and beyond it; more rows than FEW; fixed shapes, too"
    model = opinionated(variant)
    idx = torch.randint(101, (B, T))
    want = generate(model, idx, new, temperature=0, use_cache=False)
    fast = quicken(model)
    assert torch.equal(generate(fast, idx, new, temperature=0), want)
    if variant != "moe":  # its experts are chosen on the host, so it has no recorded step
        assert torch.equal(generate(with_slots(fast), idx, new, temperature=0), want)


@pytest.mark.parametrize("kind", ["plain", "slots"])
def test_prompts_of_different_lengths(kind):
    "Each row as it would be alone"
    model = quicken(opinionated())
    if kind == "slots":
        with_slots(model)
    idx, n = torch.randint(101, (4, 9)), [2, 9, 4, 3]
    together = generate(model, idx, 8, temperature=0, prompt_lengths=n)
    for row, given, k in zip(together, idx, n):
        alone = generate(model, given[None, :k], 17 - k, temperature=0)
        assert torch.equal(row, alone[0])


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "public calls"])
def test_threads_do_not_change_tokens(kernels, monkeypatch):
    "Without kernels: pieces that divide the rows of the weight and some that do not"
    if not kernels:
        monkeypatch.setattr(quick, "agrees", lambda *a: False)
    model, idx = opinionated(), torch.randint(101, (2, 4))
    want = generate(model, idx, 12, temperature=0, use_cache=False)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        assert torch.equal(generate(quicken(model), idx, 12, temperature=0), want)


def test_a_decoder_is_used_again_and_forgets():
    made = {}
    fast = with_slots(quicken(opinionated()), made)
    a, b = torch.randint(101, (2, 2, 5))
    first = generate(fast, a, 7, temperature=0)
    generate(fast, b, 9, temperature=0)
    assert torch.equal(generate(fast, a, 7, temperature=0), first)
    assert list(made) == [(2, 16)]


def test_the_model_stays_as_it_is():
    model = opinionated().train()
    before = copy.deepcopy(model.state_dict())
    fast = quicken(model, "int8")
    generate(fast, torch.zeros(1, 3, dtype=torch.long), 3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training and isinstance(model.lm_head, torch.nn.Linear)
    shared = quicken(model)
    assert shared.transformer.wte.weight.data_ptr() == model.lm_head.weight.data_ptr(), "tensors are not copied"
    assert Decoder(fast, 1, 8).model.lm_head.weight.data_ptr() == fast.lm_head.weight.data_ptr()


def test_int8_keeps_the_tie_and_a_quarter():
    model = opinionated()
    fast = quicken(model, "int8")
    assert isinstance(fast.transformer.wte, Table) and fast.transformer.wte.weight is fast.lm_head.weight
    assert fast.lm_head.weight.dtype == torch.int8 and isinstance(fast.transformer.h[0].attn.c_attn, Rows)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "public calls"])
def test_agreement_on_a_trained_model(kernels, monkeypatch, capsys):
    "First choices and scores of the letters' model, read letter by letter as generation does"
    if not kernels:
        monkeypatch.setattr(quick, "agrees", lambda *a: False)
    model, tok = load_model(RUN), tokenizer.load(RUN / "tokenizer.json")
    text = torch.tensor(tok.encode_ordinary(packaged("shakespeare/macbeth.txt").read_text("utf-8")[20_000 : 20_000 + 8 * 64])).view(8, 64)
    with torch.no_grad():
        plain = model(text)
        for weights, agreement, bound in (("float32", 0.999, 1e-4), ("bfloat16", 0.97, 0.5), ("int8", 0.97, 1.0)):
            fast, cache = quicken(model, weights), None
            cache = with_slots(fast).new_cache(8, 64)
            scores = torch.stack([cache.step(text[:, t : t + 1]).clone() for t in range(64)], dim=1)
            same = float((scores.argmax(-1) == plain.argmax(-1)).float().mean())
            error = float((scores - plain).abs().max())
            with capsys.disabled():
                print(f"\n{weights}: first choice the same at {same:.2%} of {text.numel()} places, scores move by {error:.1e} at most")
            assert same >= agreement and error <= bound


@pytest.mark.parametrize("K", [15, 16, 24, 48, 65])
def test_kernels_are_used_only_where_they_are_right(K):
    "A width that the int8 kernel cannot take gets the public call"
    linear, x = torch.nn.Linear(K, 30), torch.randn(3, K)
    with torch.no_grad():
        want = linear(x)
        for weights, bound in (("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.03)):
            layer = Rows(linear, weights)
            assert (layer(x) - want).abs().max() <= bound * want.abs().max()
            assert layer(x[:0]).shape == (0, 30) and torch.allclose(layer(x[None, :1])[0], layer(x[:1]))
    kernel = Rows(linear, "int8").kernel
    some = (torch.arange(4 * K).view(4, K) % 5).to(torch.int8)
    there = K % 16 == 0 and quick.agrees(lambda x: torch._weight_int8pack_mm(x.bfloat16(), some, torch.ones(4).bfloat16()), some)
    assert (kernel is not None) == there


def test_int8_uses_its_whole_range():
    "Half a step at most, but for the largest number of a row, whose scale was rounded"
    w = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 50)[:, None]
    q, scale = quick.to_int8(w)
    steps = (q * scale[:, None] - w).abs() / scale[:, None]
    assert int(q.abs().amax(1).min()) >= 126 and float(steps.median(1).values.max()) < 0.4 and float(steps.max()) < 1
    assert quick.to_int8(torch.zeros(2, 8))[0].eq(0).all()


def test_unknown_weights_are_refused(run):
    with pytest.raises(UserError, match="--weights 'int9' is unknown \\(did you mean int8\\?\\): choose from"):
        quicken(opinionated(), "int9")
    assert "--weights 'int9' is unknown (did you mean int8?)" in refused(run(["-m", "gpt2_course.sample", RUN, "--weights", "int9"], status=2))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sample_takes_weights(run, weights):
    done = run(["-m", "gpt2_course.sample", RUN, "--weights", weights, "--prompt", "ROMEO.", "--max-new-tokens", 20, "--num-samples", 2])
    assert done.stdout.count("ROMEO.") == 2 and "-" * 60 in done.stdout


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_tokens(monkeypatch):
    "Without kernels of the CPU, as on a GPU"
    monkeypatch.setattr(quick, "agrees", lambda *a: False)
    model, idx = opinionated("llama"), torch.randint(101, (2, 5))
    fast = quicken(model)
    made = {(2, 16): Decoder(fast, 2, 16, compiled=True)}
    fast.new_cache = partial(decoder, fast, made, True)
    assert torch.equal(generate(fast, idx, 9, temperature=0), generate(model, idx, 9, temperature=0, use_cache=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("variant", ["gpt2", "llama", "gqa"])
def test_a_recorded_step_on_a_gpu(variant, weights):
    "The same greedy tokens as the plain step with the same weights, recorded and replayed; twice"
    model = opinionated(variant).cuda()
    idx = torch.randint(101, (3, 5), device="cuda")
    fast = quicken(model, weights)
    want = generate(model, idx, 15, temperature=0, use_cache=False)
    got = [generate(fast, idx, 15, temperature=0) for _ in range(2)]
    assert torch.equal(got[0], got[1])
    assert fast.new_cache(3, 20).graph is not None  # the one that generate used
    if weights == "float32":
        assert torch.equal(got[0], want)
    else:
        with torch.no_grad():
            plain, near = model(idx), quicken(model, weights)(idx)
        assert (plain - near).abs().max() < 0.1 * plain.abs().max()
