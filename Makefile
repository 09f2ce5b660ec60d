# One virtual environment for everything; every target can be run twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-slow test-upstream test-recipes test-pretrained coverage quality style docs package study clean
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

$(VENV)/.slow: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,study]'
	@touch $@ $(VENV)/.study

$(VENV)/.pretrained: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,study,bert,trl]'
	@touch $@ $(VENV)/.study

# Apart, as a torchvision that does not go with its torch breaks transformers' models.
$(VENV)-recipes/.recipes: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)-recipes
	$(VENV)-recipes/bin/python -m pip install --quiet -c constraints.txt -e '.[test,recipes]'
	@touch $@

$(VENV)/.study: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[study]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev  ## Create the environment with all development tools.

demo: $(VENV)/.demo  ## Grow a DeiT on real images, save it, reload it, show what grew.
	$(RUN) $(BIN)/python examples/grow_image_classifier.py --output-dir outputs/demo --overwrite $(ARGS)

test: $(VENV)/.dev  ## Run the tests (without the slow ones).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(VENV)/.slow  ## Run the slow tests, transformers' common model tests among them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

test-upstream: $(VENV)/.dev  ## Run transformers' own common model tests for every family, beside the stock models (an hour).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' tests/models/test_transformers_common.py $(ARGS)

test-recipes: $(VENV)-recipes/.recipes  ## Compare augmentation with timm's; wants a torchvision that goes with torch.
	OMP_NUM_THREADS=1 $(VENV)-recipes/bin/python -m pytest -m recipes $(ARGS)

test-pretrained: $(VENV)/.pretrained  ## Grow real pretrained models, whose weights come with packages; TRL too.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m pretrained $(ARGS)

coverage: ARGS += --cov
coverage: test  ## Run the tests and show which lines they reach.

quality: $(VENV)/.dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

package: $(VENV)/.dev  ## Build wheel and sdist, check what they hold, run the quickstart from the wheel alone.
	rm -rf dist
	PYTHONWARNINGS=error $(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet -c constraints.txt "$$(ls dist/*.whl)[cli,demo,plots]"
	$(RUN) $(BIN)/python .ci/check_package.py $(VENV)-wheel/bin/python

study: $(VENV)/.study  ## Run what the study of when growing pays lacks (hours), then its report.
	$(RUN) $(BIN)/python -m benchmarks.study.run $(ARGS)
	$(RUN) $(BIN)/python -m benchmarks.study.report

clean:  ## Remove the environment and everything that was built.
	rm -rf $(VENV) $(VENV)-recipes $(VENV)-wheel outputs site build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
