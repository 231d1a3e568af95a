# make demo: from nothing to an invoice preview.  make test: everything that CI checks.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo serve test bench soak lint types contracts unit coverage format lock clean

demo: $(VENV)/.runtime
	@$(BIN)/tollgate demo $(ARGS)

serve: $(VENV)/.runtime
	@$(BIN)/tollgate serve $(ARGS)

test: lint types contracts unit

bench: $(VENV)/.runtime
	@$(BIN)/python -m benchmarks.run $(ARGS)

# kill -9 of one process after the other under load: ARGS="rounds seed"
soak: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.kill $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

unexport PYTHONDONTWRITEBYTECODE  # tests start Tollgate often: it is compiled once
unit: $(VENV)/.dev
	$(BIN)/python -m pytest $(TOGETHER) $(ARGS)
# Two processes, each with a PostgreSQL of its own; a module's tests stay together, and share its server.
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder

# Apart from the gate: to count takes two thirds more time, and nothing is judged by it.
coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TOGETHER) $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolves pyproject.toml anew; both files name versions and hashes, never a host.
lock: $(VENV)/.dev
	$(PIP) install uv
	$(BIN)/uv pip compile $(LOCK) --group dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile $(LOCK) -c requirements-dev.lock --group build pyproject.toml -o requirements.lock
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --no-emit-find-links

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tollgate needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.runtime: $(BIN)/python requirements.lock pyproject.toml
	@echo "Installing Tollgate into $(VENV) (once; half a minute or so) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python requirements-dev.lock pyproject.toml
	@echo "Installing Tollgate and its development tools into $(VENV) (once; a minute or so) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.runtime
