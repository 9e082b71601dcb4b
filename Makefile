# The two commands of the README. Each makes its virtual environment and installs what it needs first.
VENV ?= .venv
TEST_VENV ?= .venv-test
LOCK_VENV ?= .venv-lock
PYTHON ?= python3
RUN ?= runs/quickstart
# glibc's allocator asks for huge pages: XLA's CPU buffers are new memory in every step, and its faults cost a fifth of it.
FAST_MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
BIN := $(VENV)/bin
TEST_BIN := $(TEST_VENV)/bin
LOCK = $(LOCK_VENV)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"

.PHONY: quickstart test lint lock clean

quickstart: $(VENV)/installed
	$(FAST_MALLOC) $(BIN)/python -m mf_jax train --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python -m mf_jax showcase --checkpoint=$(RUN)
	$(BIN)/python -m mf_jax evaluate --checkpoint=$(RUN)

test: $(TEST_VENV)/installed lint
	$(TEST_BIN)/python -m pytest -n 2 --dist=worksteal

lint: $(TEST_VENV)/installed
	$(TEST_BIN)/ruff format --check .
	$(TEST_BIN)/ruff check .
	$(TEST_BIN)/mypy

# Pins and hashes beside the ranges, for every platform and Python from 3.11 on. Pins that still fit are kept: delete the
# files first to take the newest versions.
lock:
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(LOCK) --output-file requirements.lock
	$(LOCK) --output-file requirements-test.lock --extra test --constraint requirements.lock

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(TEST_VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(TEST_VENV) $(LOCK_VENV)
