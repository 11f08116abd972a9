"""The course as `make lab` opens it: JupyterLab in a browser, as a reader sees it first, runs a chapter and answers an exercise."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conftest import copy_repo, lacking, offline_env
from forked import free_port

pytestmark = pytest.mark.browser

MINE = '{"cells": [], "metadata": {"mine": true}, "nbformat": 4, "nbformat_minor": 5}'
CHAPTERS = ["easy/03_bigram.ipynb", "medium/09_model.ipynb", "tough/23_variants.ipynb"]  # one a level, quick ones

IMPORTS = "import math, torch, numpy as np\nfrom gpt2_course.check import check\n"
# chapter, exercise, arguments, then bodies: forgotten return, exception, wrong, right, each with what the check says
EXERCISES = [
    (
        "easy/00_start.ipynb",
        "start.uniform_loss",
        "V",
        [
            ("loss = math.log(V)", "Is the `return` missing?"),
            ("return math.log(V - V)", "line 4, `return math.log(V - V)`"),
            ("return math.log2(V)", "this is a classic mistake: the logarithm has base 2"),
            ("return math.log(V)", "✓ start.uniform_loss: right."),
        ],
    ),
    (
        "easy/03_bigram.ipynb",
        "bigram.count_pairs",
        "ids, V",
        [
            ("counts = np.zeros((V, V), int)\n    np.add.at(counts, (ids[:-1], ids[1:]), 1)", "Is the `return` missing?"),
            ("return np.zeros((V, V), int)[ids, V]", "IndexError"),
            ("counts = np.zeros((V, V), int)\n    counts[ids[:-1], ids[1:]] += 1\n    return counts", "this is a classic mistake: a pair is counted once"),
            ("counts = np.zeros((V, V), int)\n    np.add.at(counts, (ids[:-1], ids[1:]), 1)\n    return counts", "✓ bigram.count_pairs: right."),
        ],
    ),
    (
        "medium/07_attention.ipynb",
        "attention.causal_mask",
        "T, S",
        [
            ("mask = torch.ones(T, S).bool().tril(S - T)", "Is the `return` missing?"),
            ("return torch.ones(T, S).tril(S - T) & 1", "not implemented for"),
            ("while True: T = S", "Is there a loop that never ends?"),
            ("return torch.ones(T, S).bool().tril()", "this is a classic mistake: queries are aligned with the first keys"),
            ("return torch.ones(T, S).bool().tril(S - T)", "✓ attention.causal_mask: right."),
        ],
    ),
]


def stop(server: subprocess.Popen):
    "End make, JupyterLab and its kernels: they are one process group"
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(20)
            time.sleep(1)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            pass


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "`make lab` in a copy of the repository, for a reader who has never opened JupyterLab: (my_course, the address the browser is sent to)"
    if not shutil.which("make"):
        lacking("make")
    if not find_spec("jupyterlab"):
        lacking("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    copy = copy_repo(folder / "gpt2_course_copy")
    mine = copy / "my_course" / "easy" / "01_tokenizer.ipynb"
    mine.parent.mkdir(parents=True)
    mine.write_text(MINE, encoding="utf-8")  # from an earlier day
    env = {name: value for name, value in offline_env(copy).items() if not name.startswith(("JUPYTER", "IPYTHON", "XDG_"))}
    env |= dict(HOME=str(folder / "home"), JUPYTER_RUNTIME_DIR=str(folder / "runtime"))
    (folder / "home").mkdir()
    flags = f"--no-browser --port={free_port()} --allow-root"
    with open(folder / "log", "wb") as log:
        command = ["make", "-o", ".venv/.lab-ready", "lab", f"PY={sys.executable}", f"ARGS={flags}"]  # -o: that is installed already
        server = subprocess.Popen(command, cwd=copy, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not (pages := list((folder / "runtime").glob("jpserver-file-to-run-*-open.html"))):  # what make lab opens in a browser
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text("utf-8")
            time.sleep(0.2)
        yield copy / "my_course", re.search(r'href="([^"]+)"', pages[0].read_text("utf-8"))[1]
    finally:
        stop(server)


@pytest.fixture(scope="module")
def page(browser, lab):
    "What the reader's browser shows; at the end: nothing was asked of another host"
    base = "{0.scheme}://{0.netloc}/".format(urlsplit(lab[1]))
    context, strange = browser.new_context(viewport=dict(width=1440, height=900)), []
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("request", lambda request: request.url.startswith((base, "data:", "blob:")) or strange.append(request.url))
    page.goto(lab[1])
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    yield page
    context.close()
    assert not strange, strange


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def headings(notebook: dict) -> list[str]:
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return re.findall(r"^#{1,4} +(.*)$", re.sub(r"(?ms)^```.*?^```", "", text), re.M)


def shown(page, name: str):
    "The panel of a notebook that is in front"
    page.wait_for_selector(f".lm-TabBar-tab.jp-mod-current >> text={name}")
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    panel.locator(".jp-Cell").first.wait_for()
    return panel


def open_chapter(page, chapter: str):
    "Through the file browser, from its top"
    page.click(".jp-BreadCrumbs-home")
    folder, name = chapter.split("/")
    for item in ("my_course", folder, name):
        page.dblclick(f".jp-DirListing-item >> text={item}")
    return shown(page, name)


def wait_for_kernel(page, chapter: str):
    "Until the page is connected with it: JupyterLab says idle before that, and drops what it is told to run"
    page.wait_for_function(
        """async (chapter) => (await (await fetch("/api/sessions")).json()).some(
            (s) => s.path.endsWith(chapter) && s.kernel.connections && s.kernel.execution_state === "idle")""",
        arg=chapter,
    )
    page.wait_for_function("document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")


def choose(page, menu: str, item: str):
    page.click(f".lm-MenuBar-item >> text={menu}")
    page.locator(".lm-Menu-item", has_text=item).first.click()


def save(page, path: Path) -> dict:
    "The notebook in front, as it lies on disk after File > Save"
    before, end = path.stat().st_mtime_ns, time.monotonic() + 60
    choose(page, "File", "Save Notebook")
    while time.monotonic() < end:
        page.wait_for_timeout(100)
        try:
            if path.stat().st_mtime_ns != before:
                return read(path)
        except ValueError:  # it is being written
            pass
    raise AssertionError(f"{path.name} was not saved")


# --- what a reader sees first ---


def test_opens_at_the_first_chapter_between_course_and_headings(page, lab):
    course, _ = lab
    panel = shown(page, "00_start.ipynb")
    first = read(course / "easy" / "00_start.ipynb")
    assert panel.locator("h1").first.text_content().startswith(headings(first)[0])
    listed = page.locator("#filebrowser:visible .jp-DirListing-itemName")
    listed.first.wait_for()
    assert listed.all_text_contents() == sorted(path.name for path in (course / "easy").glob("*.ipynb"))
    contents = page.locator(".jp-TableOfContents:visible .jp-tocItem-content")
    contents.first.wait_for()
    assert [text.strip() for text in contents.all_text_contents()] == headings(first)


def test_nothing_pops_up(page):
    "No question about news, no dialog"
    page.wait_for_timeout(2000)  # the question comes a moment after the page
    assert page.locator(".Toastify__toast").count() == 0
    assert page.locator(".jp-Dialog").count() == 0
    assert page.locator(".jp-Notification-Status .jp-Notification-Status-Text").all_text_contents() in ([], ["0"])


def test_the_copy_is_the_readers(lab):
    course, _ = lab
    assert (course / "easy" / "01_tokenizer.ipynb").read_text("utf-8") == MINE
    ours = course.parent / "nbs"
    for path in ours.rglob("*.ipynb"):
        assert (course / path.relative_to(ours)).exists()
    assert "/my_course/" in (course.parent / ".gitignore").read_text("utf-8").splitlines()


def test_pictures_and_links_of_the_first_chapter_lead_somewhere(page, lab):
    "Across the levels, too: JupyterLab's root lies above them"
    panel = shown(page, "00_start.ipynb")
    pictures = panel.locator(".jp-RenderedMarkdown img")
    for i in range(pictures.count()):
        pictures.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("(i) => document.querySelectorAll('.jp-NotebookPanel .jp-RenderedMarkdown img')[i].naturalWidth > 0", arg=i)
    link = panel.locator("a[href*='medium/07_attention.ipynb']").first
    link.scroll_into_view_if_needed()
    link.click()
    shown(page, "07_attention.ipynb")


# --- what a reader does ---


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_all_cells_of_a_chapter_run(page, lab, chapter, notebook_seconds):
    began = time.monotonic()
    path = lab[0] / chapter
    open_chapter(page, chapter)
    wait_for_kernel(page, chapter)
    choose(page, "Run", "Run All Cells")
    # The page tells too little: JupyterLab keeps only the cells near the window in it. The file tells all.
    waiting, end = True, time.monotonic() + 300
    while waiting:
        assert time.monotonic() < end, f"cells not run after 300 s: {waiting}"
        page.wait_for_timeout(2000)
        cells = [cell for cell in save(page, path)["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors, errors
        waiting = [cell["id"] for cell in cells if not cell["execution_count"]]
    notebook_seconds(f"{chapter} in JupyterLab", time.monotonic() - began)


@pytest.mark.parametrize("chapter, name, arguments, answers", EXERCISES, ids=[row[1] for row in EXERCISES])
def test_an_exercise_is_answered_wrongly_then_rightly(page, lab, chapter, name, arguments, answers):
    "Each wrong answer is told what is wrong, the right one is called right, and the tally is kept beside the reader's notebooks"
    panel = open_chapter(page, chapter)
    cell = panel.locator(".jp-CodeCell", has_text=f'check("{name}"').first
    cell.scroll_into_view_if_needed()
    for body, told in answers:
        code = f'{IMPORTS}def mine({arguments}):\n    {body}\ncheck("{name}", mine)'
        cell.locator(".cm-content").click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(code)
        page.keyboard.press("Control+Enter")
        cell.locator(".jp-OutputArea-output", has_text=told).wait_for()
    assert read(lab[0] / "progress.json")["checks"][name]["state"] == "right"
    notebook = save(page, lab[0] / chapter)
    assert any("".join(cell["source"]) == code for cell in notebook["cells"])
    assert code not in (lab[0].parent / "nbs" / chapter).read_text("utf-8")


def test_the_package_s_answer_is_folded(page, lab):
    "Below the exercise, until the reader opens it"
    panel = open_chapter(page, "medium/07_attention.ipynb")
    folded = panel.locator(".jp-CodeCell.jp-mod-collapsed, .jp-CodeCell:has(.jp-InputPlaceholder)")
    folded.first.wait_for()
    assert folded.count() >= 3
    before = folded.count()
    placeholder = panel.locator(".jp-InputPlaceholder").first
    placeholder.scroll_into_view_if_needed()
    placeholder.click()
    page.wait_for_function("n => document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-InputPlaceholder').length < n", arg=before)
