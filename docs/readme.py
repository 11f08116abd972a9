"""Make README.md from nbs/index.ipynb: `python docs/readme.py` writes it, `--check` only says whether it is up to date.

The map of the course, the cell `chapters` of the index, is made here, too: from nbs/sidebar.yml and the head of each
chapter. So a new chapter, or a new time (docs/times.py), reaches the index, the README and the home page of the site.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX, SIDEBAR, README = ROOT / "nbs" / "index.ipynb", ROOT / "nbs" / "sidebar.yml", ROOT / "README.md"


# --- the map ---


def sections() -> list[tuple[str, list[str]]]:
    "(level, its pages) of sidebar.yml, read line by line: the README must not need a YAML library"
    found = []
    for line in SIDEBAR.read_text("utf-8").splitlines():
        if section := re.match(r"\s*- section: (.+)", line):
            found.append((section[1].strip(), []))
        elif (page := re.match(r"\s*- (\w+/\w+\.ipynb)", line)) and found:
            found[-1][1].append(page[1])
    return found


def head(page: str) -> tuple[str, str, str]:
    "(title, module, time) of a notebook; module and time are empty where it has none"
    cells = json.loads((ROOT / "nbs" / page).read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    title = texts[0].split("\n")[0].removeprefix("# ").strip()
    module = next((m[1] for text in texts if (m := re.search(r"^#\| default_exp (\S+)", text, re.M))), "")
    said = next((text for text, cell in zip(texts, cells) if cell.get("id") == "time" and cell["cell_type"] == "markdown"), "")
    return title, module, m[1] if (m := re.search(r"about (.+?) on two cores", said)) else ""


def seconds(text: str) -> float:
    "'90 seconds' or '2.5 minutes' in seconds"
    number, unit = text.split()[:2]
    return float(number) * (60 if unit.startswith("minute") else 1)


def short(text: str) -> str:
    "'90 seconds' -> '90 s'"
    return re.sub(r" seconds?", " s", re.sub(r" minutes?", " min", text))


def chapters() -> str:
    "The map as a table; the reference pages in a line below it"
    rows, rest, spent = ["| level | chapter | module | runs in |", "|-|-|-|-|"], "", []
    for section, pages in sections():
        if section == "Reference":
            rest = "Reference: " + ", ".join(f"[{Path(page).stem}]({page})" for page in pages) + "."
            continue
        for i, page in enumerate(pages):
            title, module, time = head(page)
            spent += [seconds(time)] if time else []
            level = section.lower() if not i else ""
            number = Path(page).name.split("_")[0]
            rows.append(f"| {level} | [{number} {title}]({page}) | {f'`{module}`' if module else ''} | {short(time)} |")
    which = "All chapters" if len(spent) == len(rows) - 2 else f"The {len(spent)} chapters that were timed"
    together = f"{which} compute for about {sum(spent) / 60:.0f} minutes together on two cores; reading takes longer."
    return "\n".join(rows) + f"\n\n{together} {rest}"


def refreshed(index: dict) -> dict:
    "The index with its map up to date"
    for cell in index["cells"]:
        if cell["id"] == "chapters":
            cell["source"] = chapters().splitlines(True)
    return index


# --- the README ---


def links(text: str) -> str:
    "Links of a notebook in nbs/, as seen from the root"
    text = re.sub(r"\]\(((?:easy|medium|tough|reference)/)", r"](nbs/\1", text)
    return text.replace("](../", "](")


def outputs(cell: dict) -> str:
    "What a cell printed, as an indented block"
    text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
    return "".join("    " + line for line in text.rstrip().splitlines(True))


def readme(index: dict) -> str:
    "The README as Markdown"
    parts = []
    for cell in index["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(links(source))
        elif cell["cell_type"] == "code":
            if "#| echo: false" not in source:
                parts.append(f"```python\n{source}\n```")
            parts.append(outputs(cell))
    return "\n\n".join(filter(None, parts)) + "\n"


def made() -> dict[Path, str]:
    "file -> what it should say"
    index = refreshed(json.loads(INDEX.read_text("utf-8")))
    return {INDEX: json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n", README: readme(index)}


if __name__ == "__main__":
    stale = [path for path, text in made().items() if not path.exists() or path.read_text("utf-8") != text]
    names = " and ".join(path.relative_to(ROOT).as_posix() for path in stale)
    if "--check" in sys.argv[1:]:
        print(f"stale: {names}: run python docs/readme.py" if stale else "README.md is up to date")
        sys.exit(bool(stale))
    for path, text in made().items():
        path.write_text(text, "utf-8")
