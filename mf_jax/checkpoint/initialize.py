"""Initial parameters of a new run: copied or cloned from another checkpoint (config section `init`), or drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from mf_jax.config.config import Config
from mf_jax.configurable import nearest
from mf_jax.joint_model import JointModel
from mf_jax.models.weight_table import flatten, nest
from mf_jax.training import partition, train_state


@dataclasses.dataclass(frozen=True)
class Origins:
    """The origin of every array of the new model, by path.

    Attributes:
      taken, cloned: {path: path in the source}, of the same path and by a rule of init.clone.
      fresh: paths of arrays that are drawn anew. left_over: paths of the source whose arrays are not taken.
    """

    taken: dict[str, str]
    cloned: dict[str, str]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} arrays taken"]
        lines += [f"cloned: {path} from {original}" for path, original in self.cloned.items()]
        lines += [f"from scratch: {path}" for path in self.fresh]
        lines += [f"left over: {path}" for path in self.left_over]
        return "\n".join(lines)


def origins(
    wanted: Mapping[str, tuple[int, ...]], source: Mapping[str, tuple[int, ...]], clone: Mapping[str, str]
) -> Origins:
    """Determines the origin of every array of a new model.

    Args:
      wanted, source: shapes by path, of the new model and of the checkpoint that it starts from.
      clone: init.clone, {path prefix of the new model: path prefix of the source}.

    Raises:
      ValueError: an array of the same path and another shape; a clone rule that matches nothing, or shapes that differ.
    """
    taken: dict[str, str] = {}
    cloned: dict[str, str] = {}
    fresh = []
    used: set[str] = set()
    for path, shape in wanted.items():
        rule = next((rule for rule in clone if path == rule or path.startswith(f"{rule}/")), None)
        if path in source:
            if source[path] != shape:
                raise ValueError(f"init.checkpoint has {path} of shape {source[path]}; this model's has {shape}")
            taken[path] = path
        elif rule is not None:
            original = clone[rule] + path[len(rule) :]
            if source.get(original) != shape:
                raise ValueError(
                    f"init.clone copies {original} to {path} of shape {shape}; "
                    f"the checkpoint has {source.get(original)} there"
                )
            cloned[path] = original
            used.add(rule)
        else:
            fresh.append(path)
    for rule in clone:
        if rule not in used and not any(path == rule or path.startswith(f"{rule}/") for path in taken):
            raise ValueError(f"init.clone names {rule!r}; {nearest(rule, wanted)}")
    if not taken:
        raise ValueError("init.checkpoint and this model have no array in common")
    return Origins(taken, cloned, tuple(fresh), tuple(path for path in source if path not in taken))


def params(
    model: JointModel, config: Config, mesh: jax.sharding.Mesh, source: Mapping[str, Any]
) -> tuple[Any, Origins]:
    """All parameters of a new run, laid out on the mesh, and their origins.

    Args:
      source: the parameters to start from, float32, sharded by the same rules.

    Raises:
      ValueError: as `origins`.
    """
    layout = flatten(train_state.abstract_params(model, config, mesh))
    given = flatten(source)
    found = origins(
        {path: leaf.shape for path, leaf in layout.items()},
        {path: leaf.shape for path, leaf in given.items()},
        config.init.clone,
    )
    result = {path: given[original] for path, original in found.taken.items()}
    result |= {path: given[original].copy() for path, original in found.cloned.items()}

    def scratch() -> dict[str, jax.Array]:
        all_of_them = flatten(nn.unbox(train_state.initial_params(model, config)))
        return {path: all_of_them[path] for path in found.fresh}

    result |= jax.jit(scratch, out_shardings={path: layout[path].sharding for path in found.fresh})()
    return nest({path: jax.device_put(result[path], leaf.sharding) for path, leaf in layout.items()}), found


def teacher(config: Config, source: Mapping[str, Any]) -> Any:
    """The self-distillation teacher's own parameters: those that the student trains; it shares the untrained ones.

    Args:
      source: all parameters of init.checkpoint.
    """
    known = flatten(source)
    frozen = [prefix for prefix in config.train.freeze if any(path.startswith(prefix) for path in known)]
    return partition.partition(source, frozen)[0]
