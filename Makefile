# Every target but gpu-check runs from .venv, which the first one that needs it makes. The stamp file inside makes later runs instant;
# a change of the dependencies makes it again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
GPU_PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test check bench compat gpu-check clean help

demo: $(READY)  ## start a small cell with a real model and watch it answer
	$(RUN) -m launch.demo

# Tests that compute get the machine to themselves; those that mostly wait for processes share it.
test: check  ## everything that CI runs: the checks, then all tests
	$(RUN) -m pytest -m slow
	$(RUN) -m pytest -m "not slow" --numprocesses=2 --dist=loadfile

check: $(READY)  ## format, lint, types, import contracts and the rules of the tree
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy .
	$(VENV)/bin/lint-imports
	$(RUN) -m pytest -q tests/contract/test_tree_rules.py

bench: $(READY)  ## measure this machine
	$(RUN) -m bench

compat: $(READY)  ## run guidellm, aiperf and LangChain against a cell, and compare their numbers with ours
	$(RUN) -m bench.compat

# Without .venv: on a machine with a GPU, torch is what fits its driver, and there may be no network.
gpu-check:  ## check the GPU path of this machine, and measure it; GPU_PYTHON names its Python
	$(GPU_PYTHON) -m bench.gpu

clean:  ## remove what the other targets made, except models in the user's cache
	rm -rf $(VENV) .compat build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

# torch comes first and alone: pip shows its progress then, and an interrupted install keeps it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -c constraints.txt pip
	$(RUN) -m pip install -c constraints.txt torch
	$(RUN) -m pip install -c constraints.txt -e '.[dev]'
	touch $@
