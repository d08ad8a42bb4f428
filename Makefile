# `make chat` and `make test` set up everything they need in .venv; the first run compiles llama.cpp.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# AMX (Intel Xeons since 2023) is left out: compiled by GCC, this release's AMX kernels crash (llama.cpp pull request 26954).
NO_AMX := $(if $(shell grep -s -m1 amx_int8 /proc/cpuinfo),-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8)
# llama.cpp without the parts nothing here uses. For a GPU: make chat CMAKE_ARGS="-DGGML_CUDA=on" (or GGML_METAL,
# GGML_VULKAN), in a fresh .venv.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF $(NO_AMX)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: chat test lint docs clean

chat: $(VENV)/.runtime
	@$(BIN)/sia-local fetch smollm2 >/dev/null || { test $$? -eq 2 && echo "Here is the story writer of this repository."; }
	@$(BIN)/sia-local chat

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.runtime: pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing; the first time llama.cpp is compiled, about six minutes on two cores."
	$(BIN)/pip install --quiet --editable ".[rewards]"
	@touch $@

# On Linux torch brings gigabytes of CUDA libraries, unless pip is told of CPU builds; docs/install.md says how.
TORCH ?= torch==2.13.0
$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing $(TORCH); on Linux it may bring gigabytes of CUDA libraries, which docs/install.md spares you."
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[convert,test]"
	@$(BIN)/sia-convert fetch-converter
	@touch $@

# docs/cli.md, the help of every command.
docs: $(VENV)/.test
	$(BIN)/python docs/cli.py

clean:
	rm -rf $(VENV) build/tests
