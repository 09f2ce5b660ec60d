# One virtual environment for everything; every target can be run twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-slow quality style docs study clean
.DEFAULT_GOAL := help

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cli,demo,plots]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,quality,docs]'
	@touch $@ $(VENV)/.demo

$(VENV)/.study: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[study]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev  ## Create the environment with all development tools.

demo: $(VENV)/.demo  ## Grow a DeiT on real images, save it, reload it, show what grew.
	$(RUN) $(BIN)/python examples/grow_image_classifier.py --output_dir outputs/demo $(ARGS)

test: $(VENV)/.dev  ## Run the tests (without the slow ones).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev  ## Run the slow tests, transformers' common model tests among them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

quality: $(VENV)/.dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

study: $(VENV)/.study  ## Run what the study of when growing pays lacks (hours), then its report.
	$(RUN) $(BIN)/python -m benchmarks.study.run $(ARGS)
	$(RUN) $(BIN)/python -m benchmarks.study.report

clean:  ## Remove the environment and everything that was built.
	rm -rf $(VENV) outputs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
