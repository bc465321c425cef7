# The daily commands. `make setup` once; PYTHON=python3.12 for another one.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Without models, servers, browsers and networks of size: what can be wrong after most changes.
FAST = tests/test_docs.py tests/test_deploy.py tests/test_community.py tests/utils tests/formats tests/fusion/test_decision.py \
       tests/provenance/test_generators.py tests/ingress/test_metadata.py

.PHONY: setup test-fast test coverage lint lint-js docs picture bench

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt

test-fast:
	$(BIN)/python -m pytest -q -m "not slow" $(FAST)

test:
	$(BIN)/python -m pytest

coverage:
	$(BIN)/python -m pytest --cov

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-js:
	npx --yes eslint@9 .

docs:
	$(BIN)/python -m scripts.signals_table > docs/signals.md
	$(BIN)/python -m scripts.write_requirements
	$(BIN)/python -m scripts.write_clients
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_guide.py tests/test_site.py

picture:
	$(BIN)/python -m scripts.picture_page

bench:
	$(BIN)/python -m scripts.benchmark
