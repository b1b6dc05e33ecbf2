# make demo    the main job on this machine, without Slurm or GPU
# make paper   arXiv 2310.03003 at scale cpu: eleven points, then paper-report/paper.html
# make test    everything but the slow and GPU tests; as root it first installs what the tests need
# make chaos   kills and faults by the hundred, seeded; prints its counts. SEED=7 chooses others
# make slow    tests of minutes        make check   types, lint and format
# make vllm    tests of engine=vllm on a real vLLM on the CPU, in an environment of its own (.venv-vllm, 3.5 GB)
# make docs    the tables of docs/results.md from wattflow/store/columns.csv and reasons.csv
# WORKERS=1 has the tests run one after another; files are dealt to the workers, those on Slurm go to one.
# make lowest   some fast tests at the lowest versions that pyproject.toml allows, in .venv-lowest; torch stays TORCH
# TORCH="torch==2.11.0" chooses another torch; a CUDA one for a GPU machine.

PYTHON ?= python3
TORCH ?= torch==2.13.0
SEED ?= 1
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# a test run ends with its make, also where that is killed; without Linux's setpriv it would go on
ENDS := $(shell command -v setpriv >/dev/null && echo setpriv --pdeathsig KILL)
DEV := $(shell sed -n '/^dev = \[/,/^\]/s/^ *\("[^"]*"\),.*/\1/p' pyproject.toml)

.PHONY: demo paper test slow chaos vllm check docs env clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[engine]"
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(DEV)
	touch $@

env: $(VENV)/.tested

demo: $(VENV)/.installed
	$(BIN)/wattflow submit grid=demo sweep=demo --wait
	$(BIN)/wattflow report sweeps/demo

paper: $(VENV)/.installed
	$(BIN)/wattflow paper submit --scale cpu --wait
	$(BIN)/wattflow paper report --scale cpu

test: $(VENV)/.tested
	slurm/testcluster/install.sh
	$(MAKE) --no-print-directory check
	$(ENDS) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

slow: $(VENV)/.tested
	$(ENDS) $(BIN)/python -m pytest -m "slow and not gpu"

.venv-vllm/.installed: tests/vllm_environment.sh pyproject.toml
	tests/vllm_environment.sh .venv-vllm $(PYTHON)
	touch $@

vllm: $(VENV)/.tested .venv-vllm/.installed
	slurm/testcluster/install.sh
	$(ENDS) $(BIN)/python -m pytest -m vllm tests/test_real_vllm.py tests/test_vllm_failures.py tests/slurm/test_vllm.py

chaos: $(VENV)/.tested
	$(BIN)/python tests/chaos/kills.py --kills 40 --seed $(SEED)
	$(BIN)/python tests/chaos/sidecar_kills.py --kills 100 --seed $(SEED)
	$(BIN)/python tests/chaos/fuzz.py --cases 100000 --seed $(SEED)
	$(ENDS) $(BIN)/python -m pytest tests/slurm -m chaos

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/make_results.py

LOWEST := .venv-lowest
lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv "$(TORCH)" "pytest>=8.3,<9.2" pytest-xdist hypothesis jsonschema
	$(LOWEST)/bin/python -m pip freeze | grep '^torch==' > $(LOWEST)/torch.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --constraint $(LOWEST)/torch.txt --editable ".[engine]"
	$(LOWEST)/bin/python -m pytest -W default -p no:cacheprovider tests/test_store_tables.py tests/test_collect_collect.py \
	  tests/test_analysis_sweep.py tests/test_report_page.py tests/test_plan_grid.py tests/test_cli_app.py tests/test_workload_checkpoint.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-vllm .pytest_cache .mypy_cache .ruff_cache
