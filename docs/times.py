"""Run notebooks from top to bottom, keep their outputs, and write at the head of each chapter how long it took.

    python docs/times.py                        all chapters
    python docs/times.py nbs/easy/03_bigram.ipynb …   some of them

The sentence stands in the cell with the id `time`; the map in nbs/index.ipynb and README.md follows. Measure on a quiet machine: the number is what readers plan by.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import readme

ROOT = Path(__file__).resolve().parents[1]


def in_words(seconds: float) -> str:
    "Rounded up to five seconds, or to half a minute from two minutes on"
    if seconds < 120:
        return f"{max(5, -(-int(seconds) // 5) * 5)} seconds"
    return f"{-(-int(seconds) // 30) / 2:g} minutes"


def refresh(path: Path) -> float:
    "Run one notebook in a fresh kernel, save it with its outputs and its time; returns the seconds"
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    NotebookClient(notebook, kernel_name="python3", timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    seconds = time.monotonic() - began
    for cell in notebook.cells:
        if cell.get("id") == "time":
            cell.source = f"Running all cells takes about {in_words(seconds)} on two cores."
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sorted(p for level in ("easy", "medium", "tough") for p in (ROOT / "nbs" / level).glob("*.ipynb"))
    total = 0.0
    for path in chosen:
        total += (seconds := refresh(path))
        print(f"{seconds:7.1f}  {path.name}", flush=True)
    for path, text in readme.made().items():
        path.write_text(text, "utf-8")  # the map on the home page repeats the times
    print(f"{total:7.1f}  together; now run nbdev_clean")
