"""The verb `show`: prints a config with its model, or a checkpoint with its digests."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from mf_jax.checkpoint.manager import Checkpoints, digest
from mf_jax.config import loading as configs
from mf_jax.config.config import Config
from mf_jax.data.caption_lengths import caption_lengths
from mf_jax.data.packing import TextLayout
from mf_jax.data.precomputed import TEXT_FEATURES
from mf_jax.joint_model import JointModel, build_model
from mf_jax.monitoring import flops
from mf_jax.parallel import sharding
from mf_jax.training import partition, train_state


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of parameters; the names of its fields are the headings.

    Attributes:
      mesh_axes: of each dimension, those that cut it, "-" for none.
    """

    parameter: str
    shape: tuple[int, ...]
    mesh_axes: str
    bytes_per_device: int


def show_config(spec: str, overrides: Sequence[str], devices: int | None = None) -> None:
    """Prints the resolved config, the layout of the parameters, counts, tokens and FLOPs per step; allocates nothing.

    Args:
      devices: that the mesh is laid over, as many as there are here unless said.
    """
    config = configs.load(spec, overrides)
    model = build_model(config).with_precomputed(config.data.precomputed)
    _print_config(config)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    parts = _print_layout(model, config, jax.device_count() if devices is None else devices)
    _print_counts(model, params, config, parts)


def _print_layout(model: JointModel, config: Config, devices: int) -> int:
    """Prints every parameter with the mesh axes of its dimensions, and the bytes of the train state on each device.

    Returns:
      The number of parts that the mesh splits a batch into.
    """
    layout = config.mesh
    sizes = sharding.mesh_sizes(layout, devices)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with sharding.rules(layout.rules):
        state = train_state.abstract(model, config, mesh)
        sharding.check_divisible(model.sizes, mesh)
        parts_of_batch = sharding.batch_parts(mesh)

    def local(leaf: Any) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)) * leaf.dtype.itemsize

    rows = []
    params = partition.combine(state.params, state.untrained)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        cut_by = [[a] if isinstance(a, str) else a or () for a in leaf.sharding.spec]
        axes = ["*".join(name for name in names if sizes[name] > 1) or "-" for names in cut_by]
        axes += ["-"] * (len(leaf.shape) - len(axes))
        name = "/".join(entry.key for entry in path)
        rows.append(Row(name, leaf.shape, " ".join(axes), local(leaf)))
    print(parameter_overview.make_table(rows))
    parts = {name: sum(map(local, jax.tree.leaves(tree))) for name, tree in vars(state).items()}
    print(f"mesh of {devices} devices: " + ", ".join(f"{axis} {size}" for axis, size in sizes.items()))
    print(f"bytes per device: {sum(parts.values()):,} (" + ", ".join(f"{k} {v:,}" for k, v in parts.items() if v) + ")")
    return parts_of_batch


def show_checkpoint(directory: str, step: int | None = None, trust_code: bool = False) -> None:
    """Prints config, parameters with mean and standard deviation, step, and SHA-256 digests of the parts of the state.

    Args:
      step: which checkpoint, the latest unless said. trust_code: whether its config may name modules to import.
    """
    folder = pathlib.Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"no checkpoints in {directory}; give the --workdir of a training run")
    checkpoints = Checkpoints(folder)
    step = checkpoints.intact(step)
    config = configs.resolve_saved(checkpoints.config(step), trusted=trust_code)
    model = build_model(config).with_precomputed(config.data.precomputed)
    held = checkpoints.items(step)
    state = vars(train_state.abstract(model, config))
    parts = [name for name in ("params", "untrained", "ema", "opt_state") if name in held]
    items = checkpoints.restore({name: state[name] for name in parts}, step)
    position = checkpoints.iterator(step)
    checkpoints.close()
    _print_config(config)
    params = partition.combine(items["params"], items.get("untrained", {}))
    print(parameter_overview.get_parameter_overview(params))
    _print_counts(model, params, config, 1)
    print(f"step: {step}")
    print(f"data: {position}")
    for name, tree in items.items():
        print(f"{name} sha256: {digest(tree)}")


def _print_config(config: Config) -> None:
    print(ConfigDict(configs.to_dict(config)))


def _print_counts(model: JointModel, params: Any, config: Config, parts: int) -> None:
    """Args:
    parts: that devices split a batch into.
    """

    def count(tree: Any) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    batch = config.train.batch
    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    tokens["text"] = model.text.tokens
    per_token = ", ".join(f"{name} {n}" for name, n in tokens.items())
    print(f"parameters: {count(params):,} (" + ", ".join(f"{k} {count(v):,}" for k, v in params.items()) + ")")
    total = sum(tokens.values())
    print(f"tokens per example: {total} ({per_token}); per step of {batch}: {total * batch:,}")
    step = flops.step_flops(model, config)
    print(f"model FLOPs per step: {step:.4g} (forward of one example: {flops.forward_flops(model):.4g})")
    if paths := config.train.freeze:
        print(f"untrained parameters: {count(partition.partition(params, paths)[1]):,} ({', '.join(paths)})")
    if config.objective.distills:
        print(f"teacher, forward of one example: {flops.teacher_flops(model):.4g}, counted in the step")
    _print_hardware(model, config, _print_text(model, config, parts))


def _print_text(model: JointModel, config: Config, parts: int) -> float:
    """Prints how much of the text is padding and how captions share rows; rows of the text encoder per example."""
    length = model.text.length
    try:
        tokenizer = None if TEXT_FEATURES in model.precomputed else model.text.tokenizer()
        lengths = caption_lengths(config.data, tokenizer)
        print(
            f"text: {lengths.mean():.1f} of {length} ids are no padding, {1 - lengths.mean() / length:.0%} are "
            f"({len(lengths)} captions of the training split)"
        )
    except ValueError as error:
        print(f"text: how many of {length} ids are padding is not known: {error}")
    accumulate, expected = config.train.accumulate, getattr(config.text, "expected_tokens", 0)
    group = max(config.train.batch // (parts * accumulate), 1)
    layout = TextLayout(model.text_lengths, model.packs_text, group, accumulate)
    shape = layout.expected(expected, length)
    if layout.packed:
        how = f"of {expected} tokens" if expected else "of unknown length"
        print(
            f"rows of the text encoder: {shape.rows} for every {group} captions, {layout.encoded(shape):.3f} each, "
            f"expected for captions {how} (text.expected_tokens)"
        )
    return layout.encoded(shape)


def _print_hardware(model: JointModel, config: Config, text_rows: float) -> None:
    """Prints hardware FLOPs: the model's, what remat computes again, each frozen network; with these and without.

    Args:
      text_rows: rows of the text encoder per example.
    """
    networks = {}
    for name, network in model.networks.items():
        try:
            cost = network.flops(model.resolution)
        except ValueError as error:
            print(f"frozen network {name}: FLOPs not known, {error}")
            continue
        networks[name] = network
        decode = f", decoding {cost.decode:.4g}" if cost.decode else ""
        what = f"row of {model.text.length} tokens" if name == "text" else "example"
        print(f"frozen network {name}, forward of one {what}: {cost.encode:.4g}{decode} ({cost.source})")
    if config.data.precomputed:
        print(f"with the data come {', '.join(config.data.precomputed)} (data.precomputed)")
    alone = flops.hardware_flops(dataclasses.replace(model, networks={}), config)
    step = flops.hardware_flops(dataclasses.replace(model, networks=networks), config, text_rows)
    counted = ["the model's", f"remat {config.model.remat}", *(f"frozen {name}" for name in networks)]
    print(f"hardware FLOPs per step: {step:.4g} ({', '.join(counted)})")
    if networks:
        print(f"without the frozen networks: {alone:.4g}; with them the step costs {step / alone:.2f} times as much")
