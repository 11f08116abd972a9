"""The live demo: what the browser computes equals what PyTorch computes, and the page asks no other host for anything."""

import functools
import hashlib
import http.server
import json
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_course import tokenizer
from gpt2_course.checkpoint import load_model, untied
from gpt2_course.config import GPTConfig, UserError
from gpt2_course.data import sha256_file
from gpt2_course.generation import generate, shape_probs
from gpt2_course.model import GPT
from safetensors.torch import save_file

from conftest import REPO

sys.path.insert(0, str(REPO / "docs"))
import demo_build

PROMPTS = ["H", "HAMLET.\nTo be, or not to be, ", "ROMEO. [_Aside._]\n" + "What light through yonder window breaks? " * 3]
# one string per oddity: spaces of all kinds, letters beyond the BMP, marks, numbers that are no digits, broken-looking pieces
ODD = [
    "", " ", "  two  spaces ", "\n\n \t\r\n", "don't we'll they've I'M it's'", "a\u00a0b\u0085c\u2028d\u3000e\ufefff\u200bg\x1ch\x0b\x0ci",
    "naïve café e\u0301 Ångström ﬁ", "\ufeffbyte order mark", "日本語テキスト、漢字", "Привет, мир! Ελληνικά עברית العربية हिन्दी", "👩‍👩‍👧‍👦🏳️‍🌈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "½ Ⅷ ٣ 一二 1,234.5e-6 x²", "<|endoftext|> is ordinary text", "\x00\x01\x7f\u0080", "...!?!— “quoted” ‘single’ $€ a_b", "\U0010ffff\ue000\ufffd",
    "THE the The tHe  thee, thou\nthy   \n  the",
]  # fmt: skip


def serve(folder: Path):
    "An HTTP server on loopback and a free port"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def opened(browser, folder: Path, within: str = "", **context):
    "The demo of folder/within in a fresh page; at the end: no console error, no request that failed or left that folder"
    server, wrong = serve(folder), []
    base = f"http://127.0.0.1:{server.server_port}/{within}"
    page = browser.new_context(**context).new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((base, "data:")) or wrong.append(request.url))
    page.on("response", lambda response: response.status < 400 or wrong.append(f"{response.status} {response.url}"))
    try:
        page.goto(base + "demo.html")
        page.wait_for_selector("#generate:enabled")
        yield page
        assert not wrong, wrong
    finally:
        page.context.close()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return demo_build.build(tmp_path_factory.mktemp("demo") / "demo").parent


@pytest.fixture(scope="module")
def bpe_run(tmp_path_factory) -> Path:
    "A run with our BPE, no biases and an untrained model with attention that is not flat"
    run = tmp_path_factory.mktemp("bpe_run")
    text = (REPO / "assets" / "runs" / "look-inside" / "samples.jsonl").read_text("utf-8") + "日本語 naïve café 👩‍👧 Привет " * 40
    tok = tokenizer.BPETokenizer.train(text, 400)
    cfg = GPTConfig(block_size=16, vocab_size=tok.n_vocab, n_layer=2, n_head=3, n_embd=24, bias=False)
    torch.manual_seed(0)
    model = GPT(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    tokenizer.save(tok, run / "tokenizer.json")
    save_file(untied(model.state_dict()), run / "model.safetensors")
    digests = {"model.safetensors": sha256_file(run / "model.safetensors")}
    (run / "meta.json").write_text(json.dumps(dict(format=1, config=dict(model=vars(cfg)), step=0, sha256=digests)), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def bpe_demo(bpe_run, tmp_path_factory) -> Path:
    return demo_build.build(tmp_path_factory.mktemp("bpe_demo"), bpe_run).parent


@pytest.fixture(scope="module")
def runs(demo, bpe_demo, bpe_run) -> dict:
    "name -> (demo folder, model, tokenizer)"
    ours = demo_build.RUN
    return {
        "characters": (demo, load_model(ours), tokenizer.load(ours / "tokenizer.json")),
        "bpe": (bpe_demo, load_model(bpe_run), tokenizer.load(bpe_run / "tokenizer.json")),
    }


def js(page, body: str, argument=None):
    "Run a function body in the page, with the demo's modules and a loaded model at hand"
    return page.evaluate(
        """async ([body, argument]) => {
          const at = (name) => new URL(name, location.href).href;
          const [m, t, g] = await Promise.all([import(at("model.js")), import(at("tokenizer.js")), import(at("generation.js"))]);
          const { model, manifest } = await m.loadModel(location.href);
          const names = { ...m, ...t, ...g, model, manifest, tok: t.makeTokenizer(manifest.tokenizer), argument };
          return new Function(...Object.keys(names), body)(...Object.values(names));
        }""",
        [body, argument],
    )


def prompts_of(name: str, model, tok) -> list[list[int]]:
    return [tok.encode(text)[: model.cfg.block_size] for text in PROMPTS]


# --- without a browser ---


def test_manifest_and_weights_are_the_checkpoint(runs):
    for folder, model, tok in runs.values():
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        raw = (folder / manifest["weights"]["file"]).read_bytes()
        assert len(raw) == manifest["weights"]["bytes"] and hashlib.sha256(raw).hexdigest() == manifest["weights"]["sha256"]
        floats, state, end = np.frombuffer(raw, "<f4"), untied(model.state_dict()), 0
        assert [tensor["name"] for tensor in manifest["weights"]["tensors"]] == list(state)
        for tensor in manifest["weights"]["tensors"]:
            want = state[tensor["name"]]
            assert tensor["offset"] == end and tensor["shape"] == list(want.shape)
            end += want.numel()
            np.testing.assert_array_equal(floats[tensor["offset"] : end].reshape(want.shape), want.numpy())
        assert end == len(floats) == manifest["parameters"]
        assert manifest["config"] == {name: getattr(model.cfg, name) for name in manifest["config"]}
        assert tok.n_vocab == model.cfg.vocab_size


def test_folder_is_small_and_nothing_points_outside(demo):
    assert sum(path.stat().st_size for path in demo.iterdir()) < 8_000_000
    for path in demo.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            assert "://" not in path.read_text("utf-8"), f"{path.name} names another host"


def test_what_cannot_run_in_a_browser_is_refused(tmp_path, bpe_run, monkeypatch):
    run = shutil.copytree(bpe_run, tmp_path / "run")
    tokenizer.save(tokenizer.gpt2(), run / "tokenizer.json")
    with pytest.raises(UserError, match="GPT-2's own vocabulary"):
        demo_build.build(tmp_path / "out", run)
    monkeypatch.setattr(demo_build, "MOST", 10_000)
    with pytest.raises(UserError, match="give a smaller model"):
        demo_build.build(tmp_path / "out", bpe_run)
    assert not (tmp_path / "out").exists()


def test_build_command(run, tmp_path, bpe_run):
    told = run(["docs/demo_build.py", tmp_path / "out", "--run", bpe_run, "--home", "../index.html"]).stdout
    assert "MB together" in told
    assert '<a href="../index.html">' in (tmp_path / "out" / "demo.html").read_text("utf-8")
    refused = run(["docs/demo_build.py", tmp_path / "no", "--run", tmp_path / "none"], status=2)
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1 and not (tmp_path / "no").exists()


# --- in Chromium ---


@pytest.mark.parametrize("name", ["characters", "bpe"])
def test_logits_equal_pytorchs(browser, runs, name):
    folder, model, tok = runs[name]
    prompts = prompts_of(name, model, tok)
    with opened(browser, folder) as page:
        got = js(page, "return argument.map((ids) => [...model.forward(ids)])", prompts)
        rows = js(page, "const c = new KVCache(model.cfg); model.forward(argument, c); return c.shares.map((r) => r.map((s) => [...s]))", prompts[1])
    for ids, logits in zip(prompts, got):
        with torch.no_grad():
            want = model(torch.tensor([ids]))[0].numpy()
        assert np.abs(np.array(logits, dtype="f4").reshape(want.shape) - want).max() < 1e-3
        assert want.std() > 0.1  # the comparison says something
    for layer in rows:
        for t, shares in enumerate(layer):
            np.testing.assert_allclose(np.array(shares).reshape(model.cfg.n_head, t + 1).sum(1), 1, atol=1e-5)


def test_attention_equals_pytorchs(browser, runs):
    folder, model, tok = runs["characters"]
    from gpt2_course.attention import split_heads

    ids = tok.encode(PROMPTS[1])
    seen = []
    hooks = [
        block.attn.c_attn.register_forward_hook(lambda module, x, y: seen.append(y.split(model.cfg.n_embd, -1)))
        for block in model.transformer.h
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    with opened(browser, folder) as page:
        rows = js(page, "const c = new KVCache(model.cfg); model.forward(argument, c); return c.shares.map((r) => r.map((s) => [...s]))", ids)
    for (q, k, _), layer in zip(seen, rows, strict=True):
        q, k = (split_heads(x, model.cfg.n_head)[0] for x in (q, k))
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        for t, shares in enumerate(layer):
            want = scores[:, t, : t + 1].softmax(-1)
            np.testing.assert_allclose(np.array(shares).reshape(want.shape), want, atol=1e-4)


@pytest.mark.parametrize("name", ["characters", "bpe"])
def test_generation_equals_the_packages(browser, runs, name):
    "Greedy, beyond the block: as generation.generate; drawn: with the cache as without it"
    folder, model, tok = runs[name]
    ids, long = prompts_of(name, model, tok)[1][:12], prompts_of(name, model, tok)[2]
    new, few = model.cfg.block_size - 4, 16
    long = long[: model.cfg.block_size - 8]
    with opened(browser, folder) as page:
        greedy = js(page, "return generate(model, argument[0], argument[1], { temperature: 0 })", [ids, new])
        drawn = "return generate(model, argument[0], argument[1], { temperature: 0.9, topK: 20, topP: 0.95, seed: 5, useCache: %s })"
        cached, plain = (js(page, drawn % use, [long, few]) for use in ("true", "false"))
        other = js(page, drawn.replace("seed: 5", "seed: 6") % "true", [long, few])
    want = generate(model, torch.tensor([ids]), new, temperature=0)[0].tolist()
    assert greedy == want and tok.decode(greedy) == tok.decode(want)
    assert cached == plain != other and len(cached) == len(long) + few


def test_taking_back_leaves_no_trace(browser, runs):
    "Also where the text is longer than the block"
    folder, model, tok = runs["bpe"]
    body = """
      const w = new Writer(model, argument), seen = [];
      for (let n = 0; n < 30; n++) { seen.push([w.ids.length, [...w.after.at(-1)]]); w.push(w.choose({ seed: 3 })); }
      const apart = [];
      for (const [length, logits] of seen.reverse()) {
        w.pop();
        const again = new Writer(model, w.ids.slice(-model.cfg.block_size)).after.at(-1);
        if (w.ids.length !== length || w.cache.length !== Math.min(length, model.cfg.block_size)) throw new Error("length");
        apart.push(Math.max(...logits.map((x, i) => Math.max(Math.abs(x - w.after.at(-1)[i]), Math.abs(x - again[i])))));
      }
      return Math.max(...apart);"""
    with opened(browser, folder) as page:
        assert js(page, body, tok.encode("To be")) < 1e-4


def test_dials_equal_the_packages(browser, runs):
    folder, model, _ = runs["characters"]
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4, 85, generator=g)).tolist()
    dials = [(0, None, None), (0.5, None, None), (1.7, 5, None), (1, None, 0.6), (0.8, 12, 0.9), (1, 1, 0.05), (1, 500, 1)]
    with opened(browser, folder) as page:
        body = "return argument[0].map((l) => argument[1].map(([temperature, topK, topP]) => [...shapeProbs(l, { temperature, topK, topP })]))"
        got = js(page, body, [logits, dials])
        counts = js(page, "const n = [0, 0, 0, 0]; for (let i = 0; i < 20000; i++) n[draw([0.5, 0, 0.3, 0.2], random(7, i))]++; return n")
    want = [[shape_probs(torch.tensor([row]), t, k, p)[0].tolist() for t, k, p in dials] for row in logits]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert counts[1] == 0 and np.abs(np.array(counts) / 20000 - [0.5, 0, 0.3, 0.2]).max() < 0.02


def test_tokens_equal_the_packages(browser, runs):
    _, _, characters = runs["characters"]
    folder, _, bpe = runs["bpe"]
    rng = np.random.default_rng(0)
    points = [*range(0x20, 0x2FF), *range(0x370, 0x600), *range(0x2000, 0x2070), *range(0x3000, 0x3100), *range(0x1F600, 0x1F640), 9, 10, 13, 0x85]
    alike = [(0x3500, 0x9F00), (0xAD00, 0xD700), (0xD800, 0xF800), (0x20100, 0x2A600), (0x2A800, 0x110000)]  # long runs of one kind
    every = [chr(i) for i in range(0x110000) if not any(a <= i < b for a, b in alike)]
    every += [chr(i) for a, b in alike for i in range(a, b, 83) if not 0xD800 <= i < 0xE000]
    texts = ODD + PROMPTS + ["".join(map(chr, rng.choice(points, 40))) for _ in range(200)]
    with opened(browser, folder) as page:
        got = js(page, "return argument.map((text) => [tok.encode(text), tok.decode(tok.encode(text))])", texts)
        # all kinds of characters, between two letters and after a question mark: cut into the same pieces
        whole = ["".join(f"a{c}b ?{c}" for c in every[i : i + 50_000]) for i in range(0, len(every), 50_000)]
        pieces = js(page, "return argument.map((text) => text.match(tok.pattern).map((word) => [...word].length).join(' '))", whole)
        cut = [rng.integers(0, bpe.n_vocab, 30).tolist() for _ in range(50)]
        decoded = js(page, "return argument.map((ids) => tok.decode(ids))", cut)
    for text, (ids, back) in zip(texts, got):
        assert ids == bpe.encode(text), repr(text)
        assert back == text
    assert pieces == [" ".join(str(len(word)) for word in tokenizer.split_words(text)) for text in whole]
    assert decoded == [bpe.decode(ids) for ids in cut]  # bytes that are not UTF-8
    assert max(map(len, bpe.bytes)) > 3 and any(max(ids, default=0) > 255 for ids, _ in got)  # merges took part

    with opened(browser, runs["characters"][0]) as page:
        body = "return argument.map((text) => { try { return tok.encode(text); } catch (e) { return `${e.name}: ${e.message}`; } })"
        got = js(page, body, texts)
    known = 0
    for text, ids in zip(texts, got):
        try:
            want, known = characters.encode(text), known + 1
            assert ids == want, repr(text)
        except UserError:
            assert isinstance(ids, str) and ids.startswith("RangeError: the character"), repr(text)
    assert known >= 6


def test_the_page_writes(browser, demo, runs):
    "As a reader would: by keyboard and by pointer, at the width of a phone"
    _, model, tok = runs["characters"]
    with opened(browser, demo, viewport=dict(width=390, height=800)) as page:
        page.fill("#prompt", "HAMLET.\n")
        page.check("#greedy")
        page.fill("#length", "30")
        page.click("#generate")
        page.wait_for_function("document.getElementById('status').textContent.startsWith('30 tokens written')")
        want = generate(model, torch.tensor([tok.encode("HAMLET.\n")]), 31, temperature=0)[0].tolist()
        assert page.text_content("#plain") == tok.decode(want[:-1])
        page.click("#step")
        assert page.text_content("#plain") == tok.decode(want)
        assert page.locator(".chip").count() == len(want) and page.locator(".chip.new").count() == 31
        page.click("#back")
        assert page.locator(".chip").count() == len(want) - 1

        page.focus("#chips")
        page.keyboard.press("Home")
        assert page.get_attribute("#chips", "aria-activedescendant") == "chip-0"
        assert "“A” followed" in page.text_content("#next-help")
        page.keyboard.press("End")
        page.focus("#probs tr:nth-child(3) button")
        page.keyboard.press("Enter")  # the reader's own choice
        assert page.locator(".chip").count() == len(want)

        page.uncheck("#greedy")
        page.focus("#top-k")
        page.keyboard.press("Home")
        assert "1 of 85 tokens remains" in page.text_content("#next-help")
        page.click("#maps button[data-layer='3'][data-head='2']")
        assert page.text_content("#map-title") == "Layer 4, head 3" and "looks most at" in page.text_content("#map-words")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        page.fill("#prompt", "HAMLET é")
        assert "The character" in page.text_content("#status") and page.is_disabled("#generate")
        page.fill("#prompt", "")  # the beginning of a document
        assert "prompt is empty" in page.text_content("#status")
        page.click("#step")
        assert page.locator(".chip").count() == 2
        page.fill("#prompt", "x" * 200)
        assert "sees its last 128" in page.text_content("#status")
        page.click("#step")
        assert page.locator(".chip").count() == 129


def test_it_runs_under_any_path(browser, demo, tmp_path):
    "All addresses are relative: a site may lie in any folder of a server"
    shutil.copytree(demo, tmp_path / "courses" / "v1.2" / "demo")
    with opened(browser, tmp_path, "courses/v1.2/demo/") as page:
        page.click("#step")
        assert page.locator(".chip.new").count() == 1


def test_pausing_and_going_on_quickly_keeps_the_count(browser, demo):
    "One loop writes, however fast the button is pressed; what a pause left is written later, unless the reader does otherwise"
    with opened(browser, demo) as page:

        def press(times: int) -> str:
            return page.evaluate("(n) => { const b = document.getElementById('generate'); while (n--) b.click(); return b.textContent; }", times)

        written = page.locator(".chip.new")
        page.fill("#length", "10")
        assert press(3) == "Pause"
        page.wait_for_function("document.getElementById('generate').textContent === 'Generate'")
        page.wait_for_timeout(300)
        assert written.count() == 10 and page.text_content("#status") == "10 tokens written."
        assert press(2) == "Go on" and "11 tokens written. Paused, 9 to go." in page.text_content("#status")
        page.wait_for_timeout(200)
        assert written.count() == 11
        page.click("#back")
        assert page.text_content("#generate") == "Generate" and written.count() == 10
        assert press(2) == "Go on"
        page.fill("#length", "4")  # a new wish
        assert press(1) == "Pause"
        page.wait_for_function("document.getElementById('status').textContent === '15 tokens written.'")
        press(1)
        page.fill("#prompt", "A new prompt")  # while it writes
        page.wait_for_timeout(200)
        assert written.count() == 0 and page.text_content("#generate") == "Generate"
        page.fill("#length", "-3")
        page.click("#generate")
        page.wait_for_function("document.getElementById('status').textContent === '1 token written.'")
        assert page.input_value("#length") == "1"


@pytest.mark.parametrize("prompt", ["日本語", "👩‍👧 hello", "e\u0301", "\ud800", "tab\there", "\u202eright to left"])
def test_what_the_model_cannot_read_is_named(browser, demo, prompt):
    "Characters: the first unknown one is named, and leaving it out mends the page"
    with opened(browser, demo) as page:
        page.evaluate("(text) => { const p = document.getElementById('prompt'); p.value = text; p.dispatchEvent(new Event('input')); }", prompt)
        unknown = next(c for c in prompt if not (c.isascii() and c.isprintable()))
        shown = json.dumps(unknown, ensure_ascii=unknown in "\t\ud800")
        assert f"The character {shown} is not among the 84" in page.text_content("#status")
        assert all(page.is_disabled(button) for button in ("#generate", "#step", "#back"))
        assert page.locator("section[inert]").count() == 3  # what is shown there belongs to another prompt: nothing to press
        page.fill("#prompt", "Now")
        assert page.locator("section[inert]").count() == 0
        assert page.is_enabled("#generate") and page.text_content("#status") == ""


def test_any_text_is_a_prompt_for_bpe(browser, runs):
    folder, model, tok = runs["bpe"]
    with opened(browser, folder) as page:
        for text in ("日本語テキスト 👩‍👩‍👧‍👦 Привет", " \n\t", "<b>bold</b> &amp; <script>1</script>", "\u202eright to left"):
            page.fill("#prompt", text)
            n, size = len(tok.encode(text)), model.cfg.block_size
            assert page.text_content("#status") == (f"The prompt has {n} tokens: the model sees its last {size}." if n > size else "")
            page.click("#step")
            assert page.locator(".chip").count() == min(n, size) + 1
            assert page.locator("#chips b, #plain b, #chips script").count() == 0  # text stays text


def test_dials_out_of_range_are_refused(browser, demo):
    body = "try { shapeProbs([1, 2, 3], argument); return null; } catch (error) { return `${error.name}: ${error.message}`; }"
    with opened(browser, demo) as page:
        for dials, told in ((dict(topK=0), "top-k is 0"), (dict(topP=0), "top-p is 0"), (dict(topP=2), "top-p is 2"), (dict(temperature=-1), "the temperature is -1")):
            assert js(page, body, dials).startswith(f"RangeError: {told}: give ")
        assert js(page, body, dict(topK=3, topP=1, temperature=0.1)) is None
        for dial in ("temperature", "top-k", "top-p", "seed"):  # the sliders cannot leave the range either
            for key in ("Home", "End"):
                page.focus(f"#{dial}")
                page.keyboard.press(key)
                page.click("#step")
        assert page.locator(".chip.new").count() == 8


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin"])
@pytest.mark.parametrize("how", ["missing", "cut", "silent"])
def test_a_failed_fetch_is_told(browser, demo, tmp_path, name, how):
    folder = shutil.copytree(demo, tmp_path / "demo")
    if how == "missing":
        (folder / name).unlink()
    if how == "cut":
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    server = serve(folder)
    page = browser.new_context().new_page()
    try:
        if how == "silent":
            page.route(f"**/{name}", lambda route: route.abort())
        page.goto(f"http://127.0.0.1:{server.server_port}/demo.html")
        page.wait_for_selector("#status.wrong")
        told = page.text_content("#status")
        assert told.startswith(f"The model did not load: {name} ") and told.endswith("Reload the page to try again.")
        assert page.is_disabled("#generate") and page.is_disabled("#prompt")
    finally:
        page.context.close()
        server.shutdown()
        server.server_close()


def test_every_control_has_a_name_and_a_place_in_the_order_of_keys(browser, demo):
    with opened(browser, demo) as page:
        page.click("#step")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, [role=listbox], [role=img], [role=option]")].filter((e) =>
              !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()
                || (e.getAttribute("aria-labelledby") ?? "").split(" ").every((id) => document.getElementById(id)?.textContent.trim()) && e.hasAttribute("aria-labelledby")))
              .map((e) => e.outerHTML)"""
        )
        assert not nameless
        seen = []
        page.focus("#prompt")
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("(e => e.id || e.getAttribute('aria-label') || e.tagName)(document.activeElement)"))
        want = ["generate", "step", "back", "reset", "length", "chips", "greedy", "temperature", "top-k", "top-p", "seed", "Layer 1, head 1"]
        assert [name for name in seen if name in want][: len(want)] == want


def test_light_dark_and_paper(browser, demo):
    "The reader's system, the course's own switch, and paper, which is white"
    background = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, demo, color_scheme="dark") as page:
        dark = page.evaluate(background)
        cell = page.evaluate("document.getElementById('map').toDataURL()")
        page.emulate_media(color_scheme="light")
        assert page.evaluate(background) == "rgb(255, 255, 255)" != dark
        page.wait_for_function("old => document.getElementById('map').toDataURL() != old", arg=cell)  # the maps are drawn anew
        page.evaluate("localStorage.setItem('mode', 'dark')")
        page.reload()
        page.wait_for_selector("#generate:enabled")
        assert page.evaluate(background) == dark
        page.emulate_media(media="print")
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.getElementById('chips')).maxHeight") == "none"
        assert not page.is_visible("#generate")
