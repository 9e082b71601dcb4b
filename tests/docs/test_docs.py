"""The documentation builds, its code runs, and what is made from the program's source is what lies on disk."""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```python(?: title="(?P<file>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)


def _script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty directory to run code in, on the Python path as the working directory of `python -m` is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _run_page(page, workplace):
    """Runs the Python blocks of a page in order, in one namespace; those with a title become files."""
    namespace = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer((DOCS / page).read_text()))
    assert blocks
    for block in blocks:
        if block["file"]:
            path = workplace / block["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["code"])
        else:
            exec(compile(block["code"], f"{page}: {block['code'][:40]!r}", "exec"), namespace)
    return namespace


def test_a_modality_added_as_the_page_says(workplace):
    _run_page("adding_a_modality.md", workplace)


def test_a_reader_added_as_the_page_says(workplace):
    from mf_jax.data import sources

    kinds = dict(sources.KINDS)
    try:
        _run_page("adding_a_reader.md", workplace)
    finally:
        sources.KINDS.clear()
        sources.KINDS.update(kinds)


def test_a_config_as_the_page_shows_it(workplace):
    from mf_jax.config import loading
    from mf_jax.joint_model import build_model

    model = build_model(loading.resolve(_run_page("config.md", workplace)["get_config"]()))
    assert list(model.modalities) == ["image", "depth"]


def _run_notebook(name, monkeypatch):
    """Runs the code cells in order, in one namespace, as Jupyter does; pictures are drawn and not shown."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((DOCS / "notebooks" / name).read_text())
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "notebooks are kept without outputs"
        exec(compile("".join(cell["source"]), f"{name}, code cell {number}", "exec"), namespace)
    namespace["plt"].close("all")
    return namespace


def test_notebook_load_and_sample_and_the_keys_of_its_log(workplace, monkeypatch):
    results = _run_notebook("load_and_sample.ipynb", monkeypatch)["results"]
    assert set(results) == {"joint", "i2d", "d2i", "partial"}
    # What this run logged is what the page on logs explains.
    documented = set(re.findall(r"`([^`\n]+)`", (DOCS / "logs.md").read_text().split("## Step times")[0]))
    for line in pathlib.Path("runs/notebook/metrics.jsonl").read_text().splitlines():
        for key in json.loads(line):
            family = re.sub(r"t_\d\.\d-\d\.\d$", "t_0.2-0.4", key)
            family = re.sub(r"/(image|depth)\b", "/NAME", family)
            family = re.sub(r"NAME/(joint|i2d|d2i)$", "NAME/MODE", family)
            family = re.sub(r"^goodput/.*", "goodput/KIND", family)
            family = re.sub(r"^step_seconds/(p90|p99|max)$", r"\1", family)
            assert family in documented, key


def test_notebook_add_a_modality(workplace, monkeypatch):
    result = _run_notebook("add_a_modality.ipynb", monkeypatch)["result"]
    assert result["brightness"].shape == (3, 16, 16)


def test_the_reference_of_config_keys_is_that_of_the_code():
    reference = _script("config_reference")
    assert reference.FILE.read_text() == reference.markdown(reference.sections()), (
        "the keys have changed; run: python docs/config_reference.py"
    )


def test_the_members_on_the_page_of_the_python_interface_exist():
    entries = re.findall(
        r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    assert ("mf_jax.inference.pipeline", "load, Pipeline") in entries
    for module, members in entries:
        for member in filter(None, members.split(", ")):
            assert hasattr(importlib.import_module(module), member), f"{module} has no {member}"


def test_what_may_change_between_starts_is_on_the_page_on_checkpoints():
    from mf_jax.checkpoint import resume

    page = (DOCS / "checkpoints.md").read_text()
    listed = page.split("**Some keys of the config may change**")[1].split("Any other difference")[0]
    keys = set(re.findall(r"`([a-z_.*]+)`", listed)) - {"constant", "cosine", "optimizer.schedule"}
    assert {"train.steps", ".checkpoint"} <= keys
    splits = {"test", "validation", "data.source.test", "data.source.validation"}
    splits |= {"data.source.splits.test", "data.source.splits.validation"}
    assert {key.rstrip("*") for key in keys - splits} - {"train.steps", ".checkpoint"} == set(
        resume.MAY_CHANGE
    ) - splits


def test_every_config_key_has_a_meaning():
    reference = _script("config_reference")
    for path, section in reference.sections().items():
        for kind, component in section.items() if isinstance(section, dict) else [("", section)]:
            for key in reference.keys(component):
                assert key.meaning, f"{path} {kind}: the docstring does not say what {key.name} is"


def test_the_picture_and_the_table_of_the_rooms_are_those_of_the_code():
    drawing = _script("draw_rooms")
    imports, labels, plain = drawing.rooms(ROOT / "mf_jax")
    stale = "the imports have changed; run: python docs/draw_rooms.py"
    assert (DOCS / "rooms.svg").read_text() == drawing.draw(imports, labels, plain), stale
    page = (DOCS / "architecture.md").read_text()
    assert page == drawing.with_table(page, drawing.table(imports, labels)), stale


def test_the_picture_shows_what_is_imported(tmp_path):
    drawing = _script("draw_rooms")
    files = {
        "low.py": "import numpy",
        "net/__init__.py": "",
        "net/layer.py": "import jax\nfrom toy import low",
        "top.py": "from toy.net import layer\n\ndef late():\n    import toy.low",
    }
    for name, text in files.items():
        (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy" / name).write_text(text)
    imports, labels, plain = drawing.rooms(tmp_path / "toy")
    assert imports == {"low": set(), "net": {"low"}, "top": {"net", "low"}}
    assert labels == {"low": "low.py", "net": "net/", "top": "top.py"}
    assert plain == {"low"}  # top imports net, which imports jax
    assert drawing.reduced(imports) == [("net", "low"), ("top", "net")]
    (tmp_path / "toy" / "low.py").write_text("import toy.top")
    with pytest.raises(ValueError, match="circle: low -> top -> "):
        drawing.layers(drawing.rooms(tmp_path / "toy")[0])


def test_every_room_has_a_line(tmp_path):
    drawing = _script("draw_rooms")
    _, labels, _ = drawing.rooms(ROOT / "mf_jax")
    described = (DOCS / "architecture.md").read_text().split(drawing.BEGIN)[0]
    rows = "\n".join(line.split("|")[1] for line in described.splitlines() if line.startswith("| "))
    for label in labels.values():
        assert f"`{label}`" in rows


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="?(https?:[^" >]+)', page.read_text())
        assert not fetched, f"{page.name} loads {fetched}"


NEW_FILE = "mf_jax/data/readers/scans.py"  # that the page on readers adds
# The verbs of the command line and their options, wherever a page names them.
COMMAND = re.compile(r"python -m mf_jax (\w+)((?:[^\n]*\\\n)*[^\n]*)")


def _documents():
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", _documents(), ids=lambda path: path.name)
def test_commands_are_those_of_the_program(page):
    from mf_jax.__main__ import _parser

    verbs = next(action.choices for action in _parser()._actions if action.choices and "train" in action.choices)
    for verb, rest in COMMAND.findall(page.read_text()):
        if verb == "VERB":
            continue
        assert verb in verbs, f"{page.name}: {verb}"
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])", rest.split("#")[0]):
            assert option in verbs[verb]._option_string_actions, f"{page.name}: {verb} {option}"


@pytest.mark.parametrize("page", _documents(), ids=lambda path: path.name)
def test_options_are_somewhere_in_the_program(page):
    files = [ROOT / "mf_jax" / "__main__.py", *(ROOT / "launch").iterdir()]
    program = "\n".join(path.read_text() for path in files if path.is_file())
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()):
        assert option in ("--config", "--help") or re.search(rf"{option}(?![\w-])", program), f"{page.name}: {option}"


@pytest.mark.parametrize("page", _documents(), ids=lambda path: path.name)
def test_files_that_are_named_are_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|sh|txt|md|svg|ipynb))`", text)
    named += re.findall(r"\b(?:configs|launch|benchmarks)/[\w/-]+\.(?:py|sh|txt)", text)
    if page.name == "README.md":  # the links of pages are checked where they are built
        named += re.findall(r"\]\((?!https:)([^)#]+)\)", text)
    for path in named:
        if path != NEW_FILE:
            assert (ROOT / path).exists() or (ROOT / "mf_jax" / path).exists(), f"{page.name} names {path}"
