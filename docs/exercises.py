"""Give every exercise in the chapters one form: `python docs/exercises.py [--check] [NOTEBOOK …]`.

An exercise is a heading (`### Exercise: …`), a stub with its check, and folds: one for each hint of the catalogue, then the
solution. The hints stand only in gpt2_course/exercises; this script writes them into the cell behind each check and keeps the
solution that it finds there. Where the package's own answer is the next cell, its source is folded, in JupyterLab
(`source_hidden`) and on the site (the tag `hide-input`), until the reader opens it; so is what it prints, if it prints it.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from gpt2_course import check

ROOT = Path(__file__).resolve().parents[1]
CHECK = re.compile(r"""^check\("([\w.]+)", """, re.M)
FOLD = re.compile(r"<details><summary>(.*?)</summary>\n\n(.*?)\n?</details>", re.S)
RENAMED = {"Hints and solution": "Solution", "Hints, solution, report": "Solution and report"}
HINT = re.compile(r"Hint \d+")


def literal(text: str) -> str:
    "A hint is plain text: what Markdown would take for emphasis, a link or mathematics is escaped"
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([\\*_<\[\]$~#|])", r"\\\1", p) for i, p in enumerate(parts))


def fold(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body.strip()}\n\n</details>"


def folded(name: str, source: str) -> str:
    "The cell behind a check: the catalogue's hints, then every other fold that was there"
    rest = [(summary, body) for summary, body in FOLD.findall(source) if not HINT.fullmatch(summary)]
    rest = [(RENAMED.get(summary, summary), body) for summary, body in rest]
    hints = check.find(name).hints
    return "\n".join([*(fold(f"Hint {i}", literal(h)) for i, h in enumerate(hints, 1)), *(fold(s, b) for s, b in rest)])


def names_in(source: str) -> list[str]:
    return CHECK.findall(source)


def is_answer(name: str, cell: dict) -> bool:
    "Whether a code cell shows the package's own answer: it exports it, or prints it"
    source = "".join(cell["source"])
    answer = check.find(name).package.split(":")[1].split(".")[0]
    exports = re.search(r"^#\| exports?\b", source, re.M) and re.search(rf"^(def|class) {answer}\b", source, re.M)
    return bool(exports or f'solution("{name}")' in source)


def set_source(cell: dict, text: str):
    cell["source"] = text.splitlines(keepends=True)


def formed(notebook: dict) -> tuple[dict, list[str]]:
    "The notebook in its form, and what a person has to mend"
    notebook, faults = json.loads(json.dumps(notebook)), []
    cells = notebook["cells"]
    waiting = []  # exercises whose fold and answer are still to come
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            here = names_in(source)
            for name in here:
                before = next((c for c in reversed(cells[:i]) if c["cell_type"] == "markdown"), None)
                if not before or not re.search(r"^###+ Exercise: ", "".join(before["source"]), re.M):
                    faults.append(f"{name}: the Markdown cell before it has no heading '### Exercise: …'")
            if here and (i + 1 == len(cells) or not "".join(cells[i + 1]["source"]).startswith("<details>")):
                faults.append(f"{here[0]}: the cell behind its check is no fold")
            if not here and waiting and cells[i - 1]["cell_type"] == "markdown" and is_answer(waiting[-1], cell):
                metadata, prints = cell["metadata"], "solution(" in source
                others = set(metadata.get("tags", [])) - {"hide-input", "hide-cell"}
                metadata["tags"] = sorted({*others, "hide-cell" if prints else "hide-input"})
                metadata["jupyter"] = {"source_hidden": True} | ({"outputs_hidden": True} if prints else {})
            waiting = here
        elif waiting and source.startswith("<details>"):
            set_source(cell, folded(waiting[0], source))
    return notebook, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; say what is not in form, and end with status 1")
    chosen = parser.parse_args()
    paths = chosen.notebooks or sorted(p for level in ("easy", "medium", "tough") for p in (ROOT / "nbs" / level).glob("*.ipynb"))
    faults = []
    for path in paths:
        before = json.loads(path.read_text("utf-8"))
        after, found = formed(before)
        faults += [f"{path.name}: {fault}" for fault in found]
        if after == before:
            continue
        if chosen.check:
            faults.append(f"{path.name}: run python docs/exercises.py")
        else:
            path.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("\n".join(faults) or f"{len(paths)} notebooks are in form")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
