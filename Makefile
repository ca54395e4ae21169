# `make demo` and `make test` need Python >= 3.11 and make; they install the rest into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types audit-dependencies docs unit chaos bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m tokpipe.run jobs/demo.yaml
	$(BIN)/python examples/read_codes.py out/demo
	$(BIN)/tokpipe decode out/demo --compare -o out/demo.png

test: lint types audit-dependencies docs unit

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

audit-dependencies: $(VENV)/.installed
	$(BIN)/python infra/audit.py

# The site, into site/. A link or an anchor that leads nowhere fails it.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What starts clusters and servers has the machine to itself; the rest goes two by two.
unit: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not ray and not s3"
	$(BIN)/python -m pytest -m "ray or s3"

# The long forms of the simulation, tests/chaos and tests/hostile: about an hour.
chaos: $(VENV)/.installed
	TOKPIPE_TEST_SEEDS=20000 $(BIN)/python -m pytest tests/runtime/test_simulation.py
	TOKPIPE_TEST_PROFILE=explore $(BIN)/python -m pytest -n 2 -m "not ray and not s3"
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.hostile

# An hour, on a machine that does nothing else. The results go into docs/performance.md.
bench: $(VENV)/.installed
	-$(BIN)/python -m benchmarks --json benchmarks/results
	$(BIN)/python -m benchmarks.page benchmarks/results docs/performance.md

$(VENV)/.installed: pyproject.toml requirements.txt infra/install.sh
	infra/install.sh $(VENV) $(PYTHON)
	touch $@

clean:
	rm -rf $(VENV) out build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
