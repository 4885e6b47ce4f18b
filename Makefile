# Everything a fresh clone needs: `make demo` trains two small models and compares them, `make test` checks the tree.
# Only Python 3.11 or newer and make have to be there; `make PYTHON=python3.12 …` names another interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check
INSTALLED := .venv/.installed
PYTEST := -m pytest -n logical --dist loadfile
EXTRAS := '.[dev,bench,peft,trl]'

# Where test-versions makes its environments, of about 4 GB each.
VERSIONS_DIR ?= $(HOME)/.cache/humanline-fused/versions
VERSIONS := oldest newest

# Files whose tests multiply matrices of several shapes. Triton's interpreter multiplies none.
PRODUCTS := $(addprefix tests/test_,$(addsuffix .py,evaluation head head_work lm_head processes trainer trainer_head vocabulary_parallel))

.PHONY: demo test test-versions lint install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m humanline_fused demo

# A process per core, each file in one of them, and one thread in each: the tests' tensors are tiny, and threads that wait
# for a busy core cost minutes.
# Once more on products with other last bits: no test may ask for bits that only some processors give.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)
	OMP_NUM_THREADS=1 OTHER_PROCESSOR=1 $(BIN)/python $(PYTEST) -q -k 'not triton' $(PRODUCTS)

# The suite with the oldest and the newest versions that pyproject.toml allows; each run begins with a list of them.
test-versions: $(VERSIONS:%=$(VERSIONS_DIR)/%/.installed)
	@failed=; for versions in $(VERSIONS); do \
		echo "== $$versions: versions/$$versions.txt"; \
		OMP_NUM_THREADS=1 $(VERSIONS_DIR)/$$versions/bin/python $(PYTEST) || failed="$$failed $$versions"; \
	done; test -z "$$failed" || { echo "failed with versions/*.txt:$$failed" >&2; exit 1; }

$(VERSIONS_DIR)/%/.installed: versions/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) install -c $< --upgrade setuptools
	$(@D)/bin/python $(PIP) install -c $< --no-build-isolation --editable $(EXTRAS)
	@touch $@

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
	@$(BIN)/python $(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python $(PIP) install -c constraints.txt setuptools
	$(BIN)/python $(PIP) install -c constraints.txt --no-build-isolation --editable $(EXTRAS)
	@touch $@

clean:
	rm -rf .venv build dist ./*.egg-info
