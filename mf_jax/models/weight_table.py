"""Weight tables: which tensor, or part of a tensor, of a published file each of our arrays is.

A table is a list of `Entry`, written down once per network and used in both directions. Three differences are bridged:
linear kernels are (in, out) here and (out, in) there, convolutions HWIO here and OIHW there; a scanned stack has its
layers on the leading axis here and in the name there; fused projections there are several kernels here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mf_jax.storage.safetensors_files import TensorFiles

_AXES = {"same": None, "linear": (1, 0), "conv": (2, 3, 1, 0)}  # theirs.transpose(axes) is ours
FLOATS = ("F32", "BF16", "F16")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a weight table: one of our arrays and its place in the published tensors.

    Attributes:
      ours: its path in the parameter tree, "double/image/q/kernel".
      theirs: the tensor's name; "{i}" in it counts the layers of a scanned stack, our leading axis.
      layout: "same", "linear" or "conv".
      layers: length of the stack; None where there is none.
      rows, columns: (start, stop) on their first and second axis where ours is a part of theirs.
    """

    ours: str
    theirs: str
    layout: str = "same"
    layers: int | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def names(self) -> list[str]:
        """Names of their tensors that the array is made of, one per layer."""
        return [self.theirs] if self.layers is None else [self.theirs.format(i=i) for i in range(self.layers)]

    def part(self) -> tuple[slice, ...]:
        """Index of our array in their tensor; () for the whole tensor."""
        cuts = [slice(*self.rows) if self.rows else slice(None), slice(*self.columns) if self.columns else slice(None)]
        return tuple(cuts) if self.columns else tuple(cuts[:1]) if self.rows else ()

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Their part of a tensor in our layout."""
        axes = _AXES[self.layout]
        return theirs if axes is None else theirs.transpose(axes)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Inverse of `to_ours`."""
        axes = _AXES[self.layout]
        return ours if axes is None else ours.transpose(np.argsort(axes))

    def shape_there(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part that an array of our shape, without the leading axis of layers, has in their tensor."""
        axes = _AXES[self.layout]
        return tuple(ours) if axes is None else tuple(ours[i] for i in np.argsort(axes))


@dataclasses.dataclass(frozen=True)
class Report:
    """Names of the tensors of a file: those that a table maps to our arrays, and those left over."""

    mapped: tuple[str, ...]
    left_over: tuple[str, ...]


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A nested tree of a flat mapping: {"a/b": x} to {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `nest`."""
    return {
        "/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def to_ours(tensors: Mapping[str, np.ndarray], table: Sequence[Entry]) -> dict[str, Any]:
    """Our parameter tree from their tensors, whole arrays on the host, for networks that fit there."""
    flat = {}
    for entry in table:
        parts = [entry.to_ours(np.asarray(tensors[name])[entry.part()]) for name in entry.names()]
        flat[entry.ours] = parts[0] if entry.layers is None else np.stack(parts)
    return nest(flat)


def to_theirs(tree: Mapping[str, Any], table: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Their tensors by name from our parameter tree, all at once; `stream` makes one at a time."""
    return dict(stream(tree, table))


def stream(tree: Mapping[str, Any], table: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors from our parameter tree, one at a time, in the order of `plan`; fused ones joined from parts."""
    flat = flatten(tree)
    for name, pieces in plan(table).items():
        parts = [(entry, _layer(flat[entry.ours], layer)) for entry, layer in pieces]
        if len(parts) == 1 and not parts[0][0].part():
            yield name, parts[0][0].to_theirs(parts[0][1])
            continue
        shape = _fused_shape([(entry, entry.shape_there(value.shape)) for entry, value in parts])
        whole = np.empty(shape, parts[0][1].dtype)
        for entry, value in parts:
            whole[entry.part()] = entry.to_theirs(value)
        yield name, whole


def plan(table: Sequence[Entry]) -> dict[str, list[tuple[Entry, int | None]]]:
    """For each of their tensors the entries that are parts of it, with the layer."""
    found: dict[str, list[tuple[Entry, int | None]]] = {}
    for entry in table:
        for layer, name in enumerate(entry.names()):
            found.setdefault(name, []).append((entry, None if entry.layers is None else layer))
    return found


def shapes_there(shapes: Mapping[str, tuple[int, ...]], table: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    """Shapes of their tensors, from those of our arrays by path."""
    result = {}
    for name, pieces in plan(table).items():
        parts = [(e, e.shape_there(shapes[e.ours] if layer is None else shapes[e.ours][1:])) for e, layer in pieces]
        result[name] = _fused_shape(parts)
    return result


def check(files: TensorFiles, shapes: Mapping[str, tuple[int, ...]], table: Sequence[Entry]) -> Report:
    """Checks that a file has the tensors that our arrays of these shapes need.

    Args:
      shapes: of our arrays by path, all that are in the table.

    Raises:
      ValueError: a tensor that is missing, mis-shaped or not of a floating type, by name.
    """
    wanted = shapes_there(shapes, table)
    missing = [name for name in wanted if name not in files]
    where = ", ".join(map(str, files.paths))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"tensor {missing[0]}{more} missing in {where}")
    for name, shape in wanted.items():
        if files.shape(name) != shape:
            raise ValueError(f"tensor {name} has shape {files.shape(name)} in {where}; the config needs {shape}")
        if files.dtype(name) not in FLOATS:
            raise ValueError(f"tensor {name} is {files.dtype(name)} in {where}; it must be one of {', '.join(FLOATS)}")
    return Report(tuple(wanted), tuple(name for name in files if name not in wanted))


def read(files: TensorFiles, abstract: Mapping[str, Any], table: Sequence[Entry]) -> dict[str, Any]:
    """Reads our arrays straight into their shardings: a device's shard is read from the file for that device alone.

    Args:
      abstract: tree of jax.ShapeDtypeStruct with shardings, exactly the arrays of the table. Values are converted to
        its dtypes.

    Raises:
      ValueError: as `check`; an array that the table lacks, or the other way round.
    """
    flat = flatten(abstract)
    odd = {entry.ours for entry in table} ^ set(flat)
    if odd:
        raise ValueError(f"parameters and weight table differ: {', '.join(sorted(odd)[:3])}")
    check(files, {path: leaf.shape for path, leaf in flat.items()}, table)
    return nest({entry.ours: _read_one(files, entry, flat[entry.ours]) for entry in table})


def _read_one(files: TensorFiles, entry: Entry, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    names = entry.names()

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # that it may be None is only in the annotation of jax
        if entry.layers is None:
            return _read_part(files, entry, names[0], index).astype(leaf.dtype)
        layers = range(*index[0].indices(entry.layers))
        shape = [len(range(*cut.indices(size))) for cut, size in zip(index, leaf.shape, strict=True)]
        stacked = np.empty(shape, leaf.dtype)
        for row, layer in enumerate(layers):
            stacked[row] = _read_part(files, entry, names[layer], index[1:])
        return stacked

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)


def _read_part(files: TensorFiles, entry: Entry, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """`to_ours(theirs[part])[index]`; of linear and plain tensors only that part is read."""
    if entry.layout == "conv":
        return entry.to_ours(files[name])[index]
    axes = _AXES[entry.layout]
    theirs = index if axes is None else tuple(index[i] for i in np.argsort(axes))
    cuts = []
    whole = files.shape(name)
    part = entry.part() + (slice(None),) * (len(whole) - len(entry.part()))
    for size, outer, inner in zip(whole, part, theirs, strict=True):
        start, stop, _ = outer.indices(size)
        first, last, _ = inner.indices(stop - start)
        cuts.append(slice(start + first, start + last))
    return entry.to_ours(files.part(name, tuple(cuts)))


def _layer(array: Any, layer: int | None) -> np.ndarray:
    return np.asarray(array if layer is None else array[layer])


def _fused_shape(parts: Sequence[tuple[Entry, tuple[int, ...]]]) -> tuple[int, ...]:
    """Shape of the tensor that the parts make up."""
    shape = list(parts[0][1])
    for axis, bounds in enumerate(("rows", "columns")):
        cuts = sorted(cut for entry, _ in parts if (cut := getattr(entry, bounds)))
        if cuts:
            shape[axis] = max(stop for _, stop in cuts)
    covered = sum(int(np.prod(part)) for _, part in parts)
    if covered != int(np.prod(shape)):
        raise ValueError(f"the parts of {parts[0][0].theirs} do not make up a whole tensor: {covered} of {shape}")
    return tuple(shape)
