"""The site: built once from the committed notebooks, crawled as files, then opened in Chromium, light and dark, wide and narrow."""

import ast
import concurrent.futures
import functools
import gzip
import html
import http.server
import importlib.util
import json
import os
import posixpath
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from conftest import REPO, headless, lacking

AXE = Path(os.environ.get("AXE", REPO / "build/axe/node_modules/axe-core/axe.min.js"))
PARTS = [part for part in yaml.safe_load((REPO / "nbs/sidebar.yml").read_text("utf-8"))["website"]["sidebar"]["contents"]]
NOTEBOOKS = ["index.ipynb"] + [page for part in PARTS if isinstance(part, dict) for page in part["contents"]]
CHAPTERS = NOTEBOOKS[1:]


def cells(page: str) -> list[dict]:
    return json.loads((REPO / "nbs" / page).read_text("utf-8"))["cells"]


def html_of(page: str) -> str:
    return page.removesuffix(".ipynb") + ".html"


# --- the site as files ---


class Page(HTMLParser):
    "What a page points to, and what can be pointed at"

    LOADS = {"src", "srcset", "poster", "data", "background"}

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.images, self.sidebar, self.forms, self.details = set(), [], [], [], set(), [], 0
        self.navigation = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.ids |= {said[key] for key in ("id", "name") if said.get(key)}
        if tag == "nav":
            self.navigation += "bd-links" in (said.get("class") or "") or bool(self.navigation)
        if tag == "a" and said.get("href") is not None:
            self.links.append(said["href"])
            if self.navigation:
                self.sidebar.add(said["href"])
        self.loads += [value for key, value in said.items() if key in self.LOADS and value]
        if tag == "link" and said.get("href") and said.get("rel") not in ("canonical", "next", "prev", "search", "index"):
            self.loads.append(said["href"])
        if tag == "img":
            self.images.append((said.get("src", ""), said.get("alt")))
        if tag == "form":
            self.forms.append(said.get("action", ""))
        self.details += tag == "details" and not self.navigation and "hide" not in (said.get("class") or "")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        if tag == "nav" and self.navigation:
            self.navigation -= 1


@pytest.fixture(scope="session")
def site(run, tmp_path_factory) -> Path:
    "The site, built without a network"
    folder = tmp_path_factory.mktemp("site")
    done = run(["docs/build.py", "--out", folder / "html", "--work", folder / "work"], timeout=600)
    print(done.stdout)
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="session")
def ours(pages) -> list[str]:
    "Pages of the site; files/ holds pages that stand inside others, the theme has a fragment of its own"
    return [name for name in pages if not name.startswith(("files/", "_static/"))]


@pytest.fixture(scope="session")
def modules() -> dict[str, list[str]]:
    "dotted name -> __all__, read here by other means than the build's"
    found = {}
    for path in sorted((REPO / "gpt2_course").rglob("*.py")):
        all_ = re.search(r"^__all__ = (\[.*?\])", path.read_text("utf-8"), re.M | re.S)
        if all_ and path.stem != "_modidx":
            found[".".join(path.relative_to(REPO / "gpt2_course").with_suffix("").parts)] = ast.literal_eval(all_[1])
    return found


def test_every_chapter_and_module_has_its_page(site, modules):
    wanted = [html_of(page) for page in NOTEBOOKS] + [f"{kind}/{name}.html" for name in modules for kind in ("api", "source")]
    assert [name for name in wanted if not (site / name).is_file()] == []
    assert [page for page in NOTEBOOKS if (site / "notebooks" / page).read_bytes() != (REPO / "nbs" / page).read_bytes()] == []


def test_indented_lines_are_code(site):
    "The commands at the head of a page, and all others that Markdown calls code"
    lost, seen = [], 0
    for page in NOTEBOOKS:
        blocks = re.findall(r"<pre[^>]*>(.*?)</pre>", (site / html_of(page)).read_text("utf-8"), re.S)
        code = html.unescape(re.sub(r"<[^>]*>", "", "\n".join(blocks)))
        for cell in json.loads((REPO / "nbs" / page).read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                lines = re.findall(r"(?m)(?<=\n\n)    (\S.*)$", "".join(cell["source"]))
                seen += len(lines)
                lost += [f"{page}: {line}" for line in lines if line.strip() not in code]
    assert not lost and seen > 10, (seen, lost)


def resolve(page: str, link: str) -> tuple[str, str]:
    "(file of the site, anchor) of a link of a page"
    parts = urlsplit(link)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return (posixpath.join(path, "index.html") if parts.path.endswith("/") else path), unquote(parts.fragment)


def test_no_link_is_broken(site, pages, ours):
    broken, checked = [], 0
    for name in [n for n in pages if not n.startswith("_static/")]:
        for link in {*pages[name].links, *pages[name].loads, *pages[name].forms}:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            checked += 1
            path, fragment = resolve(name, link)
            if path == ".":
                path = "index.html"
            if not (site / path).is_file():
                broken.append(f"{name}: {link}: no such file")
            elif fragment and path in pages and fragment not in pages[path].ids:
                broken.append(f"{name}: {link}: no such anchor")
    assert not broken, "\n".join(broken[:40])
    assert checked > 50 * len(NOTEBOOKS)


def test_nothing_is_loaded_from_another_host(site, pages):
    strangers = [f"{name}: {load}" for name, page in pages.items() for load in page.loads if re.match(r"(\w+:)?//", load)]
    for path in site.rglob("*.css"):
        found = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]*)|@import\s+['\"](https?:[^'\"]*)", path.read_text("utf-8"))
        strangers += [f"{path.name}: {hit}" for hit in found]
    assert not strangers, strangers


def test_every_picture_is_described_by_a_sentence(pages, ours):
    "A file name, or nothing, is no description"
    sentence = re.compile(r"[A-Z0-9\"'“](?=(?:\S*\s+){4})[^/]*", re.S)
    wrong = [f"{name}: {alt!r}" for name in ours for _, alt in pages[name].images if not sentence.fullmatch(alt or "") or re.search(r"\.(png|svg|jpg)", alt)]
    assert not wrong, "\n".join(wrong)
    assert sum(len(pages[name].images) for name in ours) > len(CHAPTERS)


def test_every_page_is_reachable_from_the_sidebar(pages, ours):
    "Search has a form of its own"
    for start in ("index.html", html_of(CHAPTERS[0])):
        reached = {resolve(start, link)[0] for link in pages[start].sidebar if not urlsplit(link).scheme}
        reached |= {resolve(start, form)[0] for form in pages[start].forms} | {start}
        assert set(ours) - reached == set()


def test_reference_has_every_public_name(pages, modules):
    missing = [f"{module}.{name}" for module, names in modules.items() for name in names if f"gpt2_course.{module}.{name}" not in pages[f"api/{module}.html"].ids]
    assert not missing


def test_reference_says_shapes_defaults_errors_source_and_chapter(site):
    text = re.sub(r"<[^>]+>", "", (site / "api/attention.html").read_text("utf-8"))
    source = (REPO / "gpt2_course/attention.py").read_text("utf-8")
    shape = re.search(r"def attend\(\n    q:Tensor, # (.*)", source)[1]
    assert shape in text and "attend(" in text and "dropout: float = 0.0" in text
    page = (site / "api/config.html").read_text("utf-8")
    assert "give a whole number above 0" in page and re.search(r'href="\.\./source/config\.html#L-\d+">source<', page)
    assert 'href="../medium/07_attention.html#gpt2_course.attention.attend"' in (site / "api/attention.html").read_text("utf-8")


def test_exported_code_is_shown_once_with_an_anchor(site, modules):
    for module, names in modules.items():
        notebook = re.search(r"^# %% (?:\.\./)+nbs/(\S+)", (REPO / f"gpt2_course/{module.replace('.', '/')}.py").read_text("utf-8"), re.M)[1]
        if notebook not in NOTEBOOKS:
            continue
        text = (site / html_of(notebook)).read_text("utf-8")
        wrong = [name for name in names if text.count(f'id="gpt2_course.{module}.{name}"') != 1]
        assert not wrong, (notebook, wrong)
    assert (site / "medium/07_attention.html").read_text("utf-8").count('<span class="nf">attend</span>') == 1


def test_names_between_backticks_lead_to_their_definition(site):
    text = (site / "reference/config.html").read_text("utf-8")
    assert 'class="name" href="#gpt2_course.config.UserError"' in text
    assert re.search(r'class="name" href="[^"]*07_attention\.html#gpt2_course\.attention\.attend"', (site / "medium/14_look_inside.html").read_text("utf-8"))


def test_solutions_are_folded(pages):
    for page in CHAPTERS:
        written = sum("".join(cell["source"]).count("<details") for cell in cells(page) if cell["cell_type"] == "markdown")
        assert pages[html_of(page)].details == written, page


def test_figures_and_equations_are_numbered(site):
    for page in CHAPTERS:
        text = (site / html_of(page)).read_text("utf-8")
        sources = ["".join(cell["source"]) for cell in cells(page)]
        drawn = ["image/png" in json.dumps(cell.get("outputs", [])) for cell in cells(page)]
        labelled = sum("#| fig-cap:" in source and "#| label: fig-" in source and there for source, there in zip(sources, drawn))
        assert len(re.findall(r"<strong>Figure [\d.]+</strong>", text)) == labelled, page
        equations = sum(len(re.findall(r"\$\$.+?\$\$", source, re.S)) for source in sources)
        assert text.count('class="eqno"') == equations, page
        assert not re.search(r"\$\$|\\frac|\{#(?:eq|fig)-|#\| ", re.sub(r"(?s)<pre.*?</pre>|<code.*?</code>|<script.*?</script>", "", text)), page


def test_level_and_time_stand_at_the_head(site):
    for page in CHAPTERS:
        text = (site / html_of(page)).read_text("utf-8")
        assert f'class="level level-{page.split("/")[0]}"' in text
        time = next(("".join(cell["source"]) for cell in cells(page) if cell.get("id") == "time"), None)
        if time:
            assert f"runs in {re.search('about (.+?) on', time)[1]} on two cores" in text, page


def test_home_page_maps_the_course_with_levels_and_times(site):
    "Made by docs/readme.py from the sidebar and the chapters' heads"
    rows = re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", re.search(r'(?s)<div class="course-map">.*?</table>', (site / "index.html").read_text("utf-8"))[0])[1:]
    chapters = [(part["section"], page) for part in PARTS if isinstance(part, dict) and part["section"] != "Reference" for page in part["contents"]]
    assert len(rows) == len(chapters)
    level = ""
    for row, (section, page) in zip(rows, chapters):
        said = [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"(?s)<td[^>]*>(.*?)</td>", row)]
        level = said[0] or level
        time = next(("".join(cell["source"]) for cell in cells(page) if cell.get("id") == "time"), None)
        spent = re.search("about ([\\d.]+) (s|min)", time).groups() if time else ()
        assert level == section.lower() and f'href="{html_of(page)}"' in row and said[3] == " ".join(spent), page


def test_time_machine_is_embedded_not_copied(site):
    text = (site / "medium/14_look_inside.html").read_text("utf-8")
    assert 'src="../files/time_machine.html"' in text
    assert (site / "files/time_machine.html").read_bytes() == (REPO / "assets/time_machine.html").read_bytes()


@pytest.fixture(scope="session")
def builder():
    "docs/build.py as a module"
    sys.path.insert(0, str(REPO / "docs"))
    spec = importlib.util.spec_from_file_location("site_build", REPO / "docs/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(REPO / "docs"))
    return module


def test_links_to_github_wait_for_a_repository(builder, tmp_path):
    site = builder.Site(tmp_path)
    chapter = builder.Chapter(site, CHAPTERS[0])
    site.repository = ""
    assert "Colab" not in chapter.badges() and "GitHub" not in chapter.badges()
    site.repository = "https://github.com/someone/course"
    path = f"someone/course/blob/main/nbs/{CHAPTERS[0]}"
    assert f"https://colab.research.google.com/github/{path}" in chapter.badges()
    assert f"https://github.com/{path}" in chapter.badges()


def test_live_demo_waits_for_its_builder(builder, site, tmp_path, monkeypatch):
    "docs/demo_build.py writes it; a link to it in the sidebar is made relative after Sphinx, which knows only its own pages"
    assert (site / builder.DEMO_PAGE).is_file() == builder.DEMO.is_file()
    pages, home = builder.Site(tmp_path), builder.Chapter
    monkeypatch.setattr(builder, "DEMO", tmp_path / "absent.py")
    assert "Live demo" not in home(pages, "index.ipynb").actions()
    monkeypatch.setattr(builder, "DEMO", tmp_path)
    assert f'href="{builder.DEMO_PAGE}">Live demo<' in home(pages, "index.ipynb").actions()
    item = f'<a class="reference external" href="{builder.HERE}{builder.DEMO_PAGE}">Live demo</a>'
    assert builder.mend(item, "easy/03_bigram.html") == '<a class="reference internal" href="../demo/demo.html">Live demo</a>'


def test_build_reads_every_kind_of_signature(builder, tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        '__all__ = ["f", "K", "x", "y"]\n\nx, y = 1, 2\n\ndef f(\n    a:int, # (T,) one\n    b, c=(1, 2), # two\n    *rest, # three\n    k:float=6e-4, # four\n    **more, # five\n) -> str: # six\n'
        '    "Does it; see `K`"\n    require(a > 0, f"{a} is wrong: " "give more")\n\nclass K:\n    def g(self, x, /, *, y=1): # a line\n        "Doc"\n    def _hidden(self): pass\n'
    )
    module = builder.api.read_module(path, "m")
    f, k = module.names["f"], module.names["K"]
    assert list(module.names) == ["x", "y", "f", "K"]
    assert builder.api.signature(f) == "f(a: int, b, c=(1, 2), *rest, k: float = 6e-4, **more) -> str"
    assert [row[3] for row in builder.api.parameters(f)] == ["(T,) one", "", "two", "three", "four", "five"]
    assert builder.api.returned(f) == ("str", "six")
    assert builder.api.errors(f) == [("UserError", "{a} is wrong: give more")]
    assert [(m.name, builder.api.signature(m), builder.api.returned(m)[1]) for m in k.methods] == [("K.g", "K.g(x, /, *, y=1)", "a line")]


# --- the site in a browser ---

in_browser = pytest.mark.browser


@pytest.fixture(scope="session")
def served(site):
    "The site's address on this machine"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Watched:
    "A tab that remembers what went wrong in it"

    def __init__(self, browser, served: str, theme: str = "light", width: int = 1280):
        self.context = browser.new_context(color_scheme=theme, viewport=dict(width=width, height=900))
        self.tab, self.served, self.faults, self.loaded = self.context.new_page(), served, [], []
        self.tab.on("console", lambda m: self.faults.append(f"{self.tab.url}: {m.text}") if m.type == "error" else None)
        self.tab.on("pageerror", lambda e: self.faults.append(f"{self.tab.url}: {e}"))
        self.tab.on("requestfailed", lambda r: self.faults.append(f"{self.tab.url}: {r.url} failed") if r.failure != "net::ERR_ABORTED" else None)
        self.tab.on("request", lambda r: self.loaded.append(r.url))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def open(self, page: str):
        self.tab.goto(f"{self.served}/{page}", wait_until="load")
        return self.tab


@pytest.fixture
def watched(browser, served):
    return functools.partial(Watched, browser, served)


# What axe need not see twice: two pieces of code of one colour, the twenty-first description of the reference and its
# entry in the contents, which one template makes, and the sidebar, which is the same on every page.
ONCE = """sidebar => {
  const seen = new Set();
  for (const many of ["article dl.py:not(dl.py dl.py)", ".page-toc li", ".bd-toc li"])
    for (const one of [...document.querySelectorAll(many)].slice(20)) one.remove();
  for (const span of document.querySelectorAll("pre span[class], dt.sig span[class]")) {
    if (span.querySelector("span")) continue;
    const kind = span.className + " in " + span.parentElement.closest("div, details, dt").className;
    if (seen.has(kind)) span.remove(); else seen.add(kind);
  }
  if (!sidebar) for (const item of document.querySelectorAll("nav.bd-links li:not(.current)")) item.remove();
}"""
STILL = "*, *::before, *::after { transition: none !important; animation: none !important }"  # colours half-way are no colours
DARK = "() => { document.documentElement.dataset.theme = 'dark'; }"
ALL, COLOURS = "{rules: {region: {enabled: false}}}", "{runOnly: ['color-contrast', 'link-in-text-block']}"  # region: moderate, and a third of the time; in the dark, only colours differ


def said_by_axe(tab, which: str) -> list[str]:
    "Serious and critical faults"
    found = tab.evaluate(f"axe.run(document, {{resultTypes: ['violations'], preload: false, ...{which}}})")["violations"]
    shown = lambda fault: f"{tab.url}: {fault['id']}: {len(fault['nodes'])} x {fault['nodes'][0]['html'][:160]} {fault['nodes'][0]['target']}"
    return [shown(fault) for fault in found if fault["impact"] in ("serious", "critical")]


def for_axe(pages: list[str]) -> set[str]:
    """Every page that somebody wrote; of those that one template makes from each module, the contents, the longest and the shortest

    With AXE_PAGES=all, as in `make soak`, every page.
    """
    made = {kind: [page for page in pages if page.startswith(f"{kind}/") and not page.endswith("index.html")] for kind in ("api", "source")}
    if os.environ.get("AXE_PAGES") == "all":
        return set(pages)
    size = lambda page: (REPO / "gpt2_course" / Path(page).with_suffix(".py").name).stat().st_size
    return set(pages) - {page for some in made.values() for page in sorted(some, key=size)[1:-1]}


def look_at(pages: list[str], chromium: str, served: str, examined: set[str]) -> dict[str, list]:
    "Open pages one after another as a telephone, and those that are to be examined as a desk, light and dark; returns what was found"
    found = dict(opened=[], faults=[], loaded=[], wide=[], light=[], dark=[])
    with headless(chromium) as browser, Watched(browser, served, width=390) as w:
        for page in pages:
            w.tab.set_viewport_size(dict(width=390, height=900))
            tab = w.open(page)
            width = tab.evaluate("document.documentElement.scrollWidth")
            found["wide"] += [f"{page}: {width}"] if width > 390 else []
            found["opened"] += [page] if tab.title() else []
            if AXE.is_file() and page in examined:
                tab.set_viewport_size(dict(width=1280, height=900))
                tab.add_style_tag(content=STILL)
                tab.evaluate(ONCE, page == pages[0])
                tab.add_script_tag(path=AXE)
                found["light"] += said_by_axe(tab, ALL)
                tab.evaluate(DARK)
                found["dark"] += said_by_axe(tab, COLOURS)
        found["faults"], found["loaded"] = w.faults, w.loaded
    return found


@pytest.fixture(scope="session")
def looked(chromium, served, ours) -> dict[str, list]:
    "All pages, by two browsers at once"
    examined = for_axe(ours)
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda pages: look_at(pages, chromium, served, examined), (ours[::2], ours[1::2]))
    return {key: first[key] + second[key] for key in first}


@in_browser
def test_every_page_opens_quietly_and_fits_a_telephone(looked, ours, served):
    "No error in the console, no request to another host, nothing wider than the screen"
    strangers = {url for url in looked["loaded"] if not url.startswith((served, "data:", "blob:"))}
    assert set(looked["opened"]) == set(ours) and len(looked["loaded"]) > len(ours)
    assert not looked["faults"], looked["faults"]
    assert not strangers, strangers
    assert not looked["wide"], looked["wide"]


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_fault(looked, theme):
    if not AXE.is_file():
        lacking("axe-core (npm install --prefix build/axe axe-core)")
    assert not looked[theme], "\n".join(looked[theme])


@in_browser
def test_mathematics_is_laid_out(watched):
    "MathML, which needs no script: a fraction stands higher than a line"
    page = next(page for page in CHAPTERS if any("\\frac" in "".join(c["source"]) for c in cells(page) if c["cell_type"] == "markdown"))
    with watched() as w:
        tab = w.open(html_of(page))
        heights = tab.evaluate("[document.querySelector('math mfrac').getBoundingClientRect().height, document.querySelector('math mi').getBoundingClientRect().height]")
        assert heights[0] > 1.6 * heights[1] > 0
        assert tab.evaluate("document.querySelectorAll('mjx-container, .MathJax').length") == 0


@in_browser
def test_search_copy_and_the_switch_to_dark(watched):
    with watched() as w:
        tab = w.open("search.html?q=bigram")
        tab.wait_for_selector("#search-results li a")
        assert tab.locator("#search-results li a", has_text="bigram").count()
        w.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = w.open("medium/07_attention.html")
        cell = tab.locator("div.highlight", has_text="def attend(").first
        assert not cell.is_visible()  # the package's answer to an exercise
        tab.locator("details", has=cell).first.locator("summary").first.click()
        cell.hover()
        cell.locator("button.copybtn").click()
        copied = tab.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("def attend(\n    q:Tensor,") and "#|" not in copied
        for theme in ("dark", "light"):
            tab.locator(".theme-switch-button:visible").first.click()
            tab.locator(f".theme-change-button[data-mode={theme}]:visible").first.click()
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
        assert not w.faults, w.faults


@in_browser
def test_a_dark_page_is_printed_on_white(watched):
    with watched("dark") as w:
        tab = w.open(html_of(CHAPTERS[0]))
        tab.evaluate("() => { window.seen = []; addEventListener('beforeprint', () => seen.push(document.documentElement.dataset.theme)); }")
        tab.pdf()
        assert tab.evaluate("[...seen, document.documentElement.dataset.theme]") == ["light", "dark"]


@in_browser
def test_time_machine_runs_inside_its_chapter(watched):
    with watched("dark") as w:
        tab = w.open("medium/14_look_inside.html")
        tab.locator("iframe[title='Training time machine']").scroll_into_view_if_needed()
        frame = tab.frame_locator("iframe[title='Training time machine']")
        frame.locator("#step").press("Home")
        first = frame.locator("#now").inner_text()
        frame.locator("#step").press("End")
        assert frame.locator("#now").inner_text() != first
        assert frame.locator("html").get_attribute("data-theme") == "dark"
        assert not w.faults, w.faults


@in_browser
def test_home_page_is_light(watched, site, served):
    "Under 1 MB gzipped, and no mathematics on it"
    with watched() as w:
        w.open("index.html").wait_for_timeout(500)
        files = {urlsplit(url).path.lstrip("/") or "index.html" for url in w.loaded if url.startswith(served)}
    weight = sum(len(gzip.compress((site / unquote(name)).read_bytes(), 6)) for name in files)
    print(f"home page: {len(files)} files, {weight / 1024:.0f} KiB gzipped")
    assert weight < 2**20
    assert "<math" not in (site / "index.html").read_text("utf-8")
