# Every target makes what it needs. `make demo` and `make test` work on a machine with only
# Python 3.11+, make and a package index; both are safe to interrupt and run again.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo
# Test processes: many tests wait for servers and clusters, so three keep two cores busy.
JOBS ?= 3
# Installed first and exactly: a later range would fetch another, much larger build.
TORCH ?= torch==2.13.0
# Tests start some hundred Python processes; without bytecode each compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check bench docs pictures wheel gpu mutants triton oldest newest clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	@echo "== installing (PyTorch first; this is the longest step of a first run)"
	$(BIN)/pip install --disable-pip-version-check -q "$(TORCH)"
	$(BIN)/pip install --disable-pip-version-check -q -e ".[bench]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "== installing the development tools"
	$(BIN)/pip install --disable-pip-version-check -q -e ".[dev]"
	@touch $@

# best.pt appears with the first good epoch; the stamp says that training is over.
$(DEMO)/.trained: | $(VENV)/.demo
	@echo "== training on the generated sample dataset"
	@mkdir -p $(DEMO)
	$(BIN)/amlr-train --sample --preset small --out $(DEMO)/best.pt \
		$$([ ! -e $(DEMO)/best.state.pt ] || echo --resume)
	@touch $@

$(DEMO)/amlr.plan/manifest.json: $(DEMO)/.trained
	@echo "== exporting and verifying"
	$(BIN)/amlr-export --ckpt $(DEMO)/best.pt --out $(DEMO)/amlr.plan

$(DEMO)/bench.json: $(DEMO)/amlr.plan/manifest.json
	@echo "== benchmarking against the eager model"
	$(BIN)/amlr-bench --engine $(DEMO)/amlr.plan --quick --json $@ --html $(DEMO)/bench.html

demo: $(DEMO)/bench.json ## Train, export, bench and tag on generated posts; results in build/demo
	@echo "== three posts"
	@$(BIN)/python -m amlr.benchmarks.demo $(DEMO)

test: $(VENV)/.dev ## The whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(VENV)/.dev ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEMO)/amlr.plan/manifest.json $(VENV)/.dev ## The full benchmark of the demo bundle
	$(BIN)/amlr-bench --engine $(DEMO)/amlr.plan --json build/bench.json --html build/bench.html
	$(BIN)/python -m amlr.benchmarks.decoders

# Needs neither PyTorch nor the development tools.
$(VENV)/.docs: $(BIN)/python pyproject.toml
	@echo "== installing the documentation's tools"
	$(BIN)/pip install --disable-pip-version-check -q -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs ## The documentation as a site in build/site; warnings are errors
	rm -rf build/site
	$(BIN)/python -m sphinx -b html -W --keep-going -q -E docs build/site
	@echo "== the site: build/site/index.html"

pictures: $(DEMO)/amlr.plan/manifest.json $(VENV)/.dev ## Draw the README's pictures anew; needs chromium
	$(BIN)/python docs/pictures.py --demo $(DEMO)

wheel: $(VENV)/.dev ## sdist, and the wheel built from it, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

mutants: $(VENV)/.dev ## Inject bugs into the CUDA and Python sources; every one must be caught
	$(BIN)/python -m pytest -n $(JOBS) tests/mutation

# Environments of their own, without PyTorch: the bundle for the tests is made in the usual one.
# For another Python: make newest PYTHON=python3.13 VENV=.venv
SMALL_TESTS := $(addprefix tests/,test_cli_support.py kernels/test_viterbi.py kernels/test_segmental.py \
	$(addprefix runtime/test_,engine.py bundle.py manifest.py cli.py) \
	$(addprefix serving/test_,tagging.py forms.py methods.py open_inference.py encoding.py cli.py) \
	$(addprefix serving/archive/test_,archive.py sources.py records.py encodings.py))
OLDEST_VENV ?= build/oldest-venv
NEWEST_VENV ?= build/newest-$(notdir $(PYTHON))-venv
PIP_INSTALL := -m pip install --disable-pip-version-check -q

$(OLDEST_VENV)/.done: pyproject.toml tests/oldest.py
	@echo "== installing the oldest versions that pyproject.toml allows"
	$(PYTHON) -m venv --clear $(OLDEST_VENV)
	$(PYTHON) tests/oldest.py > $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python $(PIP_INSTALL) -r $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python $(PIP_INSTALL) --no-deps -e .
	$(OLDEST_VENV)/bin/python $(PIP_INSTALL) pytest pytest-xdist hypothesis
	@touch $@

$(NEWEST_VENV)/.done: pyproject.toml
	@echo "== installing the newest versions"
	$(PYTHON) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python $(PIP_INSTALL) -e ".[serve,archive]" pytest pytest-xdist hypothesis
	@touch $@

oldest: $(VENV)/.dev $(OLDEST_VENV)/.done ## Tests of the base, serve and archive installations at their oldest versions
newest: $(VENV)/.dev $(NEWEST_VENV)/.done ## The same at the newest versions, for PYTHON=python3.13 and the like
oldest: SMALL_VENV := $(OLDEST_VENV)
newest: SMALL_VENV := $(NEWEST_VENV)
oldest newest:
	PYTHONPATH=tests $(BIN)/python -m tests.tiny $(SMALL_VENV)/tiny.plan
	AMLR_TINY_PLAN=$(abspath $(SMALL_VENV))/tiny.plan $(SMALL_VENV)/bin/python -m pytest -n $(JOBS) \
		-k "not ray and not escalation and not when_needed" $(SMALL_TESTS)

# NVIDIA's package pins an older NumPy, so the server has an environment of its own.
TRITON_VENV ?= build/triton-venv

$(TRITON_VENV)/.done: pyproject.toml
	@echo "== installing a Triton server"
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/pip install --disable-pip-version-check -q nvidia-pytriton==0.7.0 -e .
	@touch $@

triton: $(VENV)/.dev $(TRITON_VENV)/.done ## Tests on a real Triton server, fetched into build/
	AMLR_TRITON=$(TRITON_VENV) AMLR_REQUIRE=triton $(BIN)/python -m pytest tests/triton_server

# On a GPU machine without a package index the environment may be the system's own.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# The caller's PYTHONPATH is kept: there, packages may lie in folders of their own.
GPU_ARGS ?=

gpu: ## On a machine with an NVIDIA GPU: measure with the kit in .kit; results in build/gpu
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m amlr.benchmarks.gpu --kit .kit --out build/gpu $(GPU_ARGS)

clean: ## Remove build products, keep the environment
	rm -rf build dist src/*.egg-info
