"""Blocks and the GPT: parameters by name, formulas by counting, initialisation by its statistics, the padded vocabulary unseen from outside."""

import math

import numpy as np
import pytest
import torch
from gpt2_course.attention import KVCache, attend
from gpt2_course.blocks import MLP, Block, LayerNorm, gelu
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import (
    GPT,
    active_params,
    count_params,
    crop_block_size,
    flops_per_token,
    full_loss,
    init_std,
    init_weights,
    loss_at_init,
    mean_loss,
    params_by_formula,
)

CFG = GPTConfig(block_size=10, vocab_size=50, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gpt(seed=0, **more):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**vars(CFG), **more}))


# --- blocks ---


def test_layer_norm_is_its_definition():
    norm = LayerNorm(6)
    assert norm.weight.tolist() == [1.0] * 6 and norm.bias.tolist() == [0.0] * 6 and LayerNorm(6, bias=False).bias is None
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0)), norm.bias.copy_(-torch.arange(6.0))
    for x in (torch.randn(2, 3, 6) * 4 + 2, torch.randn(2, 3, 6) * 1e-3):  # among faint values the 1e-5 shows
        z = x.double().numpy()
        want = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5) * np.arange(6) - np.arange(6)
        torch.testing.assert_close(norm(x), torch.from_numpy(want).float())


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    want = [0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) for a in x.tolist()]
    torch.testing.assert_close(gelu(x), torch.tensor(want, dtype=torch.float64))


def test_mlp_is_four_times_as_wide_and_drops_in_training():
    mlp, x = MLP(CFG), torch.randn(2, 3, 16)
    assert mlp.c_fc.weight.shape == (64, 16) and mlp.c_proj.weight.shape == (16, 64)
    torch.testing.assert_close(mlp(x), mlp.c_proj(gelu(mlp.c_fc(x))))
    dropped = MLP(GPTConfig(**{**vars(CFG), "dropout": 0.5}))
    assert (dropped(x) == 0).float().mean() > 0.2 and torch.equal(dropped.eval()(x), dropped(x))
    bare = MLP(GPTConfig(**{**vars(CFG), "bias": False}))
    assert {n for n, _ in bare.named_parameters()} == {"c_fc.weight", "c_proj.weight"}


def test_block_is_pre_norm():
    block, x = Block(CFG).eval(), torch.randn(2, 5, 16)
    h = x + block.attn(block.ln_1(x))
    torch.testing.assert_close(block(x), h + block.mlp(block.ln_2(h)))
    assert {n for n, _ in Block(GPTConfig(**{**vars(CFG), "bias": False})).named_parameters() if n.endswith("bias")} == set()


def test_block_takes_parts_and_hands_the_cache_on():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, cfg, attention):
            super().__init__()
            assert attention is attend

        def forward(self, x, cache, layer):
            seen.append((cache, layer))
            return torch.zeros_like(x)

    block = Block(CFG, attend, attn=Spy, norm=lambda C, bias: torch.nn.Identity(), mlp=lambda cfg: torch.nn.Identity())
    assert torch.equal(block(torch.ones(1, 2, 16), "a cache", 7), 2 * torch.ones(1, 2, 16)) and seen == [("a cache", 7)]
    block(torch.ones(1, 2, 16), "a cache"), block(torch.ones(1, 2, 16))
    assert seen[1:] == [("a cache", 0), (None, 0)]


# --- the vocabulary is padded inside only ---


def test_padding_is_never_seen():
    model, idx = gpt(), torch.randint(50, (2, 7))
    assert model.transformer.wte.weight.shape == (128, 16) and model.lm_head.weight is model.transformer.wte.weight
    state = model.state_dict()
    assert state["transformer.wte.weight"].shape == state["lm_head.weight"].shape == (50, 16)
    assert model(idx).shape == (2, 7, 50)
    before = model(idx, idx)
    with torch.no_grad():
        model.transformer.wte.weight[50:] = 1e3
    assert torch.equal(model(idx, idx), before)


@pytest.mark.parametrize("drop", [None, "lm_head.weight", "transformer.wte.weight"])
def test_weights_load_under_either_name(drop):
    a, b, idx = gpt(0), gpt(1), torch.randint(50, (1, 5))
    state = {k: v for k, v in a.state_dict().items() if k != drop}
    b.load_state_dict(state)
    assert torch.equal(a(idx), b(idx)) and (b.transformer.wte.weight[50:] == 0).all()
    live = {n: p.detach() for n, p in a.named_parameters()}  # the padded table itself
    c = gpt(2)
    c.load_state_dict(live)
    assert torch.equal(a(idx), c(idx))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(RuntimeError):
        gpt().load_state_dict(gpt(n_embd=8).state_dict())
    with pytest.raises(RuntimeError):
        gpt().load_state_dict({})


# --- initialisation ---


def test_init_std():
    assert init_std("transformer.h.0.attn.c_proj.weight", 8) == init_std("x.mlp.c_proj.weight", 8) == 0.02 / 4
    assert init_std("transformer.h.0.attn.c_attn.weight", 8) == 0.02 and init_std("transformer.wte.weight", 8, 0.5) == 0.5
    assert init_std("h.c_proj.weight", 2, 1.0) == 0.5


def test_initialisation_has_its_statistics():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=512, n_layer=3, n_head=2, n_embd=64))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
        else:
            want = 0.02 / math.sqrt(6) if name.endswith("c_proj.weight") else 0.02
            p = p.detach()
            assert float(p.std()) == pytest.approx(want, rel=0.05) and abs(float(p.mean())) < want / 10, name
    init_weights(model, 3, std=0.1)
    assert float(model.transformer.wpe.weight.detach().std()) == pytest.approx(0.1, rel=0.05)


def test_loss_at_init():
    assert loss_at_init(50257, 768) == pytest.approx(math.log(50257) + 768 * 0.0004 / 2)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=1000, n_layer=2, n_head=2, n_embd=256))
    x = torch.randint(1000, (16, 16))
    assert model(x, torch.randint(1000, (16, 16))).item() == pytest.approx(loss_at_init(1000, 256), abs=0.02)


# --- forward ---


def test_mean_loss_counts_what_has_a_target():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[1, -1, 4], [-1, 0, 2]])
    z = logits.double().numpy()
    nll = [np.log(np.exp(z[b, t]).sum()) - z[b, t, targets[b, t]] for b, t in np.ndindex(2, 3) if targets[b, t] >= 0]
    assert mean_loss(logits, targets).item() == pytest.approx(np.mean(nll), rel=1e-6)


def test_forward_is_its_definition():
    model, idx = gpt().eval(), torch.randint(50, (2, 6))
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(6))
    for block in model.transformer.h:
        x = block(x)
    logits = (model.transformer.ln_f(x) @ model.transformer.wte.weight.T)[..., :50]
    torch.testing.assert_close(model(idx), logits)
    targets = torch.randint(-1, 50, (2, 6))
    torch.testing.assert_close(model(idx, targets), mean_loss(logits, targets))
    torch.testing.assert_close(full_loss(model.transformer.ln_f(x), model.lm_head, targets, 50), mean_loss(logits, targets))


def test_dropout_of_the_embeddings():
    model, idx = gpt(dropout=0.5), torch.randint(50, (2, 6))
    assert not torch.equal(model(idx), model(idx))
    assert torch.equal(model.eval()(idx), model(idx)) and model.transformer.drop.p == 0.5


def test_too_long_a_row_is_refused():
    model = gpt()
    assert model(torch.zeros(1, 10, dtype=torch.long)).shape == (1, 10, 50)
    with pytest.raises(UserError, match="11 tokens do not fit into the block of 10"):
        model(torch.zeros(1, 11, dtype=torch.long))
    cache = KVCache(CFG, 1)
    model(torch.zeros(1, 6, dtype=torch.long), cache=cache)
    with pytest.raises(UserError, match="11 tokens"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 1, 5)])
def test_cache_changes_nothing(sizes):
    model, idx = gpt().eval(), torch.randint(50, (2, 7))
    cache, at, parts = KVCache(CFG, 2), 0, []
    for n in sizes:
        parts.append(model(idx[:, at : at + n], cache=cache))
        at += n
    assert cache.length == 7
    torch.testing.assert_close(torch.cat(parts, 1), model(idx))


def test_a_part_with_a_penalty_adds_to_the_training_loss_only():
    class Penalised(MLP):
        penalty = torch.tensor(3.0)

    model, idx = GPT(CFG, block=lambda cfg, attention: Block(cfg, attention, mlp=Penalised)), torch.randint(50, (2, 5))
    bare = model.parts["loss"](model.hidden(idx), model.lm_head, idx, 50)
    torch.testing.assert_close(model(idx, idx), bare + 6.0)
    torch.testing.assert_close(model.eval()(idx, idx), bare)
    assert gpt().penalised == [] and model(idx).shape == (2, 5, 50)


def test_own_parts_are_used():
    seen = []
    model = GPT(CFG, norm=lambda C, bias: torch.nn.Identity(), positions=lambda n, C: torch.nn.Embedding(n, C), loss=lambda *a: seen.append(a[3]) or torch.zeros(()))
    model(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))
    assert seen == [50] and isinstance(model.transformer.ln_f, torch.nn.Identity)


# --- counting ---


@pytest.mark.parametrize("V, T, L, C", [(50, 10, 2, 16), (300, 8, 1, 24), (128, 16, 3, 8)])
def test_counts_agree(V, T, L, C):
    model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=2, n_embd=C))
    counted = sum(v.numel() for k, v in model.state_dict().items() if k != "lm_head.weight")
    assert params_by_formula(V, T, L, C) == count_params(model) == counted
    assert active_params(model) == counted - T * C
    assert flops_per_token(model, 5) == 6 * (counted - T * C) + 12 * L * 5 * C


def test_the_four_sizes():
    assert params_by_formula(50257, 1024, 12, 768) == 124_439_808 and params_by_formula(50257, 1024, 48, 1600) == 1_557_611_200


def test_idle_experts_do_not_count():
    model = gpt()
    before = active_params(model)
    model.transformer.h[0].mlp.idle = 100
    assert active_params(model) == before - 100


# --- a shorter block ---


def test_crop_block_size():
    model, idx = gpt(), torch.randint(50, (1, 4))
    short = crop_block_size(model, 4)
    assert short.cfg.block_size == 4 and short.training and torch.equal(short(idx), model(idx))
    assert crop_block_size(model.eval(), 10).cfg.block_size == 10 and not crop_block_size(model, 1).training
    for wrong in (0, -1, 11):
        with pytest.raises(UserError, match=f"cannot crop a block of 10 to {wrong}"):
            crop_block_size(model, wrong)
    by_hand = GPT(CFG, attend)
    assert crop_block_size(by_hand, 4).transformer.h[1].attn.attention is attend
    assert crop_block_size(gpt(n_layer=1), 3).cfg.n_layer == 1
