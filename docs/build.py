"""Build the site: `python docs/build.py [--out _docs] [--serve [PORT]]`, from the committed notebooks, without a network.

nbs/sidebar.yml is the only list of chapters. Each notebook becomes a page in _proc/ (badges, anchors, links, numbers),
docs/api.py adds the reference, and Sphinx makes HTML of it all. Nothing is executed and the package is not imported.
The live demo is added where docs/demo_build.py is there to build it: a page of its own in _docs/demo/.
"""

import argparse
import configparser
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import yaml
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import api

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
LEVELS = ("easy", "medium", "tough", "reference")
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+):?\s*(.*)$")
DEMO = ROOT / "docs" / "demo_build.py"  # python docs/demo_build.py FOLDER --home LINK writes the live demo
DEMO_PAGE = "demo/demo.html"
HERE = "https://site.invalid/"  # in a sidebar Sphinx takes its own pages or a URL: this one is made relative again
FENCE = re.compile(r"^\s*(```|~~~)")


# --- where things are ---


def relative(target: str, page: str) -> str:
    "A path of the site, as seen from a page of it"
    path, _, anchor = target.partition("#")
    seen = os.path.relpath(path, PurePosixPath(page).parent.as_posix()) if path != page else ""
    return seen.replace(os.sep, "/") + (f"#{anchor}" if anchor else "")


def anchor(text: str, target: str, page: str, kind: str = "", more: str = "") -> str:
    "A link as HTML; text is HTML already"
    return f'<a class="{kind or "reference internal"}" href="{html.escape(relative(target, page))}"{more}>{text}</a>'


class Site:
    "What the pages need to know of each other"

    def __init__(self, work: Path):
        self.work = work
        self.modules = api.read_package(ROOT / "gpt2_course")
        settings = configparser.ConfigParser()
        settings.read(ROOT / "settings.ini")
        self.settings = settings["DEFAULT"]
        url = self.settings.get("git_url", "")
        self.repository = "" if not url or urlsplit(url).netloc.endswith(".invalid") else url.rstrip("/")
        self.sections = []  # (name, pages under nbs/)
        for part in yaml.safe_load((NBS / "sidebar.yml").read_text("utf-8"))["website"]["sidebar"]["contents"]:
            if isinstance(part, dict):
                self.sections.append((part["section"], part["contents"]))
        self.pages = ["index.ipynb", *(page for _, pages in self.sections for page in pages)]
        self.notebooks = {page: json.loads((NBS / page).read_text("utf-8")) for page in self.pages}
        self.extra = {}  # files of the repository that became pages: path -> page
        self.known = self.index()

    def index(self) -> dict[str, list[tuple[str, str]]]:
        "text between backticks -> [(module, link)]: the cell that defines it, else its place in the reference"
        known = {}
        for module in self.modules.values():
            for spelling in (module.dotted, module.full):
                if spelling not in ("check", "train", "sample", "prepare", "config", "data", "model"):
                    known.setdefault(spelling, []).append((module.dotted, f"api/{module.dotted}.html"))
            taught = module.notebook in self.pages
            for entry in module.names.values():
                for each in [entry, *entry.methods]:
                    there = f"{html_name(module.notebook)}#{entry.full}" if taught else f"api/{module.dotted}.html#{each.full}"
                    for spelling in (each.name, f"{module.dotted}.{each.name}", each.full):
                        known.setdefault(spelling, []).append((module.dotted, there))
        return known

    def link(self, text: str, page: str, module: str = "", self_too: bool = False) -> str | None:
        "A known name as a link to where it is defined, else None; a name of two modules is a link in its own only"
        name = text.removesuffix("()")
        found = self.known.get(f"gpt2_course.{name}" if page == "index.html" and name in self.modules else name, [])
        if len(found) > 1:
            found = [row for row in found if row[0] == module]
        if not found or found[0][1].partition("#")[0] == page and not self_too and page.startswith("api/") and "#" not in found[0][1]:
            return None
        return anchor(api.code(text), found[0][1], page, "name")

    def title(self, page: str) -> str:
        "A chapter's short name: its number and its title up to the colon"
        first = "".join(self.notebooks[page]["cells"][0]["source"]).split("\n")[0].removeprefix("# ")
        number = re.match(r"(\d+)_", Path(page).name)
        return (f"{number[1]} · " if number else "") + first.split(":")[0].replace("`", "")


def html_name(page: str) -> str:
    return page.removesuffix(".ipynb") + ".html"


# --- Markdown ---

INLINE = re.compile(r"(!?\[(?:[^\]`]|`[^`]*`)*\]\([^)\s]+\))|(?<!`)`([^`\n]+)`(?!`)|(?<![\w`])@((?:fig|eq)-[\w-]+)|(\$\$.+?\$\$)(?:\s*\{#(eq-[\w-]+)\})?", re.S)
LINKED = re.compile(r"(!?)\[((?:[^\]`]|`[^`]*`)*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


class Chapter:
    "One notebook on its way to a page"

    def __init__(self, site: Site, page: str):
        self.site, self.page, self.out = site, page, html_name(page)
        self.notebook = site.notebooks[page]
        self.module = next((m for m in site.modules.values() if m.notebook == page), None)
        number = re.match(r"(\d+)_", Path(page).name)
        self.number = str(int(number[1])) if number else ""
        self.equations = 0
        self.numbers = self.figures()

    def figures(self) -> dict[str, str]:
        "label of a figure or an equation -> its number in this chapter"
        cells = ["".join(cell["source"]) for cell in self.notebook["cells"]]
        drawn = [text for text, cell in zip(cells, self.notebook["cells"]) if "#| fig-cap:" in text and has_picture(cell)]
        found = [m[1] for text in drawn for m in re.finditer(r"^#\| label: (fig-[\w-]+)$", text, re.M)]
        equations = [m[1] for text in cells for m in re.finditer(r"\$\$.+?\$\$(?:\s*\{#(eq-[\w-]+)\})?", text, re.S)]
        return {label: self.counted(i) for i, label in enumerate(found, 1)} | {label: self.counted(i) for i, label in enumerate(equations, 1) if label}

    def counted(self, i: int) -> str:
        return f"{self.number}.{i}" if self.number else str(i)

    def named(self, label: str) -> str:
        "The anchor of a figure or an equation: two chapters may use one label"
        return f"{label}-{self.number or Path(self.page).stem}".lower().replace("_", "-")

    # links

    def file_link(self, text: str, target: str, fragment: str) -> str:
        "A link of the notebook, as one of the site"
        path = (NBS / self.page).parent / target
        where = Path(os.path.normpath(path))
        if self.page == "index.ipynb" and not where.exists():
            where = Path(os.path.normpath(ROOT / target))
        inside = where.relative_to(ROOT).as_posix()
        page = inside.removeprefix("nbs/")
        if page in self.site.pages:
            return f"[{text}]({relative(page, self.page)}{fragment})"
        if where.is_dir():
            return text
        if inside.startswith("gpt2_course/exercises"):
            return text  # spoilers
        if inside.startswith("gpt2_course/"):
            dotted = ".".join(Path(inside).with_suffix("").parts[1:])
            return f"[{text}]({relative(f'source/{dotted}.md', self.page)})"
        if where.suffix in (".md", ".ini", ".toml", ".txt", "") and where.stat().st_size < 200_000:
            name = self.site.extra.setdefault(inside, "about/" + re.sub(r"\W+", "_", inside.removesuffix(".md").lower()))
            return f"[{text}]({relative(name + '.md', self.page)})"
        copy = self.site.work / "files" / page.removeprefix("assets/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(where, copy)
        label = re.sub(r"`([^`]+)`", lambda m: api.code(m[1]), text)
        return anchor(label, f"files/{page.removeprefix('assets/')}", self.out)

    def inline(self, found: re.Match) -> str:
        link, code, label, equation, name = found.groups()
        if link:
            bang, text, target, fragment = LINKED.fullmatch(link).groups()
            if bang or re.match(r"[a-z]+:", target):
                return link
            if not target:
                return anchor(re.sub(r"`([^`]+)`", lambda m: api.code(m[1]), text), f"{self.out}{fragment}", self.out)
            return self.file_link(text, target, fragment or "")
        if code:
            return self.site.link(code, self.out, self.module.dotted if self.module else "") or found[0]
        if label:
            if label not in self.numbers:
                return found[0]
            kind = "Figure" if label.startswith("fig") else "Equation"
            return f'<a class="reference internal" href="#{self.named(label)}">{kind} {self.numbers[label]}</a>'
        self.equations += 1
        start = f'<span class="anchor" id="{self.named(name)}"></span>\n\n' if name else ""
        return f"{start}{equation[:-2].rstrip()} \\tag{{{self.counted(self.equations)}}}$$"

    def markdown(self, text: str) -> str:
        "Links, names, numbers; code blocks and headings stay as they are"
        parts, block, fenced = [], [], False

        def flush():
            if block:
                parts.append(INLINE.sub(self.inline, "\n".join(block)))
                block.clear()

        before = ""
        for line in text.split("\n"):
            literal = fenced or line.startswith("    ") and not before.strip() or line.startswith("#")
            if FENCE.match(line):
                fenced, literal = not fenced, True
            if literal:
                flush()
                parts.append(line)
            else:
                block.append(line)
            before = "" if literal and line.startswith("    ") else line
        flush()
        return "\n".join(parts)

    # cells

    def head(self, text: str) -> str:
        "Title, summary, badges and the rest of the first cell"
        lines = text.split("\n")
        title = lines[0]
        summary = next((line for line in lines if line.startswith("> ")), "")
        rest = "\n".join(line for line in lines[1:] if line != summary).strip("\n")  # spaces begin a block of code
        if self.page != "index.ipynb":
            goals = re.match(r"(After this chapter you can)\s*\n\n?((?:[-*] .*\n?(?:  .*\n?)*)+)", rest)
            if goals:
                rest = f'<div class="objectives">\n\n{goals[1]}\n\n{self.markdown(goals[2])}\n\n</div>\n\n' + self.markdown(rest[goals.end() :])
            else:
                rest = self.markdown(rest)
        else:
            rest = self.markdown(rest)
        lead = f'<p class="lead">{api.prose(summary[2:], lambda name: self.site.link(name, self.out))}</p>' if summary else ""
        return f"{title}\n\n{lead}\n\n{self.actions() if self.page == 'index.ipynb' else self.badges()}\n\n{rest}"

    def actions(self) -> str:
        "The first thing to do, on the home page"
        first = self.site.sections[0][1][0]
        rows = [(html_name(first), f"Begin: {self.site.title(first)}"), ("api/index.html", "API reference")]
        if DEMO.exists():
            rows.insert(1, (DEMO_PAGE, "Live demo"))
        links = "".join(anchor(html.escape(text), target, self.out, "action") for target, text in rows)
        return f'<p class="actions">{links}</p>'

    def badges(self) -> str:
        "Level, minutes, the module, and where the notebook is"
        level = self.page.split("/")[0]
        parts = [f'<span class="level level-{level}">{level}</span>']
        seconds = next(("".join(cell["source"]) for cell in self.notebook["cells"] if cell.get("id") == "time"), "")
        spent = re.search(r"about (.+?) on two cores", seconds)
        if spent:
            parts.append(f"<span>runs in {html.escape(spent[1])} on two cores</span>")
        if self.module:
            parts.append(f"<span>builds {anchor(api.code(self.module.full), f'api/{self.module.dotted}.html', self.out)}</span>")
        parts.append(anchor("download the notebook", f"notebooks/{self.page}", self.out, "reference internal", " download"))
        if self.site.repository:
            path = f"{self.site.settings.get('branch', 'main')}/nbs/{self.page}"
            parts.append(f'<a class="reference external" href="{self.site.repository}/blob/{path}">GitHub</a>')
            owner = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", self.site.repository)
            if owner:
                parts.append(f'<a class="reference external" href="https://colab.research.google.com/github/{owner[1]}/blob/{path}">Colab</a>')
        return f'<div class="chapter-meta">{"".join(parts)}</div>'

    def exported(self, cell_id: str) -> str:
        "Anchors of what a cell exports, and a line that says where it goes"
        names = [n for n in self.module.names.values() if n.cell == cell_id] if self.module else []
        anchors = "".join(f'<span class="anchor" id="{n.full}"></span>' for n in names)
        shown = " ".join(anchor(api.code(n.name), f"api/{self.module.dotted}.html#{n.full}", self.out) for n in names)
        return f'<div class="exported-bar">{anchors}<span>exported to {api.code(self.module.full)}</span><span>{shown}</span></div>' if names else ""

    def figure(self, said: dict[str, str], source: str) -> dict:
        "What myst-nb is to know of a cell's picture; IPython's Image(…, alt=\"…\") says it in the code"
        spoken = re.search(r'\balt=("(?:[^"\\]|\\.)+")', source)
        if spoken:
            said = {"fig-alt": spoken[1]} | said
        quoted = lambda text: json.loads(text) if text.startswith('"') else text.strip("'")
        found = {}
        if "fig-alt" in said:
            found["image"] = {"alt": quoted(said["fig-alt"])}
        if "fig-cap" in said:
            label = said.get("label", "")
            number = f"**Figure {self.numbers[label]}.** " if label in self.numbers else ""
            found["figure"] = {"caption": number + quoted(said["fig-cap"])} | ({"name": self.named(label)} if label else {})
        return {"mystnb": found} if found else {}

    def code(self, cell: dict) -> list[dict]:
        "A code cell, with a bar above it where it is exported"
        source = "".join(cell["source"])
        said = {m[1]: m[2] for line in source.split("\n") if (m := DIRECTIVE.match(line))}
        body = "\n".join(line for line in source.split("\n") if not DIRECTIVE.match(line)).strip("\n")
        if "hide" in said or said.get("include") == "false" or not body.strip() and not cell["outputs"]:
            return []
        tags = []
        if said.get("echo") == "false":
            tags = ["remove-input"]
        elif "hide-cell" in cell["metadata"].get("tags", []):
            tags = ["hide-cell"]
        elif "export" in said or said.get("code-fold") == "true" or "hide-input" in cell["metadata"].get("tags", []):
            tags = ["hide-input"]
        out = dict(cell_type="code", id=cell["id"], execution_count=None, metadata={"tags": tags} | (self.figure(said, source) if has_picture(cell) else {}), source=body)
        out["outputs"] = [] if said.get("output") == "false" else self.outputs(cell["outputs"])
        bar = self.exported(cell["id"]) if {"export", "exports"} & set(said) else ""
        return [*([note(cell["id"] + "-bar", bar)] if bar else []), out]

    def outputs(self, outputs: list[dict]) -> list[dict]:
        "Outputs as they look on a screen: progress bars stand still, warnings of a machine are left out"
        kept, errors = [], ""
        for output in outputs:
            if output.get("name") == "stderr":
                errors += "".join(output["text"])
                continue
            page = "".join(output.get("data", {}).get("text/html", ""))
            if "srcdoc=" in page:
                output = json.loads(json.dumps(output))
                output["data"] = {"text/html": self.framed(page)}
            kept.append(output)
        screen = [line.split("\r")[-1] for line in re.sub(r"\r\n", "\n", errors).split("\n")]
        if "\r" in errors and any(screen):
            kept.append(dict(output_type="stream", name="stdout", text="\n".join(filter(None, screen)) + "\n"))
        return kept

    def framed(self, page: str) -> str:
        "A page inside a page, loaded when it is reached, rather than carried in the text"
        frame = re.search(r'<iframe ([^>]*?)srcdoc="([^"]*)"([^>]*)>', page, re.S)
        inside = html.unescape(frame[2])
        asset = next((p for p in sorted((ROOT / "assets").glob("*.html")) if p.read_text("utf-8") == inside), None)
        name = asset.name if asset else f"{Path(self.page).stem}_frame.html"
        copy = self.site.work / "files" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(inside, "utf-8")
        return page.replace(frame[0], f'<iframe {frame[1]}src="{relative(f"files/{name}", self.out)}"{frame[3]}>')

    def write(self, after: str = ""):
        "The page's notebook"
        cells = []
        for i, cell in enumerate(self.notebook["cells"]):
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cells += self.code(cell)
            elif cell["cell_type"] == "markdown" and not (cell.get("id") == "time" and "about" in text):
                said = self.head(text) if i == 0 else self.markdown(text)
                if self.page == "index.ipynb" and cell["id"] == "chapters":
                    said = f'<div class="course-map">\n\n{said}\n\n</div>'
                cells.append(note(cell["id"], said))
        if after:
            cells.append(note("toctree", after))
        kernel = dict(kernelspec=dict(display_name="Python 3", language="python", name="python3"), language_info=dict(name="python"))
        path = self.site.work / self.page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)), "utf-8")


def has_picture(cell: dict) -> bool:
    return any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))


def note(id: str, text: str) -> dict:
    return dict(cell_type="markdown", id=id[:64], metadata={}, source=text)


# --- the other pages ---


def toctree(caption: str, rows: list[str]) -> str:
    return "```{toctree}\n:hidden:\n" + (f":caption: {caption}\n" if caption else "") + "\n" + "\n".join(rows) + "\n```\n"


def write_reference(site: Site):
    "A page of the reference and a page of source for each module"
    for name in ("api", "source"):
        (site.work / name).mkdir()
    rows = []
    for module in site.modules.values():
        page = f"api/{module.dotted}.html"

        def where(entry, page=page, module=module):
            line = "" if entry is module else f"#L-{entry.node.lineno}"
            parts = [anchor("source", f"source/{module.dotted}.html{line}", page)]
            if module.notebook in site.pages:
                cell = "" if entry is module else f"#{entry.full}"
                parts.insert(0, "built in " + anchor(html.escape(site.title(module.notebook)), html_name(module.notebook) + cell, page))
            return " · ".join(parts)

        link = partial(site.link, page=page, module=module.dotted)
        (site.work / f"api/{module.dotted}.md").write_text(api.page(module, link, where), "utf-8")
        body = highlight(module.text, PythonLexer(), HtmlFormatter(linespans="L"))
        text = f"---\nnosearch: true\n---\n\n# {module.full}\n\n<p class=\"api-where\">{anchor('reference', page, f'source/{module.dotted}.html')}</p>\n\n"
        # a blank line would end the block of HTML
        body = re.sub(r"\n(?=\n|<span id=\"L-\d+\"><span class=\"w\"></span>\n)", "\n", body).replace("\n\n", "\n&#8203;\n")
        (site.work / f"source/{module.dotted}.md").write_text(f'{text}<div class="highlight-python notranslate">{body}</div>\n', "utf-8")
        names = ", ".join(anchor(api.code(n), f"{page}#{e.full}", "api/index.html") for n, e in module.names.items())
        summary = api.prose(module.doc, lambda name: None)
        rows.append(f"<dt>{anchor(api.code(module.dotted), page, 'api/index.html')}</dt><dd><p>{summary}</p><p class=\"names\">{names}</p></dd>")
    lead = "Every public name of the package, made from the comments in its source. A module's page says which chapter builds it."
    listing = f'# API reference\n\n<p class="lead">{lead}</p>\n\n<dl class="api-index">{"".join(rows)}</dl>\n\n'
    (site.work / "api/index.md").write_text(listing + toctree("", list(site.modules)), "utf-8")
    links = "\n".join(f"- [`{m.full}`]({m.dotted}.md)" for m in site.modules.values())
    text = "# Source\n\nThe package as the notebooks export it.\n\n"
    (site.work / "source/index.md").write_text(text + links + "\n\n" + toctree("", [f"{m.full} <{m.dotted}>" for m in site.modules.values()]), "utf-8")


def write_extra(site: Site) -> list[str]:
    "Files of the repository that a page links to, as pages; returns them"
    done = []
    while len(done) < len(site.extra):
        for path, page in list(site.extra.items()):
            if page in done:
                continue
            text = (ROOT / path).read_text("utf-8")
            if path.endswith(".md"):
                text = re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)[^)]*\)", r"\2", text)
            else:
                text = f"# {Path(path).name}\n\n```text\n{text.rstrip()}\n```\n"
            (site.work / f"{page}.md").parent.mkdir(parents=True, exist_ok=True)
            (site.work / f"{page}.md").write_text(text, "utf-8")
            done.append(page)
    return done


def write_pages(work: Path) -> Site:
    "Everything that Sphinx reads"
    (work / "files").mkdir(parents=True)
    site = Site(work)
    shutil.copytree(ROOT / "assets", work / "assets", ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl", "*.html"))
    for page in site.pages:
        copy = work / "notebooks" / page
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(NBS / page, copy)
        if page != "index.ipynb":
            Chapter(site, page).write()
    write_reference(site)
    index = Chapter(site, "index.ipynb")
    index.write("")
    trees = []
    if DEMO.exists():
        trees.append(toctree("Try it", [f"Live demo <{HERE}{DEMO_PAGE}>"]))
    for name, pages in site.sections:
        trees.append(toctree(name, [f"{site.title(page)} <{page.removesuffix('.ipynb')}>" for page in pages]))
    trees.append(toctree("Package", ["API reference <api/index>", "Source <source/index>", *write_extra(site)]))
    Chapter(site, "index.ipynb").write("\n".join(trees))
    return site


def mend(page: str, name: str) -> str:
    "What the theme leaves unsaid to those who do not see the page; links to pages that Sphinx does not know"
    page = re.sub(rf'reference external" href="{HERE}([^"]*)"', lambda m: f'reference internal" href="{relative(m[1], name)}"', page)
    page = re.sub(r'(<a class="[^"]*reference internal" href="[^"]*">([^<]*)</a><details[^>]*><summary)>', r'\1 aria-label="Pages of \2">', page)
    page = re.sub(r'(<button class="[^"]*search-button-field[^>]*?) aria-label="Search"', r"\1", page)
    page = page.replace(' aria-label="Toggle hidden content"', "")
    page = re.sub(r'<(script|link)[^>]*fontawesome[^>]*>(?:</script>)?\s*', "", page)
    # a signature over several lines is a list of <dd> without a <dt>
    lines = lambda m: re.sub(r"<(/?)d[ld]>", lambda t: f"<{t[1]}span>" if t[1] else f'<span class="sig-{"lines" if t[0] == "<dl>" else "line"}">', m[0])
    return re.sub(r'(?s)<dt class="sig .*?</dt>', lines, page)


def draw_icons(out: Path):
    "The dozen icons that the theme shows, as CSS, in place of its script of two thousand (540 KB gzipped)"
    library = out / "_static" / "scripts" / "fontawesome.js"
    text, rules = library.read_text("utf-8"), []
    used = {name for path in out.rglob("*.html") for name in re.findall(r"fa-solid fa-([a-z-]+)", path.read_text("utf-8"))}
    for name in sorted(used):
        width, height, path = re.findall(rf'[{{,]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"', text)[-1]  # the last set is the solid one
        svg = f"%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'%3E%3Cpath d='{path}'/%3E%3C/svg%3E"
        rules.append(f'.fa-{name} {{ --icon: url("data:image/svg+xml,{svg}"); }}')
    with open(out / "_static" / "site.css", "a", encoding="utf-8") as css:
        css.write("\n/* Icons: Font Awesome Free, CC BY 4.0, https://fontawesome.com/license/free */\n" + "\n".join(rules) + "\n")
    for path in (library, library.with_name("fontawesome.js.LICENSE.txt")):
        path.unlink(missing_ok=True)


def build(out: Path, work: Path):
    "The site, from nothing; a warning of Sphinx fails it"
    from sphinx.cmd.build import main as sphinx

    began = time.monotonic()
    shutil.rmtree(work, ignore_errors=True)
    site = write_pages(work / "pages")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = str(cores) if os.name == "posix" else "1"
    flags = ["-q", "-W", "--keep-going", "-E", "-j", jobs, "-b", "html", "-c", str(ROOT / "docs"), "-d", str(work / "doctrees")]
    status = sphinx([*flags, str(work / "pages"), str(work / "html")])
    if status:
        sys.exit(status)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "html", out)
    for name in ("notebooks", "files"):
        shutil.copytree(work / "pages" / name, out / name)
    for path in out.rglob("*.html"):
        name = path.relative_to(out).as_posix()
        if not name.startswith(("files/", "_static/")):
            path.write_text(mend(path.read_text("utf-8"), name), "utf-8")
    draw_icons(out)
    if DEMO.exists():
        subprocess.run([sys.executable, DEMO, out / "demo", "--home", "../index.html"], check=True)
    for name in (".buildinfo", "objects.inv"):
        (out / name).unlink(missing_ok=True)
    for path in out.rglob("*.map"):
        path.unlink()  # the theme's source maps: 3 MB that no reader asks for
    (out / ".nojekyll").touch()
    print(f"{len(site.pages)} notebooks, {len(site.modules)} modules: {out / 'index.html'} in {time.monotonic() - began:.0f} seconds")


def serve(out: Path, port: int):
    "The site on this machine, until Ctrl-C"
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=out)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="where the site goes (replaced)")
    parser.add_argument("--work", type=Path, default=ROOT / "_proc", help="where the pages go that Sphinx reads (replaced)")
    parser.add_argument("--serve", type=int, nargs="?", const=8000, metavar="PORT", help="then serve it on this machine")
    chosen = parser.parse_args()
    build(chosen.out.resolve(), chosen.work.resolve())
    if chosen.serve is not None:
        serve(chosen.out, chosen.serve)
