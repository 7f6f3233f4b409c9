# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The release CI tests. `make demo TORCH="torch torchvision"` takes the newest, for instance one for your GPU.
TORCH ?= torch==2.14.1 torchvision==0.29.1
# Without --no-compile pip compiles all of torch and others; each process compiles what it imports, and keeps that.
INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Some images of Python forbid it to keep compiled modules. Each process of a test would then compile all of Bract again.
export PYTHONDONTWRITEBYTECODE :=
# Files with tests of a mark. Importing all the others, too, takes each worker another 15 seconds.
marked = $(shell grep -rlE 'mark\.$(1)\b' tests --include='test_*.py')
# Files that take longest, longest first. A worker gets whole files: a long one that began last would be alone.
LONG := $(patsubst %,tests/integration/test_%.py,documented_use separate_machines engines server_commands \
	network_faults pinned_bundle own_federation planted_secret)

.PHONY: demo test test-avx2 test-slow soak gpu-check check clean

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(INSTALL) -e ".[dev]"
	touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/bract simulate

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not soak" --numprocesses auto --dist loadfile

# Libraries choose their floating-point kernels by the processor, and kernels round differently: a test that passes with
# AVX-512 can fail where there is only AVX2. These variables keep OpenBLAS, PyTorch, oneDNN and NumPy to AVX2. NumPy warns
# of a name that it does not know, and the names change with its version, so that warning is no error here.
AVX2 := OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	NPY_DISABLE_CPU_FEATURES=X86_V4,AVX512_ICL,AVX512_SPR

test-avx2: $(VENV)/.installed-dev
	$(AVX2) $(PYTEST) -m "numerical and not slow and not soak" -W ignore::ImportWarning --numprocesses auto --dist loadfile \
		$(call marked,numerical)

# Three processes, because these tests wait for a quarter of their time, for a network or a process.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not soak" --numprocesses 3 --dist loadfile --no-loadscope-reorder \
		$(LONG) $(filter-out $(LONG),$(call marked,slow))

# Takes hours: fifty kills of each kind, the whole grid of accounting, more networks, each fault's test without the fault.
# Figures go into the closing note of a change.
soak: $(VENV)/.installed-dev
	$(PYTEST) -m soak

# Holds a GPU's results against the processor's and times both, in some four minutes. Ends with 2 where there is no GPU.
gpu-check: $(VENV)/.installed
	$(BIN)/python -m simulations.device_check --json gpu-check.json

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
