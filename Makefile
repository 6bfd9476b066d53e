.PHONY: demo test test-fast check bench gpu fashion-mnist evidence install clean
BIN := .venv/bin

install: .venv/ready

.venv/ready: pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh

demo: .venv/ready
	@rm -rf runs/demo
	$(BIN)/fastuiat train --method uiat-oneoff --dataset digits --arch wrn-10-1 --epochs 8 --batch-size 64 --max-lr 0.05 --val-size 128 --log-every 5 --no-compile --out runs/demo
	$(BIN)/fastuiat eval runs/demo --attacks clean pgd cw autoattack --n 24

# A process per core, one thread in each: small nets gain nothing from a second thread, and the whole
# nothing from a third worker on two cores.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# Without those marked slow: minutes less, for the time between two edits.
test-fast: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/render.py --check

# Records go to RECORDS, and from there into README.md and benchmarks/RESULTS.md. A case, or a table,
# begins no round later than BUDGET seconds after its first.
RECORDS := benchmarks/results
BUDGET := 300

bench: .venv/ready
	$(BIN)/fastuiat bench step --arch resnet-18 --batch-size 128 --method uiat --budget $(BUDGET) --json $(RECORDS)/step.jsonl
	$(BIN)/fastuiat bench step --arch resnet-18 --batch-size 128 --method trades --budget $(BUDGET) --json $(RECORDS)/step.jsonl
	$(BIN)/fastuiat bench scaling --arch wrn-10-1 --processes 1 2 --budget $(BUDGET) --json $(RECORDS)/scaling.jsonl
	$(BIN)/fastuiat bench kernels --json $(RECORDS)/kernels.jsonl
	$(BIN)/fastuiat bench loader --json $(RECORDS)/loader.jsonl
	$(BIN)/fastuiat bench table2 --archs wrn-10-1 --budget $(BUDGET) --json $(RECORDS)/table2.jsonl
	$(BIN)/fastuiat bench table5 --archs wrn-10-1 --budget $(BUDGET) --json $(RECORDS)/table5.jsonl
	$(BIN)/fastuiat bench autoattack --json $(RECORDS)/autoattack.jsonl
	$(BIN)/python benchmarks/render.py

# All that a GPU has to show, in BUDGET seconds; called again it goes on. No .venv and no network: a
# lent machine has a Python with PyTorch, and with what its stages import, and nothing else.
gpu: BUDGET := 540
gpu: OUT ?= gpu-report
gpu: PYTHON ?= python3
gpu:
	@$(PYTHON) scripts/needs.py 'make gpu' torch torchvision numpy rich +safetensors +tyro
	@PYTHONPATH="$(CURDIR):$(CURDIR)/kernels$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m fastuiat bench gpu --budget $(BUDGET) --out $(OUT)

FASHION_MNIST := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

# Debian's package of the data set, for those who may install packages.
fashion-mnist: $(FASHION_MNIST)

$(FASHION_MNIST):
	apt-get update -q
	apt-get install -y -q --no-install-recommends dataset-fashion-mnist

# Every method on real images: 84 runs, at most 90 minutes of two cores. Called again it goes on.
evidence: .venv/ready
	@test -d data/FashionMNIST/raw || test -e $(FASHION_MNIST) || $(MAKE) fashion-mnist
	$(BIN)/fastuiat reproduce fashion-mnist-small --out runs/evidence
	cp runs/evidence/fashion-mnist-small.json $(RECORDS)/
	$(BIN)/python benchmarks/render.py

clean:
	rm -rf .venv build dist *.egg-info
