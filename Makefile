# Everything one types here. `make help` lists it.

# The Python the packages are pinned for comes first; a newer one will do.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && exit; \
	done; echo python3)
VENV := .venv/bin/python
CODE := app models views jobs ops config.py run.py
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run doctor test check lint bench lock packages dev-packages

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

run: packages  ## Start everything: http://127.0.0.1:8080 (PORT=...), data in var/ (WARDBOOK_HOME=...)
	@$(VENV) run.py run

doctor: packages  ## Check this installation and say what is wrong
	@$(VENV) run.py doctor

test: dev-packages  ## The whole test suite on throw-away servers (ARGS="-k words")
	@$(VENV) -m pytest $(ARGS)

check: lint test  ## Style, types, the import rule, and the tests

lint: dev-packages  ## Style, types and the import rule
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy $(CODE)
	@$(VENV) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

bench: dev-packages  ## Measure it (ARGS="--help" for what)
	@$(VENV) -m tests.bench $(ARGS)

lock: dev-packages  ## Pin the newest allowed versions anew, with hashes
	@set -e; for name in requirements requirements-dev requirements-node; do \
		$(VENV) -m uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 \
			--no-emit-index-url --custom-compile-command "make lock" -o $$name.txt $$name.in; done

packages:
	@$(PYTHON) ops/bootstrap.py

dev-packages:
	@$(PYTHON) ops/bootstrap.py --dev
