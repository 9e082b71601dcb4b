# The two commands of the README. Each makes the virtual environment and installs what it needs first.
VENV ?= .venv
PYTHON ?= python3
RUN ?= runs/quickstart
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed
	$(BIN)/python -m mf_jax train --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python -m mf_jax.showcase $(RUN)
	$(BIN)/python -m mf_jax evaluate --checkpoint=$(RUN)

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -n 2 --dist=worksteal

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
