# `make demo` runs the whole system, `make test` all tests, `make quick` what a change needs before every commit. Each target sets itself up.
# CONTRIBUTING.md says what each does.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := compeft_core proto/compeft_proto server/compeft_server client/compeft_client
CODE := $(PACKAGES) tests benchmarks examples
# Tests that start no process and need no model: tests/test_quick.py holds that.
QUICK := tests/core tests/proto tests/fuzz/test_corpus.py tests/docs/test_blocks.py tests/cli/test_commands.py tests/test_words.py \
	tests/client/checkpoints tests/client/packing tests/client/merging tests/client/exchange tests/server/aggregation tests/server/chunks \
	tests/server/policy

.PHONY: demo serving fuzz gpu test test-long quick check lint types contracts generated format clean

demo: .venv/demo
	$(BIN)/compeft demo $(ARGS)

test: .venv/dev
	$(BIN)/python -m pytest -n auto $(ARGS)

test-long: .venv/dev
	COMPEFT_TEST_LONG=1 $(BIN)/python -m pytest -n auto -m long $(ARGS)

gpu:
	PYTHONPATH=.:proto:server:client $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

quick: lint types contracts
	$(BIN)/python -m pytest -n auto $(QUICK)

serving: .venv/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.serving $(ARGS)

fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzz.run $(ARGS)

check: lint types contracts generated test

lint: .venv/dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: .venv/dev
	$(BIN)/mypy $(PACKAGES)

contracts: .venv/dev
	$(BIN)/lint-imports

generated: .venv/dev
	rm -rf build/generated && mkdir -p build/generated
	PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate.sh "$(CURDIR)/build/generated"
	for file in build/generated/compeft_proto/v1/*; do cmp "$$file" "proto/compeft_proto/v1/$$(basename "$$file")" || exit 1; done

format: .venv/dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/fuzz: .venv/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	touch $@

clean:
	rm -rf .venv build dist demo-runs
