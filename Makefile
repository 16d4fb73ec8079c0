# Every target does its own set-up: a virtual environment, then the pinned install.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FINEPRUNE := $(BIN)/fineprune

.PHONY: demo test test-all check format clean FORCE

demo: $(VENV)/.linked
	$(FINEPRUNE) run recipes/demo.toml

test: $(VENV)/.linked
	$(BIN)/python -m pytest

test-all: $(VENV)/.linked
	$(BIN)/python -m pytest -m ""

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
