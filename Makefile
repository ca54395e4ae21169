# `make demo` and `make test` need Python >= 3.11 and make; they install the rest into .venv: the
# first what a job needs, the second the development tools too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo wheel test lint types audit-dependencies docs unit chaos bench gpu lowest libraries clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# The wheel and the source distribution, into dist/.
wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist

test: lint types audit-dependencies docs unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

audit-dependencies: $(VENV)/.installed-dev
	$(BIN)/python infra/audit.py

# The site, into site/. A link or an anchor that leads nowhere fails it.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Tests that start clusters and servers run after the others, a file at a time in each of two
# processes. Both parts always run, and the target fails if either did.
unit: $(VENV)/.installed-dev
	@status=0; \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not ray and not s3 and not slow" || status=1; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(ray or s3) and not slow" || status=1; \
	exit $$status

# The long forms of the simulation, tests/chaos and tests/hostile: about two hours.
chaos: $(VENV)/.installed-dev
	TOKPIPE_TEST_SEEDS=20000 $(BIN)/python -m pytest tests/runtime/test_simulation.py
	TOKPIPE_TEST_PROFILE=explore $(BIN)/python -m pytest -n 2 -m "not ray and not s3 and not slow"
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos.spot
	$(BIN)/python -m tests.hostile

# An hour, on a machine that does nothing else. The results go into docs/performance.md.
bench: $(VENV)/.installed-dev
	-$(BIN)/python -m benchmarks --json benchmarks/results
	$(BIN)/python -m benchmarks.page benchmarks/results docs/performance.md

# Eight minutes, on a machine with a GPU that does nothing else. The answers go into
# docs/performance.md, and all that was found beside the results of other benchmarks.
gpu: $(VENV)/.installed
	-$(BIN)/python -m benchmarks.gpu --json benchmarks/results/gpu.json --page benchmarks/results/gpu.md
	$(BIN)/python -m benchmarks.page benchmarks/results docs/performance.md

$(VENV)/.installed: pyproject.toml requirements.txt infra/install.sh
	infra/install.sh $(VENV) $(PYTHON)
	touch $@

$(VENV)/.installed-dev: pyproject.toml requirements.txt requirements-dev.txt infra/install.sh
	infra/install.sh $(VENV) $(PYTHON) requirements-dev.txt
	touch $(VENV)/.installed $@

# The suite with the lowest versions that pyproject.toml allows, in an environment that stays apart.
# Installs PyPI's build of the lowest torch, several GB.
lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) infra/lowest.py run > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --constraint .venv-lowest/constraints.txt --editable ".[run,dev]"
	.venv-lowest/bin/python -m pytest -m "not ray and not s3"
	.venv-lowest/bin/python -m pytest -m "ray or s3"

# Exports, read and written by litdata and by MosaicML's streaming. Each is in an environment of its
# own: they need packages, or versions of them, that the other tests do not have. A few minutes.
libraries:
	infra/install.sh .venv-litdata $(PYTHON) requirements-dev.txt
	.venv-litdata/bin/pip install litdata==0.2.76
	.venv-litdata/bin/python -m pytest tests/export/test_export_packed.py
	infra/install.sh .venv-streaming $(PYTHON) requirements-dev.txt
	.venv-streaming/bin/pip install mosaicml-streaming==0.13.0 "numpy<2.2" "transformers<5"
	.venv-streaming/bin/python -m pytest tests/export/test_export_packed.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-litdata .venv-streaming out build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
