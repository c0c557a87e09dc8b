# Works on a machine with only python >= 3.11 and make: .venv is created when missing and reused after.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -p no:cacheprovider

PLUGINS := tests/modalities $(patsubst %,tests/test_%.py,boundaries check configs examples new)

.DEFAULT_GOAL := help
.PHONY: help demo test test-core test-plugins test-fast lint format docs wheel bench bench-solvers bench-video bench-pointcloud bench-scale

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mmdiff needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY) ## train on notes for a few minutes, then listen to what it plays
	$(BIN)/python -m mmdiff_audio.demo

test: $(READY) ## every test, those of the core beside those of the plugins
	$(MAKE) --jobs 2 test-core test-plugins

test-core: $(READY)
	$(PYTEST) $(PLUGINS:%=--ignore %)

test-plugins: $(READY)
	$(PYTEST) $(PLUGINS)

test-fast: $(READY) ## the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow'

lint: $(READY) ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## build the pages of docs/ with the reference from docstrings: build/docs/index.html
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/zensical build --strict --clean

wheel: $(READY) ## build a wheel, try it in a clean environment and follow the tutorial there
	$(BIN)/python tests/try_wheel.py

bench: $(READY) ## train the experiments on embedded data and measure what they learned; see benchmarks/
	$(BIN)/python benchmarks/factors.py

bench-solvers: $(READY) ## errors of solvers beside those of other projects, and the time that a step takes
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps k-diffusion azula
	PYTHONPATH=tests $(BIN)/python benchmarks/solvers.py 2
	PYTHONPATH=tests $(BIN)/python benchmarks/solvers.py 64
	$(BIN)/python benchmarks/solver_overhead.py

bench-video: $(READY) ## training steps beside other video networks, clips per second
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/video_networks.py
	$(BIN)/python benchmarks/video_loader.py

bench-pointcloud: $(READY) ## distance matrices and training steps beside plain ones
	$(BIN)/python benchmarks/pointcloud_metrics.py
	$(BIN)/python benchmarks/pointcloud_networks.py 150

bench-scale: $(READY) ## kill trainings and resume them, two processes beside bare DDP, examples of different lengths
	$(BIN)/python benchmarks/kills.py 20 1
	$(BIN)/python benchmarks/kills.py 20 2
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/buckets.py
	$(BIN)/python benchmarks/threads.py
