# What a newcomer needs. Every rule sets up what it uses; nothing but Python 3.11 or later has to be there.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
# An exact torch first: whatever asks for "torch" later is content with it, and a CPU wheel stays a CPU wheel.
TORCH  ?= torch==2.13.0
JOBS   ?= 2

RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check --quiet
# Triton is only built for Linux; its 3.6 interpreter needs numpy < 2.4 (the `test` extra says so too).
# Beside the environment's own Triton: what else kernels must compile with.
NEWEST_TRITON := triton==3.9.0
PINS := "numpy<2.4" $(if $(filter Linux,$(shell uname -s)),triton==3.6.0) apache-tvm==0.27.0.post1

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint format types bench bench-gpu clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo  ## a real sentence-embedding model, its attention compiled from a .attn file
	$(RUN)/python examples/minilm.py

test: $(VENV)/.test $(VENV)/.newest-triton  ## the whole suite, fast tests first
	$(RUN)/python -m pytest -n $(JOBS) $(ARGS)

test-gpu: $(VENV)/.test  ## the tests that need a CUDA or HIP device
	$(RUN)/python -m pytest -m gpu $(ARGS)

lint: $(VENV)/.dev  ## ruff: rules and format
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: $(VENV)/.dev  ## apply ruff's fixes and format
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: $(VENV)/.dev $(VENV)/.test  ## mypy --strict over attnc and its sibling folders
	$(RUN)/python tools/link_package.py
	$(RUN)/mypy
	$(RUN)/mypy tools benchmarks examples

bench: $(VENV)/.test  ## this machine's CPU: attnc, torch SDPA and compiled FlexAttention side by side
	$(RUN)/python benchmarks/cpu.py $(ARGS)

bench-gpu: $(VENV)/.test  ## the same on a GPU
	$(RUN)/python benchmarks/gpu.py $(ARGS)

clean:  ## remove what these rules made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.base: pyproject.toml
	@test -n "$(PYTHON)" || { echo "attnc needs Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnc needs Python 3.11 or later")'
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "setuptools>=77" $(TORCH)
	$(PIP) install $(PINS)
	$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) install $(PINS) --no-build-isolation -e ".[test]"
	@touch $@

$(VENV)/.newest-triton: Makefile | $(VENV)/.base
	test "$$(uname -s)" != Linux || $(PIP) install --no-deps --upgrade --target $(VENV)/newest-triton $(NEWEST_TRITON)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --no-build-isolation -e ".[dev]"
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) install $(PINS) --no-build-isolation -e ".[demo]"
	@touch $@
