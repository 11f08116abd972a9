"""Generation: probabilities by sorting in plain Python, draws from a generator, prompts of several lengths, a stop, and a cache that changes nothing."""

import math
from contextlib import nullcontext

import pytest
import torch
from gpt2_course.attention import KVCache
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.generation import check_dials, choose, continue_text, generate, kv_heads, new_cache, next_logits, shape_probs
from gpt2_course.model import GPT
from gpt2_course.tokenizer import CharTokenizer

CFG = GPTConfig(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT(CFG).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)  # an opinion about the next token
    return model


def by_sorting(row, temperature, top_k, top_p):
    if temperature == 0:
        return [float(i == row.index(max(row))) for i in range(len(row))]
    scaled = [x / temperature for x in row]
    if top_k is not None and top_k < len(row):
        kth = sorted(scaled, reverse=True)[top_k - 1]
        scaled = [x if x >= kth else -math.inf for x in scaled]
    exps = [math.exp(x - max(scaled)) for x in scaled]
    probs = [e / sum(exps) for e in exps]
    if top_p is not None and top_p < 1:
        kept, mass = set(), 0.0
        for i in sorted(range(len(row)), key=lambda i: -probs[i]):
            if mass >= top_p:
                break
            kept.add(i)
            mass += probs[i]
        probs = [p / mass if i in kept else 0.0 for i, p in enumerate(probs)]
    return probs


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 7, 8, 50])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_shape_probs(temperature, top_k, top_p):
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)) * 2
    got = shape_probs(logits, temperature, top_k, top_p)
    torch.testing.assert_close(got, torch.tensor([by_sorting(row, temperature, top_k, top_p) for row in logits.tolist()]))


def test_shape_probs_by_default_is_the_softmax_in_float32():
    logits = torch.randn(2, 5, dtype=torch.bfloat16)
    assert shape_probs(logits).dtype == torch.float32 and shape_probs(logits, 0).dtype == torch.float32
    torch.testing.assert_close(shape_probs(logits), logits.float().softmax(-1))


def test_top_p_keeps_no_token_once_the_better_ones_reach_it():
    for V, top_p, kept in ((2, 0.5, 1), (2, 0.51, 2), (4, 0.5, 2), (4, 0.75, 3)):  # halves and quarters are exact
        assert sorted(shape_probs(torch.zeros(1, V), top_p=top_p)[0].tolist(), reverse=True) == pytest.approx([1 / kept] * kept + [0] * (V - kept))


def test_top_p_of_1_keeps_what_rounding_would_lose():
    logits = torch.tensor([[0.0, -30.0, -40.0]])  # in float32 the first alone adds up to 1
    assert torch.equal(shape_probs(logits, top_p=1.0), logits.softmax(-1)) and (shape_probs(logits, top_p=1.0) > 0).all()
    assert (shape_probs(logits, top_p=0.999) > 0).sum() == 1


def test_dials_at_their_borders():
    for fine in ((0, None, None), (0.1, 1, 1), (3, 10**9, 1e-9), (1, None, 1.0)):
        check_dials(*fine)
    for wrong, flag in (((-0.1, None, None), "--temperature is -0.1"), ((1, 0, None), "--top-k is 0"), ((1, None, 0.0), "--top-p is 0.0"), ((1, None, 1.01), "--top-p is 1.01")):
        with pytest.raises(UserError, match=flag):
            check_dials(*wrong)


def test_choose():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    assert choose(logits, 0).tolist() == [1, 0]
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([choose(logits, generator=g) for _ in range(4000)])
    for b in range(2):
        share = torch.bincount(drawn[:, b], minlength=3) / 4000
        torch.testing.assert_close(share, logits[b].softmax(-1), rtol=0, atol=0.03)
    assert {*drawn[:, 0].tolist()} == {0, 1, 2}
    only = [choose(logits, 1.0, 1, generator=g).tolist() for _ in range(20)] + [choose(logits, 1.0, None, 0.1, generator=g).tolist() for _ in range(20)]
    assert only == [[1, 0]] * 40
    assert choose(torch.zeros(3, 1)).tolist() == [0, 0, 0]  # a vocabulary of one
    again = [choose(logits, generator=torch.Generator().manual_seed(7)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_next_logits_reads_the_last_block(model):
    idx = torch.randint(20, (2, 13))
    want = model(idx[:, -8:])[:, -1]
    torch.testing.assert_close(next_logits(model, idx, None), want)
    torch.testing.assert_close(next_logits(model, idx, KVCache(CFG, 2)), want)
    cache = KVCache(CFG, 2)
    for t in range(1, 9):
        torch.testing.assert_close(next_logits(model, idx[:, :t], cache), model(idx[:, :t])[:, -1], rtol=1e-4, atol=1e-4)
        assert cache.length == t
    assert next_logits(model, idx, None).shape == (2, 20)


def test_a_cache_that_steps_by_itself_is_asked(model):
    class Own:
        length = 3

        def step(self, new):
            return ("logits of", new.tolist())

    assert next_logits(model, torch.arange(5)[None], Own()) == ("logits of", [[3, 4]])


def test_new_cache(model):
    assert new_cache(model, 3, 5).k.shape == (2, 3, 2, 5, 8) and new_cache(model, 1, 500).k.shape == (2, 1, 2, 8, 8)
    assert kv_heads(model) is None
    torch.manual_seed(0)
    fewer = GPT(CFG)
    fewer.transformer.h[0].attn.kv_heads = 1
    assert new_cache(fewer, 1, 4).k.shape == (2, 1, 1, 4, 8)
    fewer.new_cache = lambda B, room: (B, room)
    assert new_cache(fewer, 2, 50) == (2, 8)


def greedy(model, row, n):
    for _ in range(n):
        row = row + [int(model(torch.tensor([row[-8:]]))[0, -1].argmax())]
    return row


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation(model, use_cache):
    idx = torch.randint(20, (3, 4), generator=torch.Generator().manual_seed(2))
    out = generate(model, idx, 9, temperature=0, use_cache=use_cache)
    assert out.tolist() == [greedy(model, row, 9) for row in idx.tolist()]
    assert generate(model, idx, 0).tolist() == idx.tolist()


@pytest.mark.parametrize("cached, sizes", [({}, [3, 1, 1, 1]), (dict(use_cache=True), [3, 1, 1, 1]), (dict(use_cache=False), [3, 4, 5, 6])])
def test_a_cache_spares_the_past(model, cached, sizes):
    read = []
    handle = model.transformer.wte.register_forward_hook(lambda module, args, out: read.append(args[0].size(1)))
    generate(model, torch.zeros(2, 3, dtype=torch.long), 4, **cached)
    handle.remove()
    assert read == sizes


def test_by_default_draws_at_temperature_1_from_everything(model):
    idx = torch.randint(20, (4, 3), generator=torch.Generator().manual_seed(2))
    draw = lambda **dials: generate(model, idx, 12, generator=torch.Generator().manual_seed(0), **dials).tolist()
    assert draw() == draw(temperature=1.0, top_k=None, top_p=None, use_cache=True, prompt_lengths=[3] * 4, stop=None) != draw(temperature=1.5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_several_lengths(model, use_cache):
    idx = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(3))
    lengths = [5, 2, 3]
    out = generate(model, idx, 4, temperature=0, prompt_lengths=lengths, use_cache=use_cache)
    for row, given, n in zip(out.tolist(), idx.tolist(), lengths):
        assert row == greedy(model, given[:n], 9 - n)


def test_a_row_that_stopped_repeats_the_stop(model):
    idx = torch.randint(20, (4, 3), generator=torch.Generator().manual_seed(4))
    free = generate(model, idx, 12, temperature=1.0, generator=torch.Generator().manual_seed(5))
    stop = int(free[0, 6])
    out = generate(model, idx, 12, temperature=1.0, generator=torch.Generator().manual_seed(5), stop=stop)
    for got, want in zip(out.tolist(), free.tolist()):
        at = next((t for t in range(3, 15) if want[t] == stop), None)
        assert got == (want if at is None else want[: at + 1] + [stop] * (14 - at))
    given = idx.clone()
    given[:, 1] = stop  # inside a prompt it is only a token
    assert not (generate(model, given, 6, temperature=0, stop=stop)[:, 3:] == stop).all()


def test_all_rows_stopped_ends_early(model):
    calls = []
    handle = model.transformer.ln_f.register_forward_hook(lambda *a: calls.append(1))
    idx = torch.randint(20, (1, 3), generator=torch.Generator().manual_seed(6))
    first = int(generate(model, idx, 1, temperature=0)[0, -1])
    calls.clear()
    assert generate(model, idx, 5, temperature=0, stop=first)[0, 3:].tolist() == [first] * 5 and len(calls) == 1
    handle.remove()


@pytest.mark.parametrize("new, looks", [(15, False), (16, True)])
def test_off_the_cpu_a_stop_is_looked_for_at_every_sixteenth_token(new, looks):
    "On the device `meta` looking at a value is an error; on a GPU it would be a wait"
    model = GPT(GPTConfig(**{**vars(CFG), "block_size": 20, "n_layer": 1})).to("meta")
    idx = torch.zeros(2, 1, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="meta") if looks else nullcontext():
        assert generate(model, idx, new, temperature=0, stop=3).shape == (2, 1 + new)


def test_generation_leaves_the_mode_and_refuses_nonsense(model):
    idx = torch.zeros(1, 2, dtype=torch.long)
    for training in (True, False):
        model.train(training)
        assert not generate(model, idx, 1).requires_grad and model.training is training
    model.eval()
    for wrong, says in ((dict(max_new_tokens=-1), "max_new_tokens is -1"), (dict(max_new_tokens=1, temperature=-1), "--temperature is -1"), (dict(max_new_tokens=1, prompt_lengths=[0]), "the prompt is empty")):
        with pytest.raises(UserError, match=says):
            generate(model, idx, **wrong)
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(model, idx[:, :0], 1)
    assert generate(model, idx, 1, prompt_lengths=[2]).shape == (1, 3)
    for wrong, T in ((idx, 2), (idx[:, :0], 0)):
        with pytest.raises(UserError, match=f"prompt_lengths has 3, but the rows have {T} tokens"):
            generate(model, wrong, 1, prompt_lengths=[3])


def test_dropout_is_off_while_generating():
    torch.manual_seed(0)
    noisy = GPT(GPTConfig(**{**vars(CFG), "dropout": 0.5})).train()
    idx = torch.randint(20, (2, 4))
    assert torch.equal(generate(noisy, idx, 6, temperature=0), generate(noisy, idx, 6, temperature=0))


def test_continue_text():
    tok = CharTokenizer("abcdefghij klmnopq")
    torch.manual_seed(1)
    model = GPT(GPTConfig(**{**vars(CFG), "vocab_size": tok.n_vocab}))
    said = continue_text(model, tok, "abc", n=3, max_new_tokens=12, seed=5)
    assert len(said) == 3 and len(set(said)) > 1 and all(len(t) <= 12 and "<|endoftext|>" not in t for t in said)
    assert said == continue_text(model, tok, "abc", n=3, max_new_tokens=12, seed=5) != continue_text(model, tok, "abc", n=3, max_new_tokens=12, seed=6)
    greedy = continue_text(model, tok, "abcdefghij", temperature=0, max_new_tokens=4)
    assert greedy == continue_text(model, tok, "cdefghij", temperature=0, max_new_tokens=4)  # the last block_size tokens
    assert len(continue_text(model, tok, "", max_new_tokens=3)) == 1
    assert continue_text(model, tok, "a") == continue_text(model, tok, "a", 1, 100, 1337)


def test_continue_text_by_default_is_one_of_a_hundred_tokens():
    tok = CharTokenizer("ab")
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**vars(CFG), "vocab_size": tok.n_vocab}))
    with torch.no_grad():  # whatever was said, "a" follows
        model.transformer.ln_f.bias.copy_(1e6 * model.transformer.wte.weight[tok.encode("a")[0]])
        model.transformer.ln_f.weight.zero_()
    assert continue_text(model, tok, "b") == ["a" * 100] and continue_text(model, tok, "b", 2, 3) == ["aaa", "aaa"]


def test_continue_text_ends_at_the_end_of_the_document():
    tok = CharTokenizer("ab")
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**vars(CFG), "vocab_size": tok.n_vocab}))
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(100 * model.transformer.wte.weight[tok.eot_token])
        model.transformer.ln_f.weight.zero_()
    assert continue_text(model, tok, "ab", temperature=0) == [""]
