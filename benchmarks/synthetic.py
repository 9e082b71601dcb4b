"""What the benchmarks train on: configs, and batches in which the frozen networks' results are there already.

Needs neither data, tokenizers nor published weights, and of the packages only jax, flax, optax and what mf_jax's models
import: no grain, clu, ml_collections, orbax.

Legend: B batch, H W pixels, h w latents, C channels of a latent, L text ids, M text tokens, D text channels.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mf_jax.config.config import Config
from mf_jax.configurable import Section
from mf_jax.joint_model import JointModel, build_model
from mf_jax.modalities import flux2_latent
from mf_jax.training.train_step import make_train_step


def load(path: str | pathlib.Path, **changes: Mapping[str, Any]) -> Config:
    """A config file with the defaults filled in.

    Args:
      changes: by section, values that replace those of the file: model={"layers": 6}.
    """
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    raw = module.get_config()
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | dict(values)
    return Section(Config).build(raw, "")


def model_of(config: Config) -> JointModel:
    """The model without its frozen networks."""
    model = build_model(config)
    return model.with_precomputed([f for network in model.networks.values() for f in network.makes(model.resolution)])


def train_step(model: JointModel, config: Config) -> Callable[..., Any]:
    """(state, frozen_params, batch, teacher=None) -> (state, metrics), not compiled; text is not dropped."""
    train, objective = config.train, config.objective
    if model.text_encoder is None:
        objective = dataclasses.replace(objective, caption_dropout=0.0)
    optimizer = config.optimizer.make(train.steps)
    return make_train_step(model, objective, optimizer, config.seed, train.accumulate, train.ema_decay)


def fields(model: JointModel, B: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch."""
    H, W = model.resolution
    shapes: dict[str, Any] = {}
    if model.text_encoder is not None:
        shapes["text_ids"] = ((B, model.text.length), jnp.int32)
    else:
        shapes["text_mask"] = ((B, model.text.length), jnp.bool_)
        shapes["text_features"] = ((B, model.text.tokens, model.text.channels), model.backbone.dtype)
    for name, modality in model.modalities.items():
        if isinstance(modality.codec, flux2_latent.Codec):
            shapes["image_latent"] = ((B, *model.grids[name], modality.codec.channels), jnp.float32)
        elif name == "depth":
            shapes |= {"depth": ((B, H, W), jnp.float32), "depth_valid": ((B, H, W), jnp.bool_)}
        else:
            shapes["image"] = ((B, H, W, 3), jnp.uint8)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def batch(model: JointModel, B: int, seed: int = 0) -> dict[str, jax.Array]:
    """A batch made on the device: normal latents and features, a fifth of the depth measured, half of the text real."""

    def make(key: jax.Array) -> dict[str, jax.Array]:
        made = {}
        for i, (name, wanted) in enumerate(fields(model, B).items()):
            own = jax.random.fold_in(key, i)
            if name == "depth":
                made[name] = jax.random.uniform(own, wanted.shape, minval=0.5, maxval=10.0)
            elif name == "depth_valid":
                made[name] = jax.random.bernoulli(own, 0.2, wanted.shape)
            elif name == "text_mask":
                made[name] = jnp.broadcast_to(jnp.arange(wanted.shape[1]) < (wanted.shape[1] + 1) // 2, wanted.shape)
            elif jnp.issubdtype(wanted.dtype, jnp.floating):
                made[name] = jax.random.normal(own, wanted.shape, wanted.dtype)
            else:
                made[name] = jax.random.randint(own, wanted.shape, 0, 256, jnp.int32).astype(wanted.dtype)
        return made

    return jax.jit(make)(jax.random.key(seed))
