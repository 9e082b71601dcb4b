# The two commands of the README. Each makes its virtual environment and installs what it needs first.
VENV ?= .venv
TEST_VENV ?= .venv-test
PYTHON ?= python3
RUN ?= runs/quickstart
# glibc's allocator asks for huge pages: XLA's CPU buffers are new memory in every step, and its faults cost a fifth of it.
FAST_MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
BIN := $(VENV)/bin
TEST_BIN := $(TEST_VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed
	$(FAST_MALLOC) $(BIN)/python -m mf_jax train --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python -m mf_jax.evaluation.showcase $(RUN)
	$(BIN)/python -m mf_jax evaluate --checkpoint=$(RUN)

test: $(TEST_VENV)/installed lint
	$(TEST_BIN)/python -m pytest -n 2 --dist=worksteal

lint: $(TEST_VENV)/installed
	$(TEST_BIN)/ruff format --check .
	$(TEST_BIN)/ruff check .

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(TEST_VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(TEST_VENV)
