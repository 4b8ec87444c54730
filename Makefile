# `make train` and `make test` are all that a fresh machine needs; `make help` lists every target.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
SECOND := .venv-second
PEERS := .venv-peers
PY := $(VENV)/bin/python
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
JOBS := $(or $(MAX_JOBS),$(shell getconf _NPROCESSORS_ONLN))

# Which torch, as a pip requirement: the one to build against, and the one to load that build under.
FUSEDSTEP_TORCH ?= torch
FUSEDSTEP_SECOND_TORCH ?= torch==2.13.0
BUILD_REQUIRES := "setuptools>=77" "pybind11>=3.0" ninja

# What setup.py is given about CUDA and warnings, as $(VENV)/options keeps it. Without a GPU, goals
# that only run things build the CPU module alone, unless FUSEDSTEP_CUDA says otherwise or more is
# built already.
RUN_GOALS := train test-fast lint format bench bench-peers instructions precision lm-head plots docs
SPACE := $() $()
GPU := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
ONLY_RUNS := $(if $(MAKECMDGOALS),$(if $(filter-out $(RUN_GOALS),$(MAKECMDGOALS)),,yes))
OPTIONS := FUSEDSTEP_CUDA=$(or $(FUSEDSTEP_CUDA),auto) \
           TORCH_CUDA_ARCH_LIST=$(subst $(SPACE),;,$(TORCH_CUDA_ARCH_LIST)) FUSEDSTEP_WERROR=$(FUSEDSTEP_WERROR)
ifeq ($(ONLY_RUNS)$(FUSEDSTEP_CUDA)$(GPU),yes)
OPTIONS := $(or $(shell [ $(VENV)/built -nt $(VENV)/options ] && cat $(VENV)/options),\
                $(patsubst FUSEDSTEP_CUDA=%,FUSEDSTEP_CUDA=0,$(OPTIONS)))
endif

# Tests that take all processors, and how the others are run.
HEAVY := compiles or processes or slow
IN_PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8

SOURCES := setup.py pyproject.toml $(wildcard python/buildtools/*.py) \
           $(shell find csrc kernels -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' -o -name '*.in')
CXX_FILES = $(shell find csrc kernels tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: train
train: setup ## train a language model with torch's step and with fusedstep's; ARGS="..."
	$(PY) -m bench.train_lm $(ARGS)

.PHONY: test
test: test-kernels test-second test-python ## every test that this machine can run, trainers aside

.PHONY: test-fast
test-fast: setup ## the tests that need no compiler, no GPU and no extra processes, in two minutes
	$(IN_PARALLEL) -m "not ($(HEAVY) or gpu)" $(PYTEST_ARGS)

.PHONY: setup
setup: $(VENV)/built ## make the virtual environment and build the extension in it

.PHONY: test-kernels
test-kernels: $(VENV)/cmake # the CUDA kernels' source on the CPU, under sanitizers
	$(IN_VENV) cmake -S . -B build/cmake -G Ninja \
	  -DCMAKE_COMPILE_WARNING_AS_ERROR=$(or $(FUSEDSTEP_WERROR),0)
	$(IN_VENV) cmake --build build/cmake --parallel $(JOBS)
	$(IN_VENV) ctest --test-dir build/cmake --parallel $(JOBS) --output-on-failure

.PHONY: test-python
test-python: setup
	$(IN_PARALLEL) -m "not ($(HEAVY))" $(PYTEST_ARGS)
	$(PY) -m pytest -m "$(HEAVY)" $(PYTEST_ARGS)

.PHONY: test-second
ifeq ($(FUSEDSTEP_SECOND_TORCH),$(FUSEDSTEP_TORCH))
test-second:
	@echo "FUSEDSTEP_SECOND_TORCH is FUSEDSTEP_TORCH: no second torch to load the build under"
else
test-second: setup $(SECOND)/installed # the files that were built for the first torch
	PYTHONPATH="$(CURDIR)/python" $(SECOND)/bin/python -m pytest -m "abi and not compiles" $(PYTEST_ARGS)
endif

# Not a part of `make test`, for these libraries are large; under the second torch.
.PHONY: test-trainers
test-trainers: setup $(SECOND)/trainers ## train with Lightning, transformers, accelerate and torchtitan
	PYTHONPATH="$(CURDIR)/python" $(SECOND)/bin/python -m pytest tests/trainers $(PYTEST_ARGS)

.PHONY: bench
bench: setup ## time everything against what could be used instead; ARGS="--quick ..."
	$(PY) -m bench $(ARGS)

# The libraries share one environment. Their extra leaves out what needs CUDA; all others must install.
.PHONY: bench-peers
bench-peers: setup $(PEERS)/installed ## the same against all that pip gives to use instead; ARGS="..."
	PYTHONPATH="$(CURDIR)/python" $(PEERS)/bin/python -m bench $(ARGS)

.PHONY: instructions
instructions: setup ## count the instructions of the hot paths, compare with what is kept; ARGS="--update"
	$(PY) -m bench.instructions $(ARGS)

.PHONY: precision
precision: setup ## train with smaller state and bfloat16 parameters: loss, bytes, time; ARGS="..."
	$(PY) -m bench.precision $(ARGS)

.PHONY: lm-head
lm-head: setup ## solve the last layer instead of training it: loss, time, reasons; ARGS="..."
	$(PY) -m bench.lm_head $(ARGS)

.PHONY: plots
plots: setup ## draw what `make bench` measured, for light and dark pages
	$(PY) -m bench.plots $(ARGS)

.PHONY: docs
docs: $(VENV)/docs ## build the documentation into build/site, from the pages in docs/
	NO_MKDOCS_2_WARNING=1 $(IN_VENV) mkdocs build

.PHONY: cuda-report
cuda-report: setup ## compile the CUDA kernels, check registers, spills, arithmetic; ARGS="--all"
	$(PY) -m tests.cuda.report $(ARGS)

# No virtual environment and no network: PYTHON has torch and what a build needs.
.PHONY: gpu-check
gpu-check: ## prove and time everything on this machine's GPU, with PYTHON (python3); ARGS="--call 1"
	$(PYTHON) -m bench.gpu_check $(ARGS)

.PHONY: gpu-rehearse
gpu-rehearse: setup ## the same program with the CPU in the GPU's place; ARGS="--quick" in minutes
	$(PY) -m bench.gpu_check --rehearse $(ARGS)

# FUSEDSTEP_CUDA and TORCH_CUDA_ARCH_LIST decide what the wheel has; ARGS=--no-tests builds alone.
.PHONY: wheels
wheels: $(VENV)/wheels ## build an sdist and a wheel in dist/; test the wheel where nothing compiles
	$(PY) -m python.buildtools.wheels --torch "$(FUSEDSTEP_SECOND_TORCH)" $(ARGS)

.PHONY: lint
lint: $(VENV)/lint ## check format, style and types of all code
	$(IN_VENV) clang-format --dry-run -Werror $(CXX_FILES)
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) mypy

.PHONY: format
format: $(VENV)/lint ## format all code
	$(IN_VENV) clang-format -i $(CXX_FILES)
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .

.PHONY: clean
clean: ## remove what was built, keep the virtual environments
	rm -rf build dist python/*.egg-info python/fusedstep/*.so $(VENV)/built

# The files below stand for steps that are done. A file of settings is rewritten only when a setting
# changes, so that exactly then all that follows is done again.
.PHONY: FORCE
FORCE:

$(VENV)/created $(SECOND)/created $(PEERS)/created: %/created:
	$(PYTHON) -m venv $*
	touch $@

$(VENV)/settings: SETTINGS = torch $(FUSEDSTEP_TORCH)
$(SECOND)/settings: SETTINGS = torch $(FUSEDSTEP_SECOND_TORCH)
$(PEERS)/settings: SETTINGS = torch $(FUSEDSTEP_TORCH)
$(VENV)/options: SETTINGS = $(strip $(OPTIONS))
$(VENV)/settings $(SECOND)/settings $(PEERS)/settings: %/settings: FORCE | %/created
	@cmp -s $@ <(echo '$(SETTINGS)') || echo '$(SETTINGS)' > $@
$(VENV)/options: FORCE | $(VENV)/created
	@cmp -s $@ <(echo '$(SETTINGS)') || echo '$(SETTINGS)' > $@

$(VENV)/torch: $(VENV)/settings
	@echo "== install torch and the tools of a build"
	$(PY) -m pip install "$(FUSEDSTEP_TORCH)" $(BUILD_REQUIRES)
	touch $@

# Compiled first, a line for each source with the seconds so far: pip would say nothing until the
# end. It then finds everything compiled.
$(VENV)/built: $(VENV)/torch $(VENV)/options $(SOURCES)
	@echo "== compile the C++ modules: $$(cat $(VENV)/options)"
	export $$(cat $(VENV)/options) NINJA_STATUS="[%f/%t, %e s] "; set -o pipefail; \
	$(PY) setup.py -q build_ext --inplace | sed -u -E 's|^(\[.*\]) .* -c ([^ ]*/)?([^ /]+) .*|\1 \3|'
	@echo "== install the package and what benchmarks and tests need"
	export $$(cat $(VENV)/options); $(PY) -m pip install --no-build-isolation -e '.[bench,test]'
	touch $@

$(SECOND)/installed: $(SECOND)/settings | $(VENV)/built
	$(SECOND)/bin/python -m pip install "$(FUSEDSTEP_SECOND_TORCH)" numpy \
	  $$($(PY) python/buildtools/extras.py bench test)
	touch $@

$(SECOND)/trainers: $(SECOND)/installed
	$(SECOND)/bin/python -m pip install "$(FUSEDSTEP_SECOND_TORCH)" \
	  $$($(PY) python/buildtools/extras.py trainers)
	touch $@

$(PEERS)/installed: $(PEERS)/settings pyproject.toml | $(VENV)/built
	$(PEERS)/bin/python -m pip install "$(FUSEDSTEP_TORCH)" numpy \
	  $$($(PY) python/buildtools/extras.py bench test peers)
	touch $@

$(VENV)/lint $(VENV)/docs: | $(VENV)/built
$(addprefix $(VENV)/,lint docs wheels): $(VENV)/%: pyproject.toml | $(VENV)/torch
	$(PY) -m pip install $$($(PY) python/buildtools/extras.py $*)
	touch $@

# cmake and ctest of the machine where it has them, else those of the package index.
$(VENV)/cmake: | $(VENV)/torch
	{ command -v cmake && command -v ctest; } || $(PY) -m pip install cmake
	touch $@
