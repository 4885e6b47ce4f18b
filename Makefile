# Commands for a fresh clone: `make demo` trains two small models and compares them, `make test` runs linters and tests.
# Requires only make and Python 3.11 or newer; `make PYTHON=python3.12 …` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/.installed

.PHONY: demo test lint install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m humanline_fused demo

# One process per core with one thread each, and each test file in one process: the tests' tensors are tiny, and threads
# that wait for a busy core cost minutes.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

install: $(INSTALLED)

# Every pip call has constraints, so that no version range pulls another torch; build isolation would ignore them.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation --editable '.[dev,bench,peft,trl]'
	@touch $@

clean:
	rm -rf .venv build dist ./*.egg-info
