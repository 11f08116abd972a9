"""What holds for the repository as a whole: the export is in sync, notebooks are clean, imports keep their order, data is what it says."""

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import REPO, copy_repo, offline_env, repo_files

FILES = repo_files()
NOTEBOOKS = [name for name in FILES if name.parts[0] == "nbs" and name.suffix == ".ipynb"]
MODULES = [name for name in FILES if name.parts[0] == "gpt2_course" and name.suffix == ".py"]
TAUGHT = [name for name in MODULES if name.stem not in ("__init__", "_modidx")]
DOTTED = [".".join(name.with_suffix("").parts) for name in TAUGHT]

TOP_LEVEL = set(
    "nbs gpt2_course data assets docs tests settings.ini README.md pyproject.toml constraints.txt Makefile LICENSE"
    " CONTRIBUTING.md .ci .github .gitignore .gitattributes".split()
)

BY_HAND = Path("gpt2_course/exercises")  # the only part of the package that no notebook exports

AT_IMPORT = {"torch", "numpy", "tiktoken", "tiktoken_ext", "tyro", "tqdm", "safetensors", "regex"}

RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?")
EXPORT = re.compile(r"^#\|\s*export[si]?\b", re.M)
MACHINE_PATH = re.compile(r"(?<![\w.)\]}>*-])/(?:work|root|opt)(?![\w-])|\.\./shared\b")


def read_notebook(name: Path):
    "As it stands in the file: nbformat.read would repair doubled or missing ids"
    return nbformat.v4.reads((REPO / name).read_text("utf-8"))


def python_of(source: str) -> ast.Module:
    "The cell's Python: magics and shell lines are blanked, so that line numbers stay"
    if source.lstrip().startswith("%%"):
        return ast.parse("")
    return ast.parse("\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.split("\n")))


def code_cells(name: Path):
    return [cell for cell in read_notebook(name).cells if cell.cell_type == "code"]


def label(cell) -> str:
    return f"cell {cell.get('id')}"


def each(names):
    return pytest.mark.parametrize("name", names, ids=[name.as_posix() for name in names])


def bytes_of(root: Path, folder: str) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def nbdev(run, command: str, root: Path):
    run([Path(sys.executable).parent / command], cwd=root, root=root, timeout=300)


# --- notebooks and what is exported from them ---


def test_the_house_is_not_empty():
    assert NOTEBOOKS and TAUGHT


def test_export_is_in_sync(run, tmp_path):
    root = copy_repo(tmp_path / "copy")
    before = bytes_of(root, "gpt2_course")
    for path in (root / "gpt2_course").rglob("*.py"):
        if path.name != "__init__.py" and not path.is_relative_to(root / BY_HAND):
            path.unlink()  # a module whose notebook is gone would stay behind
    nbdev(run, "nbdev_export", root)
    differ = differences(before, bytes_of(root, "gpt2_course"))
    assert not differ, f"run nbdev_export (edit notebooks, not modules); these differ: {differ}"


def test_notebooks_are_clean(run, tmp_path):
    root = copy_repo(tmp_path / "copy")
    before = bytes_of(root, "nbs")
    nbdev(run, "nbdev_clean", root)
    differ = differences(before, bytes_of(root, "nbs"))
    assert not differ, f"run nbdev_clean; these differ: {differ}"


@each(NOTEBOOKS)
def test_notebook_is_committed_with_its_outputs(name):
    cells = [cell for cell in code_cells(name) if re.sub(r"(?m)^\s*#.*$", "", cell.source).strip()]
    outputs = [(cell, output) for cell in cells for output in cell.outputs]
    assert outputs or not cells, "no output in the whole notebook: run it and save it"
    errors = [(label(cell), output.ename) for cell, output in outputs if output.output_type == "error"]
    assert not errors, errors


@each(NOTEBOOKS)
def test_no_output_speaks_of_the_machine(name):
    "Warnings and temporary paths of whoever ran it last mean nothing to a reader"
    printed = [(label(cell), output.name, output.text) for cell in code_cells(name) for output in cell.outputs if output.output_type == "stream"]
    strange = [row for row in printed if "Warning:" in row[2] or re.search(r"/tmp/|/(home|root)/", row[2])]
    assert not strange, strange


@each(NOTEBOOKS)
def test_cell_ids(name):
    cells = read_notebook(name).cells
    ids = [cell.get("id") for cell in cells]
    assert all(ids), "a cell without an id"
    assert len(set(ids)) == len(ids), sorted(id for id in ids if ids.count(id) > 1)
    exported = [cell.id for cell in cells if cell.cell_type == "code" and EXPORT.search(cell.source)]
    random = [id for id in exported if RANDOM_ID.fullmatch(id)]
    assert not random, f"exported cells want readable ids (the modules quote them): {random}"


@each(NOTEBOOKS)
def test_exported_definitions_are_short(name):
    long = [
        (label(cell), node.name, node.end_lineno - node.lineno + 1)
        for cell in code_cells(name)
        if EXPORT.search(cell.source)
        for node in ast.walk(python_of(cell.source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.end_lineno - node.lineno + 1 > 45
    ]
    assert not long, f"definitions of more than 45 lines: {long}"


# --- modules ---


def test_imports_keep_the_order_of_the_modules():
    "The rows stand in pyproject.toml; import-linter reads every import, also those inside functions"
    done = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=REPO, capture_output=True, text=True, env=offline_env())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_ruff_finds_nothing():
    "Unused names, star imports, long lines, traps: notebooks, modules, tests and the site's scripts"
    done = subprocess.run([Path(sys.executable).parent / "ruff", "check", "--no-cache", "--output-format", "concise"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@each(TAUGHT)
def test_the_package_is_flat_but_for_the_exercises(name):
    assert BY_HAND in name.parents or name.parent == Path("gpt2_course")


@each([name for name in TAUGHT if BY_HAND in name.parents])
def test_the_catalogue_is_written_by_hand(name):
    "It would be a spoiler as a chapter, and is no lesson: no notebook exports it, and it says so by lacking nbdev's marks"
    source = (REPO / name).read_text("utf-8")
    assert "AUTOGENERATED" not in source and "# %%" not in source and "__all__" not in source


def at_import(node: ast.AST):
    "Import statements that run when the module is imported"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from at_import(child)


@each(MODULES)
def test_import_needs_the_runtime_dependencies_only(name):
    wanted = set()
    for node in at_import(ast.parse((REPO / name).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level:
            wanted.add(node.module.split(".")[0])
    strangers = wanted - AT_IMPORT - {"gpt2_course"} - set(sys.stdlib_module_names)
    assert not strangers, f"import inside the function that uses it: {sorted(strangers)}"


def written_by_nbdev(tree: ast.Module) -> set[int]:
    "Lines that nbdev lays out itself: the module's docstring (a notebook's one sentence) and __all__"
    nodes = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    nodes += tree.body[:1] if ast.get_docstring(tree) else []
    return {number for node in nodes for number in range(node.lineno, node.end_lineno + 1)}


@each(TAUGHT)
def test_lines_fit(name):
    source = (REPO / name).read_text("utf-8")
    theirs = written_by_nbdev(ast.parse(source))
    long = [(number, len(line)) for number, line in enumerate(source.splitlines(), 1) if len(line) > 100 and number not in theirs]
    assert not long, f"(line, columns) over 100 columns: {long}"


# --- files ---


def test_top_level_is_as_agreed():
    assert {name.parts[0] for name in FILES} <= TOP_LEVEL


def test_no_large_file():
    large = [(name.as_posix(), (REPO / name).stat().st_size) for name in FILES if (REPO / name).is_file()]
    assert not [row for row in large if row[1] > 8 * 2**20]


def test_no_path_of_one_machine():
    found = []
    for name in FILES:
        path = REPO / name
        if path.is_symlink() or not path.is_file():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {hit.group()}" for hit in MACHINE_PATH.finditer(text)]
    assert not found, found


def test_symlinks_stay_inside():
    links = [name for name in FILES if (REPO / name).is_symlink()]
    outside = [name for name in links if not (REPO / name).resolve().is_relative_to(REPO) or not (REPO / name).exists()]
    assert not outside


ROW = re.compile(r"^\| `(?P<path>[^`]+)` \|.*\| (?P<bytes>\d+)(?: \((?P<files>\d+) files\))? \| `(?P<sha256>[0-9a-f]{64})` \|$", re.M)
ROWS = list(ROW.finditer((REPO / "data/README.md").read_text("utf-8")))


def test_every_data_file_is_described():
    described = [row["path"] for row in ROWS]
    data = [name.relative_to("data").as_posix() for name in FILES if name.parts[0] == "data" and name.name != "README.md"]
    missing = [name for name in data if not any(name == row or row.endswith("/") and name.startswith(row) for row in described)]
    assert not missing, f"no row in data/README.md for {missing}"


@pytest.mark.parametrize("row", ROWS, ids=[row["path"] for row in ROWS])
def test_data_is_what_its_readme_says(row):
    path = REPO / "data" / row["path"]
    files = sorted(path.iterdir(), key=lambda file: file.name) if row["path"].endswith("/") else [path]
    content = b"".join(file.read_bytes() for file in files)
    assert len(content) == int(row["bytes"])
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    assert len(files) == int(row["files"] or 1)


# --- text ---


def test_readme_is_made_from_the_index(run):
    run(["docs/readme.py", "--check"])


def test_every_exercise_has_its_form(run):
    "A heading, a stub with its check, a fold for each hint of the catalogue, the solution, and the package's answer folded"
    run(["docs/exercises.py", "--check"])


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@each([*NOTEBOOKS, *(name for name in FILES if name.suffix == ".md")])
def test_relative_links_lead_somewhere(name):
    text = (REPO / name).read_text("utf-8")
    if name.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read_notebook(name).cells if cell.cell_type == "markdown")
    dead = [link for link in LINK.findall(text) if not (REPO / name.parent / link).exists()]
    assert not dead, dead


def test_sidebar_and_map_name_every_chapter():
    chapters = {name.relative_to("nbs").as_posix() for name in NOTEBOOKS if len(name.parts) > 2}
    sidebar = (REPO / "nbs/sidebar.yml").read_text("utf-8")
    index = (REPO / "nbs/index.ipynb").read_text("utf-8")
    assert {c for c in chapters if f"- {c}" not in sidebar or f"({c})" not in index} == set()
    assert len(re.findall(r"- \w+/\w+\.ipynb", sidebar)) == len(chapters)
