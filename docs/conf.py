"""Sphinx's settings for the site; docs/build.py writes the pages and calls Sphinx."""

import configparser
import html
import posixpath
import re
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pydata_sphinx_theme import toctree

ROOT = Path(__file__).resolve().parents[1]
_settings = configparser.ConfigParser()
_settings.read(ROOT / "settings.ini")
_settings = _settings["DEFAULT"]

project = _settings["title"]
author = _settings["author"]
copyright = _settings["copyright"]
version = release = _settings["version"]
language = "en"

extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["notebooks", "assets", "files"]
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_dmath_allow_digits = False
myst_dmath_allow_space = False
myst_url_schemes = ("http", "https", "mailto")
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
suppress_warnings = ["mystnb.unknown_mime_type"]
smartquotes = False
python_maximum_signature_line_length = 72
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = project
html_short_title = project
html_static_path = [str(ROOT / "docs" / "theme")]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = str(ROOT / "docs" / "theme" / "favicon.svg")
html_copy_source = False
html_use_index = False
html_domain_indices = False
html_last_updated_fmt = None
html_permalinks_icon = "#"
html_math_renderer = "mathml"
html_baseurl = ""
html_context = {"default_mode": "auto"}  # light or dark, as the system says
html_theme_options = {
    "logo": {"text": project},
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 3,  # a chapter's exercises are headings of the third level
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "article_header_end": ["article-header-buttons"],
    "search_bar_text": "Search the course",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
    "back_to_top_button": True,
    "footer_content_items": ["extra-footer"],
    "extra_footer": f"<p>Made from the notebooks of the course. © {html.escape(copyright)}. MIT licence.</p>",
}

TAG = re.compile(r"\\tag\{([^}]*)\}")


def mathml(tex: str, block: bool) -> str:
    "MathML needs no script, no font file and no request; a formula it cannot say fails the build"
    text = tex2mathml(tex.strip(), as_block=block)
    return re.sub(r"\n\s*", "", text)


def inline_math(self, node: nodes.math):
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def block_math(self, node: nodes.math_block):
    "A numbered equation scrolls by itself on a narrow screen; its number is `\\tag{…}`, set by docs/build.py"
    tag = TAG.search(node.astext())
    number = f'<span class="eqno">({html.escape(tag[1])})</span>' if tag else ""
    math = mathml(TAG.sub("", node.astext()), block=True)
    self.body.append(f'<div class="equation"><div class="equation-body" tabindex="0" role="group" aria-label="Equation">{math}</div>{number}</div>\n')
    raise nodes.SkipNode


class Sidebar:
    """The sidebar, made once and then marked for each page.

    The theme makes it anew for every page, which grows with the square of their number.
    """

    def __init__(self, markup: str, page: str):
        soup = BeautifulSoup(markup, "html.parser")
        for part in soup("ul"):
            part.attrs = {"class": kept} if (kept := [c for c in part.get("class", []) if c != "current"]) else {}
        self.open = {}  # page -> numbers of the list items on the way to it
        for number, item in enumerate(soup("li")):
            item["class"] = [c for c in item["class"] if c not in ("current", "active")]
            item["data-item"] = number
            above = [int(parent["data-item"]) for parent in item.find_parents("li")]
            link = item.find("a")
            link["class"] = [c for c in link["class"] if c != "current"]
            if details := item.find("details", recursive=False):
                details.attrs = {"data-details": number}
            if "://" not in link["href"]:
                path = page if link["href"] == "#" else posixpath.normpath(posixpath.join(posixpath.dirname(page), link["href"]))
                self.open[path] = [number, *above]
                link["href"] = f"{{{path}}}"
        self.markup = str(soup)

    def at(self, page: str) -> str:
        "As the theme would make it for a page"
        way, last = self.open.get(page, []), self.open.get(page, [-1])[0]
        here = lambda m: "#" if m[1] == page else posixpath.relpath(m[1], posixpath.dirname(page) or ".")
        text = re.sub(r' data-details="(\d+)"', lambda m: ' open="open"' if int(m[1]) in way else "", self.markup)
        mark = lambda m: f'class="{m[1]}{" current active" if int(m[2]) in way else ""}"{m[3]}class="{"current " if int(m[2]) == last else ""}'
        text = re.sub(r'class="([^"]*)" data-item="(\d+)"(>\s*<a )class="', mark, text)
        return re.sub(r"(?<=href=\")\{([^}]*)\}", here, text)


def remember_sidebar(app, pagename, templatename, context, doctree):
    "In place of the theme's function that the templates call"
    theme_functions(app, pagename, templatename, context, doctree)
    make, page = context["generate_toctree_html"], f"{pagename}.html"

    def once(kind: str, **kwargs) -> str:
        if kind != "sidebar":
            return make(kind=kind, **kwargs)
        if not hasattr(app, "course_sidebar"):
            app.course_sidebar = Sidebar(str(make(kind=kind, **kwargs)), page)
        return app.course_sidebar.at(page)

    context["generate_toctree_html"] = once


theme_functions, toctree.add_toctree_functions = toctree.add_toctree_functions, remember_sidebar


def setup(app):
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
