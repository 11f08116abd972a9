# `make` lists the targets. Needs GNU make 3.81 or later (macOS has it) and Python 3.11 to 3.13.
# Everything is installed into .venv, once: a stamp in there remembers it.

# make train: change these on the command line, e.g. `make train PRESET=nano-char TOKENIZER=char ARGS='--steps 200'`
PRESET = nano
SOURCE = shakespeare
TOKENIZER = bpe:1024
DATA = data/cache/$(SOURCE)-$(subst :,,$(TOKENIZER))
OUT = runs/$(SOURCE)
# processes; empty: one per CUDA GPU, two where there is none
NPROC =
# more flags: of the trainer (make train), of pytest (make test), of JupyterLab (make lab)
ARGS =
# where make docs-serve shows the site
PORT = 8000
# another pip index to take torch from, e.g. https://download.pytorch.org/whl/cpu (the environment may set it, too)
TORCH_INDEX ?=

PY = .venv/bin/python
PIP = $(PY) -m pip --disable-pip-version-check --quiet install
TRAIN_FLAGS = --preset $(PRESET) --data $(DATA) --out $(OUT) $(ARGS)
comma = ,
USABLE = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help train test lab docs docs-serve clean
.SUFFIXES:

help:
	@echo 'make train   train a small GPT-2 on Shakespeare (two processes on a CPU, one per GPU), print samples, plot the loss'
	@echo 'make lab     open the course in JupyterLab, in your own copy: my_course/'
	@echo 'make docs    build the site into _docs/ (make docs-serve also shows it: http://127.0.0.1:8000/)'
	@echo 'make test    run the tests'
	@echo 'make soak    kill, fill the disk, flip bits: the reliability scorecard in full (half an hour)'
	@echo 'make clean   remove build products and caches'
	@echo
	@echo 'Variables: PYTHON=python3.12 picks the Python; TORCH_INDEX=URL picks where torch comes from;'
	@echo '           PRESET, SOURCE, TOKENIZER, DATA, OUT, NPROC and ARGS change what `make train` does.'

# --- .venv ---------------------------------------------------------------------------------------------------------

# Candidates are run, not just found: a pyenv shim may exist and fail.
.venv/.python:
	@if [ -e .venv ]; then \
	  $(PY) -c '$(USABLE)' 2>/dev/null || { \
	    echo 'error: .venv holds no working Python 3.11 to 3.13: remove it (rm -rf .venv) and run make again' >&2; exit 2; }; \
	else \
	  found=; \
	  for p in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
	    if [ -n "$$p" ] && "$$p" -c '$(USABLE)' >/dev/null 2>&1; then found=$$p; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'error: found no Python 3.11 to 3.13 with its venv module: install one (Debian, Ubuntu: apt install python3-venv) or run make PYTHON=/path/to/python3' >&2; \
	    exit 2; \
	  fi; \
	  echo "Setting up .venv (once) with $$("$$found" -c 'import sys; print("Python", sys.version.split()[0], "of", sys.executable)') ..."; \
	  "$$found" -m venv .venv || { rm -rf .venv; exit 1; }; \
	fi
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@touch $@

# torch alone comes from TORCH_INDEX (--no-deps: such an index holds few other packages), all else from the usual one.
define install
@if ! $(PY) -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)'; then \
  if [ -n "$(TORCH_INDEX)" ]; then \
    echo 'Installing torch from $(TORCH_INDEX) ...'; \
    $(PIP) --no-deps torch -c constraints.txt --index-url '$(TORCH_INDEX)' || exit 1; \
  elif [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
    echo 'Tip: no NVIDIA GPU here; with TORCH_INDEX=https://download.pytorch.org/whl/cpu pip downloads several GB less (Ctrl-C and run make again).'; \
  fi; \
fi
@echo 'Installing gpt2_course[$(1)] into .venv (once, some minutes) ...'
@$(PIP) -e '.[$(1)]' -c constraints.txt
endef

.venv/.train-ready: pyproject.toml constraints.txt | .venv/.python
	$(call install,plot)
	@touch $@

.venv/.lab-ready: pyproject.toml constraints.txt | .venv/.python
	$(call install,course$(comma)data$(comma)hf)
	@touch .venv/.train-ready $@

.venv/.docs-ready: pyproject.toml constraints.txt | .venv/.python
	$(call install,docs)
	@touch $@

# dev holds the extras of the others
.venv/.test-ready: pyproject.toml constraints.txt | .venv/.python
	$(call install,dev)
	@touch .venv/.train-ready .venv/.lab-ready .venv/.docs-ready $@

# --- what a reader does --------------------------------------------------------------------------------------------

# 1. prepare: does nothing where DATA is complete; left out where you name a DATA of your own
# 2. --check: says in one line what is wrong with the flags, before torchrun adds its own many
# 3. torchrun, as a module of .venv (then the checkout may be moved)
train: .venv/.train-ready
ifeq ($(origin DATA),file)
	$(PY) -m gpt2_course.prepare $(SOURCE) --out $(DATA) --tokenizer $(TOKENIZER)
endif
	@resume=; \
	if [ -e '$(OUT)/checkpoints/last' ]; then resume=--resume; echo 'Going on with the run in $(OUT).'; fi; \
	nproc='$(NPROC)'; \
	[ -n "$$nproc" ] || nproc=$$($(PY) -c 'import torch; print(torch.cuda.device_count() or 2)'); \
	WORLD_SIZE=$$nproc $(PY) -m gpt2_course.train $(TRAIN_FLAGS) $$resume --check >/dev/null || exit $$?; \
	cores=$$($(PY) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())'); \
	threads=$$((cores / nproc)); [ "$$threads" -ge 1 ] || threads=1; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$threads}; export OMP_NUM_THREADS; \
	set -x; $(PY) -m torch.distributed.run --standalone --nproc-per-node "$$nproc" -m gpt2_course.train $(TRAIN_FLAGS) $$resume

# ARGS='-k attention -x': any option of pytest
test: .venv/.test-ready
	@$(PY) tests/run.py $(ARGS)

# --short for the counts of make test, --only NAME … for some rows
.PHONY: soak
soak: .venv/.test-ready
	$(PY) tests/soak.py $(ARGS)

# my_course/ is the reader's: only what is not there yet is copied. JupyterLab's root is the checkout, so that links between levels and to
# figures work. docs/lab/ holds defaults (no news, headings on the right; the reader's own settings win) and the layout of the first start.
lab: .venv/.lab-ready
	@mkdir -p my_course; \
	find nbs \( -name '.*' -o -name _proc -o -name assets \) -prune -o -type f -name '*.ipynb' -print | while IFS= read -r from; do \
	  to=my_course/$${from#nbs/}; \
	  [ -e "$$to" ] || { mkdir -p "$$(dirname "$$to")" && cp "$$from" "$$to"; } || exit 1; \
	done
	@[ -e my_course/assets ] || [ ! -d assets ] || ln -s ../assets my_course/assets
	@echo 'Your copy of the course is in my_course/: edit it freely. To get a notebook fresh, delete it there and run make lab again.'
	@[ -e my_course/.jupyter ] || { mkdir my_course/.jupyter && cp docs/lab/workspace.json my_course/.jupyter/default-37a8.jupyterlab-workspace; }
	JUPYTER_CONFIG_PATH='$(CURDIR)/docs/lab'$${JUPYTER_CONFIG_PATH:+":$$JUPYTER_CONFIG_PATH"} $(PY) -m jupyterlab \
	  --ServerApp.root_dir='$(CURDIR)' --LabApp.workspaces_dir=my_course/.jupyter $(ARGS) my_course/easy/00_start.ipynb

# From the notebooks as they are committed: nothing is executed.
docs: .venv/.docs-ready
	$(PY) docs/build.py

docs-serve: .venv/.docs-ready
	$(PY) docs/build.py --serve $(PORT)

clean:
	rm -rf build dist *.egg-info _docs _proc .pytest_cache .hypothesis .jupyter_cache
	@find . -name .venv -prune -o -name .git -prune -o -path ./my_course -prune -o -path ./runs -prune -o \
	  -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@for kept in .venv runs my_course data/cache; do [ ! -e "$$kept" ] || echo "kept: $$kept"; done
