# Two commands do all the set-up: make demo, make test. JOBS: processes of the tests, a core and some GiB each.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed

.PHONY: demo test check bench mutate hybrids soak clean

demo: $(STAMP)
	$(BIN)/melior demo

test: $(STAMP)
	$(BIN)/melior pull smollm2-135m-instruct
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_house.py
	$(BIN)/python tests/check_papers.py
	$(BIN)/python tests/check_alarms.py

bench: $(STAMP)
	$(BIN)/melior pull smollm2-135m-instruct
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/scaling.py

mutate: $(STAMP)
	$(BIN)/python tests/mutation/run.py

hybrids: $(STAMP)
	$(BIN)/python benchmarks/hybrids.py

soak: $(STAMP)
	$(BIN)/python tests/soak/run.py
	$(BIN)/python tests/soak/kills.py
	$(BIN)/python tests/soak/check_memory.py --mb 1024 --workers 2
	MELIOR_SCHEMATHESIS=100 $(BIN)/python -m pytest tests/serving/test_schema_served.py --timeout 3600

# torch first: on its own the pinned release is the CPU build where one is offered.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "melior needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
