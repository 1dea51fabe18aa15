# Every target makes its own environment in .venv from the pinned requirements; the second run reuses it.
#   make demo PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := $(wildcard requirements/*.txt)
EXTENSION := setup.py pyproject.toml $(wildcard csrc/*)

.PHONY: demo test lint bench wheel clean

demo: $(VENV)/.installed
	$(BIN)/fgrl demo --out fgrl-demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks run

wheel: $(VENV)/.installed
	rm -rf build dist
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist fgrl-demo *.egg-info fgrl/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that no other requirement chooses its version.
$(VENV)/.requirements: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements/torch.txt
	$(BIN)/python -m pip install -r requirements/dev.txt
	$(BIN)/python -m pip install --no-deps -r requirements/no-deps.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements $(EXTENSION)
	$(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	touch $@
