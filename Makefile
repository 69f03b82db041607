PYTHON ?= python3
VENV := .venv
BASE := .venv-base
BINDINGS := .venv-bindings
TRITON := .venv-triton
TRITONSERVER := .venv-tritonserver
PYTRITON := nvidia-pytriton==0.7.0 'numpy<2'
# nvidia-pytriton, which carries the server, is for Linux and for Python up to 3.12.
HAS_TRITONSERVER := $(shell $(PYTHON) -c 'import sys; print("yes" if sys.platform == "linux" and sys.version_info < (3, 13) else "")')
BIN := $(VENV)/bin
# One pip, which installs into all environments. Most of what it installs is never imported, so bytecode is made of what is.
PIP := $(BIN)/python -m pip
INSTALL := install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=
SOURCES := $(shell find sigrl_deploy -type f -not -name '*.pyc')

.PHONY: demo test environments lint dist bench gpu gpu-rehearsal report demo-checkpoint clean

# Exports the model that ships with the package, tags pictures that it has never seen, and writes a page of what it found where.
demo: $(VENV)/ready
	$(BIN)/sigrl-deploy demo --out demo

test: lint environments
	SIGRL_BASE_PYTHON=$(CURDIR)/$(BASE)/bin/python SIGRL_TENSORRT_BINDINGS=$(CURDIR)/$(BINDINGS) SIGRL_TRITON=$(CURDIR)/$(TRITON) \
		SIGRL_TRITONSERVER=$(if $(HAS_TRITONSERVER),$(CURDIR)/$(TRITONSERVER)) \
		$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		-m "not gpu and not tensorrt"

# What `make test` needs. They may be made at the same time: make -j4 environments
environments: $(VENV)/ready $(BASE)/ready $(BINDINGS)/ready $(TRITON)/ready $(if $(HAS_TRITONSERVER),$(TRITONSERVER)/ready)

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
	rm -rf $(VENV) $(BASE) $(BINDINGS) $(TRITON) $(TRITONSERVER) demo dist

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(INSTALL) --upgrade pip
	touch $@

$(VENV)/ready: pyproject.toml setup.py $(wildcard sigrl_deploy/kernels/cpu/native/*) | $(VENV)/pip
	$(PIP) $(INSTALL) --editable '.[test]'
	touch $@

# What is published: an sdist and a wheel. A release is `twine upload` of them.
dist: dist/ready

dist/ready: $(SOURCES) pyproject.toml setup.py README.md LICENSE $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist >/dev/null
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz
	touch $@

# What a user of the runtime alone installs: the wheel, no torch, no onnx.
$(BASE)/ready: dist/ready
	$(PYTHON) -m venv --clear --without-pip $(BASE)
	$(PIP) --python $(BASE) $(INSTALL) dist/*.whl
	touch $@

# TensorRT's Python bindings without its libraries, in a folder that only their test looks into.
$(BINDINGS)/ready: pyproject.toml | $(VENV)/pip
	$(PIP) $(INSTALL) --no-deps --upgrade --target $(BINDINGS) 'tensorrt-cu13-bindings==11.4.*'
	touch $@

# The Triton of torch 2.11, for which kernels must compile as well; nothing imports it but the test of that.
$(TRITON)/ready: pyproject.toml | $(VENV)/pip
	$(PIP) $(INSTALL) --no-deps --upgrade --target $(TRITON) triton==3.6.0
	touch $@

# The real tritonserver, with its Python backend alone, for that backend's processes, which take no numpy 2.
$(TRITONSERVER)/server: pyproject.toml | $(VENV)/pip
	$(PYTHON) -m venv --clear --without-pip $(TRITONSERVER)
	$(PIP) --python $(TRITONSERVER) $(INSTALL) $(PYTRITON)
	touch $@

# The same with this package.
$(TRITONSERVER)/ready: $(TRITONSERVER)/server dist/ready
	$(PIP) --python $(TRITONSERVER) uninstall --quiet --yes sigrl-deploy
	$(PIP) --python $(TRITONSERVER) $(INSTALL) dist/*.whl $(PYTRITON)
	touch $@
