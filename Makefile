# `make` lists what there is to do. Everything happens in .venv, which each target makes when needed.

PYTHON ?= $(firstword $(shell command -v python3.11 python3.13 python3.12 python3))
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format diagram

help:  ## Say what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## See a chat get its workspace, on servers of its own
	$(BIN)/workspaced demo

test: $(INSTALLED)  ## Run all tests, on servers of their own
	$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED)  ## Lint, formatting, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## Put the code into its form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

diagram: $(INSTALLED)  ## Draw the state machine into ARCHITECTURE.md
	$(BIN)/python -m statemachine.table

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
