# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The release CI tests. `make demo TORCH="torch torchvision"` takes the newest, for instance one for your GPU.
TORCH ?= torch==2.14.1 torchvision==0.29.1
PIP := $(BIN)/pip --disable-pip-version-check --quiet
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-slow soak check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/bract simulate

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not soak" --numprocesses auto --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not soak" --numprocesses 2 --dist loadfile

# Takes an hour or so: fifty kills of each kind, the whole grid of accounting. Figures go into the closing note of a change.
soak: $(VENV)/.installed-dev
	$(PYTEST) -m soak

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
