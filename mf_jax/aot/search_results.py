"""Results of compilations on disk, so that a search that was interrupted goes on where it was.

One line of JSON for each compiled variant. Its key is a digest of all that decides about the result: the config, the
devices, the versions of jax and the compilers, their options, and the source files of this package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mf_jax.aot.search import Result
from mf_jax.config import loading
from mf_jax.config.config import Config

_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "TPU_LIBRARY_PATH")


def default_file() -> pathlib.Path:
    """In the user's cache directory, $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(folder) / "mf_jax" / "compile_search.jsonl"


def key(config: Config, devices: Sequence[jax.Device], options: Mapping[str, Any]) -> str:
    """The digest by which a result is found again.

    Args:
      options: of the compiler.
    """
    where = [
        [device.device_kind, str(getattr(device, "coords", device.id)), device.process_index] for device in devices
    ]
    decides = {
        "config": loading.to_dict(config),
        "devices": where,
        "options": dict(options),
        "versions": {name: _version(name) for name in _PACKAGES},
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
        "source": _source(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source() -> str:
    folder = pathlib.Path(__file__).parents[1]
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return found.hexdigest()


class SearchResults:
    """The results in a file, which need not exist yet."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.found: dict[str, Result] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that was being written when the search ended
            self.found[record["key"]] = Result(**record["result"])

    def get(self, key: str) -> Result | None:
        return self.found.get(key)

    def add(self, key: str, what: Mapping[str, Any], result: Result) -> None:
        """Keeps a result.

        Args:
          what: was compiled, for people who read the file.
        """
        self.found[key] = result
        line = json.dumps({"key": key, "what": dict(what), "result": dataclasses.asdict(result)}) + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a+b") as file:
            if file.tell() and not self.file.read_bytes().endswith(b"\n"):
                line = "\n" + line
            file.write(line.encode())
