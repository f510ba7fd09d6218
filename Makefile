# make demo    the whole path, from a clip to proven Verilog, into out/demo/
# make test    the tests (make test-slow runs the slow ones too)
# make check   ruff (lint and format) and mypy
# make venv    .venv alone; the others make it when it is missing

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check venv clean

demo: venv
	$(BIN)/scotopia demo

test: venv
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal -m "not slow"

test-slow: venv
	$(BIN)/pytest

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: .venv/installed

# -c keeps every version as it was tested; pyproject.toml says why each package is here.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Scotopia needs Python 3.11 or newer: set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar on -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache
