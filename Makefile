# Commands for a fresh clone: `make demo` compares plain and humanline DPO, `make test` runs linters and tests.
# Requires only make and Python 3.11 or newer; `make PYTHON=python3.12 …` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check
INSTALLED := .venv/.installed
PYTEST := -m pytest -n logical --dist loadfile
EXTRAS := '.[train,plot,peft,trl,bench,docs,dev]'

# Where test-versions makes its environments, of about 4 GB each.
VERSIONS_DIR ?= $(HOME)/.cache/humanline-fused/versions
VERSIONS := oldest newest

# Files whose tests multiply matrices of several shapes. The kernels multiply none.
PRODUCTS := $(addprefix tests/test_,$(addsuffix .py,evaluation head lm_head trainer trainer_head))
RANKS := tests/test_processes.py

# GPUs that test-ptx compiles the kernels for.
ARCH := 80,90,100
comma := ,

# Versions of Triton that test-triton compiles the kernels with: the oldest that is allowed, the newest that was tried.
TRITON := 3.6.0 3.9.0

.PHONY: demo test suite products test-ptx test-triton test-versions lint docs install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m humanline_fused demo

# Pyright has one core for a minute, and tests wait at times, so both run beside the suite.
test: install
	@$(MAKE) --no-print-directory -j 2 suite products

# One process per core with one thread each, and each test file in one process: the tests' tensors are tiny, and threads
# that wait for a busy core cost minutes. The kernels run as compiled for an H100, emulated (tests/ptx).
suite: install
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) --ignore $(RANKS)

# On products with other last bits: no test may depend on bits that only some processors give. Of the objectives dpo alone,
# which a product does not know. Two ranks, whose trainings need both cores, have these products alone.
products: lint
	OMP_NUM_THREADS=1 OTHER_PROCESSOR=1 $(BIN)/python -m pytest -q $(PRODUCTS) $(RANKS) \
		-k 'test_processes or (not triton and not kto and not grpo)'

# The tests of a GPU on kernels compiled for each of ARCH: make test-ptx ARCH=80,100
TEST_PTX = failed=; for arch in $(subst $(comma), ,$(ARCH)); do \
		OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -q --ptx $$arch || failed="$$failed sm_$$arch"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

test-ptx: install
	@$(TEST_PTX)

# The static report's budgets, and test-ptx, with other versions of Triton. Each has a folder that comes before the
# environment's packages: make test-triton TRITON=3.8.0
test-triton: $(TRITON:%=$(VERSIONS_DIR)/triton-%/.installed)
	@bad=; for version in $(TRITON); do \
		export PYTHONPATH=$(VERSIONS_DIR)/triton-$$version; \
		$(BIN)/python -m benchmarks static --arch sm_80 sm_90 sm_100 gfx942 \
			--csv benchmarks/results/static-triton-$$version.csv || bad="$$bad $$version (budgets)"; \
		($(TEST_PTX)) || bad="$$bad $$version (tests)"; \
	done; test -z "$$bad" || { echo "failed with triton:$$bad" >&2; exit 1; }

$(VERSIONS_DIR)/triton-%/.installed: | install
	rm -rf $(@D)
	$(BIN)/python $(PIP) install --no-deps --target $(@D) triton==$*
	@touch $@

# The suite with the oldest and the newest versions that pyproject.toml allows; each run begins with a list of them.
test-versions: $(VERSIONS:%=$(VERSIONS_DIR)/%/.installed)
	@failed=; for versions in $(VERSIONS); do \
		echo "== $$versions: versions/$$versions.txt"; \
		OMP_NUM_THREADS=1 $(VERSIONS_DIR)/$$versions/bin/python $(PYTEST) || failed="$$failed $$versions"; \
	done; test -z "$$failed" || { echo "failed with versions/*.txt:$$failed" >&2; exit 1; }

$(VERSIONS_DIR)/%/.installed: versions/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) install -c $< hatchling
	$(@D)/bin/python $(PIP) install -c $< --no-build-isolation --editable $(EXTRAS)
	@touch $@

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# The documentation site, in build/site; mkdocs.yml makes every warning an error.
docs: install
	$(BIN)/python -m mkdocs build

install: $(INSTALLED)

# Every pip call has constraints, or no dependencies, so that no version range pulls another torch; build isolation
# would ignore constraints.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@$(BIN)/python $(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python $(PIP) install -c constraints.txt hatchling
	$(BIN)/python $(PIP) install -c constraints.txt --no-build-isolation --editable $(EXTRAS)
	@touch $@

clean:
	rm -rf .venv build dist ./*.egg-info
