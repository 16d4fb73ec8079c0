# Every target does its own set-up: a virtual environment, then the pinned install.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARM    ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fineprune-arm
FINEPRUNE := $(BIN)/fineprune

.PHONY: demo test test-all test-arm check format clean FORCE

demo: $(VENV)/.linked
	$(FINEPRUNE) run recipes/demo.toml

test: $(VENV)/.linked
	$(BIN)/python -m pytest

test-all: $(VENV)/.linked
	$(BIN)/python -m pytest -m ""

# The engine of the distribution for devices on an emulated Arm CPU, see CONTRIBUTING.md. ARM: a folder for its Python, packages, files and code.
ARM_TESTS ?= tests/arm/parity.py tests/export/engine tests/ops/test_numba_door.py

test-arm: $(ARM)/.installed $(VENV)/.linked
	rm -rf $(ARM)/engine $(ARM)/files runtime/build
	PYTHONPATH=tests $(BIN)/python tests/arm/files.py $(ARM)/files
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(ARM)/engine ./runtime
	PYTHONPATH=tests/arm FINEPRUNE_FILES=$(ARM)/files NUMBA_CACHE_DIR=$(ARM)/compiled OMP_NUM_THREADS=1 \
	FINEPRUNE_PLANS=anew FINEPRUNE_COSTS=assumed nice -n 19 \
	  $(ARM)/bin/python -m pytest -p exported --confcutdir tests/export/engine --durations 10 -v $(ARM_TESTS)

$(ARM)/.installed: tests/arm/root.sh constraints.txt | $(VENV)/.installed
	sh tests/arm/root.sh $(ARM) $(BIN)/pip
	touch $@

check: $(VENV)/.linked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fineprune

format: $(VENV)/.linked
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pinned packages: made again when the pins change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]" --config-settings editable_mode=strict
	touch $@

# A strict editable install links each file, so it is made again when the list of modules changes.
$(VENV)/.linked: $(VENV)/.installed FORCE
	@find src common ops models calibrate compressor export -name '*.py' | sort > $(VENV)/.modules.new
	@cmp -s $(VENV)/.modules.new $(VENV)/.modules && test -e $@ || { \
	  $(BIN)/pip install --quiet --no-deps --no-build-isolation --editable . --config-settings editable_mode=strict \
	  && mv $(VENV)/.modules.new $(VENV)/.modules && touch $@; }

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
