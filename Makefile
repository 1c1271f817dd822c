# Works from a bare checkout with Python 3.11 or later, in a path with a space, as root or not.
# Every path below is relative: `make` is run in this folder.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# If the machine tells Python not to keep compiled modules, each process that a test starts would compile all
# modules of the project again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STAMP := .venv/installed
PYTEST := $(BIN)/python -m pytest
# Most tests wait more than they compute. Each worker has its own servers.
WORKERS ?= 2
SERVER_FOLDERS := domain projections infra services tests

# A checkout that was moved or copied needs a new environment: the programs in the old one name the old path.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help run test check lint types mypy pyright imports lock bench bench-growth demo examples wheel simulate campaign-crash campaign-edges campaign-schema clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP) ## start everything here, data in ./.keyledger; Ctrl-C stops it
	@exec $(BIN)/keyledger up

test: check ## everything that CI runs; WORKERS=4 for more tests at a time
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## style, types and import rules, no tests
	@$(MAKE) --no-print-directory -j 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync) pyright mypy lint imports

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: mypy pyright

mypy: $(STAMP)
	$(BIN)/mypy
	cd services/edge && ../../$(BIN)/mypy --strict --warn-unreachable -p keyledger_edge
	cd services/language && ../../$(BIN)/mypy --strict --warn-unreachable -p keyledger_language
	cd services/reading && ../../$(BIN)/mypy --strict --warn-unreachable -p keyledger_reading

pyright: $(STAMP)
	$(BIN)/basedpyright

imports: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP) ## measure, and compare the figures with their floors
	$(PYTEST) tests/bench -m bench -s

examples: $(STAMP) ## regenerate the API description's examples, and docs/http.md's routes
	$(BIN)/python -W ignore -m tests.docs.api_examples > /dev/null
	$(BIN)/python -m tests.docs.api_routes

demo: $(STAMP) ## simulate a day at five gateways, over real HTTP
	@$(BIN)/keyledger demo

bench-growth: $(STAMP) ## a million keys, three million charges: time, memory, disk, restart
	GROWTH_KEYS=1000000 GROWTH_CHARGES=3000000 $(PYTEST) tests/bench/bench_growth.py -m bench -s

simulate: $(STAMP) ## simulate many actors with random seeds
	$(PYTEST) tests/simulation tests/properties
	$(BIN)/python -W ignore -m tests.simulation --seeds 10000 --mutants 300

campaign-crash: $(STAMP) ## kill processes at random points, and look for what was lost
	$(PYTEST) tests/campaigns -m campaign -s --ignore tests/campaigns/edges

campaign-edges: $(STAMP) ## revoke and charge behind edges that are cut off, stopped and killed
	$(PYTEST) tests/campaigns/edges -m campaign -s

campaign-schema: $(STAMP) ## requests made from the API description, 200 of each kind for each operation
	KEYLEDGER_TEST_SEED=$${KEYLEDGER_TEST_SEED:-$$RANDOM} KEYLEDGER_SCHEMA_EXAMPLES=$${KEYLEDGER_SCHEMA_EXAMPLES:-200} \
		$(PYTEST) tests/e2e/test_schema.py -s

wheel: $(STAMP) ## the four distributions, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --wheel --outdir dist services/language
	$(BIN)/python -m build --no-isolation --wheel --outdir dist services/edge
	$(BIN)/python -m build --no-isolation --wheel --outdir dist services/reading
	$(BIN)/python -m build --no-isolation --wheel --outdir dist .

# Universal for Python 3.11 and later; the files hold hashes and no address.
COMPILE = $(BIN)/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header --no-emit-package keyledger-edge \
	--no-emit-package keyledger-language --no-emit-package keyledger-reading

lock: $(STAMP) ## pin the newest versions that pyproject.toml allows, with hashes
	$(COMPILE) --upgrade pyproject.toml --group dev --output-file requirements/dev.txt
	$(COMPILE) --constraint requirements/dev.txt pyproject.toml --output-file requirements/run.txt

clean: ## remove builds and caches, but never .keyledger
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SERVER_FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements/dev.txt requirements/install pyproject.toml services/edge/pyproject.toml \
		services/language/pyproject.toml services/reading/pyproject.toml
	@bash requirements/install
	@printf '%s' "$(CURDIR)" > $@
