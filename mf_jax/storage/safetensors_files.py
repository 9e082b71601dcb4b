"""Safetensors files: reading tensor by tensor and part by part, writing in shards. Pickles are refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files by name; reading one reads nothing else.

    Args:
      paths: files, or one directory (its model.safetensors, the files of its index, or all its .safetensors files).

    Raises:
      ValueError: a missing or truncated file, one of another format (a pickle is never opened), a name in two files.
    """

    def __init__(self, *paths: str | Path):
        self.paths = [file for path in paths for file in _safetensors_files(Path(path))]
        self._where: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        for file in self.paths:
            handle = self._stack.enter_context(_open(file))
            names = handle.keys()
            for name in names:
                if name in self._where:
                    raise ValueError(f"tensor {name} is in two of the files {', '.join(map(str, self.paths))}")
                self._where[name] = handle

    def __getitem__(self, name: str) -> np.ndarray:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Dtype of a tensor as safetensors names it: "F32", "BF16", ..."""
        return self._where[name].get_slice(name).get_dtype()

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """`self[name][index]`; only that part is read from the file."""
        return self._where[name].get_slice(name)[index] if index else self[name]

    def close(self) -> None:
        self._stack.close()


def _safetensors_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"no file or directory {path}")
    index = path / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from None
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise ValueError(f"{index} names {absent[0]}, which is not there")
        return [path / name for name in names]
    single = path / "model.safetensors"
    found = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    if not found:
        raise ValueError(f"no .safetensors file in {path}; other formats (pickles above all) are not read")
    return found


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ValueError(
            f"{path} is a pickle (a PyTorch file), which can run code when it is opened; it is refused. Convert it to "
            "safetensors where you trust it"
        )
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again") from None


def write(
    directory: str | Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    sizes: Mapping[str, int],
    extra: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes tensors as model.safetensors, or as shards with an index, and other files; all appear at once.

    Args:
      directory: made by this call; it must not exist or be empty.
      tensors: in the order of `sizes`; at most one shard of them is in memory.
      sizes: bytes of each tensor.
      extra: contents of further files by name.

    Raises:
      ValueError: the directory holds files, or `tensors` are not those of `sizes`.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not empty; give a new directory")
    shards = _plan(sizes, shard_bytes)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        stream = iter(tensors)
        for file, names in shards.items():
            held = {}
            for name in names:
                given, value = next(stream, (None, None))
                if given != name or value is None or value.nbytes != sizes[name]:
                    raise ValueError(f"expected tensor {name} of {sizes[name]} bytes, got {given}")
                held[name] = np.asarray(value, order="C")
            safetensors.numpy.save_file(held, temporary / file, metadata={"format": "pt"})
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (temporary / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        if directory.exists():
            directory.rmdir()
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [directory / name for name in [*shards, *([INDEX] if len(shards) > 1 else []), *extra]]


def _plan(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, list[str]]:
    """Consecutive tensors by file, each file at most `shard_bytes` unless one tensor is larger."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}
