# Every target sets itself up in .venv, from constraints.txt; nothing but python3, make and git is needed.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
BENCH_STAMP := .venv/.ready-bench
PEERS := examples/benchmarks/requirements.txt
RUFF_PATHS := zc passes codegen tests examples

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-matrix lint format types bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install zc into it

demo: $(STAMP)  ## train a small GPT with ZeRO-3 on two processes (under five minutes)
	$(BIN)/python examples/demo.py

# two workers; each takes whole files, whose tests may share a start of ranks, in the order of conftest.py
# one thread each: two would wait for each other, spinning, on cores that the other worker needs
test: $(STAMP)  ## run the tests (about 15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not matrix" -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test-matrix: $(STAMP)  ## run the whole table of models, stages, levels and executors (long)
	$(BIN)/python -m pytest -m matrix

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check $(RUFF_PATHS)
	$(BIN)/ruff format --check $(RUFF_PATHS)

format: $(STAMP)  ## format the code and sort imports
	$(BIN)/ruff check --fix $(RUFF_PATHS)
	$(BIN)/ruff format $(RUFF_PATHS)

# pyright does not follow the package-dir mapping of an editable install, so typings/zc is a farm of
# links: everything in zc/, and passes/ and codegen/ where they are installed.
types: $(STAMP)  ## check types
	rm -rf typings && mkdir -p typings/zc
	cd typings/zc && ln -s ../../zc/[a-z]* ../../zc/__*__.py ../../passes ../../codegen .
	$(BIN)/pyright

bench: $(BENCH_STAMP)  ## compare zc with its peers, which are installed first (under half an hour)
	$(BIN)/python examples/benchmarks

clean:  ## remove what the other targets made, .venv too
	rm -rf .venv typings out build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zc needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# torchtitan and deepspeed, without touching the versions that the tests run with
$(BENCH_STAMP): $(STAMP) $(PEERS)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(PEERS)
	touch $(BENCH_STAMP)
