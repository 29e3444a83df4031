PYTHON ?= python3
CUDA ?= 13
BIN := .venv/bin
SEEDS ?= 0 1 2

.PHONY: help setup demo demo-finetune test clean
.DEFAULT_GOAL := help

help:
	@echo "make setup [CUDA=12]     install into .venv (6 GB, one to four minutes); then: source .venv/bin/activate; longtail --help"
	@echo "make demo [SEEDS='0 1']  digits made long-tailed: train, compare, report (under ten minutes on two cores)"
	@echo "make demo-finetune       a pretrained network on the digits, its classifier trained in seconds"
	@echo "make test                lint, types and tests, without a GPU"
	@echo "make clean               remove .venv and build folders"

setup: .venv/ready

# The environment is made once, and again when the requirements change.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version). Choose another with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "The venv module is missing: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: about 6 GB, one to four minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda$(CUDA),dev,store,ray]'
	@touch $@

# The images would fit into the device's memory; DALI reads them here because it is what large sets train from.
demo: setup
	@for split in train test; do $(BIN)/longtail build digits-lt --split $$split --out data/digits-lt/$$split || exit 1; done
	@for seed in $(SEEDS); do for recipe in digits-lt/ce digits-lt/bs-cmo; do \
		$(BIN)/longtail train --recipe recipes/$$recipe.yaml --data.executor dali --seed $$seed --resume auto || exit 1; done; done
	@echo
	@$(BIN)/longtail compare $(foreach s,$(SEEDS),runs/digits-lt-ce-seed$(s) runs/digits-lt-bs-cmo-seed$(s)) --out runs/digits-lt.md
	@echo "Open runs/digits-lt-bs-cmo-seed$(firstword $(SEEDS))/report.html in a browser; tables and figures are next to it."

demo-finetune: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo-finetune]'
	@$(BIN)/python -m tools.lite0_weights --out data/lite0.safetensors
	@for split in train test; do $(BIN)/python -m tools.build_shards digits-lt --split $$split --out data/digits-lt/$$split || exit 1; done
	@for seed in $(SEEDS); do $(BIN)/python -m train --recipe recipes/digits-lt/finetune-lite0.yaml --seed $$seed --resume auto || exit 1; done
	@$(BIN)/python -m tools.compare_runs $(foreach s,$(SEEDS),runs/digits-lt-finetune-lite0-seed$(s))

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv build *.egg-info
