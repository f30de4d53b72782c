# Every target prints the plain commands that it runs; they work without make, too.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --constraint .ci/constraints.txt

.PHONY: demo test models lint clean

## demo: environment, calibration and test of the embedded demo model; ends with a table
demo: $(VENV)/.installed
	$(VENV)/bin/python -m lad_pl fit
	$(VENV)/bin/python -m lad_pl test

## test: environment and the whole test suite
test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder --durations 15

## models: measure every model family again and write the table of docs/models.md
models: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest tests/vlm/test_families.py --write-models-table

## lint: style, format and types
lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

## clean: remove the environment
clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
