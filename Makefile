# make demo and make test need Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/python -m uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
# a test file for each core, in their own order, so that the slow ones are not left for the end
ALL := --numprocesses auto --dist loadfile --no-loadscope-reorder

# Python would otherwise compile torch anew at every start where this is set
unexport PYTHONDONTWRITEBYTECODE
# threads that spin while they wait make tests four times as slow on a machine that does something else too
export OMP_WAIT_POLICY ?= PASSIVE
test fast: export OMP_NUM_THREADS ?= 1

.PHONY: help demo test fast check format golden clean

help:  ## say what there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: $(VENV)/.installed  ## install, then run the main job on scanned digits (minutes)
	$(BIN)/headstart demo --out demo --overwrite

test: $(VENV)/.tested  ## install, then run all tests, the slow ones too
	$(PYTEST) $(ALL) --slow

fast: $(VENV)/.tested  ## run the fast tests
	$(PYTEST) $(ALL)

check: $(VENV)/.tested  ## ruff, mypy --strict and the architecture test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_architecture.py

format: $(VENV)/.tested  ## put the code into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/.tested  ## record the traces in tests/golden anew
	$(PYTEST) -q tests/golden --rewrite-golden

clean:  ## remove what make made
	rm -rf $(VENV) demo

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headstart needs Python 3.11 or newer; make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(UV) --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(UV) --group test --group check
	touch $@
