# Two commands matter: `make reproduce` and `make test`. Both set up .venv from the lock files first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# What changes from run to run goes; what JupyterLab would add again on opening (the language's version) stays.
NBSTRIP := $(BIN)/nbstripout --keep-output --keep-count \
	--extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution"
# Where the index serves a CUDA build of torch by default, name an index with a CPU build: make TORCH_INDEX=URL ...
TORCH_INDEX ?=
NBVAL := $(BIN)/python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env \
	--nbval-sanitize-with notebooks/sanitize.cfg
# The notebooks that train or open a ladder.
ON_LADDERS := $(wildcard notebooks/0[5-9]*.ipynb notebooks/1*.ipynb)
# Kernels and test workers run side by side: more threads than one each would only fight for the cores.
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DELETE_ON_ERROR:
.PHONY: reproduce setup test test-fast test-packaging test-smoke test-elsewhere test-ladders-elsewhere test-rescaling test-seeds \
	elsewhere lab lint notebooks bench gpu gpu-dry test-core test-cluster test-snakemake

setup: $(READY)

$(READY): requirements.lock requirements-peers.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "make: the lock files are for Python 3.11, got $(PYTHON); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip uninstall --quiet --yes replicate 2>/dev/null
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
	$(NBVAL) notebooks

test-fast: $(READY)-peers
	$(BIN)/python -m pytest -n 2 --dist loadscope tests

# True of the environment that the lock files make, and of no other: no part of `make test`.
test-packaging: $(READY)-peers
	$(BIN)/python -m pytest -m lock tests/test_packaging.py

# The main job as a command, killed in the middle and started again.
test-smoke: $(READY)
	$(BIN)/python -m pytest -m smoke tests/runs/test_smoke.py tests/test_benchmarks.py

# A Ray cluster with two logical GPUs, workers and drivers that are killed: minutes of starting processes and 2 GB of
# memory, so no part of `make test`, which compares one sweep on Ray with the serial one. Needs the extra `cluster`, ours
# from the peers' lock.
test-cluster: $(READY)-peers
	$(BIN)/python -m pytest -m cluster tests/runs/test_ray.py

# recipes/Snakefile, by a Snakemake in an environment of its own: it is no dependency.
test-snakemake: $(READY)-peers .venv-snakemake/bin/snakemake
	SNAKEMAKE=.venv-snakemake/bin/snakemake $(BIN)/python -m pytest -m snakemake tests/test_recipes.py

.venv-snakemake/bin/snakemake:
	$(PYTHON) -m venv .venv-snakemake
	.venv-snakemake/bin/pip install --quiet "snakemake>=9,<10"

# The package without Jupyter and Papermill, at the oldest libraries that it must run with, on another Python, in an
# environment of its own. tests/core_plugin.py says which tests need what is missing, and fails if others are skipped.
test-core: .venv-core/.ready
	.venv-core/bin/python -m pytest -p tests.core_plugin -n 2 --dist loadscope -rs tests

# The first of these that runs: a shim of that name may stand for a version that is not there.
PYTHON312 ?= $(shell for python in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python; do \
	$$python -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)

.venv-core/.ready: requirements-core.lock pyproject.toml
	@$(or $(PYTHON312),false) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' \
		|| { echo "make: test-core needs Python 3.12, got $(or $(PYTHON312),none); set PYTHON312=..." >&2; exit 1; }
	$(PYTHON312) -m venv .venv-core
	.venv-core/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements-core.lock)"
	.venv-core/bin/pip install --quiet -r requirements-core.lock
	.venv-core/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# `make test` under other kernels, which stand for another machine: other weights, the same verdicts.
test-elsewhere: export REPLICATE_KERNELS = stand-in
test-elsewhere: $(READY)-peers
	$(BIN)/python -m pytest -n 2 --dist loadscope tests
	$(NBVAL) notebooks

# Does a verdict hang on coordinates? The notebooks that compare costates, rescaled where no output sees it.
test-rescaling: $(READY)-peers
	$(BIN)/python -m pytest -m rescaling -n 2 tests/test_rescaling.py

test-ladders-elsewhere: export REPLICATE_KERNELS = stand-in
test-ladders-elsewhere: $(READY)-peers
	$(NBVAL) $(ON_LADDERS)

# Do the verdicts hang on the seed? Every notebook at another one, in the small regime, against SEED 0.
test-seeds: $(READY)
	$(BIN)/replicate elsewhere -f params/smoke.yaml --settings pinned --seeds 0 --seeds 1 --results build/seeds --workers 2

# The main job on five ladders under three settings of the kernels, two RL seeds each; verdict tables in
# results/elsewhere. What is there already is not run again. Hours.
elsewhere: $(READY)
	$(BIN)/replicate elsewhere -f params/cpu.yaml -p 'RL_SEEDS=[0, 1]' --workers 2

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/replicate report --check

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

# Benchmarks at OLMo-2-1B's shape and the ladder of params/gpu.yaml on one GPU, in order of value, within so many
# seconds; called again it goes on. Runs from the source tree in the Python that is named, as on many a GPU machine:
#   make gpu PYTHON=python3
GPU_SECONDS ?= 540
GPU_NAMED := $(filter command environment,$(origin PYTHON))
GPU := PYTHONPATH=src $(if $(GPU_NAMED),$(PYTHON),$(BIN)/python) benchmarks/gpu.py --seconds $(GPU_SECONDS)
# Records for the repository; on a machine that keeps nothing, a folder that is brought back.
GPU_OUT ?= results/gpu

gpu: $(if $(GPU_NAMED),,$(READY)-peers)
	$(GPU) --out $(GPU_OUT)

# The same on the CPU at a reduced shape: does it run, not how fast.
GPU_DRY ?= build/gpu
gpu-dry: $(if $(GPU_NAMED),,$(READY)-peers)
	$(GPU) --shape tiny --device cpu --out $(GPU_DRY) --workers 1 -p DEVICE=cpu -p TINY_DEVICE=cpu 		-p RUN_DIR=$(GPU_DRY)/run -p LADDER_DIR=$(GPU_DRY)/ladders -p TINY_STEPS=20 -p TINY_EVERY=10 		-p TINY_LAYERS=2 -p TINY_HIDDEN=32 -p TINY_HEADS=2 -p TINY_BATCH=32 -p 'MEASURE_LAYERS=[-1, 1]' 		-p 'BUDGETS=[1, 2]' -p EVAL_PROMPTS=8 -p MEASURE_PROMPTS=8 -p POOL_PROMPTS=32 -p MEASURE_BATCHES=2
