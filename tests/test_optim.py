"""The optimiser: AdamW equals PyTorch's, groups hold each parameter once, schedules at every step, two optimisers that step as one."""

import math

import pytest
import torch
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import GPT
from gpt2_course.optim import Together, adamw, adamw_step, cosine_lr, decay_groups, muon, wsd_lr

CFG = GPTConfig(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.parametrize("settings", [{}, dict(beta1=0.8, beta2=0.99, decay=0.3, eps=1e-3), dict(decay=0.0)])
def test_adamw_by_hand_equals_pytorchs(settings):
    full = dict(beta1=0.9, beta2=0.95, decay=0.1, eps=1e-8) | settings
    torch.manual_seed(0)
    p = torch.randn(3, 4, dtype=torch.float64)
    theirs = torch.nn.Parameter(p.clone())
    opt = torch.optim.AdamW([theirs], lr=0.05, betas=(full["beta1"], full["beta2"]), weight_decay=full["decay"], eps=full["eps"])
    m = v = torch.zeros_like(p)
    for t in range(1, 8):
        g = torch.randn(3, 4, dtype=torch.float64)
        theirs.grad = g.clone()
        opt.step()
        p, m, v = adamw_step(p, g, m, v, t, 0.05, **settings)
        torch.testing.assert_close(p, theirs.detach())
        torch.testing.assert_close(m, opt.state[theirs]["exp_avg"])
        torch.testing.assert_close(v, opt.state[theirs]["exp_avg_sq"])


def test_decay_groups_hold_every_trained_parameter_once():
    model = GPT(CFG)
    model.transformer.h[0].mlp.c_fc.requires_grad_(False)
    decayed, kept = decay_groups(model, 0.25)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    ids = [id(p) for g in (decayed, kept) for p in g["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() == 1 for p in kept["params"])


def test_adamw_takes_the_groups():
    opt = adamw(GPT(CFG), 0.01, 0.2, (0.8, 0.9), "cpu")
    assert [(g["lr"], g["weight_decay"], g["betas"], g["fused"]) for g in opt.param_groups] == [(0.01, 0.2, (0.8, 0.9), True), (0.01, 0.0, (0.8, 0.9), True)]


@pytest.mark.parametrize("device, fused", [("cpu", True), ("cuda", True), ("mps", False)])
@pytest.mark.parametrize("make", [adamw, muon])
def test_adamw_is_fused_where_there_is_a_kernel(make, device, fused):
    opt = make(GPT(CFG), 0.01, 0.2, (0.8, 0.9), device)
    opt = opt.optimizers["adamw"] if make is muon else opt
    assert [g["fused"] for g in opt.param_groups] == [fused, fused]


def test_cosine_at_every_step():
    rate = lambda s, warmup=4, steps=20: cosine_lr(s, max_lr=1.0, min_lr=0.1, warmup=warmup, steps=steps)
    assert [rate(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for s in range(4, 20):
        assert rate(s) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (s - 4) / 15)) / 2)
    assert rate(4) == 1.0 and rate(19) == rate(20) == rate(1000) == 0.1
    assert rate(0, warmup=0) == 1.0 and rate(0, 0, 1) == 0.1 and rate(0, 1, 2) == 1.0 and rate(1, 1, 2) == 0.1
    assert rate(1, 1, 3) == 1.0 and rate(2, 1, 3) == 0.1


def test_warm_up_stable_decay_at_every_step():
    rate = lambda s, **more: wsd_lr(s, **(dict(max_lr=1.0, min_lr=0.1, warmup=4, steps=20) | more))
    assert [rate(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    want = [1.0] * 12 + [0.1 + 0.9 * k / 4 for k in (3, 2, 1, 0)]
    assert [rate(s) for s in range(4, 20)] == pytest.approx(want) and rate(20) == rate(21) == rate(25) == 0.1
    assert [rate(s, cooldown=1.0) for s in (3, 4, 12, 19)] == pytest.approx([1.0, 0.1 + 0.9 * 15 / 16, 0.1 + 0.9 * 7 / 16, 0.1])
    assert [rate(s, cooldown=0.0) for s in (17, 18, 19)] == pytest.approx([1.0, 1.0, 0.1])
    assert wsd_lr(0, max_lr=1.0, min_lr=0.1, warmup=0, steps=1) == 0.1


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(model, opt, n):
    for s in range(n):
        x = torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(s))
        opt.zero_grad()
        model(x, x).backward()
        opt.step()


def test_together_steps_as_one_and_comes_back():
    torch.manual_seed(0)
    a = GPT(CFG)
    matrices, rest = ([p for p in a.parameters() if (p.dim() > 1) is big] for big in (True, False))
    opt = Together(big=torch.optim.SGD(matrices, lr=0.1), small=torch.optim.SGD(rest, lr=0.1, momentum=0.9))
    assert [g["lr"] for g in opt.param_groups] == [0.1, 0.1]
    opt.param_groups[1]["lr"] = 0.05
    assert opt.optimizers["small"].param_groups[0]["lr"] == 0.05
    before = [p.detach().clone() for p in a.parameters()]
    train(a, opt, 2)
    assert all(not torch.equal(p, q) for p, q in zip(a.parameters(), before) if p.grad.abs().sum() > 0)
    opt.zero_grad()
    assert all(p.grad is None for p in a.parameters())
    state = opt.state_dict()
    assert state.keys() == {"big", "small"}
    fresh = Together(big=torch.optim.SGD(matrices, lr=9), small=torch.optim.SGD(rest, lr=9, momentum=0.9))
    fresh.load_state_dict(state)
    assert [g["lr"] for g in fresh.param_groups] == [0.1, 0.05] and len(fresh.optimizers["small"].state) == len(rest)
    with pytest.raises(UserError, match="the saved state is not that of big and small"):
        fresh.load_state_dict({"big": state["big"]})


def test_together_can_keep_gradients_as_zeros():
    a = GPT(CFG)
    opt = Together(all=torch.optim.SGD(a.parameters(), lr=0.1))
    train(a, opt, 1)
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in a.parameters())


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    model = GPT(CFG)
    names = {id(p): n for n, p in model.named_parameters()}
    opt = muon(model, 0.02, 0.1, (0.9, 0.95), "cpu")
    inner = {names[id(p)] for g in opt.optimizers["muon"].param_groups for p in g["params"]}
    assert inner == {n for n in names.values() if n.startswith("transformer.h.") and n.endswith("weight") and "ln_" not in n}
    rest = [(names[id(p)], g["weight_decay"]) for g in opt.optimizers["adamw"].param_groups for p in g["params"]]
    assert {n for n, _ in rest} == set(names.values()) - inner and dict(rest)["transformer.wte.weight"] == 0.1 and dict(rest)["transformer.ln_f.bias"] == 0.0
    assert [g["weight_decay"] for g in opt.optimizers["adamw"].param_groups] == [0.1, 0.0]
    group = opt.optimizers["muon"].param_groups[0]
    assert (group["lr"], group["weight_decay"], group["adjust_lr_fn"]) == (0.02, 0.1, "match_rms_adamw")
    assert [(g["lr"], g["betas"]) for g in opt.optimizers["adamw"].param_groups] == [(0.02, (0.9, 0.95))] * 2
    before = weights(model)
    train(model, opt, 1)
    assert not torch.equal(weights(model), before)
    model.transformer.h[0].mlp.c_fc.requires_grad_(False)
    frozen = muon(model, 0.02, 0.1, (0.9, 0.95), "cpu")
    assert id(model.transformer.h[0].mlp.c_fc.weight) not in {id(p) for g in frozen.param_groups for p in g["params"]}


def test_muon_needs_a_torch_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="has no Muon: use adamw"):
        muon(GPT(CFG), 0.02, 0.1, (0.9, 0.95), "cpu")
