# `make run` and `make test` are all that a fresh clone needs; `make help` lists the rest.
SHELL := bash
PYTHON ?= python3.11
TORCH_INDEX ?=
ARGS ?=
# Recipes, and the jobs that they start, see the environment as if it were activated.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help run test slow faults env peers site pull example lint format lock matrix fuzz numerics architecture coverage clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile

run: env  ## run the pipeline of params.yaml; ARGS goes to snakemake: make run ARGS="--dry-run"
	snakemake --cores all $(ARGS)

test: lint  ## lint, then the tests but for slow ones; ARGS goes to pytest: make test ARGS="-k swin"
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

slow: env  ## the slow tests: whole workflows of other families, the slow exporters
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "slow and not faults" $(ARGS)

faults: env  ## faults of machines, tried on a tiny run: docs/faults.md
	OMP_NUM_THREADS=1 python -m pytest -m faults $(ARGS)

env:  ## install .venv from requirements.lock if it is not up to date; PYTHON=..., TORCH_INDEX=URL (a CPU-only torch)
	@tools/environment.sh "$(PYTHON)" "$(TORCH_INDEX)"

peers:  ## install .venv-peers from requirements-peers.lock: the other tools of `snakemake benchmark`
	@tools/environment.sh --peers "$(PYTHON)"

pull: env  ## fetch the results from a DVC remote, check them, tell Snakemake that they are current; ARGS goes to verify.py
	dvc pull
	python workflow/scripts/tools/verify.py --current $(ARGS)

example: env  ## check results/, then copy its small part to results/example/, which git keeps
	python workflow/scripts/tools/verify.py
	python tools/example.py

# Not `--quiet`: MkDocs would then count no warning.
site:  ## build the documentation site into .site/html, in .venv-site; links and anchors are checked
	@tools/environment.sh --site "$(PYTHON)"
	.venv-site/bin/python tools/site_pages.py .site/pages
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build
	@echo "Open .site/html/index.html"

lint: env  ## style, types and workflow checks
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	lint-imports --no-cache
	snakemake --lint

format: env  ## rewrite sources in the project's style
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

lock:  ## resolve pyproject.toml into requirements.lock; needs uv; keeps pins that still fit (ARGS=--upgrade: newest)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 \
	    --python-platform x86_64-unknown-linux-gnu --extra dev --custom-compile-command "make lock" \
	    pyproject.toml --output-file requirements.lock $(ARGS)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 \
	    --python-platform x86_64-unknown-linux-gnu --group peers --custom-compile-command "make lock" \
	    --output-file requirements-peers.lock $(ARGS)

matrix: env  ## compute the tables of docs/models.md: families, exporters, the whole chain; ARGS=chain only one
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 python tools/matrix.py $(ARGS)

fuzz: env  ## read 100,000 inputs broken by chance, some 10 minutes of a core; ARGS="--inputs 1000" fewer
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 python tools/fuzz.py $(ARGS)

numerics: env  ## run the default with kernels of older processors and other threads, some 15 minutes; docs/workflow.md
	PYTHONPATH=tests/support python tools/numerics.py $(ARGS)

architecture: env  ## draw the packages and the stages into their pages, from the code
	python tools/architecture.py

coverage: env  ## lines that the tests run, but for slow tests, into docs/coverage.json; ARGS goes to pytest
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile -m "not slow" --cov=ptq2themoon --cov-report= $(ARGS)
	python tools/coverage_figure.py

clean:  ## remove the environments, the site and caches; results stay
	rm -rf .venv .venv-peers .venv-site .site .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests workflow -name __pycache__ -type d -prune -exec rm -rf {} +
