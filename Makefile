# Every target makes its own environment in .venv from the pinned requirements; the second run reuses it.
#   make demo PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := $(filter-out requirements/peers.txt requirements/integrations.txt,$(wildcard requirements/*.txt))
# Each host of an integration has an environment of its own, outside the checkout.
INTEGRATIONS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fgrl/integrations
HOSTS := $(sort $(filter-out %.no-deps,$(basename $(notdir $(wildcard requirements/integrations/*.txt)))))
CLANG ?= clang++
FUZZ_SECONDS ?= 60
FUZZ_FLAGS := -std=c++20 -O1 -g -fno-sanitize-recover=all -Icsrc
# Files of tests/ops that run on interpreted kernels too. Of group_advantages, linear_kl and the policy losses, thousands
# of small calls each, tests/kernels alone interprets the kernels.
INTERPRETED := $(patsubst %,tests/ops/test_%.py,edit_preference_loss fused_losses gae layouts library linear_autocast \
  linear_chunks linear_logprobs linear_ppo_loss ppo_loss ppo_loss_batches token_advantages token_reward_head \
  value_checks value_loss whiten)
FUZZ_SOURCE := tests/csrc/align_edits_fuzz.cpp
EXTENSION := setup.py pyproject.toml $(wildcard csrc/* csrc/*/*)

.PHONY: demo test test-integrations $(HOSTS:%=test-integration-%) lint bench peers results instructions fuzz wheel clean

demo: $(VENV)/.installed
	$(BIN)/fgrl demo --out fgrl-demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) tests/kernels $(INTERPRETED)

# Real packages of the hosts: `make test-integration-trl` for one of them. One that the registry no longer has is a printed skip.
test-integrations: $(HOSTS:%=test-integration-%)

$(HOSTS:%=test-integration-%): test-integration-%: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) tests/integrations/run.py $* $(INTEGRATIONS_CACHE)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -W ignore -m benchmarks run --suite cpu

peers: $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-deps -r requirements/peers.txt

results: bench
	$(BIN)/python -m benchmarks pairs --suite cpu
	$(BIN)/python -W ignore -m benchmarks step --suite cpu
	$(BIN)/python -W ignore -m benchmarks scale --suite cpu
	$(BIN)/python -m benchmarks keep
	$(BIN)/python -m benchmarks report

instructions:
	$(PYTHON) benchmarks/instructions.py

# Alignment headers only: needs no environment. libFuzzer comes with clang; other compilers run random inputs instead.
fuzz:
	mkdir -p build/fuzz/found
	if command -v $(CLANG) >/dev/null; then \
	  $(CLANG) $(FUZZ_FLAGS) -DFGRL_LIBFUZZER -fsanitize=fuzzer,address,undefined $(FUZZ_SOURCE) -o build/fuzz/fuzz && \
	  build/fuzz/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=2000 build/fuzz/found tests/csrc/corpus; \
	else \
	  $(CXX) $(FUZZ_FLAGS) -fsanitize=address,undefined $(FUZZ_SOURCE) -o build/fuzz/fuzz -pthread && \
	  FUZZ_SECONDS=$(FUZZ_SECONDS) build/fuzz/fuzz tests/csrc/corpus/*; \
	fi

wheel: $(VENV)/.installed
	rm -rf build dist
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist fgrl-demo *.egg-info fgrl/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that no other requirement chooses its version.
$(VENV)/.requirements: $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about a minute, more where torch is downloaded'
	$(BIN)/python -m pip install -q -r requirements/torch.txt
	$(BIN)/python -m pip install -q -r requirements/dev.txt
	$(BIN)/python -m pip install -q --no-deps -r requirements/no-deps.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements $(EXTENSION)
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@
