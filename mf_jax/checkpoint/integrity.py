"""Integrity checks of checkpoint files, without reading the arrays: the steps on disk, and damage to their files.

The layout is orbax's: STEP/_CHECKPOINT_METADATA names the items; those in JSON are ITEM/metadata; trees of arrays are
ITEM/_METADATA and an OCDBT database, whose index (manifest.ocdbt and the nodes of a B-tree, all with checksums) gives
the file and the byte range of every chunk. Missing and truncated files are found, changed bytes inside a chunk are not.
"""

from __future__ import annotations

import errno
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import tensorstore

JSON_ITEMS = ("config", "iterator")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of directories that are being written


def steps(directory: pathlib.Path) -> list[int]:
    """The steps that have a checkpoint directory, damaged or not, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def remove_unfinished(directory: pathlib.Path) -> bool:
    """Removes what unfinished saves left; returns whether there was anything. No save may be in progress."""
    found = list(directory.glob(f"*{UNFINISHED}*"))
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return bool(found)


def read_json(checkpoint: pathlib.Path, item: str) -> dict[str, Any]:
    """The content of one of JSON_ITEMS. ValueError if it is missing or not a JSON object."""
    return _json(checkpoint / item / "metadata")


def damage(checkpoint: pathlib.Path) -> str | None:
    """The damage to a checkpoint (the directory of a step), in words; None if it is complete.

    Raises:
      OSError: the file system fails; the checkpoint may be good.
    """
    try:
        described = _json(checkpoint / "_CHECKPOINT_METADATA").get("item_handlers")
        items = set(described) if isinstance(described, dict) else set()
        for item in sorted(items.union(JSON_ITEMS)):
            if not (checkpoint / item).is_dir():
                return f"{item} is missing"
            if item in JSON_ITEMS:
                read_json(checkpoint, item)
            else:
                _check_arrays(checkpoint / item)
        if not _json(checkpoint / "config" / "metadata"):
            return "config/metadata is empty"
    except _Damage as found:
        return str(found).replace(f"{checkpoint}/", "")
    return None


def shapes(item: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of an item, by name: the keys of its tree joined by dots."""
    found = {}
    for key, entry in _entries(item):
        name, _, last = key.rpartition("/")
        if last == ".zarray" and "inline_value" in entry:
            found[name] = tuple(json.loads(entry["inline_value"])["shape"])
    return found


class _Damage(ValueError):
    pass


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _Damage(f"{path} is missing") from None
    except ValueError:  # of JSON or of UTF-8
        raise _Damage(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise _Damage(f"{path} is no JSON object")
    return value


def _check_arrays(item: pathlib.Path) -> None:
    _json(item / "_METADATA")
    for path in (item / "array_metadatas").glob("*"):
        _json(path)
    ends: dict[str, int] = {}  # least size of each file, in bytes
    for _, entry in _entries(item):
        if "indirect_value" in entry:
            file, end = _located(entry["indirect_value"])
            ends[file] = max(end, ends.get(file, 0))
    for file, end in ends.items():
        path = item / file
        if not path.is_file():
            raise _Damage(f"{path} is missing")
        if (size := path.stat().st_size) < end:
            raise _Damage(f"{path} is truncated: {size:,} bytes of at least {end:,}")


def _entries(item: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys and entries of an item's OCDBT database."""
    if not (item / "manifest.ocdbt").is_file():
        raise _Damage(f"{item / 'manifest.ocdbt'} is missing")
    files = tensorstore.KvStore.open({"driver": "file", "path": f"{item}/"}).result()

    def below(location: str, prefix: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        node = tensorstore.ocdbt.dump(files, node=location).result()
        for entry in node["entries"]:
            if node["height"]:
                yield from below(entry["location"], prefix + entry["subtree_common_prefix"])
            else:
                yield (prefix + entry["key"]).decode(), entry

    try:
        manifest = tensorstore.ocdbt.dump(files).result()
        yield from below(manifest["versions"][-1]["root"]["location"], b"")
    except (ValueError, KeyError, IndexError) as error:
        raise_system_error(error)
        raise _Damage(f"the index of {item.name} cannot be read: {str(error)[:200]}") from None


def raise_system_error(error: Exception) -> None:
    """Raises OSError if an error of tensorstore, mostly a ValueError, is of the system; not for a missing file."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code and int(code[1]) != errno.ENOENT:
        raise OSError(int(code[1]), str(error)[:300]) from None


def _located(value: str) -> tuple[str, int]:
    """(file, end byte) of a chunk, from its location: "value:ocdbt.process_0/:d/1f03:0:369731"."""
    _, folder, file, offset, length = value.split(":")
    return folder + file, int(offset) + int(length)
