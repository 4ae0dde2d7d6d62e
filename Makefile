# `make serve` and `make test` are all that a newcomer types; each makes .venv and builds what it needs first.
PYTHON ?= python3
MODEL ?=
VENV := .venv
BIN := $(VENV)/bin
NATIVE := pyproject.toml CMakeLists.txt quant/formats.py quant/header.py $(wildcard engine/cpu/*)

.PHONY: serve test lint build clean

serve: $(VENV)/.built
	$(BIN)/puna serve $(MODEL)

# Two at a time: most tests compute in one thread, or wait. A file's tests share what they compile.
test: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.testable
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(VENV)/.built

# Without build isolation the build folder survives, and a change to one kernel compiles one file.
$(VENV)/.built: $(NATIVE) | $(VENV)/.tools
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.testable: pyproject.toml $(VENV)/.built
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[test]'
	@if command -v npm > /dev/null; then npm install --silent --no-package-lock --prefix tests/server/node; fi
	@if command -v apt-get > /dev/null; then tests/cross/install.sh || echo "no emulator: tests of kernels of other CPUs are skipped"; fi
	@touch $@

$(VENV)/.tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Puna needs Python 3.11 or later; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "on Debian: apt install python3-venv python3-dev"; exit 1; }
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $(VENV)/build.txt
	$(BIN)/pip install --quiet cmake ninja -r $(VENV)/build.txt
	@touch $@

clean:
	rm -rf build $(VENV)
