# Each target is a line or three; what needs more is a script in tools/ or a module.
.DEFAULT_GOAL := help
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo demo-rollout test lint types docs protos protos-check serve load bench bench-batching bench-gpu gpu-wheels fuzz asan soak churn screenshots wheel check clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## install everything into .venv

$(INSTALLED): pyproject.toml constraints.txt tools/setup.sh hatch_build.py $(wildcard server/tensorferry/*/*.pyx server/tensorferry/*/*.pxd)
	bash tools/setup.sh $(VENV)
	@touch $@

demo: $(INSTALLED) ## train, serve and score card transactions (CSV=file for your own)
	@$(PYTHON) -m demo $(if $(CSV),--csv "$(CSV)")

demo-rollout: $(INSTALLED) ## take a model live, and see a bad successor be taken back by itself (CSV=file)
	@$(PYTHON) -m demo.rollout $(if $(CSV),--csv "$(CSV)")

test: $(INSTALLED) ## run every test
	$(PYTHON) -m pytest

lint: $(INSTALLED) ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED) ## check types
	$(VENV)/bin/mypy

protos: $(INSTALLED) ## generate the wire code from protos/
	$(PYTHON) tools/protos.py

docs: $(INSTALLED) ## write docs/configuration.md, docs/errors.md and the dashboard from what they are made of
	$(PYTHON) -m tools.config_docs
	$(PYTHON) -m tools.dashboard

protos-check: $(INSTALLED) ## prove that the wire code is fresh, and loads under protobuf 6 and 7
	$(PYTHON) tools/protos_check.py

serve: $(INSTALLED) ## serve MODELS (default: models)
	$(VENV)/bin/tensorferry serve --model-repository $(or $(MODELS),models)

load: $(INSTALLED) ## run a load scenario with a verdict (SCENARIO=fraud_steady; all: every one)
	$(PYTHON) -m loadtests.run $(or $(SCENARIO),fraud_steady)

bench: $(INSTALLED) ## measure against other servers in one run (PEERS=1: Triton and mosec too)
	$(PYTHON) -m loadtests.bench $(if $(PEERS),--peers)

bench-batching: $(INSTALLED) ## measure the batcher against its targets, with plots (PEERS=1 installs Triton, CASES=idle,...)
	$(PYTHON) -m loadtests.batching $(if $(PEERS),--peers) $(if $(CASES),--cases $(CASES))

bench-gpu: $(INSTALLED) ## measure models on a GPU against bare loops, in one table (REHEARSE=1: every step, without one)
	$(PYTHON) -m loadtests.gpu $(if $(REHEARSE),--rehearse)

gpu-wheels: ## gather in dist/gpu what a GPU's machine without a network lacks (PYTHON3=python3.12, its version)
	bash tools/gpu_wheels.sh $(or $(PYTHON3),python3) dist/gpu

fuzz: $(INSTALLED) ## fuzz the extensions, led by coverage (FUZZ_SECONDS=60; SAVE=1 keeps what was found)
	$(PYTHON) tools/instrumented.py coverage
	PYTHONPATH=build/coverage $(PYTHON) -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60) --leaks 20 $(if $(SAVE),--save)

asan: $(INSTALLED) ## fuzzer and integration suite under AddressSanitizer (FUZZ_SECONDS=60, PYTEST_ARGS)
	bash tools/asan.sh $(VENV)

soak: $(INSTALLED) ## many calls, good and bad: memory must stay flat (SOAK_CALLS=1000000)
	$(PYTHON) -m loadtests.soak --calls $(or $(SOAK_CALLS),1000000)

churn: $(INSTALLED) ## load, swap and unload models under calls: nothing fails or grows (CYCLES=1000)
	$(PYTHON) -m loadtests.churn --cycles $(or $(CYCLES),1000)

screenshots: $(INSTALLED) ## take the pictures of the live page in docs/images (needs Chromium)
	$(PYTHON) -m tools.screenshot

wheel: $(INSTALLED) ## build a wheel that carries libnghttp2, and try it in a fresh environment
	bash tools/wheel.sh $(PYTHON) dist

check: lint types protos-check ## everything but the tests

clean: ## remove what was built, but not .venv
	rm -rf .cache .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist reports
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
