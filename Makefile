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

.PHONY: setup demo test test-slow test-ray lint format bench
setup: $(READY)

demo: $(READY)
	$(BIN)/gradlab demo

# One thread a process: two processes of two threads on two cores take turns with each other.
test: $(READY) .venv/.reasoning
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: $(READY) .venv/.reasoning
	$(BIN)/pytest -m slow

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
