PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo study test test-integrations lint fuzz clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing gradsieve with every extra into $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install
	@$(BIN)/gradsieve demo

study: install
	@$(BIN)/gradsieve study mnist

test: install
	@$(BIN)/pytest

# What `make test` skips, since it needs the frameworks.
test-integrations: install
	@echo "Installing Lightning, Accelerate, Transformers and Ray into $(VENV) (minutes, once) ..."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,integrations]'
	@$(BIN)/pytest tests/integrations

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

# Coverage-guided, for as many frames as FUZZ_RUNS says; a crash writes the frame to crash-*.
FUZZ_RUNS ?= 200000

fuzz: install
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	@$(BIN)/python tests/codec/fuzz_frames.py -runs=$(FUZZ_RUNS) -max_len=65536 -rss_limit_mb=4096
	@NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/checked MUTATED_EXAMPLES=$$(($(FUZZ_RUNS) / 100)) \
		$(BIN)/pytest --quiet tests/codec/test_mutations.py

clean:
	rm -rf $(VENV) demo/ study/ study-quick/ build/ dist/ .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
