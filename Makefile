# Everything from a fresh machine: Python 3.11+ and make are all that is needed.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/trunk_small
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: ladder test test-slow lint types docs install clean

# One thread: models this small gain nothing from a second, and lose much where another process wants the core.
ladder: $(STAMP)  ## grow, train, measure and report the default ladder
	OMP_NUM_THREADS=1 $(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml examples/run_ladder.py --output-dir $(RUN)

test: $(STAMP)  ## the test suite, without the tests marked slow
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(STAMP)  ## the tests marked slow
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Not --quiet, which hides warnings from --strict, too.
docs: $(STAMP)  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(STAMP)

# constraints.txt pins torch exactly, which takes the CPU build where pip is shown one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
