"""CONTRIBUTING.md names files, make targets and rooms that exist, and shows the table that the tests hold."""

import ast
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
SUFFIXES = r"py|md|toml|txt|lock|yaml|cff"


@pytest.fixture(scope="module")
def text():
    return (REPOSITORY / "CONTRIBUTING.md").read_text()


def paths_in(text):
    """What is written as code and has a slash, or the suffix of a file; `utils.py` is named as what there is not."""
    quoted = re.findall(r"`([^`\s]+)`", text)
    commands = re.findall(r"(?<![\w./-])((?:configs|tests)/[\w/.]+)", text)
    return {p for p in [*quoted, *commands] if "/" in p or re.search(rf"\.({SUFFIXES})$", p)} - {"utils.py"}


def table_in(text):
    """{room: what it may import} of rows | `room` | what it is | `a` `b` |, in their order."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: " ".join(re.findall(r"[\w.]+", allowed)) for name, allowed in rows}


def test_paths_exist(text):
    paths = paths_in(text)
    assert {"mf_jax/modalities/depth.py", "CHANGELOG.md", "benchmarks/results/", "configs/quickstart.py"} <= paths
    assert [p for p in sorted(paths) if not (REPOSITORY / p).exists()] == []
    assert paths_in("`gone/x.py` and `gone.md` but not `a.b`, `python x/y`") == {"gone/x.py", "gone.md"}


def test_make_targets_exist(text):
    targets = set(re.findall(r"\bmake (\w+)", text))
    makefile = (REPOSITORY / "Makefile").read_text()
    assert {"test", "lint", "lock"} <= targets <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


def test_the_table_is_the_one_that_is_tested(text):
    tree = ast.parse((REPOSITORY / "tests/test_architecture.py").read_text())
    assigned = {
        n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")
    }
    rooms = ast.literal_eval(assigned["ROOMS"])
    assert list(table_in(text).items()) == list(rooms.items())


def test_it_is_one_page(text):
    assert len(text.splitlines()) <= 120
