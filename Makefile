# make sample   images from the bundled checkpoint, in out/ (out/grid.png shows them all)
# make test     tests with coverage, lint, types
# make lint     ruff and mypy
# make bench    speed of networks, sampling and training against the peers: tables and charts in out/bench (an hour or
#               more); make bench-ops: of each op's backends, in out/bench.json (minutes); make bench-suites: the networks
#               as pytest-benchmark suites
#
# Needs Python 3.10+, a C++17 compiler and git; everything else goes into .venv. On Linux plain pip takes the CUDA build of
# torch, several GB; TORCH may be any requirement, or options and one, to take another:
#   make sample TORCH="torch==2.13.0 --index-url URL-of-the-CPU-builds"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NATIVE := setup.py $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.*)
# one process for each core, and one thread in each: faster than the reverse for tests this small
PYTEST_FLAGS ?= --numprocesses=auto

.PHONY: sample test lint bench bench-ops bench-suites clean
.DELETE_ON_ERROR:

sample: $(VENV)/installed
	$(BIN)/edm-fast generate --outdir=out --seeds=0-63 --grid=out/grid.png
	@echo "see out/grid.png"

test: $(VENV)/developer
	@status=0; $(MAKE) --no-print-directory lint || status=1; \
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered $(PYTEST_FLAGS) || status=1; exit $$status

lint: $(VENV)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST_BENCH := $(BIN)/pytest -q -s --benchmark-columns=median,iqr

bench: $(VENV)/developer
	$(BIN)/edm-fast bench --outdir=out/bench

bench-ops: $(VENV)/developer
	mkdir -p out
	$(PYTEST_BENCH) benchmarks/ops --benchmark-json=out/bench.json

bench-suites: $(VENV)/developer
	mkdir -p out
	$(PYTEST_BENCH) benchmarks/networks benchmarks/sampling --benchmark-json=out/bench-suites.json

clean:
	rm -rf $(VENV) build out *.egg-info edm_fast/_C.*

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("edm-fast needs Python 3.10 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# the name of the stamp holds the requirement, so that another TORCH installs again and the same one does not
TORCH_STAMP := $(VENV)/torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d' ' -f1)
$(TORCH_STAMP): | $(BIN)/python
	$(PIP) $(TORCH)
	touch $@

$(VENV)/installed: $(TORCH_STAMP) pyproject.toml $(NATIVE)
	$(PIP) --editable .
	touch $@

# one build serves both stamps
$(VENV)/developer: $(TORCH_STAMP) pyproject.toml $(NATIVE)
	$(PIP) --editable '.[dev]'
	touch $(VENV)/installed $@
