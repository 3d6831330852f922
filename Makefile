PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
SECONDS ?= 30
SEED ?= 0

.PHONY: install train quick test test-slow fuzz lint parity bench gpu comparison export-report schema

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

train: install
	$(BIN)/python tools/train.py configs/faster_rcnn.yaml
	$(BIN)/python tools/eval.py

quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow and not long' \
		--ignore tests/accelerate --ignore tests/parity --ignore tests/weights --ignore tests/nn/backbones

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: install
	$(BIN)/python tools/schema.py > detkit/configs/detkit.schema.json

parity: install
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/parity

bench: install
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/postprocess.py
	$(BIN)/python benchmarks/coco_evaluation.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/sliding_window.py
	$(BIN)/python benchmarks/torchvision_detectors.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/detr.py

gpu: install
	$(BIN)/python benchmarks/gpu.py

comparison: install
	$(BIN)/python benchmarks/lineage.py
	$(BIN)/python benchmarks/lineage.py --report

export-report: install
	$(BIN)/python benchmarks/export_report.py --runs $(RUNS)
