"""Make README.md from nbs/index.ipynb: `python docs/readme.py` writes it, `--check` only says whether it is up to date."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def links(text: str) -> str:
    "Links of a notebook in nbs/, as seen from the root"
    text = re.sub(r"\]\(((?:easy|medium|tough|reference)/)", r"](nbs/\1", text)
    return text.replace("](../", "](")


def outputs(cell: dict) -> str:
    "What a cell printed, as an indented block"
    text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
    return "".join("    " + line for line in text.rstrip().splitlines(True))


def readme() -> str:
    "The README as Markdown"
    parts = []
    for cell in json.loads((ROOT / "nbs" / "index.ipynb").read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(links(source))
        elif cell["cell_type"] == "code":
            if "#| echo: false" not in source:
                parts.append(f"```python\n{source}\n```")
            parts.append(outputs(cell))
    return "\n\n".join(filter(None, parts)) + "\n"


if __name__ == "__main__":
    path, text = ROOT / "README.md", readme()
    if "--check" in sys.argv[1:]:
        stale = not path.exists() or path.read_text("utf-8") != text
        print("README.md is " + ("stale: run python docs/readme.py" if stale else "up to date"))
        sys.exit(stale)
    path.write_text(text, "utf-8")
