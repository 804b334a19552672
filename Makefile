# Two commands matter: `make reproduce` and `make test`. Both set up .venv from the lock files first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
NBSTRIP := $(BIN)/nbstripout --keep-output --keep-count \
	--extra-keys "metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution"
# Kernels and test workers run side by side: more threads than one each would only fight for the cores.
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DELETE_ON_ERROR:
.PHONY: reproduce test test-fast lab lint notebooks bench setup

setup: $(READY)

$(READY): requirements.lock requirements-peers.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "make: the lock files are for Python 3.11, got $(PYTHON); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What results are compared with: needed by the tests and the benchmarks, not by the main job.
$(READY)-peers: $(READY)
	$(BIN)/pip install --quiet -r requirements-peers.lock
	touch $@

reproduce: $(READY)
	$(BIN)/replicate run -f params/cpu.yaml --workers 2

test: $(READY)-peers
	$(BIN)/python -m pytest -n 2 --dist loadscope tests
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env notebooks

test-fast: $(READY)-peers
	$(BIN)/python -m pytest -n 2 --dist loadscope tests

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Executes the notebooks in place, in reading order, and strips what changes from run to run. The sweep comes first so
# that no progress bar stands in a committed output.
notebooks: $(READY)
	$(BIN)/replicate sweep -f params/smoke.yaml --workers 2
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/papermill --no-progress-bar -k python3 $$notebook $$notebook || exit 1; \
		$(NBSTRIP) $$notebook || exit 1; \
	done

bench: $(READY)-peers
	$(BIN)/python benchmarks/grpo_vs_trl.py --out results/benchmarks/grpo_vs_trl.json
	$(BIN)/python benchmarks/measurement.py --out results/benchmarks/measurement.json
	$(BIN)/python benchmarks/jacobians.py --out results/benchmarks/jacobians.json
