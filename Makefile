# bulkscore: `make help` lists what there is. Every target does its own set-up in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
FUZZ_SECONDS ?= 3600

.DEFAULT_GOAL := help
.PHONY: help run test lint types layers check fuzz bench schema lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.run ## score the iris data against the sandbox service; results in results/iris
	@$(BIN)/python -m pipeline.sandbox jobs/iris.yaml

test: .venv/.dev ## run the tests with branch coverage
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --cov --cov-report=term

lint: .venv/.dev ## look for mistakes, and for files not formatted
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev ## check the types
	@$(BIN)/mypy

layers: .venv/.dev ## check that imports go downwards
	@$(BIN)/lint-imports

check: lint types layers test ## all of these four: what CI runs

fuzz: .venv/.dev ## look for what breaks the properties, for FUZZ_SECONDS
	@$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS)

bench: .venv/.bench ## measure rivals and us in one run
	@$(BIN)/python tests/bench/bench.py
	@$(BIN)/python tests/bench/large.py
	@$(BIN)/python tests/bench/planning.py
	@$(BIN)/python tests/bench/pressure.py
	@$(BIN)/python tests/bench/ways.py
	@$(BIN)/python tests/bench/images.py

schema: .venv/.dev ## rewrite schemas/job.schema.json from the job file's types
	$(BIN)/bulkscore schema > schemas/job.schema.json

lock: .venv/.dev ## pin the newest versions that fit pyproject.toml
	$(PIP) install uv
	$(BIN)/uv pip compile --universal --all-extras --python-version 3.11 --upgrade --no-annotate --no-header \
	    --no-emit-index-url --no-emit-find-links --output-file .requirements.lock pyproject.toml

clean: ## remove what the other targets made
	rm -rf .venv results build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*

.venv/.run: pyproject.toml .requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "* installing bulkscore into .venv" >&2
	@$(PIP) install --constraint .requirements.lock --editable .
	@touch $@

.venv/.dev: .venv/.run
	@echo "* installing the test tools into .venv" >&2
	@$(PIP) install --constraint .requirements.lock --editable '.[dev]'
	@touch $@

.venv/.bench: .venv/.dev
	@$(PIP) install --constraint .requirements.lock --editable '.[bench]'
	@touch $@
