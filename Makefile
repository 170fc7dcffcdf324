# make help lists the targets.
.POSIX:
.SUFFIXES:
.PHONY: help setup setup-dev broker console console-schema demo test lint check wheel deb clean

PYTHON ?= python3
ARGS ?=
# Tests in as many processes; more than two starve the fleets that some of them start.
WORKERS ?= 2
VENV = .venv
BIN = $(VENV)/bin
# Progress bars for a person, silence for a log.
PIP = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt $$([ -t 1 ] || echo -q)

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /@/' | awk -F@ '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo 'PYTHON=python3.12 chooses the interpreter, ARGS="…" passes options: make demo ARGS="--rounds 3"'

setup: $(VENV)/.installed-demo  ## install into .venv what the demo needs; once, then offline

setup-dev: $(VENV)/.installed-dev  ## setup, and what tests and checks need

broker:  ## see to an MQTT broker program (deploy/install-broker.sh)
	@PYTHON='$(PYTHON)' sh deploy/install-broker.sh

console: setup  ## build the web console, if its sources changed (coordinator/console)
	@VENV='$(VENV)' sh deploy/console.sh build

console-schema: setup-dev  ## make the console's types of the API anew
	@VENV='$(VENV)' sh deploy/console.sh schema

# The demo needs no console: where Node or its packages cannot be had, it goes on without.
demo: setup broker  ## the whole story on this machine
	@VENV='$(VENV)' sh deploy/console.sh build || echo 'console: not built, the demo goes on without' >&2
	@$(BIN)/llmos demo $(ARGS)

test: setup-dev broker console  ## install what is needed and run every test
	@VENV='$(VENV)' sh deploy/console.sh test
	@$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder $(ARGS)

lint: setup-dev console  ## format, lint, types and import contracts; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@VENV='$(VENV)' sh deploy/console.sh lint

check: lint test  ## everything CI runs; the tests look at the documents' links too

wheel: setup  ## build dist/llmos-*.whl with the console (deploy/wheel.sh; LLMOS_CONSOLE=no without)
	@PYTHON='$(BIN)/python' sh deploy/wheel.sh

deb: setup  ## build dist/llmos-edge_*.deb for devices (deploy/deb/build.sh)
	@PIP='$(BIN)/python -m pip' sh deploy/deb/build.sh

clean:  ## remove environments, caches and runs
	rm -rf $(VENV) .broker runs build dist coordinator/console/dist coordinator/console/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: together with the rest pip may prefer another index's larger build.
$(VENV)/.installed-demo: pyproject.toml constraints.txt
	@[ -x $(BIN)/python ] || PYTHON='$(PYTHON)' sh deploy/make-venv.sh $(VENV)
	@echo 'Installing torch (once; minutes on a slow line)'
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo 'Installing LLM OS and the demo'
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	@echo 'Installing what tests and checks need'
	@$(PIP) -e '.[dev]'
	@touch $@
