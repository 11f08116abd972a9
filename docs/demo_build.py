"""Build the live demo: a page that runs a small checkpoint in the reader's browser, with no request to another host.

    python docs/demo_build.py _docs/demo                        the course's own checkpoint
    python docs/demo_build.py _docs/demo --run runs/shakespeare     one of yours (characters or our BPE)

Pages and scripts come from docs/demo/; the weights (little-endian float32) and their manifest are made here, from the checkpoint.
"""

import argparse
import hashlib
import html
import json
import sys
from pathlib import Path

import regex

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # works from a bare checkout, too

from gpt2_course.checkpoint import find, find_tokenizer, load_model, untied
from gpt2_course.config import UserError, read_json, require
from gpt2_course.config import run as run_command
from gpt2_course.model import count_params

PAGES = ROOT / "docs" / "demo"
RUN = ROOT / "assets" / "runs" / "look-inside"
WEIGHTS = "weights.bin"
MOST = 8_000_000  # bytes of the whole folder: what a reader's phone should have to fetch


def ranges(pattern: str) -> list[list[int]]:
    "First and last code points of the runs of characters that `pattern`, one character's, takes"
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)  # surrogates are no characters
    runs = []
    for found in regex.finditer(f"{pattern}+", every):
        first, last = ord(found[0][0]), ord(found[0][-1])
        runs += [[first, 0xD7FF], [0xE000, last]] if first < 0xD800 <= last else [[first, last]]
    return runs


def tokenizer_spec(tok) -> dict:
    "What docs/demo/tokenizer.js makes its tokenizer from"
    if hasattr(tok, "chars"):
        return dict(kind="char", chars=tok.chars)
    if hasattr(tok, "merges"):
        classes = dict(L=ranges(r"\p{L}"), N=ranges(r"\p{N}"), Z=ranges(r"\s"))
        return dict(kind="bpe", merges=tok.merges, classes=classes)
    raise UserError("this run speaks GPT-2's own vocabulary, which the demo does not hold: give a run with characters or bpe:VOCAB_SIZE")


def pack(state: dict) -> tuple[bytes, list[dict]]:
    "Tensors one after another as little-endian float32, and where each begins (counted in floats)"
    parts, tensors, offset = [], [], 0
    for name, tensor in state.items():
        tensors.append(dict(name=name, shape=list(tensor.shape), offset=offset))
        parts.append(tensor.float().numpy().astype("<f4").tobytes())
        offset += tensor.numel()
    return b"".join(parts), tensors


def build(
    out: Path,  # folder to write, made if it is missing; what lies there under the same names is replaced
    run: Path = RUN,  # run directory
    home: str | None = None,  # link back to the course, relative to the page; None: no link
) -> Path:  # the page
    "Write the demo as static files"
    out, run = Path(out), Path(run)
    require(not out.exists() or out.is_dir(), f"{out} is a file: give a folder for the demo")
    model, tok = load_model(run), find_tokenizer(run)
    weights, tensors = pack(untied(model.state_dict()))
    cfg, meta = model.cfg, read_json(find(run) / "meta.json")
    manifest = dict(
        config={name: getattr(cfg, name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")},
        parameters=count_params(model),
        step=meta.get("step"),
        tokenizer=tokenizer_spec(tok),
        weights=dict(file=WEIGHTS, dtype="float32", bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest(), tensors=tensors),
    )
    files = {path.name: path.read_bytes() for path in sorted(PAGES.iterdir()) if path.suffix in (".html", ".css", ".js")}
    if home is not None:
        link = f'<p><a href="{html.escape(home)}">Back to the course</a></p>'
        files["demo.html"] = files["demo.html"].replace(b"<!-- home -->", link.encode())
    files |= {WEIGHTS: weights, "manifest.json": (json.dumps(manifest, ensure_ascii=False) + "\n").encode()}
    size = sum(map(len, files.values()))
    require(size < MOST, f"the demo of {run} would weigh {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f} MB: give a smaller model")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return out / "demo.html"


def main():
    parser = argparse.ArgumentParser(prog="python docs/demo_build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--run", type=Path, default=RUN, help="run directory (default: assets/runs/look-inside)")
    parser.add_argument("--home", help="link back to the course, such as ../index.html")
    args = parser.parse_args()
    page = build(args.out, args.run, args.home)
    size = sum(path.stat().st_size for path in page.parent.iterdir() if path.is_file())
    print(f"{page}: {size / 1e6:.1f} MB together")


if __name__ == "__main__":
    run_command(main)
