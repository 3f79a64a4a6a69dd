# `make quickstart` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
# Real data sets for the tests that want them; those tests skip, saying so, where there are none.
export TFMETAREC_TEST_DATA ?= $(wildcard $(CURDIR)/../shared/data)

# Tests of one file stay in one process, so that what they share is made once.
TEST_PROCESSES ?= 2

.PHONY: help quickstart test test-slow test-serving lint format docs notebooks lock benchmarks clean

help: ## List what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements/lock.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed, and none was found."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "Python 3.11 is needed. Found: $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.11."; exit 1; }
	@echo "Setting up .venv (once, about two minutes)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
		echo "The module venv is needed (Debian and Ubuntu: package python3.11-venv)."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(STAMP) ## Real purchases to a served recommendation, with everything in between
	@$(BIN)/python -m tfmetarec quickstart

test: $(STAMP) lint ## Every check that CI runs
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadfile

test-slow: $(STAMP) ## The long tests too
	$(BIN)/python -m pytest

test-serving: $(STAMP) ## Conformance and our exports on the local server, and on tensorflow_model_server if it is on PATH
	$(BIN)/python -m pytest -rs tests/server/test_real_server.py

lint: $(STAMP) ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP) ## Reformat the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# The variable silences a notice of the theme about MkDocs 2, which pyproject.toml does not allow.
docs: $(STAMP) ## The documentation as a site that needs no network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(STAMP) ## Run every notebook in full and keep what it shows
	$(BIN)/python notebooks/run.py

lock: ## Renew requirements/lock.txt from pyproject.toml (needs uv)
	uv pip compile pyproject.toml requirements/build.in --extra dev --extra report --extra pretrained --extra docs \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade -o requirements/lock.txt

# The folder of a data set, for benchmarks that want one and where there is one.
data = $(if $(wildcard $(TFMETAREC_TEST_DATA)/$(1)),--data $(TFMETAREC_TEST_DATA)/$(1))

benchmarks: $(STAMP) ## Run every benchmark in full; name those that missed a target
	@missed=; run() { $(BIN)/python -m benchmarks."$$@" || missed="$$missed $$1"; }; \
	for name in input_pipeline meta_epoch meta_training serving serving_load; do run $$name; done; \
	run distillation $(call data,ml-1m); run zero_shot $(call data,ml-1m); run cross_domain $(call data,douban_cdr); \
	run tuning $(call data,ml-1m); run cold_start; run cold_start $(or $(call data,ml-1m),--quick); run evaluation; \
	test -z "$$missed" || { echo "Not all targets were met by:$$missed"; exit 1; }

clean: ## Remove the environment and caches
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
