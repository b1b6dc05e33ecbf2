# make demo    the main job on this machine, without Slurm or GPU
# make test    everything but the slow and GPU tests; as root it first installs what the tests need
# make slow    tests of minutes        make check   types, lint and format
# TORCH="torch==2.11.0" chooses another torch; a CUDA one for a GPU machine.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEV := $(shell sed -n '/^dev = \[/,/^\]/s/^ *\("[^"]*"\),.*/\1/p' pyproject.toml)

.PHONY: demo test slow check env clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(DEV)
	touch $@

env: $(VENV)/.tested

demo: $(VENV)/.installed
	$(BIN)/wattflow submit grid=demo sweep=demo --wait
	$(BIN)/wattflow report sweeps/demo

test: $(VENV)/.tested
	slurm/testcluster/install.sh
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest

slow: $(VENV)/.tested
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
