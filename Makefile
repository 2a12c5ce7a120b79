# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := compeft_core proto/compeft_proto server/compeft_server client/compeft_client
CODE := $(PACKAGES) tests benchmarks examples

.PHONY: demo fuzz test check lint types contracts generated format clean

demo: .venv/demo
	$(BIN)/compeft demo $(ARGS)

test: .venv/dev
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

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
