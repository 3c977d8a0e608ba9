# Every target but help and clean first makes sure that .venv is there and up to date with pyproject.toml.
#   make setup PYTHON=python3.12      another interpreter
#   make test ARGS="-k packaging -x"  arguments for what the target runs

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format fuzz zoo bench bench-quality mutate compat docs build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Create .venv and install everything into it (again only when pyproject.toml changes)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("fxprune needs Python 3.10 or newer; try: make setup PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup ## Prune the diffusion model that ships with the package
	$(BIN)/fxprune demo $(ARGS)

# Material for MkDocs prints a notice about MkDocs 2 at each build; pyproject.toml keeps to 1.x.
check docs: export NO_MKDOCS_2_WARNING := 1

# One thread a worker: pytest-xdist already uses every core.
test: export OMP_NUM_THREADS := 1
test: setup ## Run the tests and the doctests
	$(BIN)/pytest -n auto --doctest-modules tests fxprune $(ARGS)

# No --quiet for MkDocs: it hides warnings from --strict, too.
check: setup ## Lint, formatting, strict types, order of imports, strict docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mkdocs build --strict

format: setup ## Repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# COUNT trials of each; OUT, a folder, keeps their outcomes, and what it holds is gone on with.
COUNT ?= 200
OUT ?=
fuzz: export PYTHONPATH := tests
fuzz: setup ## Random networks, folders, arguments and kills: what must never fail
	@set -e; for campaign in networks folders arguments kills; do echo "== $$campaign"; \
		$(BIN)/python -m fuzz $$campaign --count $(COUNT) $(if $(OUT),--out $(OUT)/$$campaign.jsonl) $(ARGS); done

zoo: setup ## Prune every network of the zoo and report
	$(BIN)/python benchmarks/zoo/run.py $(ARGS)

bench: setup ## Run the scripts in benchmarks/, one after the other
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

QUALITY := benchmarks/quality
DIGITS := --tasks digits --recipes "cosine from 5e-4" --batch 32
EMOJI := --recipes "cosine from 3e-4" --steps 200 --batch 16 --samples 64 --watched 128 --repeats 4 --bfloat16
bench-quality: setup ## Prune the trained diffusion models by every method, train, measure, and write docs/quality.md (days on a CPU)
	$(BIN)/python $(QUALITY)/sweep.py $(DIGITS) --out $(QUALITY)/digits.jsonl $(ARGS)
	$(BIN)/python $(QUALITY)/data.py
	@set -e; for task in ddpm ldm dit; do \
		$(BIN)/python $(QUALITY)/sweep.py --tasks $$task $(EMOJI) --out $(QUALITY)/$$task.jsonl $(ARGS); done
	$(BIN)/python $(QUALITY)/report.py $(patsubst %,$(QUALITY)/%.jsonl,digits ddpm ldm dit gpu gpu_recipes)

mutate: export OMP_NUM_THREADS := 1
mutate: setup ## Test the tests: 300 mutants by seed 0, hours on one core; ARGS="--number 50 --seed 7" for others
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[mutation]"
	$(BIN)/python benchmarks/mutation/run.py $(ARGS)

compat: setup ## Run the suite on every Python from 3.10 to 3.13 that is here, with the oldest and the newest torch
	$(BIN)/python benchmarks/compat/run.py --page docs/reliability.md $(ARGS)

docs: setup ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

build: setup ## Build the sdist and the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build

clean: ## Remove what was built, all but .venv
	rm -rf build dist site fxprune.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
