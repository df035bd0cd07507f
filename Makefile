# Everything happens in .venv, which the first target that needs it makes. Nothing but python3, its venv module and
# make is needed beforehand. Another interpreter has a virtual environment of its own:
#   make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
PYTEST ?= -n 2
BENCH ?=
TORTURE_REPORT ?= torture.md
TORTURES := tests/faults tests/interop/test_cut_connections.py tests/interop/test_uppy.py
FUZZ ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-slow check properties fuzz torture bench constraints

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Start the service on http://127.0.0.1:8000 (settings: docs/operations/settings.md)
	$(BIN)/waybill serve

test: $(VENV)/.test ## Run every test but the slow ones; PYTEST="-k name" picks from them
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-slow: $(VENV)/.test ## Run the slow tests: kills, power cuts, file systems, browsers, restarts under load
	$(BIN)/python -m pytest -m slow $(PYTEST)

check: $(VENV)/.test ## Format, lint, types, tests: what every commit passes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

properties: $(VENV)/.test ## Try the properties, and damaged requests, on many more examples
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(PYTEST) tests/properties tests/hostile/test_any_request.py \
	  tests/test_any_order.py

fuzz: $(VENV)/.fuzz ## Try a million cases, on parsers and as whole requests; a quarter of an hour; FUZZ="--help"
	$(BIN)/python -m tests.fuzz $(FUZZ)
	FUZZ_REQUESTS=120000 $(BIN)/python -m pytest -q tests/hostile/test_many_requests.py

torture: $(VENV)/.test ## Kill it, cut its power and its connections, fail its every call, and print what came of it; 45 minutes
	TORTURE=1 TORTURE_REPORT=$(TORTURE_REPORT) $(BIN)/python -m pytest $(PYTEST) --maxschedchunk=1 $(TORTURES)

bench: $(VENV)/.bench ## Measure Waybill beside its peers (bench/README.md); BENCH=--quick for ten minutes
	$(BIN)/python -m bench $(BENCH)

constraints: ## Write constraints.txt anew from the newest versions that pyproject.toml allows
	rm -rf $(VENV)/fresh
	$(PYTHON) -m venv $(VENV)/fresh
	$(VENV)/fresh/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,fuzz]'
	{ echo '# The exact versions that were tested. To bring them up to date: make constraints'; \
	  $(VENV)/fresh/bin/python -m pip freeze --exclude-editable; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)/fresh

# pip is made last, so a venv whose making broke off is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# The package is installed editable: the service and the tests run app/ and sql/ as they stand here.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable .
	@: > $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[bench]'
	@: > $@; : > $(VENV)/.run

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[test]'
	@: > $@; : > $(VENV)/.run

$(VENV)/.fuzz: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[test,fuzz]'
	@: > $@; : > $(VENV)/.run; : > $(VENV)/.test
