"""The directions of imports between the rooms of mf_jax/, the sizes of its files, and the way of a config to the model.

A room is a folder or a module at the root of the package. `ROOMS` is the table, CONTRIBUTING.md shows the same one.
"""

import ast
import graphlib
import importlib.util
import inspect
import pathlib
import statistics

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = "mf_jax"
# Room: what it may import besides itself, rooms or single modules of them. Each names only rooms above its own line.
ROOMS = {
    "configurable": "",
    "storage": "",
    "diffusion": "",
    "data": "configurable storage",
    "parallel": "configurable",
    "models": "configurable storage parallel data.tokenizer",
    "modalities": "configurable storage data.resize diffusion models",
    "joint_model": "configurable diffusion models modalities",
    "training": "configurable storage diffusion parallel modalities joint_model",
    "config": "configurable diffusion data parallel models modalities training",
    "monitoring": "configurable storage models joint_model training",
    "checkpoint": "configurable storage parallel models joint_model training config",
    "aot": "configurable data parallel models joint_model training config monitoring",
    "inference": "configurable storage diffusion data parallel models modalities joint_model config checkpoint",
    "interop": "configurable storage parallel models joint_model training config checkpoint",
    "train": "configurable storage data parallel models modalities joint_model training config monitoring checkpoint",
    "show": "configurable storage data parallel models modalities joint_model training config monitoring checkpoint",
    "evaluation": "configurable storage data parallel config inference",
    "__main__": "all",
    "__init__": "all",
}
WITHOUT_JAX = ("configurable", "storage", "data")
ORBAX_IN = "checkpoint.manager"
LONGEST_FILE, LONGEST_MEDIAN, MOST_ROOT_MODULES, LONGEST_CHAIN = 300, 130, 8, 5


def modules_of(package):
    """{"data.loader": file} of all modules; a folder's own file is called like the folder, the package's __init__."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return found


def imports_of(name, file):
    """(line, absolute dotted name) of every import: at the top, in functions, under TYPE_CHECKING, by import_module."""
    folder = name if file.stem == "__init__" else name.rpartition(".")[0]
    package = f"{PACKAGE}.{folder}".removesuffix(".__init__").rstrip(".")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield node.lineno, str(getattr(node.args[0], "value", ""))


def edges_of(modules):
    """(importer, line, imported module of the package) of every import that stays in the package."""
    for name, file in modules.items():
        for line, target in imports_of(name, file):
            if target == PACKAGE or target.startswith(f"{PACKAGE}."):
                inner = target.removeprefix(PACKAGE).removeprefix(".")
                while inner and inner not in modules:  # a class or function of a module
                    inner = inner.rpartition(".")[0]
                yield name, line, inner or "__init__"


def room(module):
    return module.split(".")[0]


def forbidden_imports(modules, rooms):
    """Imports between rooms that the table does not allow, and rooms that are not in it."""
    found = [f"{r} is not in the table of rooms" for r in sorted({room(m) for m in modules} - set(rooms))]
    for importer, line, imported in edges_of(modules):
        allowed = rooms.get(room(importer), "all").split()
        if room(importer) == room(imported) or allowed == ["all"]:
            continue
        if not any(imported == a or imported.startswith(f"{a}.") for a in allowed):
            found.append(f"{importer}:{line} imports {imported}; {room(importer)} may import {' '.join(allowed)}")
    return found


def circles(modules):
    """One circle of imports among files and one among rooms, where there are any."""
    found = []
    for key in (str, room):
        graph = {}
        for importer, _, imported in edges_of(modules):
            if key(importer) != key(imported):
                graph.setdefault(key(importer), set()).add(key(imported))
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append("circle: " + " <- ".join(error.args[1]))
    return found


def forbidden_libraries(modules):
    """jax where it has no place, and orbax outside the one file that knows it."""
    found = []
    for name, file in modules.items():
        for line, target in imports_of(name, file):
            library = target.split(".")[0]
            if room(name) in WITHOUT_JAX and library in ("jax", "jaxlib", "flax", "optax", "orbax"):
                found.append(f"{name}:{line} imports {library}; {', '.join(WITHOUT_JAX)} do without")
            if library == "orbax" and name != ORBAX_IN:
                found.append(f"{name}:{line} imports orbax; only {ORBAX_IN} does")
    return found


def bad_sizes(modules):
    """Files that are too long, a median that is, and too many modules at the root."""
    lines = {name: len(file.read_text().splitlines()) for name, file in modules.items()}
    found = [f"{name} has {n} lines, over {LONGEST_FILE}" for name, n in lines.items() if n > LONGEST_FILE]
    median = statistics.median(n for n in lines.values() if n)
    if median > LONGEST_MEDIAN:
        found.append(f"the median file has {median} lines, over {LONGEST_MEDIAN}")
    root = [name for name, file in modules.items() if file.stem == name]  # a folder's own file is called __init__
    if len(root) > MOST_ROOT_MODULES:
        found.append(f"{len(root)} modules at the root, over {MOST_ROOT_MODULES}: {', '.join(root)}")
    return found


@pytest.fixture(scope="module")
def modules():
    return modules_of(REPOSITORY / PACKAGE)


def import_violations(modules):
    return forbidden_imports(modules, ROOMS)


CHECKS = (import_violations, circles, forbidden_libraries, bad_sizes)


@pytest.mark.parametrize("check", CHECKS)
def test_the_package(check, modules):
    assert check(modules) == []


# A small package in which everything is allowed, and what each check must find when one file of it is another.
GOOD = {
    "__init__.py": "def load():\n    from mf_jax import train\n    return train",
    "configurable.py": "import dataclasses",
    "data/__init__.py": "",
    "data/loader.py": "from mf_jax.configurable import build\nfrom mf_jax.data import tokenizer",
    "data/tokenizer.py": "import numpy as np",
    "models/encoders.py": "import jax\nfrom mf_jax.data.tokenizer import Tokenizer",
    "joint_model.py": "from .models import encoders",
    "checkpoint/manager.py": "import orbax.checkpoint as ocp\nfrom mf_jax.joint_model import build_model",
    "train.py": "import mf_jax.data.loader\nfrom mf_jax.checkpoint import manager",
}
BAD = [
    (import_violations, "data/loader.py", "import mf_jax.train", "data.loader:1 imports train;"),
    (import_violations, "data/loader.py", "from mf_jax import train", "data.loader:1 imports train;"),
    (import_violations, "data/loader.py", "import mf_jax", "data.loader:1 imports __init__;"),
    (import_violations, "data/loader.py", "from ..models.encoders import x", "data.loader:1 imports models.encoders;"),
    (import_violations, "data/__init__.py", "from .. import train", "data:1 imports train;"),
    (import_violations, "configurable.py", "from . import train", "configurable:1 imports train;"),
    (import_violations, "data/loader.py", "def f():\n    from mf_jax import train", "data.loader:2 imports train;"),
    (
        import_violations,
        "data/loader.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mf_jax.train import train",
        "data.loader:3 imports train;",
    ),
    (
        import_violations,
        "data/loader.py",
        "import importlib\nimportlib.import_module('mf_jax.train')",
        "data.loader:2 imports train;",
    ),
    (
        import_violations,
        "models/encoders.py",
        "from mf_jax.data import loader",
        "models.encoders:1 imports data.loader;",
    ),
    (import_violations, "models/encoders.py", "from mf_jax import data", "models.encoders:1 imports data;"),
    (import_violations, "helpers/files.py", "", "helpers is not in the table of rooms"),
    (import_violations, "helpers.py", "", "helpers is not in the table of rooms"),
    (circles, "data/tokenizer.py", "from mf_jax.data.loader import load", "circle: data."),
    (circles, "configurable.py", "def f():\n    from mf_jax import train", "circle: "),
    (forbidden_libraries, "data/loader.py", "import jax.numpy as jnp", "data.loader:1 imports jax;"),
    (forbidden_libraries, "data/loader.py", "def f():\n    from flax import linen", "data.loader:2 imports flax;"),
    (forbidden_libraries, "storage/paths.py", "import optax", "storage.paths:1 imports optax;"),
    (forbidden_libraries, "configurable.py", "from jax import numpy", "configurable:1 imports jax;"),
    (forbidden_libraries, "train.py", "from orbax import checkpoint", "train:1 imports orbax;"),
    (forbidden_libraries, "checkpoint/layouts.py", "import orbax.checkpoint", "checkpoint.layouts:1 imports orbax;"),
    (bad_sizes, "train.py", "x = 1\n" * 301, "train has 301 lines, over 300"),
    (bad_sizes, "LONG", "x = 1\n" * 131, "the median file has 131 lines, over 130"),
    (bad_sizes, "ROOT", "", "9 modules at the root, over 8"),
]


def _written(folder, files):
    for path, text in files.items():
        file = folder / PACKAGE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return modules_of(folder / PACKAGE)


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_pass_a_good_package(check, tmp_path):
    assert check(_written(tmp_path, GOOD)) == []


@pytest.mark.parametrize("check, path, text, message", BAD)
def test_the_checks_find(check, path, text, message, tmp_path):
    changed = {"LONG": dict.fromkeys(GOOD, text), "ROOT": {f"more_{i}.py": text for i in range(5)}}
    found = check(_written(tmp_path, GOOD | changed.get(path, {path: text})))
    assert any(line.startswith(message) for line in found), found


def test_the_table_goes_down(modules):
    rooms = list(ROOMS)
    for name, allowed in ROOMS.items():
        above = rooms[: rooms.index(name)]
        assert allowed == "all" or {room(a) for a in allowed.split()} <= set(above), name
    assert set(rooms) == {room(m) for m in modules}
    assert {a for r in WITHOUT_JAX for a in ROOMS[r].split()} <= set(WITHOUT_JAX)


SECTIONS = ("modalities", "model", "optimizer")  # what has all of these is a whole config


class ModelReached(Exception):
    """Thrown where the backbone would be made, with the rooms that the config has passed through."""


@pytest.mark.parametrize("verb", ["train", "show", "compile"])
def test_the_way_of_a_config_to_the_model(verb, tmp_path, monkeypatch):
    """Rooms that hold the whole config when the backbone is made, the room that loaded it and the room that gets it."""
    from mf_jax.__main__ import main
    from mf_jax.models.backbones import FlatDiTConfig

    def module(self, streams, platform):
        holders = [
            frame.frame.f_globals["__name__"]
            for frame in inspect.stack()
            if any(all(hasattr(v, section) for section in SECTIONS) for v in frame.frame.f_locals.values())
        ]
        raise ModelReached({room(n.removeprefix(f"{PACKAGE}.")) for n in holders if n.startswith(PACKAGE)})

    monkeypatch.setattr(FlatDiTConfig, "module", module)
    workdir = [f"--workdir={tmp_path}"] if verb == "train" else []
    with pytest.raises(ModelReached) as reached:
        main([verb, f"--config={REPOSITORY}/configs/quickstart.py", *workdir])
    rooms = reached.value.args[0] | {"config", "models"}
    assert "joint_model" in rooms
    assert len(rooms) <= LONGEST_CHAIN, rooms
