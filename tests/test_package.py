"""The package as somebody installs it: a wheel, beside nothing but its runtime dependencies, trains from any directory."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from conftest import REPO, copy_repo
from test_repo import DOTTED


def closure(names) -> set[str]:
    "Distributions that these need, themselves included, as installed here"
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            needs = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        if name not in found:
            found.add(name)
            todo += [re.split(r"[ ;<>=!~\[(]", need)[0] for need in needs if "extra ==" not in need]
    return found


def runtime_needs() -> list[str]:
    "The dependencies that pyproject.toml declares, no extras"
    import tomllib

    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[ ;<>=!~\[(]", need)[0] for need in declared]


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    "The Python of an environment that holds the wheel and its runtime dependencies, and no more"
    home = tmp_path_factory.mktemp("bare")
    copy_repo(home / "source")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", home, home / "source"]
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *home.glob("*.whl")], check=True)
    site = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
    for name in closure(runtime_needs()):
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            source = Path(metadata.distribution(name).locate_file(top))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return python


def in_bare(bare, *args, cwd):
    done = subprocess.run([bare, *map(str, args)], cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_imports_with_runtime_dependencies_alone(bare, tmp_path):
    told = in_bare(bare, "-c", f"import sys, {', '.join(DOTTED)}; print(gpt2_course.__file__); print('matplotlib' in sys.modules)", cwd=tmp_path)
    assert "site-packages" in told and "False" in told
    gone = subprocess.run([bare, "-c", "import matplotlib"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in gone.stderr, "the bare environment is not bare"


def test_wheel_trains_and_samples_from_any_directory(bare, tmp_path):
    in_bare(bare, "-m", "gpt2_course.prepare", "shakespeare", "--tokenizer", "char", "--out", "data", cwd=tmp_path)
    shape = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 32 --batch-tokens 256 --micro-batch 4 --steps 3".split()
    rest = "--preset nano-char --optim.warmup 1 --eval-tokens 1024 --no-compile --sample-tokens 5 --data data --out run".split()
    told = in_bare(bare, "-m", "gpt2_course.train", *shape, *rest, cwd=tmp_path)
    assert "matplotlib is not installed" in told and told.strip().splitlines()[-1].startswith("validation loss")
    assert (tmp_path / "run" / "checkpoints" / "step_00000003" / "model.safetensors").exists()
    assert in_bare(bare, "-m", "gpt2_course.sample", "run", "--prompt", "KING", "--max-new-tokens", "5", cwd=tmp_path).startswith("KING")


HEAVY = {"matplotlib", "datasets", "transformers", "pandas", "pyarrow", "IPython", "wandb", "tensorboard", "tokenizers", "jupyterlab", "huggingface_hub"}


def test_import_is_light():
    "All modules together bring none of the packages that a function imports when it needs them, and nothing of torch that compiles or serves"
    code = f"import sys, {', '.join(DOTTED)}; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPO).split())
    assert not HEAVY & loaded, HEAVY & loaded
    assert not {"torch._inductor.compile_fx", "torch.utils.tensorboard", "torch.distributed.run"} & loaded
