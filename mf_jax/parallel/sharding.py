"""The mesh and the one table that says how logical axes lie on it.

Every parameter and activation names its axes (`embed`, `mlp`, `batch`, ...); `RULES` maps a name to mesh axes.
Optimizer state and EMA follow the parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    # the rest is whole on every device
    ("embed_out", None),
    ("embed_activation", None),
    ("sequence", None),
    ("layers", None),
    ("heads", None),
    ("kv_heads", None),
    ("head", None),
    ("mlp", None),
    ("modulation", None),
    ("channels", None),
    ("time", None),
    ("text", None),
    ("text_out", None),
    ("vocabulary", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 takes the devices that the other leaves.

    data: batch split, parameters whole. fsdp: batch and parameters split.
    """

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp]
    count = jax.device_count()
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ValueError(
            f"mesh sizes {dict(zip(AXES, sizes, strict=True))}: at most one may be -1, the others positive"
        )
    known = int(np.prod([s for s in sizes if s > 0]))
    if count % known or (-1 not in sizes and known != count):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not fit the devices, there are {count}: the sizes must "
            "multiply to that number, -1 standing for the rest"
        )
    sizes = [count // known if s == -1 else s for s in sizes]
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings of a tree whose leaves carry logical axis names (as flax's `init` returns it).

    Raises:
      ValueError: a dimension that its mesh axes do not divide; names parameter, dimension and axis.
    """
    specs = nn.get_partition_spec(boxed)
    tree = nn.logical_to_mesh_sharding(specs, mesh, list(RULES))
    flat, _ = jax.tree_util.tree_flatten_with_path(nn.unbox(boxed))
    for (path, leaf), sharding in zip(flat, jax.tree.leaves(tree), strict=True):
        for dimension, axes in enumerate(sharding.spec):
            names = (axes,) if isinstance(axes, str) else axes or ()
            size = int(np.prod([mesh.shape[name] for name in names]))
            if leaf.shape[dimension] % size:
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape}: dimension {dimension} "
                    f"({leaf.shape[dimension]}) is not divisible by mesh axis {'*'.join(names)} of size {size}"
                )
    return tree


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Which examples of a batch the devices of this process hold, in order."""
    cuts = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[cut] for cut in cuts]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device, so that every process can read it."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's `batch_rows` to its devices, as one global array per field. Book-keeping fields stay behind."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
        if name not in ("index", "skipped")
    }


@contextlib.contextmanager
def scope(mesh: Mesh) -> Iterator[None]:
    """Context in which models are traced: the mesh, and the rules for `with_logical_constraint`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES)):
        yield
