# Works on a fresh machine with Python 3.11+ and nothing else: every target makes .venv itself.
#   make demo [DATA=folder]   agents that share state, with a live view and a proof
#   make test                 the quick suite on every server of this machine
#   make bench                our numbers beside the peers'
#   make load [PROFILE=soak]  agents' load on a server and a sidecar: the knee, what saturates

PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help test demo bench load lint type docs clean

help:
	@sed -n 's/^# \{0,3\}//p' Makefile | head -5

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer with venv and pip" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=23"

# One stamp per set of extras; a changed pyproject.toml installs anew.
$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	$(PIP) install --editable ".[$*]"
	@touch $@

test: $(VENV)/installed-test
	$(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadscope $(ARGS)

demo: $(VENV)/installed-demo
	$(BIN)/python -m examples.demo $(if $(DATA),--data "$(DATA)") $(ARGS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

load: $(VENV)/installed-load
	$(BIN)/python -m loadtests $(if $(PROFILE),--profile "$(PROFILE)") \
		$(if $(DATA),--data "$(DATA)") $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(BIN)/python
	$(BIN)/python tools/check_docs.py

clean:
	rm -rf $(VENV) build dist .tox .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
