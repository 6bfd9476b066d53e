.PHONY: demo test check install clean
BIN := .venv/bin

install: .venv/ready

.venv/ready: pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh

demo: .venv/ready
	@rm -rf runs/demo
	$(BIN)/fastuiat train --method uiat-oneoff --dataset digits --arch wrn-10-1 --epochs 10 --batch-size 64 --max-lr 0.2 --val-size 128 --log-every 5 --no-compile --out runs/demo
	$(BIN)/fastuiat eval runs/demo --attacks clean pgd cw autoattack --n 24

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
