"""One test for each of fifteen defects that were found by running three earlier trainers: each test fails for a package that has that defect."""

import ast
import json
import math
import re
import shutil
import sys
import tomllib
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt2_course import checkpoint, evals, prepare, train, trainer
from gpt2_course.config import PRESETS, GPTConfig
from gpt2_course.data import TokenLoader, document_rows, open_split
from gpt2_course.distributed import World
from gpt2_course.generation import generate
from gpt2_course.model import GPT, count_params, loss_at_init
from gpt2_course.optim import adamw, cosine_lr

from conftest import REPO

CFG = GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=32)
EOT = 49


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Models this small are faster with one thread"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A corpus of numbered documents, one of them longer than a shard, and a run of three steps: (data, out, finished run)"
    root, argv = tmp_path_factory.mktemp("made"), sys.argv
    texts = [f"document {i}: " + "word " * (30 if i != 5 else 4000) for i in range(60)]
    (root / "texts.jsonl").write_text("\n".join(json.dumps(dict(text=t)) for t in texts))
    sys.argv = f"prepare {root}/texts.jsonl --out {root}/data --tokenizer char --val-tokens 1500 --shard-tokens 1000".split()
    prepare.main()
    sys.argv = argv
    flags = "--preset nano-char --device cpu --dtype float32 --no-compile --steps 3 --batch-tokens 128 --micro-batch 2 --log-every 1 --eval-every 100 --sample-every 0"
    shape = "--model.block-size 16 --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --optim.warmup 1 --eval-tokens 512"
    cfg = train.read_options([*flags.split(), *shape.split(), "--sample-prompt", "document", "--data", str(root / "data"), "--out", str(root / "run")])
    silent = lambda *a: None
    run = trainer.fit(trainer.preflight(cfg, World(), silent), World(), silent)
    return root / "data", root / "run", run


def metrics(out, split):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["split"] == split]


def test_defect_01_replicas_are_told_before_the_forward_pass_not_to_synchronise():
    "A wrapper that looks at its flag in `forward`, as DDP does: only the last micro-batch synchronises"

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.sync, self.seen = GPT(CFG), True, []

        @contextmanager
        def no_sync(self):
            self.sync = False
            yield
            self.sync = True

        def forward(self, x, y):
            self.seen.append(self.sync)
            return self.model(x, y)

    wrapper, ids = Wrapper(), torch.zeros(1, 4, dtype=torch.long)
    trainer.accumulate(wrapper, [(ids, ids)] * 3, nullcontext, torch.amp.GradScaler("cpu", enabled=False))
    assert wrapper.seen == [False, False, True]


def third_party(path):
    "(module, whether it is imported where the file is read) of each import that is neither ours nor Python's"
    tree = ast.parse(path.read_text("utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in {n.split(".")[0] for n in names} - {"gpt2_course"}:
            if name not in sys.stdlib_module_names:
                yield name, id(node) not in inside


def test_defect_02_what_is_imported_is_declared_and_what_the_readme_calls_exists():
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    names = lambda needs: {re.match(r"[\w-]+", n)[0].replace("-", "_").lower() for n in needs}
    needed = names(project["dependencies"])
    optional = needed | names(n for extra in project["optional-dependencies"].values() for n in extra)
    found = [(name, top, path.name) for path in (REPO / "gpt2_course").rglob("*.py") for name, top in third_party(path)]
    brought = {"triton", "ipython", "pil", "tokenizers"}  # by CUDA builds of torch, ipykernel, matplotlib, transformers
    missing = [f for f in found if f[0].lower() not in (needed if f[1] else optional | brought)]
    assert {"torch", "numpy", "tqdm"} <= {name for name, top, _ in found if top} and not missing, missing
    called = set(re.findall(r"-m gpt2_course\.(\w+)", (REPO / "README.md").read_text("utf-8")))
    assert {"train", "prepare", "plan"} <= called and all((REPO / "gpt2_course" / f"{name}.py").exists() for name in called), called


def test_defect_03_a_checkpoint_holds_no_class_and_loads_elsewhere(made, tmp_path):
    step = next((made[1] / "checkpoints").glob("step_*"))
    state = torch.load(step / "state.pt", weights_only=True)
    plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)

    def walk(value):
        assert isinstance(value, plain), type(value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            walk(part)

    walk(state)
    moved = step.rename(tmp_path / "anywhere")
    try:
        assert checkpoint.load_model(moved).cfg == made[2].cfg.model
    finally:
        moved.rename(step)


def test_defect_04_no_padded_id_is_ever_sampled():
    "The padded rows of the table are made irresistible, and still never leave the model"
    model = GPT(CFG).eval()
    with torch.no_grad():
        model.transformer.wte.weight[CFG.vocab_size :] = 100.0
    idx = torch.zeros(4, 1, dtype=torch.long)
    assert model(idx).shape[-1] == CFG.vocab_size < len(model.transformer.wte.weight)
    assert generate(model, idx, 30, temperature=5.0).max() < CFG.vocab_size


def test_defect_05_the_last_checkpoint_holds_the_last_update_and_speed_is_in_seconds(made):
    _, out, run = made
    last = checkpoint.find(out, "last")
    ours = checkpoint.load_model(last).state_dict()
    assert last.name == "step_00000003" and all(torch.equal(v, ours[k]) for k, v in run.raw.state_dict().items())
    before = 0.0
    for row in metrics(out, "train"):
        spent, rounded = row["seconds"] - before, 0.0011  # the file has three decimals
        assert 128 / (spent + rounded) <= row["tokens_per_s"] <= 128 / max(spent - rounded, 1e-6)
        before = row["seconds"]


def test_defect_06_choices_are_scored_in_float32_and_short_contexts_are_fine():
    "Under bf16 autocast the head and the log-probabilities are computed in float32; a context may be one token"
    torch.manual_seed(0)
    model = GPT(replace(CFG, block_size=64)).eval()
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    pairs = [([7], [1, 2, 3]), ([7, 8], [4])]
    found = evals.ending_logprobs(model, pairs, autocast)[0]
    for (context, ending), value in zip(pairs, found):
        with torch.no_grad(), autocast():
            hidden = model.hidden(torch.tensor([context + ending]))
        logp = (hidden.double() @ model.lm_head.weight[:50].double().T).log_softmax(-1)[0]
        exact = sum(float(logp[len(context) - 1 + i, t]) for i, t in enumerate(ending))
        assert float(value) == pytest.approx(exact, abs=1e-4)  # in bf16 it would be 1e-2 off
    assert found.dtype in (torch.float32, torch.float64)
    examples = [evals.Choice([7], [[1], [2, 3]], (1, 2), 0)]
    assert float(evals.choice_sum(model, examples)[0]) == 1


def test_defect_07_long_documents_short_shards_and_the_border(made):
    "A document of four shards is written whole; high ranks read past a short last shard; no document is on both sides"
    data = made[0]
    meta = json.loads((data / "meta.json").read_text())
    eot = meta["vocab_size"] - 1
    text = {split: np.concatenate(open_split(data, split)) for split in ("train", "val")}
    shards = [len(s) for split in text for s in open_split(data, split)]
    assert max(shards) <= 1000 and len(shards) > 20
    assert all(t[-1] == eot for t in text.values()) and sum(int((t == eot).sum()) for t in text.values()) == 60
    longest = np.diff(np.flatnonzero(np.concatenate([[eot], *text.values()]) == eot)).max()
    assert longest > 20_000
    shards = [np.arange(100), np.arange(3)]
    for rank in range(4):
        loader = TokenLoader(shards, 2, 8, rank=rank, world=4)
        assert all(loader.next()[0].shape == (2, 8) for _ in range(20))


def test_defect_08_evaluation_drops_nothing():
    model, idx = GPT(replace(CFG, dropout=0.5)), torch.arange(16)[None]
    model.eval()
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_defect_09_the_default_is_gpt2_flags_count_and_a_resume_finds_what_was_written(made):
    with torch.device("meta"):
        assert count_params(GPT(GPTConfig())) == 124_439_808
    assert train.read_options(["--model.n-layer", "2"]).model.n_layer == 2 != PRESETS["nano"].model.n_layer
    data, out, _ = made
    again = train.read_options(["--data", str(data), "--out", str(out), "--resume"])
    plan = trainer.preflight(again, World(), lambda *a: None)
    assert plan.resume == out / "checkpoints" / "step_00000003" and plan.cfg.model.n_embd == 16


def test_defect_10_the_first_step_learns_and_rotary_positions_take_any_length():
    assert cosine_lr(0, max_lr=1.0, min_lr=0.1, warmup=10, steps=100) > 0
    from gpt2_course import variants

    name = next(n for n in variants.VARIANTS if "rope" in n or "llama" in n)
    model = variants.make_gpt(CFG, name).eval()
    idx = torch.randint(50, (1, 16))
    for T in (1, 5, 15, 16):
        torch.testing.assert_close(model(idx[:, :T]), model(idx)[:, :T], rtol=1e-4, atol=1e-5)


def test_defect_11_cached_attention_runs_and_validation_happens(made):
    "The cache needs a mask of its own beside causality; step 0 and the last step are validated whatever --eval-every says"
    model, idx = GPT(CFG).eval(), torch.randint(50, (2, 7))
    ask = lambda cached: generate(model, idx, 9, temperature=0, use_cache=cached)
    assert torch.equal(ask(True), ask(False))
    assert [row["step"] for row in metrics(made[1], "val")] == [0, 3]


def test_defect_12_norms_are_not_decayed_and_the_model_begins_at_gpt2s_loss():
    model = GPT(CFG)
    decayed = {id(p) for g in adamw(model, 1e-3, 0.1, (0.9, 0.95), "cpu").param_groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() == 2), name
    std = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() == 2}
    scaled = 0.02 / math.sqrt(2 * CFG.n_layer)
    for name, value in std.items():
        assert value == pytest.approx(scaled if name.endswith("c_proj.weight") else 0.02, rel=0.1), name
    assert loss_at_init(50257, 768) == pytest.approx(10.98, abs=0.01)
    torch.manual_seed(0)
    wide = GPTConfig(block_size=32, vocab_size=2000, n_layer=2, n_head=4, n_embd=256)
    ids = torch.randint(2000, (2, 16, 33))
    loss = GPT(wide)(ids[0, :, :-1], ids[1, :, 1:]).item()
    assert loss == pytest.approx(loss_at_init(2000, 256), abs=0.02)


def test_defect_13_the_end_is_learned_and_padding_is_not():
    "In padded documents the end of text is a target; filling is none; rows that are all filling do no harm"
    shards = [np.array([1, 2, 3, EOT, 4, 5, EOT], np.uint16)]
    assert (document_rows(shards, 8, EOT)[:, 2] > 0).all()
    loader = TokenLoader(shards, 2, 8, order="documents", eot=EOT)
    x, y = loader.next()
    assert (y == EOT).sum() == 2 and (y == -1).sum() == 16 - 5
    model = GPT(CFG)
    blank = torch.full_like(y[:1], -1)
    both = model(torch.cat([x, x[:1]]), torch.cat([y, blank]))
    torch.testing.assert_close(both, model(x, y))
    both.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_defect_14_compiled_names_never_reach_a_file_and_no_gradient_is_left_over(tmp_path):
    compiled = torch.compile(GPT(CFG))
    assert any("_orig_mod." in k for k in compiled.state_dict())
    step = checkpoint.save(tmp_path, 1, compiled, adamw(compiled, 1e-3, 0.1, (0.9, 0.95), "cpu"), [], {})
    twin = GPT(CFG)
    checkpoint.load_weights(step, twin)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in compiled._orig_mod.state_dict().items())
    ids, scaler, optimizer = torch.zeros(1, 4, dtype=torch.long), torch.amp.GradScaler("cpu", enabled=False), adamw(twin, 1e-3, 0.1, (0.9, 0.95), "cpu")
    trainer.accumulate(twin, [(ids, ids)] * 3, nullcontext, scaler)
    trainer.update(twin, optimizer, scaler, 1e-3, 1.0)
    assert all(p.grad is None for p in twin.parameters())


def test_defect_15_a_resumed_run_reads_on_where_it_stopped(made, tmp_path):
    data, out, _ = made
    copy = shutil.copytree(out, tmp_path / "run")
    cfg = train.read_options(["--data", str(data), "--out", str(copy), "--resume", "--steps", "6"])
    run = trainer.start_run(trainer.preflight(cfg, World(), lambda *a: None), World(), lambda *a: None)
    assert run.loader.position == 3 * 128 // 16
    fresh = TokenLoader(open_split(data, "train"), 2, 16, cfg.seed, cfg.order)
    first = fresh.next()[0]
    for _ in range(3 * 4 - 1):
        fresh.next()
    going_on = run.loader.next()[0]
    assert torch.equal(going_on, fresh.next()[0]) and not torch.equal(going_on, first)
