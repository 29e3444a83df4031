# make demo | make demo-finetune | make test | make setup [CUDA=12]
PYTHON ?= python3
CUDA ?= 13
BIN := .venv/bin
SEEDS ?= 0 1 2

.PHONY: setup demo demo-finetune test clean

setup: .venv/ready

# The environment is made once, and again when the requirements change.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version). Choose another with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "The venv module is missing: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: about 6 GB, one to four minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda$(CUDA),dev]'
	@touch $@

demo: setup
	@for split in train test; do $(BIN)/python -m tools.build_shards digits-lt --split $$split --out data/digits-lt/$$split || exit 1; done
	@for seed in $(SEEDS); do for recipe in digits-lt/ce digits-lt/bs-cmo; do \
		$(BIN)/accelerate launch --config_file accelerate_config.yaml -m train \
			--recipe recipes/$$recipe.yaml --seed $$seed --resume auto || exit 1; done; done
	@echo
	@$(BIN)/python -m tools.compare_runs $(foreach s,$(SEEDS),runs/digits-lt-ce-seed$(s) runs/digits-lt-bs-cmo-seed$(s)) --out runs/digits-lt.md
	@echo "Pictures and tables of each run are in its folder, for example runs/digits-lt-bs-cmo-seed0/pasted.png"

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
