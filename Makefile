# Every target installs what it needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := prefect or registry or s3 or browser or process

# The tests start hundreds of Python processes. Without compiled modules, each process would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install peers format check compile test test-fast demo bench proof fuzz schema reference ui pictures figures lowest clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED) ## Create the virtual environment and install all dependencies.

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

peers: ## Install the real programs that the tests and the demonstration need (Debian).
	scripts/peers.sh

format: install ## Format the code.
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .

check: install ## Lint and type-check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --num-workers 2

test-fast: install ## Run the tests that need only Python: no server and no other program.
	$(BIN)/python -m pytest -n 2 -m "not ($(PEERS))" tests/ocispec tests/storage tests/remotes tests/transfer tests/mirror \
		tests/test_architecture.py

test: install peers ## Check, then run all tests.
	$(MAKE) --jobs 2 --output-sync check compile
	$(BIN)/python -m pytest -n 5 --dist loadgroup --durations 50

# Otherwise, each process of pytest-xdist compiles the assertions of all tests.
compile: install
	@found=$$($(BIN)/python -m pytest --collect-only -qq) || { echo "$$found"; exit 1; }

demo: install peers ## Fetch a real image from a real registry on this machine, and show the result.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.demo

bench: install peers ## Measure fetches and mirrors against floors and skopeo (docs/dev/benchmarks.md).
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.fetch
	$(BIN)/python -m benchmarks.direct
	$(BIN)/python -m benchmarks.slow
	$(BIN)/python -m benchmarks.mirror
	$(BIN)/python -m benchmarks.cost

proof: install peers ## Prove that several workers share one mirror run, and survive kill -9 (docs/dev/testing.md, about 10 minutes).
	$(BIN)/python -m scripts.proof_many_machines --images 100 --delay 0.3

fuzz: install ## Fuzz the parsers of untrusted input, for a minute (docs/dev/fuzzing.md).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m fuzz.parsers

schema: install ## Write docs/reference/mirror.schema.json.
	$(BIN)/python -m scripts.mirror_schema

reference: install ## Write the generated tables: of docs/reference from the code, of docs/explanation/scale.md from its model.
	$(BIN)/python -m scripts.reference
	$(BIN)/python -m scripts.scale_model --write

ui: install peers ## Take a picture of a run in the UI of Prefect: build/run.png.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.picture

pictures: install peers ## Follow docs/tutorials/scheduled-mirror.md, and take its pictures: docs/images.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.tutorial

figures: install ## Count the size and the indirection of the source.
	$(BIN)/python -m scripts.figures

lowest: peers ## Run the tests with the oldest allowed versions of all dependencies.
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	$(VENV)-lowest/bin/python -m pytest

clean: ## Stop the local Prefect server of the demonstration, and remove all files that the other targets created.
	test ! -e .demo/prefect/dist-server.json || PREFECT_HOME=.demo/prefect $(BIN)/dist server stop --force
	rm -rf $(VENV) $(VENV)-lowest build .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
