# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := prefect or registry or s3 or browser or process

.DEFAULT_GOAL := help
.PHONY: help install peers format check test test-fast demo bench fuzz schema ui pictures lowest clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED) ## Make the virtual environment with everything in it.

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

peers: ## Get the real programs that tests and the demonstration talk to (Debian).
	scripts/peers.sh

format: install ## Format the code.
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .

check: install ## Lint and type-check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

test-fast: install ## Run the tests that need no server and no other program than Python.
	$(BIN)/python -m pytest -n 2 -m "not ($(PEERS))" tests/ocispec tests/storage tests/remotes tests/transfer tests/mirror \
		tests/test_architecture.py

test: install peers check ## Check, then run all tests.
	$(BIN)/python -m pytest -n 4 --dist loadgroup --durations 50

demo: install peers ## Fetch a real image from a real registry, here and now, and show what came of it.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.demo

bench: install peers ## Time fetches side by side with their floors and with skopeo (docs/dev/benchmarks.md).
	$(BIN)/python -m benchmarks.fetch
	$(BIN)/python -m benchmarks.slow
	$(BIN)/python -m benchmarks.mirror

fuzz: install ## Fuzz what parses strangers' input, for a minute (docs/dev/fuzzing.md).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m fuzz.parsers

schema: install ## Write docs/reference/mirror.schema.json from the sections of a configuration.
	$(BIN)/python -m scripts.mirror_schema

ui: install peers ## Take a picture of a run in Prefect's UI: build/run.png.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.picture

pictures: install peers ## Follow docs/tutorials/scheduled-mirror.md, and take its pictures of the UI of Prefect: docs/images.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.tutorial

lowest: peers ## Run the tests with the oldest versions that are allowed.
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	$(VENV)-lowest/bin/python -m pytest

clean: ## Remove what the other targets made.
	rm -rf $(VENV) $(VENV)-lowest build .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
