"""The state of a training run (parameters, EMA, optimizer), its initialisation, and its sharding over the devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mf_jax.joint_model import JointModel
from mf_jax.parallel import sharding
from mf_jax.training import partition
from mf_jax.training.config import Recipe

INIT_STREAM = 0  # first fold of the seed for the initial parameters


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step updates.

    Attributes:
      step: number of updates so far, int32 scalar.
      params: float32 parameters that are trained. untrained: those that are not (train.freeze), {} without any.
      ema: moving average of params. opt_state: state of the optimizer.
    """

    step: jax.Array
    params: Any
    untrained: Any
    ema: Any
    opt_state: Any


def initial_params(model: JointModel, config: Recipe) -> Any:
    """All parameters at step 0, boxed with their logical axis names."""
    return model.init(jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM))


def _from_params(params: Any, config: Recipe) -> TrainState:
    """The state at step 0 with these parameters, boxed or not; the EMA starts equal to them."""
    trained, untrained = partition.partition(params, config.train.freeze)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        untrained=untrained,
        ema=jax.tree.map(jnp.copy, trained),
        opt_state=config.optimizer.make(config.train.steps).init(trained),
    )


def _boxed(model: JointModel, config: Recipe) -> TrainState:
    return _from_params(initial_params(model, config), config)


def new(
    model: JointModel, config: Recipe, mesh: jax.sharding.Mesh, params: Mapping[str, Any] | None = None
) -> TrainState:
    """The state at step 0, every array created with its sharding.

    Args:
      params: parameters to start from, laid out as `abstract_params`; None: drawn from the config's seed.
    """

    def scratch() -> TrainState:
        return _boxed(model, config)

    boxed = jax.eval_shape(scratch)
    layout = sharding.shardings(boxed, mesh)
    if params is None:  # the same function again, boxes and all: jax traces it once
        in_boxes = jax.tree.unflatten(jax.tree.structure(boxed), jax.tree.leaves(layout))
        return nn.unbox(jax.jit(scratch, out_shardings=in_boxes)())
    return jax.jit(lambda params: _from_params(params, config), out_shardings=layout)(params)


def abstract_params(model: JointModel, config: Recipe, mesh: jax.sharding.Mesh | None = None) -> Any:
    """Shapes, dtypes and shardings of all parameters, trained and untrained; on one device without a mesh."""
    return _placed(jax.eval_shape(lambda: initial_params(model, config)), mesh)


def state_shardings(model: JointModel, config: Recipe, mesh: jax.sharding.Mesh) -> TrainState:
    """The NamedSharding of every array of the state.

    Raises:
      ValueError: a dimension that its mesh axes do not divide.
    """
    return sharding.shardings(jax.eval_shape(lambda: _boxed(model, config)), mesh)


def abstract(
    model: JointModel, config: Recipe, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of the state; on one device without a mesh."""
    return _placed(jax.eval_shape(lambda: _boxed(model, config)), mesh)


def _placed(boxed: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None) -> Any:
    tree = nn.unbox(boxed)
    if mesh is None:
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), tree)
    layout = sharding.shardings(boxed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
