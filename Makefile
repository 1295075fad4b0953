# `make help` lists the targets. Only make and one of the Pythons below are assumed.
PYTHONS := python3.13 python3.12 python3.11
# The newest of them that runs and can make an environment; PYTHON=/path/to/python takes another.
PYTHON ?= $(shell for python in $(PYTHONS); do $$python -c 'import ensurepip' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

# The core first: the others require its exact version, which pip finds among the paths of the same command.
MEMBERS := packages/core cli $(filter-out packages/core,$(patsubst %/pyproject.toml,%,$(wildcard packages/*/pyproject.toml)))
EXAMPLES := $(patsubst %/pyproject.toml,%,$(wildcard examples/*/pyproject.toml))
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

# One thread per process: the tests start several, and two threads on a busy machine are slower than one.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1
# One worker per core that this process may use; the tests of a file stay together, for they share fixtures.
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile

ARGS ?=
.DEFAULT_GOAL := help
.PHONY: help run install dev test test-e2e test-all golden lint format types docs bench wheels clean distclean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

run: install ## train BGE-M3 on the embedded default (about 3 minutes on 2 cores); ARGS="--set a.b=c" adds options
	$(BIN)/embed run --plugin bge $(ARGS)

install: $(VENV)/.installed ## create .venv and install the packages at the tested versions
dev: $(VENV)/.installed-dev ## the same plus the example plugin and the development tools

$(BIN)/python:
	$(if $(PYTHON),,$(error none of $(PYTHONS) runs here: install one of them, or name one with make PYTHON=/path/to/python))
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: constraints.txt $(MEMBERS:%=%/pyproject.toml) | $(BIN)/python
	@# torch on its own and first: DeepSpeed is built from source and looks for it.
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) $(MEMBERS:%=-e ./%)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt $(EXAMPLES:%=%/pyproject.toml)
	$(PIP_INSTALL) -r requirements-dev.txt $(MEMBERS:%=-e ./%) $(EXAMPLES:%=-e ./%)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(PIP_INSTALL) -r requirements-docs.txt
	@touch $@

test: dev ## the tests, without those marked e2e or slow (about 6 minutes on 2 cores)
	$(PYTEST) -m "not e2e and not slow and not gpu" $(ARGS)

test-e2e: dev ## the tests marked e2e: wheels, launchers, killed and resumed runs (about 2 minutes on 2 cores)
	$(PYTEST) -m "e2e and not gpu" $(ARGS)

test-all: dev ## every test the machine can run
	$(PYTEST) $(ARGS)

golden: dev ## record the golden curves anew, after a change of mathematics that is meant
	$(TEST_ENV) $(BIN)/python tests/golden/golden_curves.py $(ARGS)

lint: dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: dev ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: dev ## mypy, strict, on the packages
	$(BIN)/mypy $(wildcard $(MEMBERS:%=%/src) $(EXAMPLES:%=%/src))

docs: $(VENV)/.installed-docs ## build the docs site into build/site; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: dev ## side by side with sentence-transformers, FlagEmbedding and ms-swift, about an hour; ARGS="--large" adds V = 250,002, ARGS="--gpu" is for a GPU
	$(BIN)/python -m benchmarks.run $(ARGS)

wheels: dev ## build every wheel into dist/
	rm -rf dist
	for member in $(MEMBERS) $(EXAMPLES); do $(BIN)/python -m build --wheel --no-isolation --outdir dist $$member || exit 1; done

clean: ## remove what building and testing leave
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## clean, and remove the environment; runs/ stays
	rm -rf $(VENV)
