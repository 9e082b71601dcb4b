"""What a training run is at one step, how it is laid over the devices, and how it comes into being."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from mf_jax.joint_model import JointModel
from mf_jax.optimizer import OptimizerConfig, make_optimizer
from mf_jax.parallel import sharding
from mf_jax.settings import build

INIT_STREAM = 0  # first fold of the seed for the initial parameters


class TrainState(flax.struct.PyTreeNode):
    """Steps done, float32 parameters, their moving average, and the optimizer's moments."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def optimizer_of(config: Mapping[str, Any]) -> optax.GradientTransformation:
    section = build(OptimizerConfig, config["optimizer"], "optimizer")
    return make_optimizer(section, config["train"]["steps"])


def _boxed(model: JointModel, config: Mapping[str, Any]) -> TrainState:
    """Step 0 with logical axis names on every leaf that has axes; the EMA starts as the parameters."""
    params = model.init(jax.random.fold_in(jax.random.key(config["seed"]), INIT_STREAM))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer_of(config).init(params),
    )


def new(model: JointModel, config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> TrainState:
    """A fresh state, every array made where it belongs."""
    layout = layout_of(model, config, mesh)
    return jax.jit(lambda: nn.unbox(_boxed(model, config)), out_shardings=layout)()


def layout_of(model: JointModel, config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> TrainState:
    """The NamedSharding of every array.

    Raises:
      ValueError: a dimension that its mesh axes do not divide.
    """
    return sharding.shardings(jax.eval_shape(lambda: _boxed(model, config)), mesh)


def abstract(model: JointModel, config: Mapping[str, Any], mesh: jax.sharding.Mesh | None = None) -> TrainState:
    """Shapes, dtypes and shardings of the state; on one device without a mesh."""
    boxed = jax.eval_shape(lambda: _boxed(model, config))
    if mesh is None:
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=single), nn.unbox(boxed))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nn.unbox(boxed),
        sharding.shardings(boxed, mesh),
    )
