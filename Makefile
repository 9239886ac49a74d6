# Two commands for a new user: make demo, make test. The rest is for those who change the code.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch is pinned here, not in the library: this version has a CPU wheel without CUDA packages.
TORCH := torch==2.13.0
# Two at a time; the tests of a file stay together, because they share what is slow to make.
PARALLEL := -n 2 --dist loadfile --durations=25

.PHONY: demo test test-all test-lowest check format setup docs dist

demo: $(VENV)/.demo
	@echo "== Running the main job on embedded real data (about a minute on 2 cores)"
	@$(BIN)/pbcompress demo --out demo

test: $(VENV)/.dev check
	@echo "== Running the tests (several minutes; make test-all adds the slow ones)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.dev check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not gpu"

# In an environment of its own, with the lowest versions that pyproject.toml allows. That torch has
# no CPU wheel on PyPI: it brings CUDA packages of some gigabytes.
LOWEST := .venv-lowest

test-lowest: $(LOWEST)/.dev
	@OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(PARALLEL)

$(LOWEST)/.dev: constraints-lowest.txt
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(LOWEST)/bin/python -m pip install --quiet \
		--constraint constraints-lowest.txt --editable ".[dev]"
	@touch $@

check: $(VENV)/.dev
	@echo "== Checking style, types, format and imports"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: $(VENV)/.dev

docs: $(VENV)/.docs
	@echo "== Building the pages in build/site; a broken link is an error"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: $(VENV)/.build
	@echo "== Building wheel and sdist in build/dist, and checking them"
	@rm -rf build/dist && $(BIN)/python -m build --outdir build/dist . > build.log 2>&1 || (cat build.log; exit 1)
	@rm -f build.log && $(BIN)/twine check --strict build/dist/*

$(VENV)/.torch:
	@echo "== Making an environment in $(VENV) and installing torch (a few minutes at first)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "== Installing pbcompress with what the demo needs"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "== Installing pbcompress with what the tests need"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	@touch $@ $(VENV)/.demo

# these two need no torch
$(VENV)/.docs $(VENV)/.build: $(VENV)/.%: pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --group $*
	@touch $@
