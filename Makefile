# Everything a fresh clone needs: `make demo` trains two small models and compares them, `make test` checks the tree.
# Only Python 3.11 or newer and make have to be there; `make PYTHON=python3.12 …` names another interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/.installed

.PHONY: demo test lint install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m humanline_fused demo

# A process per core, each file in one of them, and one thread in each: the tests' tensors are tiny, and threads that wait
# for a busy core cost minutes.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

install: $(INSTALLED)

# Every pip call is constrained, so a range never pulls another torch; without build isolation that holds for the build too.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation --editable '.[dev,bench,peft,trl]'
	@touch $@

clean:
	rm -rf .venv build dist ./*.egg-info
