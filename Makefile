# One way to do each thing. Needs Python 3.11+ and make; neither root nor a compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOMS := server roles retrieval config

.PHONY: setup demo test soak conformance bench bundle mac-check lint clean

setup: $(VENV)/.installed
	@$(BIN)/rolecall setup --starter-only --yes

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rolecall needs Python 3.11 or newer; run: make PYTHON=python3.12 setup")'
	@for room in $(ROOMS); do test -e .src/rolecall/$$room/__init__.py || { rm -f .src/rolecall/$$room; ln -s ../../$$room .src/rolecall/$$room; }; done
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m tests.demo

test: setup lint
	$(BIN)/python -m pytest -m 'not soak and not conformance' -n 2 --dist loadfile --no-loadscope-reorder

soak: setup
	$(BIN)/python -m pytest -m soak

conformance: setup
	$(BIN)/python -m pytest -m conformance

bench: setup
	$(BIN)/python -m tests.bench

bundle: $(VENV)/.installed
	$(BIN)/python -m tests.bundle

mac-check: setup
	$(BIN)/python -m tests.mac_check

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
