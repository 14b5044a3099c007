# Every target makes and fills the virtual environment it needs on first use. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard src/rmsprop/kernels/*.cpp src/rmsprop/kernels/*.h)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help dev train test test-peers lint types format bench check
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

train: $(VENV)/train.stamp  ## train a network on the handwritten digits
	$(BIN)/rmsprop train $(ARGS)

test: $(VENV)/test.stamp  ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-peers:  ## the tests with optax, Keras, timm, stable-baselines3, Lightning, Transformers and others
	@$(MAKE) --no-print-directory VENV=.venv-peers .venv-peers/peers.stamp
	TRITON_INTERPRET=1 .venv-peers/bin/python -m pytest tests/peers $(ARGS)

dev: $(VENV)/test.stamp  ## install everything, editable

lint: $(VENV)/test.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/test.stamp  ## time the step against torch's and optax's, side by side
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(BIN)/python benchmarks/jax_speed.py

check: test lint  ## what CI runs

$(VENV)/%.stamp: pyproject.toml constraints.txt $(NATIVE)
	@echo "Installing rmsprop[$*] into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -e ".[$*]"
	@$(BIN)/python -m rmsprop.kernels
	@touch $@
