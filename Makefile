# make demo: learn the sample subject and draw it.   make test: everything that CI checks.
# Each makes its environment in .venv first, with the versions of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := runs/demo

.PHONY: demo test browser lint format docs clean

.venv/.app: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/.dev: .venv/.app
	$(PIP) -e '.[dev]'
	touch $@

demo: .venv/.app
	rm -rf $(DEMO)
	$(BIN)/studio train examples/octopus --trigger sks --class octopus --preset balanced --out $(DEMO)
	$(BIN)/studio sample $(DEMO) --out $(DEMO)/pictures -n 4 --seed 1 \
	  --prompt "a photo of a sks octopus" --prompt "a sks octopus next to a house" \
	  --prompt "a small sks octopus on a red background"
	@echo "The pictures: $(DEMO)/pictures/grid.png"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

# What opens the pages in the tests; where it cannot be had, those tests say that they are skipped.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { test "$$(id -u)" = 0 && apt-get install --yes --quiet chromium >/dev/null; } || \
	  echo "No chromium, and no rights to install it (apt-get install chromium): the pages are not opened in the tests."

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.dev
	$(BIN)/python -m docs.generate

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache
