"""What README.md tells the reader to type: its commands are taken out of it, and run; what needs a GPU, a network or Windows is parsed."""

import ast
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path, PureWindowsPath

import pytest
from gpt2_course.config import PrepareConfig, parse
from gpt2_course.train import read_options

from conftest import REPO, copy_repo, lacking, offline_env

POSIX, WINDOWS = {"", "sh", "bash", "shell", "console"}, {"powershell", "pwsh", "ps1"}
COMMAND = re.compile(r"(make|python|torchrun|pip)( |$)")  # what a command in the text or in an indented block begins with
# a model and a batch that two processes train in a moment; the commands stay as they are, these flags come after them
SMALL = (
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 32 --batch-tokens 256 --micro-batch 4 --steps 3"
    " --optim.warmup 1 --eval-tokens 1024 --sample-tokens 5 --no-compile --device cpu"
)


def blocks_of(text: str) -> list[tuple[str, str, list[str]]]:
    "(language, heading, commands) of every block with commands, once; each command in the text itself is a block of its own"
    blocks, heading, language, lines, prose = [], "", None, [], []
    for line in [*text.splitlines(), ""]:
        fence = re.match(r"(?:```|~~~)(.*)", line)
        if language is None and fence:
            language = fence[1].strip().lower()
        elif language is not None and not fence:
            lines.append(line)
        elif fence:
            blocks.append((language, heading, lines))
            language, lines = None, []
        elif line.startswith("    "):
            prose.append(line[4:])
        else:
            if prose and COMMAND.match(prose[0]):
                blocks.append(("", heading, prose))
            elif prose and re.match(r"py |\$env:|\.venv\\", prose[0]):
                blocks.append(("powershell", heading, prose))
            prose = []
            heading = line.lstrip("# ") if line.startswith("#") else heading
            blocks += [("", heading, [code]) for code in re.findall(r"`([^`]+)`", line) if COMMAND.match(code) and " " in code]
    blocks = [(language, heading, commands_of(language, lines)) for language, heading, lines in blocks]
    return [block for i, block in enumerate(blocks) if block[2] and block[2] not in [earlier[2] for earlier in blocks[:i]]]


def commands_of(language: str, lines: list[str]) -> list[str]:
    "Continued lines joined, comments and empty lines left out; a program in Python is one command"
    if language == "python":
        return ["\n".join(lines)]
    if language not in POSIX | WINDOWS:
        return []
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if language in POSIX else lines
    return [line.removeprefix("$ ").strip() for line in joined if line.strip() and not line.startswith("#")]


BLOCKS = blocks_of((REPO / "README.md").read_text("utf-8"))
ALL = [command for _, _, commands in BLOCKS for command in commands]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    "A copy of the repository that the commands may fill"
    return copy_repo(tmp_path_factory.mktemp("readme") / "gpt2_course_copy")


@pytest.fixture(scope="module")
def tokens(run, tmp_path_factory) -> Path:
    "Shakespeare in GPT-2's tokens, in place of data that a reader would have to download"
    out = tmp_path_factory.mktemp("tokens") / "data"
    run(["-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "gpt2", "--out", out])
    return out


class Shell:
    "A reader's shell in a checkout"

    def __init__(self, checkout: Path, run, py: str, tokens: Path):
        self.checkout, self.python, self.py, self.tokens = checkout, run, py, tokens

    def run(self, *args, **env):
        return self.python(args, cwd=self.checkout, root=self.checkout, **env).stdout

    def type(self, command: str):
        "One command of a POSIX shell"
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            return self.make(words[1:])
        if words[0] == "pip":
            return self.pip(words[1:])
        if words[0] == "torchrun":
            return self.torchrun(words[1:])
        assert words[:2] == ["python", "-m"], f"no rule here says how to test: {command}"
        return self.module(words[2], words[3:])

    def make(self, words: list[str]):
        "make train runs, without its installation (-o); of the others the recipe is read: tests of their own run them"
        if not shutil.which("make"):
            lacking("make")
        if words == ["train"]:
            told = self.call("make", "-o", ".venv/.train-ready", *words, f"PY={self.py}", f"ARGS={SMALL}")
            out = self.checkout / "runs" / "shakespeare"
            assert (out / "checkpoints" / "step_00000003").is_dir() and (out / "samples.jsonl").exists() and (out / "loss.png").exists()
            assert "--nproc-per-node" in told and "validation loss" in told.strip().splitlines()[-1]
            return
        told = self.call("make", "-n", *words)
        tool = dict(test="tests/run.py", lab="-m jupyterlab", docs="docs/build.py", train="-m torch.distributed.run", clean="rm -rf")
        assert next(uses for target, uses in tool.items() if words[0].startswith(target)) in told, told
        for word in words[1:]:
            assert word.partition("=")[2] in told, f"{word} changes nothing"

    def call(self, *command: str) -> str:
        "stdout and stderr of a command that must succeed"
        done = subprocess.run(command, cwd=self.checkout, env=offline_env(self.checkout), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr + done.stdout

    def pip(self, words: list[str]):
        "pip install . runs, into a folder of its own and without dependencies; the extras and files that it names exist"
        assert words[0] == "install"
        if words == ["install", "."]:
            there = self.checkout.parent / "installed"
            self.run("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", there, ".")
            assert (there / "gpt2_course" / "model.py").exists() and (there / "gpt2_course" / "_data").is_dir()
            return
        extras = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        for word in words[1:]:
            named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
            if named:
                assert set((named[1] or "").split(",")) <= {"", *extras}, word
            else:
                assert word in ("-e", "-c", "-r") or (REPO / word).is_file(), word

    def torchrun(self, words: list[str], only_check: bool = False):
        "Two processes run, for a few steps; more of them, or several boxes, are checked as torchrun and the trainer would"
        from torch.distributed.run import parse_args

        launch = parse_args(words)
        assert launch.module and launch.training_script == "gpt2_course.train"
        options = launch.training_script_args
        nodes, processes = int(launch.nnodes.partition(":")[2] or launch.nnodes), int(launch.nproc_per_node)
        if nodes == 1 and processes <= 2 and not only_check:
            self.run("-m", "torch.distributed.run", *words, *SMALL.split(), OMP_NUM_THREADS="1")
            assert (self.checkout / read_options(options).out / "checkpoints" / "last").exists()
            return
        assert nodes == 1 or (0 <= launch.node_rank < nodes and launch.master_port)
        self.check(options, nodes * processes)

    def check(self, options: list[str], processes: int):
        "What the trainer says to a command before anything starts"
        data = self.checkout / read_options(options).data
        if not data.exists():
            shutil.copytree(self.tokens, data)
        told = self.run("-m", "gpt2_course.train", *options, "--device", "cpu", "--out", "runs/none", "--check", WORLD_SIZE=str(processes))
        assert told.strip().endswith("everything is in order"), told

    def module(self, name: str, words: list[str], only_check: bool = False):
        "A command of the package"
        words = ["assets/runs/look-inside" if word == "RUNDIR" else word for word in words]
        if name == "torch.distributed.run":
            return self.torchrun(words, only_check)
        if name == "gpt2_course.prepare":
            cfg = parse(PrepareConfig, words)
            if only_check or cfg.source[0] in ("fineweb-edu", "openwebtext"):
                return
            for pattern in cfg.source:
                if "*" in pattern:  # files of the reader's own
                    (self.checkout / pattern).parent.mkdir(exist_ok=True)
                    shutil.copy(REPO / "README.md", self.checkout / pattern.replace("*", "mine"))
        if name == "gpt2_course.train":
            cfg = read_options(words)
            if cfg.check or only_check:
                return self.check([word for word in words if word != "--check"], 1)
            words = [*words, *SMALL.split()]
        assert self.run("-m", name, *words).strip()

    def type_in_powershell(self, command: str):
        "One command of PowerShell, parsed"
        if command.startswith("$env:"):
            assert re.fullmatch(r"\$env:[A-Z_]+ = \"[^\"]*\"", command), command
            return
        words = [word.strip('"') for word in shlex.split(command, posix=False)]
        if words[0] == "py":
            version = re.fullmatch(r"-(\d+\.\d+)", words[1])[1]
            needs = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
            low, high = (tuple(map(int, part.split("."))) for part in re.fullmatch(r">=([\d.]+),<([\d.]+)", needs).groups())
            assert low <= tuple(map(int, version.split("."))) < high
            assert words[2:] == ["-m", "venv", ".venv"]
            return
        program = PureWindowsPath(words[0])
        assert program.parts[:2] == (".venv", "Scripts"), f"no rule here says how to test: {command}"
        if program.stem == "pip":
            return self.pip(words[1:])
        assert program.stem == "python" and words[1] == "-m", f"no rule here says how to test: {command}"
        return self.module(words[2], words[3:], only_check=True)

    def python_code(self, source: str):
        "A program runs as it is, and what its comments say of parameters is so"
        told = [number.replace(",", "") for number in re.findall(r"# ([\d,]+) parameters", source)]
        names = [node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        count = "\nfrom gpt2_course.model import count_params\n" + "".join(f"print(count_params({name}))\n" for name in names[: len(told)])
        assert self.run("-c", source + count * bool(told)).split()[-len(told) or None :] == told


@pytest.fixture
def shell(checkout, run, py, tokens) -> Shell:
    return Shell(checkout, run, py, tokens)


def test_the_readme_has_what_is_looked_for():
    "Else the tests below would pass for nothing"
    assert {"make train", "make test", "make lab"} <= set(ALL)
    assert any(command.startswith("torchrun") and "--nproc-per-node 2" in command for command in ALL)
    assert any(command.startswith("torchrun") and "--nproc-per-node 8" in command for command in ALL)
    assert sum(len(commands) for language, _, commands in BLOCKS if language in WINDOWS) >= 4
    assert [language for language, _, _ in BLOCKS].count("python") >= 1


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{heading}: {commands[0].splitlines()[0][:60]}" for _, heading, commands in BLOCKS])
def test_commands_run(block, shell):
    language, _, commands = block
    for command in commands:
        {"python": shell.python_code, **dict.fromkeys(WINDOWS, shell.type_in_powershell)}.get(language, shell.type)(command)


def test_extraction():
    "Fences, indented blocks and code in the text; outputs and other languages are no commands"
    text = (
        "# A\n`make lab` and `make`d, `python -m x --y 'a b'` or `make lab`\n\n    make test\n\n    KING.\n    make love\n\n```sh\n# box 0\ntorchrun a \\\n  b\n$ make x\n```\n"
        "## B\n```powershell\npy -3.12 -m venv .venv\n```\n```bibtex\n@misc{x}\n```\n```python\na = 1\nb = 2\n```"
    )
    assert blocks_of(text) == [
        ("", "A", ["make lab"]),
        ("", "A", ["python -m x --y 'a b'"]),
        ("", "A", ["make test"]),
        ("sh", "A", ["torchrun a b", "make x"]),
        ("powershell", "B", ["py -3.12 -m venv .venv"]),
        ("python", "B", ["a = 1\nb = 2"]),
    ]
