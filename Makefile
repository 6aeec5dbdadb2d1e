# Two commands: `make run` lives the whole life of a small model and serves it; `make test` proves it.
# Both need Python >= 3.11 and a package index, are safe to repeat, and go on where Ctrl-C stopped them.
#   make run SMOKE=1                  tiny sizes, answers a request by itself, stops
#   make run ARGS="serve.port=8001"   any field of any step, as STEP.FIELD=VALUE
SHELL := /bin/bash
BIN := .venv/bin
SMOKE ?=
ARGS ?=
SUITES ?= core families checkpoints engine parallel
# Tiny tensors gain nothing from threads, and on a busy machine lose much by waiting for them.
TINY := $(filter-out 0 no false,$(SMOKE))
export PYTHON

.PHONY: run test test-slow test-gpu prove check schema install peers clean help
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run:  ## from raw text to a chat page on http://127.0.0.1:8000 (SMOKE=1: tiny and self-stopping)
	@scripts/install all
	@$(if $(TINY),OMP_NUM_THREADS=1) $(BIN)/lmworks run recipes/life.yaml $(if $(TINY),--smoke) $(ARGS)

test:  ## format, lint, types, import rows, tests
	@scripts/install test
	@scripts/check
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

test-slow:  ## the tests left out of `make test` because they take long
	@scripts/install slow
	@$(BIN)/pytest -m slow --timeout=1800 $(ARGS)

test-gpu:  ## the tests that need a CUDA device, and the Triton kernels on it instead of in their interpreter
	@scripts/install test
	@$(BIN)/pytest -m "gpu or not slow" --timeout=600 tests/gpu tests/kernels/test_triton_kernels.py $(ARGS)

check:  ## the part of `make test` that runs no code of ours
	@scripts/install test
	@scripts/check

prove:  ## measure the promises on this machine: train-serve gap, exact resume, every family, real checkpoints
	@scripts/install test
	@for suite in $(SUITES); do echo "lmworks prove $$suite"; $(BIN)/lmworks prove $$suite $(ARGS) || exit 1; done

schema:  ## write recipes/recipe.schema.json anew after a configuration changed
	@scripts/install all
	@$(BIN)/lmworks schema recipe > recipes/.recipe.schema.json && mv recipes/.recipe.schema.json recipes/recipe.schema.json

install:  ## make .venv with everything that tests need
	@scripts/install test

peers:  ## make .peers with what the engine's benchmarks compare with (builds llama.cpp: many minutes)
	@scripts/install-peers

clean:  ## remove the environment and tool caches; runs/ and downloads stay
	rm -rf .venv .peers .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
