"""The measures one by one, on models of a few thousand weights: sums by loops over single windows, examples at the borders of what is accepted, batches by their definition."""

import gzip
import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from gpt2_course import evals
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.model import GPT
from gpt2_course.tokenizer import CharTokenizer

T, V = 8, 30
TOK = CharTokenizer(" abcdefghijklmnopqrstuvw")


def gpt(dropout=0.0, T=T):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=1, n_head=2, n_embd=16, dropout=dropout))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)  # an opinion about what follows
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return gpt()


class Counted:
    "A context for autocast that counts how often it is entered"

    def __init__(self):
        self.times = 0

    @contextmanager
    def __call__(self):
        self.times += 1
        yield


def logprobs(model, ids):
    "(len(ids) - 1, V) log-probabilities of what follows each token, in float64"
    with torch.no_grad():
        return model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)


def ending(model, context, ending):
    "Summed log-probability of the part of the ending that fits, its length, whether each token was the likeliest"
    ids = (context + ending)[-T - 1 :]
    n = min(len(ending), T)
    z = logprobs(model, ids)[-n:]
    return float(z[range(n), ids[-n:]].sum()), n, z.argmax(-1).tolist() == ids[-n:]


# --- validation ---

SHARDS = [np.random.default_rng(i).integers(0, V, n).astype(np.uint16) for i, n in enumerate((35, 5, 26))]  # 4, 0 and 3 windows
WINDOWS = [SHARDS[s][i * T : i * T + T + 1].tolist() for s, n in ((0, 4), (2, 3)) for i in range(n)]


def window_losses(model):
    return [-float(logprobs(model, w)[range(T), w[1:]].sum()) for w in WINDOWS]


@pytest.mark.parametrize("max_tokens, n", [(0, 7), (1, 1), (T - 1, 1), (T, 1), (2 * T - 1, 1), (2 * T, 2), (5 * T + 3, 5), (7 * T, 7), (1000, 7)])
def test_validation_is_the_loss_of_the_first_windows(model, max_tokens, n):
    total = evals.validation_sum(model, SHARDS, 3, max_tokens)
    assert total.dtype == torch.float64 and total[1] == n * T
    assert float(total[0]) == pytest.approx(sum(window_losses(model)[:n]), rel=1e-5)


def test_validation_by_default_takes_everything_in_one_process(model):
    assert torch.equal(evals.validation_sum(model, SHARDS, 3), evals.validation_sum(model, SHARDS, 3, 0, 0, 1))


def test_ranks_take_every_nth_window_and_add_up(model):
    each, want = [evals.validation_sum(model, SHARDS, 2, rank=r, world=3) for r in range(3)], window_losses(model)
    assert [float(e[1]) for e in each] == [3 * T, 2 * T, 2 * T]
    assert [float(e[0]) for e in each] == pytest.approx([sum(want[r::3]) for r in range(3)], rel=1e-5)
    none = evals.validation_sum(model, SHARDS, 2, max_tokens=T, rank=1, world=2)
    assert none.tolist() == [0, 0]


@pytest.mark.parametrize("B, times", [(1, 7), (3, 3), (7, 1), (50, 1)])
def test_validation_takes_B_rows_at_once_inside_autocast(model, B, times):
    counted = Counted()
    total = evals.validation_sum(model, SHARDS, B, autocast=counted)
    assert counted.times == times and float(total[0]) == pytest.approx(sum(window_losses(model)), rel=1e-5)


class Elsewhere:
    "Stands for a model on another device: it notes where its input is, and goes no further"

    class Seen(Exception):
        pass

    cfg, training = GPTConfig(block_size=T, vocab_size=V), False
    eval = train = lambda self, *mode: self

    def __init__(self):
        self.transformer = torch.nn.ModuleDict(dict(wte=torch.nn.Embedding(V, 1, device="meta")))

    def __call__(self, *tensors):
        raise Elsewhere.Seen(*{t.device.type for t in tensors})

    hidden = __call__


@pytest.mark.parametrize("measure", [lambda model: evals.validation_sum(model, SHARDS, 3), lambda model: evals.ending_logprobs(model, WORDS)])
def test_tokens_are_brought_to_the_models_device(measure):
    with pytest.raises(Elsewhere.Seen, match="^meta$"):
        measure(Elsewhere())


CHOICES = [evals.Choice([1, 2, 3], [[4], [5, 6]], [1, 2], 0), evals.Choice([7], [[8, 9], [1, 1, 1]], [3, 2], 1), evals.Choice([3] * 12, [[2, 2], [4]], [2, 1], 1)]
WORDS = [([1, 2, 3], [4]), ([5], [6, 7]), ([8] * 12, [9, 1, 2])]
MEASURES = dict(
    validation=lambda model: evals.validation_sum(model, SHARDS, 3),
    choices=lambda model: torch.from_numpy(evals.choices(model, CHOICES)),
    last_words=lambda model: evals.last_word_sum(model, WORDS),
)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("training", [True, False])
def test_measures_are_taken_in_eval_mode_without_gradients_and_leave_the_mode(measure, training):
    noisy = gpt(dropout=0.5).train(training)
    seen = []
    noisy.transformer.ln_f.register_forward_hook(lambda module, args, out: seen.append((module.training, out.requires_grad)))
    torch.testing.assert_close(measure(noisy), measure(gpt()))
    assert noisy.training is training and seen and set(seen) == {(False, False)}


def test_perplexity_bits_and_standard_error():
    assert evals.perplexity(math.log(50)) == pytest.approx(50) and evals.perplexity(0.0) == 1
    assert evals.bits_per_byte(math.log(256), 1.0) == pytest.approx(8) and evals.bits_per_byte(math.log(4), 0.25) == pytest.approx(0.5)
    assert evals.standard_error(0.5, 101) == pytest.approx(0.05) and evals.standard_error(0.2, 5) == pytest.approx(0.2)
    for sure in (0.0, 1.0):
        assert evals.standard_error(sure, 10) == 0
    for n in (0, 1, 2):  # too few to divide by n - 1
        assert evals.standard_error(0.5, n) == pytest.approx(0.5)
    answers = np.array([1.0] * 3 + [0.0] * 5)
    assert evals.standard_error(answers.mean(), 8) == pytest.approx(answers.std(ddof=1) / math.sqrt(8))


# --- files of examples ---


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read_lines(tmp_path, name):
    path, text = tmp_path / name, '{"a": "ä"}\n\n  \n[2]\n3'
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert evals.read_lines(path) == evals.read_lines(str(path)) == [{"a": "ä"}, [2], 3]


GZ = gzip.compress(b'{"text": "a long line that is cut or bent"}\n' * 50, mtime=0)
DAMAGED = {
    "cut.jsonl.gz": (GZ[:-12], "is not JSON lines"),
    "bent.jsonl.gz": (GZ[:10] + b"\xff" + GZ[11:], "is not JSON lines"),
    "plain.jsonl.gz": (b'{"text": "a"}', "cannot be read .*ot a gzipped file"),
    "half.jsonl": (b'{"text": "a', "is not JSON lines"),
    "latin.jsonl": (b'{"text": "\xe9"}', "is not JSON lines"),
    "empty.jsonl": (b"\n \n", "is empty"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_read_lines_names_what_is_damaged(tmp_path, name):
    content, says = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} {says}"):
        evals.read_lines(tmp_path / name)


def test_read_lines_of_what_is_no_file(tmp_path):
    for path, says in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory|Permission denied")):
        with pytest.raises(UserError, match=f"cannot be read .*({says})"):
            evals.read_lines(path)


ROW = dict(ctx="ab", endings=["c", "de"], label=1)


def test_to_choice():
    e = TOK.encode
    assert evals.to_choice(ROW, TOK) == evals.Choice(e("ab"), [e(" c"), e(" de")], [1, 2], 1)
    assert evals.to_choice({**ROW, "label": "0"}, TOK).label == 0
    assert evals.to_choice({**ROW, "ctx": ""}, TOK).context == [TOK.eot_token]


@pytest.mark.parametrize("wrong", [dict(ctx=None), dict(ctx=3), dict(endings="cd"), dict(endings=None), dict(endings=["c"], label=0), dict(endings=["c", ""]), dict(endings=["c", 4]),
                                   dict(label=2), dict(label=-1), dict(label=None), dict(label="one"), dict(label=0.5)], ids=str)  # fmt: skip
def test_to_choice_refuses(wrong):
    with pytest.raises(UserError, match="^here is no HellaSwag row"):
        evals.to_choice({**ROW, **wrong}, TOK, "here")


def test_to_choice_says_where_a_row_is_no_row_or_the_tokenizer_has_no_id():
    for row in ([1], "ctx", None):
        with pytest.raises(UserError, match="^here is no HellaSwag row"):
            evals.to_choice(row, TOK, "here")
    for row in ({**ROW, "ctx": "a!"}, {**ROW, "endings": ["c", "!"]}):
        with pytest.raises(UserError, match="^here: .*'!'"):
            evals.to_choice(row, TOK, "here")


def test_hellaswag_examples(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**ROW, "ctx": c}) for c in "abc"))
    all3 = [evals.to_choice({**ROW, "ctx": c}, TOK) for c in "abc"]
    assert evals.hellaswag_examples(path, TOK) == evals.hellaswag_examples(path, TOK, 5) == all3
    assert evals.hellaswag_examples(path, TOK, 1) == all3[:1] and evals.hellaswag_examples(path, TOK, limit=2) == all3[:2]
    monkeypatch.setattr(evals, "gpt2", lambda: TOK)
    assert evals.hellaswag_examples(path) == all3
    path.write_text(f"{json.dumps(ROW)}\n[]")
    with pytest.raises(UserError, match="rows.jsonl, object 2 is no HellaSwag row"):
        evals.hellaswag_examples(path, TOK)


def test_hellaswag_by_default_is_the_packaged_validation_set(monkeypatch):
    asked = []
    monkeypatch.setattr(evals, "read_lines", lambda path: asked.append(path) or [ROW])
    assert len(evals.hellaswag_examples(tok=TOK)) == 1 and asked[0].name == "hellaswag_val.jsonl.gz" and asked[0].exists()


def test_lambada_examples(tmp_path, monkeypatch):
    path, e = tmp_path / "words.jsonl", TOK.encode
    path.write_text("\n".join(json.dumps(dict(text=t)) for t in ("a bc d", "e f", "g hi")))
    all3 = [(e("a bc"), e(" d")), (e("e"), e(" f")), (e("g"), e(" hi"))]
    assert evals.lambada_examples(path, TOK) == all3
    assert evals.lambada_examples(path, TOK, 1) == all3[:1] and evals.lambada_examples(path, TOK, limit=2) == all3[:2]
    monkeypatch.setattr(evals, "gpt2", lambda: TOK)
    assert evals.lambada_examples(path) == all3
    for wrong in (dict(text="word"), dict(text=" word"), dict(text="two "), dict(text=3), {}, [], "a b"):
        path.write_text(f'{{"text": "a b"}}\n{json.dumps(wrong)}')
        with pytest.raises(UserError, match="words.jsonl, object 2 is no LAMBADA row"):
            evals.lambada_examples(path, TOK)


# --- endings ---


def test_window_and_overlong():
    w = evals.window
    assert w([1, 2], [3], 5) == ([1, 2, 3], 1) and w([1, 2, 3], [4, 5], 4) == ([1, 2, 3, 4, 5], 2)
    assert w([1, 2, 3], [4, 5], 3) == ([2, 3, 4, 5], 2)  # the last token is asked for, not an input
    assert w([1], [2, 3, 4], 3) == ([1, 2, 3, 4], 3) and w([1], [2, 3, 4, 5], 3) == ([2, 3, 4, 5], 3)
    fits, over = (evals.Choice([1] * n, [[1], [1, 2, 3]], [1, 2], 0) for n in (6, 7))
    assert evals.overlong([fits], T) == 0 and evals.overlong([over, fits, over], T) == 2 and evals.overlong([], T) == 0


def test_full_float32_and_back():
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(KeyError), evals.full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_logprobs_in_float32_at_most_128_rows_at_once(monkeypatch, dtype):
    g = torch.Generator().manual_seed(0)
    h, weight, y = torch.randn(300, 16, generator=g).to(dtype), torch.randn(40, 16, generator=g).to(dtype), torch.randint(40, (300,), generator=g)
    y[::3] = (h[::3].float() @ weight.float().T).argmax(-1)
    sizes, precision, linear = [], [], evals.F.linear
    monkeypatch.setattr(evals.F, "linear", lambda x, w: sizes.append((len(x), x.dtype, w.dtype)) or precision.append(torch.get_float32_matmul_precision()) or linear(x, w))
    with torch.autocast("cpu", torch.bfloat16):
        logp, hit = evals.token_logprobs(h, weight, y)
    z = (h.double() @ weight.double().T).log_softmax(-1)
    assert logp.dtype == torch.float32 and hit.tolist() == (z.argmax(-1) == y).tolist() and 0 < hit.sum() < 300
    torch.testing.assert_close(logp.double(), z[range(300), y], rtol=1e-5, atol=1e-5)
    assert sizes == [(n, torch.float32, torch.float32) for n in (128, 128, 44)] and set(precision) == {"highest"}


def greedily(model, context, n):
    for _ in range(n):
        context = context + [int(logprobs(model, (context + [0])[-T - 1 :])[-1].argmax())]
    return context[-n:]


def test_endings_of_any_length_side_by_side(model):
    right = greedily(model, [1, 2], 3)
    pairs = [([1, 2], right), ([1, 2], [*right[:2], (right[2] + 1) % V]), ([1, 2], [(right[0] + 1) % V]), ([4], [5] * 4), ([i % V for i in range(20)], [3, 1]), ([6], [i % V for i in range(20)])]
    want = [ending(model, *pair) for pair in pairs]
    counted = Counted()
    with torch.no_grad():
        logp, n, greedy = evals.ending_logprobs(model, pairs, counted)
        assert all(torch.equal(a, b) for a, b in zip((logp, n, greedy), evals.ending_logprobs(model, pairs)))
    assert logp.dtype == torch.float64 and logp.tolist() == pytest.approx([w[0] for w in want], rel=1e-5)
    assert n.tolist() == [w[1] for w in want] and greedy.tolist() == [w[2] for w in want] and greedy[:3].tolist() == [True, False, False]
    assert counted.times == 1


def test_pick_by_sum_by_token_and_by_character():
    logp, tokens, chars = np.array([-3.0, -4.0, -5.0]), np.array([1, 2, 2]), np.array([3, 3, 10])
    assert evals.pick(logp, tokens, chars).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "lengths, rows, B_tokens, want",
    [
        ([5, 9, 5, 7], 1, 18, [[1, 3], [0, 2]]),  # two rows of nine just fit
        ([5, 9, 5, 7], 1, 17, [[1], [3, 0], [2]]),
        ([5, 9, 5, 7], 2, 36, [[1, 3], [0, 2]]),
        ([5, 9, 5, 7], 1, 27, [[1, 3, 0], [2]]),  # padded to the longest, not to their own lengths
        ([5, 9, 5, 7], 1, 1, [[1], [3], [0], [2]]),  # an example is never divided
        ([5, 9, 5, 7], 1, 1000, [[1, 3, 0, 2]]),
        ([2, 2, 2, 2, 2], 3, 12, [[0, 1], [2, 3], [4]]),
        ([], 1, 10, []),
    ],
)
def test_batches_by_length(lengths, rows, B_tokens, want):
    assert list(evals.by_length(lengths, rows, B_tokens)) == want


def examples(n, seed=0):
    r = np.random.default_rng(seed)
    ids = lambda low, high: r.integers(0, V, r.integers(low, high)).tolist()
    return [evals.Choice(ids(1, 12), [ids(1, 5) for _ in range(3)], [int(c) for c in r.integers(1, 20, 3)], int(r.integers(3))) for _ in range(n)]


def answers(model, e):
    logp, n, _ = map(np.array, zip(*(ending(model, e.context, one) for one in e.endings)))
    return [int(s.argmax()) for s in (logp, logp / n, logp / np.array(e.chars))]


@pytest.mark.parametrize("B_tokens", [1, 60, 8192])
def test_choices_are_those_of_single_endings(model, B_tokens):
    some = examples(25)
    want = [answers(model, e) for e in some]
    assert evals.choices(model, some, B_tokens).tolist() == want == evals.choices(model, some).tolist()
    assert all(len(set(column)) == 3 for column in zip(*want)) and len({tuple(w) for w in want}) > 3
    assert evals.choices(model, []).shape == (0, 3)
    right = lambda part: [sum(answers(model, e)[a] == e.label for e in part) for a in range(3)]
    assert evals.choice_sum(model, some, B_tokens).tolist() == [25, *right(some)]
    each = [evals.choice_sum(model, some, B_tokens, r, 3) for r in range(3)]
    assert [e.tolist() for e in each] == [[len(some[r::3]), *right(some[r::3])] for r in range(3)] and each[0].dtype == torch.float64
    assert evals.choice_sum(model, some[:1], rank=1, world=2).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("B_tokens, times", [(4 * 3 * 6, 1), (4 * 3 * 6 - 1, 2), (3 * 6, 4), (1, 4)])
def test_a_batch_of_choices_counts_all_rows_at_the_longest(model, B_tokens, times):
    four, counted = [evals.Choice([1] * 4, [[1], [1, 2], [3]], [1, 1, 1], 0)] * 4, Counted()
    evals.choices(model, four, B_tokens, counted)
    assert counted.times == times
    counted.times = 0
    evals.choice_sum(model, four, B_tokens, autocast=counted)
    assert counted.times == times


def test_a_row_counts_no_more_tokens_than_the_block_holds(model):
    long = [evals.Choice([1] * 50, [[1], [2]], [1, 1], 0)] * 2
    for measure, B_tokens in ((lambda B, counted: evals.choices(model, long, B, counted), 2 * 2 * T), (lambda B, counted: evals.last_word_sum(model, [([1] * 50, [2])] * 2, B, autocast=counted), 2 * T)):
        for B, times in ((B_tokens, 1), (B_tokens - 1, 2)):
            counted = Counted()
            measure(B, counted)
            assert counted.times == times


@pytest.mark.parametrize("B_tokens", [1, 20, 8192])
def test_last_words_are_those_of_single_words(model, B_tokens):
    some = [(e.context, e.endings[0]) for e in examples(12, seed=1)] + [([c], greedily(model, [c], 2)) for c in range(3)]
    want = [ending(model, *pair) for pair in some]

    def same(total, part):
        assert total.dtype == torch.float64 and total[[0, 1, 3]].tolist() == [len(part), sum(w[2] for w in part), sum(w[1] for w in part)]
        assert float(total[2]) == pytest.approx(sum(w[0] for w in part), rel=1e-5)

    same(evals.last_word_sum(model, some, B_tokens), want)
    same(evals.last_word_sum(model, some), want)
    for r in range(4):
        same(evals.last_word_sum(model, some, B_tokens, r, 4), want[r::4])
    counted = Counted()
    evals.last_word_sum(model, [([1, 2], [3])] * 4, 6, autocast=counted)
    assert counted.times == 2 and evals.last_word_sum(model, []).tolist() == [0, 0, 0, 0]
