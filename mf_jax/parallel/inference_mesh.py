"""The mesh of sampling and evaluating, and the batches on it: every device of every process takes part of a batch.

Parameters are whole on every device as long as they fit there, and split over as few as they fit on otherwise. The
sizes of the config's `mesh` are those of the training and are not used; its rules are, by an enclosing
`sharding.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mf_jax.parallel import sharding
from mf_jax.parallel.sharding import MeshConfig

SHARE = 0.5  # of a device's memory that parameters may take; the rest is for the batch and what is computed of it


def fsdp_size(bytes_on: Callable[[Mesh], int], memory: int | None = None) -> int:
    """The smallest size of the axis fsdp with which the parameters take at most SHARE of a device's memory.

    Args:
      bytes_on: bytes of all parameters on a device of this mesh; ValueError where they cannot be split like that.
      memory: bytes of a device; None: as the device says. CPUs do not say it, and are taken to have enough.

    Returns:
      A divisor of the number of devices; the one that takes least where none takes so little.
    """
    if memory is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    count = jax.device_count()
    if memory is None or count == 1:
        return 1
    needed = {1: bytes_on(mesh_of(1))}
    for size in range(2, count + 1):
        if min(needed.values()) <= SHARE * memory:
            break
        if count % size == 0:
            try:
                needed[size] = bytes_on(mesh_of(size))
            except ValueError:  # a dimension that this size does not divide
                continue
    return min(needed, key=lambda size: needed[size])


def mesh_of(fsdp: int) -> Mesh:
    """The mesh over all devices with this size of the axis fsdp, the rest on data."""
    slices = len({getattr(device, "slice_index", None) for device in jax.devices()})
    return sharding.make_mesh(MeshConfig(data=-1, fsdp=fsdp, slices=slices))


def bytes_per_device(abstract: Any) -> int:
    """Bytes on one device of a tree of jax.ShapeDtypeStruct with shardings."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    axes = sharding.spec(("batch",))[0] or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def row_processes(mesh: Mesh, batch: int) -> np.ndarray:
    """The process that holds each example of a batch, int (B,); the first of them where several do."""
    found = np.full(batch, jax.process_count())
    held: Any = sharding.batch_sharding(mesh).devices_indices_map((batch,))
    for device, (cut,) in held.items():
        found[cut] = np.minimum(found[cut], device.process_index)
    return found


def put_rows(value: np.ndarray, batch: int, mesh: Mesh) -> jax.Array:
    """The global array of a batch: the rows of `value` (b, ...), the last one repeated from there on.

    Every process gives `value` in full length, and only the rows that its devices hold are read.
    """

    def part(index: Any) -> np.ndarray:
        return value[np.minimum(np.arange(batch)[index[0]], len(value) - 1)]

    return jax.make_array_from_callback((batch, *value.shape[1:]), sharding.batch_sharding(mesh), part)


def put_whole(value: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that is whole on every device, the same in all processes."""
    return jax.make_array_from_callback(value.shape, sharding.replicated(mesh), lambda index: value[index])
