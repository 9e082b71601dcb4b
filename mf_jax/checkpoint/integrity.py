"""What is on disk of a checkpoint, looked at without reading its arrays: which steps there are, and what is damaged.

The layout is orbax's: STEP/_CHECKPOINT_METADATA names the items; those in JSON are ITEM/metadata; trees of arrays are
ITEM/_METADATA and an OCDBT database, whose index (manifest.ocdbt and the nodes of a B-tree, all with checksums) says in
which file, from which byte to which, every chunk lies. Missing and truncated files are found, changed bytes inside a
chunk are not.
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
    """Steps that have a directory, damaged or not, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def remove_unfinished(directory: pathlib.Path) -> bool:
    """Removes what saves left that did not finish, and tells whether there was anything; none may be in progress."""
    found = list(directory.glob(f"*{UNFINISHED}*"))
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return bool(found)


def read_json(checkpoint: pathlib.Path, item: str) -> dict[str, Any]:
    """One of JSON_ITEMS. ValueError where it is missing or no JSON object."""
    return _json(checkpoint / item / "metadata")


def damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint (the directory of a step); None where everything is there.

    Raises:
      OSError: the file system fails, which says nothing about the checkpoint.
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
    """Shapes of the arrays of an item by name, the keys on the way to them joined by dots."""
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
    ends: dict[str, int] = {}  # by file, how long it must be
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
    """Keys and entries of the item's database."""
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
    """OSError where tensorstore, which has ValueError for everything, tells of one; a missing file is none."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code and int(code[1]) != errno.ENOENT:
        raise OSError(int(code[1]), str(error)[:300]) from None


def _located(value: str) -> tuple[str, int]:
    """File of a chunk, and the byte that it ends at: "value:ocdbt.process_0/:d/1f03:0:369731"."""
    _, folder, file, offset, length = value.split(":")
    return folder + file, int(offset) + int(length)
