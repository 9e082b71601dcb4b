"""Sharding: the device mesh, and the one table of rules that maps logical axis names to mesh axes.

Every parameter and activation names its axes (`embed`, `mlp`, `batch`, ...); `RULES` maps a name to mesh axes, and
`mesh.rules` of the config overrides single entries. Gradients, optimizer state and EMA follow the parameters.

    data     batch split, parameters whole: also over the slices of a multi-slice run, whose network is slower
    fsdp     batch split, and every matrix split on its model-width axis, gathered layer by layer where it is used
    tensor   attention heads and the hidden width of the MLP split
    context  tokens split; queries stay where they are, keys and values are gathered
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mf_jax.configurable import check_at_least, nearest

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "sequence": ("context",),
    # parameters, and the activations that they make
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # the rest is whole on every device
    "embed_activation": (),
    "embed_out": (),
    "key_sequence": (),
    "layers": (),
    "head": (),
    "norm": (),  # too small to be worth gathering
    "modulation": (),
    "channels": (),
    "time": (),
    "text": (),
    "text_out": (),
    "vocabulary": (),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, see the top of the file; one may be -1: as many devices as the other axes leave.

    Attributes:
      data, fsdp, tensor, context: within a slice.
      slices: copies of that mesh, one per slice of a multi-slice run, joined along `data`.
      rules: {logical axis: mesh axes} in place of those of RULES: {"sequence": ("context", "tensor"), "mlp": ()}.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least("mesh", self, slices=1)
        for name, axes in self.rules.items():
            if name not in RULES:
                raise ValueError(f"mesh.rules names the axis {name!r}; {nearest(name, RULES)}")
            for axis in _axes(axes):
                if axis not in AXES:
                    raise ValueError(f"mesh.rules.{name} is {axes!r}; the mesh axes are {', '.join(AXES)}")


def _axes(value: Any) -> tuple[str, ...]:
    """The mesh axes of a rule, which gives one name, several, or None, as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The size of every mesh axis over all slices, -1 resolved.

    Args:
      devices: number of devices of all slices together.

    Raises:
      ValueError: the sizes do not multiply to the number of devices of a slice.
    """
    count, rest = divmod(devices, config.slices)
    if rest:
        raise ValueError(f"mesh.slices is {config.slices}; {devices} devices cannot be dealt evenly to as many")
    where = f"{count} in each of {config.slices} slices" if config.slices > 1 else f"{count}"
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if list(sizes.values()).count(-1) > 1 or any(s == 0 or s < -1 for s in sizes.values()):
        raise ValueError(f"mesh sizes {sizes}: at most one may be -1, the others positive")
    known = int(np.prod([s for s in sizes.values() if s > 0]))
    if count % known or (-1 not in sizes.values() and known != count):
        raise ValueError(
            f"mesh {sizes} does not fit the devices, there are {where}: the sizes must multiply to that number, "
            "-1 standing for the rest"
        )
    sizes = {axis: count // known if s == -1 else s for axis, s in sizes.items()}
    return sizes | {"data": sizes["data"] * config.slices}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, or over those given.

    Raises:
      ValueError: as `mesh_sizes`; the devices belong to another number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if config.slices == 1:
        try:
            return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)
        except NotImplementedError:
            raise ValueError(
                f"mesh {sizes}: each size must be that of an axis of the TPU slice, or a product of some, so that "
                "neighbours on the mesh are neighbours in the slice"
            ) from None
    found = {getattr(device, "slice_index", None) for device in devices}
    if len(found) != config.slices:
        raise ValueError(f"mesh.slices is {config.slices}; the devices are of {len(found)}")
    within = (sizes["data"] // config.slices, *list(sizes.values())[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (config.slices, 1, 1, 1), devices)
    return Mesh(grid, AXES, axis_types=types)


@contextlib.contextmanager
def rules(overrides: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Context in which `overrides` (MeshConfig.rules) stand in place of those entries of RULES."""
    table = {name: _axes(axes) for name, axes in (RULES | dict(overrides or {})).items()}
    with nn.logical_axis_rules([(name, axes or None) for name, axes in table.items()]):
        yield


@contextlib.contextmanager
def scope(mesh: Mesh) -> Iterator[None]:
    """Context to trace models in for a mesh, with the rules of an enclosing `rules` context, else RULES."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        if not nn.get_logical_axis_rules():
            stack.enter_context(rules())
        yield


def spec(names: Iterable[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axis names, by the enclosing `rules` context, else RULES."""
    table = dict(nn.get_logical_axis_rules() or RULES.items())
    taken: set[str] = set()
    entries = []
    for name in names:
        axes = tuple(axis for axis in _axes(table[name] if name else None) if axis not in taken)
        taken.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def is_box(leaf: Any) -> bool:
    """Whether a leaf is flax's box around an array (or its shape) that holds its logical axis names."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The NamedShardings of a tree of arrays or shapes that are boxed with their logical axis names (flax's `init`).

    Raises:
      ValueError: a dimension that its mesh axes do not divide; names parameter, dimension and axis.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = leaf.names if is_box(leaf) else ()
        layout, shape = spec(names), (leaf.value if names else leaf).shape
        for dimension, (axes, size) in enumerate(zip(layout, shape, strict=False)):
            if size % (parts := _parts(mesh, axes)):
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {shape}: dimension {dimension} ({size}) is not "
                    f"divisible by mesh axis {'*'.join(_axes(axes))} of size {parts}"
                )
        return NamedSharding(mesh, layout)

    return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=is_box)


def _parts(mesh: Any, axes: Any) -> int:
    """The number of parts that these mesh axes split a dimension into."""
    return int(np.prod([mesh.shape[axis] for axis in _axes(axes)], dtype=int))


def check_divisible(sizes: Iterable[tuple[str, str, int]], mesh: Mesh | AbstractMesh) -> None:
    """Checks the sizes of activations before anything is traced.

    Args:
      sizes: (what it is, in words, with the config key; its logical axis; its size).

    Raises:
      ValueError: a size that its mesh axes do not divide; names it and the axes.
    """
    for what, name, size in sizes:
        axes = spec((name,))[0]
        if size % (parts := _parts(mesh, axes)):
            raise ValueError(
                f"{what}: {size} is not divisible by mesh axis {'*'.join(_axes(axes))} of size {parts}; change either"
            )


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Checks that a batch can be split into accumulated parts and over the devices.

    Raises:
      ValueError: it cannot; names the next larger batch that can.
    """
    parts = batch_parts(mesh)
    if batch % (accumulate * parts):
        unit = accumulate * parts
        raise ValueError(
            f"train.batch {batch} is not divisible by {accumulate} (train.accumulate) x {parts} (the devices that it "
            f"is split over); the next that is: {-(-batch // unit) * unit}"
        )


def is_split(name: str) -> bool:
    """Whether a logical axis is split on the mesh of the enclosing `scope`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and _parts(mesh, spec((name,))[0]) > 1


def where_divisible(names: Sequence[str | None], shape: Sequence[int]) -> tuple[str | None, ...]:
    """The logical names, None for those whose mesh axes (of the enclosing `scope`) do not divide the dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    layout = spec(names)
    fits = [mesh.empty or size % _parts(mesh, axes) == 0 for size, axes in zip(shape, layout, strict=True)]
    return tuple(name if fit else None for name, fit in zip(names, fits, strict=True))


def per_device(
    function: Callable[..., jax.Array], inputs: Sequence[tuple[str | None, ...]], output: tuple[str | None, ...]
) -> Callable[..., jax.Array]:
    """`function` mapped over the devices by shard_map, for kernels that the compiler cannot partition.

    Args:
      function: called on each device's part of the arguments.
      inputs: logical names of the axes of every argument. output: of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    specs = tuple(spec(names) for names in inputs)
    return jax.shard_map(function, in_specs=specs, out_specs=spec(output), check_vma=False)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, spec(("batch",)))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts the devices split a batch into."""
    return _parts(mesh, spec(("batch",))[0])


def batch_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Indices of the examples of a batch that the devices of this process hold, ascending, int (b,)."""
    cuts = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[cut] for cut in cuts]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that are whole on every device, so that every process can read them."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's `batch_rows` on its devices and returns the global array of every field."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
