PYTHON ?= python3
VENV := .venv
BASE := .venv-base
BIN := $(VENV)/bin
SOURCES := $(shell find sigrl_deploy -type f -not -name '*.pyc')

.PHONY: demo test lint bench clean

# Tags four photographs with a checkpoint of random weights: what it shows is the path from checkpoint to tags, not good tags.
demo: $(VENV)/ready
	$(BIN)/python benchmarks/random_weights.py tiny demo
	$(BIN)/python export/to_onnx.py demo/sigrl.pth --text-tower demo/text.pth --out demo/bundle --force
	@echo
	@echo "The weights of this demo are random, and so are the tags below."
	@echo
	$(BIN)/sigrl-deploy infer sigrl_deploy/data/photos --bundle demo/bundle --labels sigrl_deploy/data/labels.txt --top 3

test: lint $(BASE)/ready
	SIGRL_BASE_PYTHON=$(CURDIR)/$(BASE)/bin/python $(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python benchmarks/eager_vs_engine.py --out benchmarks/results/cpu.json
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf $(VENV) $(BASE) demo

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# What a user of the runtime alone installs: no torch, no onnx.
$(BASE)/ready: $(SOURCES) pyproject.toml
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade pip
	$(BASE)/bin/python -m pip install --quiet --force-reinstall .
	touch $@
