PYTHON ?= python3
VENV := .venv
BASE := .venv-base
BINDINGS := .venv-bindings
TRITON := .venv-triton
BIN := $(VENV)/bin
SOURCES := $(shell find sigrl_deploy -type f -not -name '*.pyc')

.PHONY: demo test lint dist bench gpu gpu-rehearsal report demo-checkpoint clean

# Exports the model that ships with the package, tags pictures that it has never seen, and writes a page of what it found where.
demo: $(VENV)/ready
	$(BIN)/sigrl-deploy demo --out demo

test: lint $(BASE)/ready $(BINDINGS)/ready $(TRITON)/ready
	SIGRL_BASE_PYTHON=$(CURDIR)/$(BASE)/bin/python SIGRL_TENSORRT_BINDINGS=$(CURDIR)/$(BINDINGS) SIGRL_TRITON=$(CURDIR)/$(TRITON) \
		$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		-m "not gpu and not tensorrt"

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# About an hour on two cores that do nothing else; goes on where it was interrupted.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.bench --out benchmarks/results/cpu.json
	$(BIN)/python -m benchmarks.report

# Ten minutes on a machine with a GPU.
gpu: $(VENV)/ready
	$(BIN)/python -m benchmarks.gpu_once --out benchmarks/results
	$(BIN)/python -m benchmarks.report

# The same on a CPU, at tiny sizes, to see that it works: several minutes.
gpu-rehearsal: $(VENV)/ready
	$(BIN)/python -m benchmarks.gpu_once --device cpu --variant tiny --out runs

report: $(VENV)/ready
	$(BIN)/python -m benchmarks.report

# Several hours on two cores; goes on where it was interrupted.
demo-checkpoint: $(VENV)/ready
	$(BIN)/python -m benchmarks.demo_checkpoint runs --ship

clean:
	rm -rf $(VENV) $(BASE) $(BINDINGS) $(TRITON) demo dist

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# What is published: an sdist and a wheel. A release is `twine upload` of them.
dist: dist/ready

dist/ready: $(SOURCES) pyproject.toml README.md LICENSE $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist >/dev/null
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz
	touch $@

# What a user of the runtime alone installs: the wheel, no torch, no onnx.
$(BASE)/ready: dist/ready
	$(PYTHON) -m venv --clear $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade pip
	$(BASE)/bin/python -m pip install --quiet dist/*.whl
	touch $@

# TensorRT's Python bindings without its libraries, in a folder that only their test looks into.
$(BINDINGS)/ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(BINDINGS) 'tensorrt-cu13-bindings==11.4.*'
	touch $@

# The Triton of torch 2.11, for which kernels must compile as well; nothing imports it but the test of that.
$(TRITON)/ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TRITON) triton==3.6.0
	touch $@
