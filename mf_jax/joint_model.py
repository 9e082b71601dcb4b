"""The joint model: the modalities, the text encoder and the backbone of one config, as training and sampling use them.

Legend: B batch, L text ids, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.diffusion.noise_levels import Mode
from mf_jax.modalities.base import Batch, Modality
from mf_jax.models import frozen
from mf_jax.models.attention import kernel_for_sampling
from mf_jax.models.backbones import BackboneConfig
from mf_jax.models.read_dtypes import read_dtypes
from mf_jax.models.stream import Stream
from mf_jax.models.text.encoders import TextConfig

Params = Any
Tokens = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class JointModel:
    """The modules and options of one model; its parameters are arguments of the methods.

    Attributes:
      modalities: by name, in the order of their positions; the first leads (text follows its noise level).
      modes: training cases by name, sorted.
      text: as configured. text_encoder: trained with the model; None where the text encoder is frozen.
      networks: frozen networks by name: "text", or the modality that they belong to.
      resolution: (H, W) of the inputs in pixels.
    """

    modalities: dict[str, Modality]
    modes: dict[str, Mode]
    text: TextConfig
    text_encoder: nn.Module | None
    backbone: nn.Module
    networks: dict[str, frozen.FrozenNetwork]
    resolution: tuple[int, int]

    @property
    def leading(self) -> str:
        """The modality whose noise level text follows."""
        return next(iter(self.modalities))

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of tokens by modality."""
        return {name: m.codec.grid(self.resolution) for name, m in self.modalities.items()}

    @property
    def sizes(self) -> list[tuple[str, str, int]]:
        """(description, logical axis, size) of every axis of activations that a mesh may split."""
        found = [("text tokens (section text)", "sequence", self.text.tokens)]
        for name, (rows, columns) in self.grids.items():
            found.append(
                (f"tokens of modalities.{name} at data.resolution {self.resolution}", "sequence", rows * columns)
            )
        found.append(("model.heads", "heads", self.backbone.heads))
        return found + [("model.kv_heads", "kv_heads", getattr(self.backbone, "kv_heads", self.backbone.heads))]

    @functools.cached_property
    def null_text(self) -> dict[str, np.ndarray]:
        """Text fields of the empty prompt, leading axis 1."""
        return {name: np.asarray(value)[None] for name, value in self.text.tokenizer().fields("").items()}

    def for_sampling(self, platform: str) -> JointModel:
        """The same model with the attention kernel to sample with on a platform, "cpu", "gpu" or "tpu"."""
        kernel = kernel_for_sampling(self.backbone.attention, platform)
        return dataclasses.replace(self, backbone=self.backbone.clone(attention=kernel))

    def init(self, key: jax.Array) -> Params:
        """Float32 parameters {"backbone": ..., "text": ...}, boxed with their logical axis names."""
        text_key, backbone_key = jax.random.split(key)
        x = {n: jnp.zeros((1, g[0] * g[1], self.modalities[n].codec.channels)) for n, g in self.grids.items()}
        t = {n: jnp.zeros((1,)) for n in self.modalities}
        features = jnp.zeros((1, self.text.tokens, self.text.channels))
        params = {"backbone": self.backbone.init(backbone_key, x, t, self.grids, features)["params"]}
        if self.text_encoder is not None:
            params["text"] = self.text_encoder.init(text_key, jnp.zeros((1, self.text.length), jnp.int32))["params"]
        return params

    def predict(self, params: Params, x: Tokens, t: Tokens, fields: Batch) -> Tokens:
        """Raw float32 outputs by modality (clean tokens or velocity, as each is trained).

        Args:
          x: noised tokens x_BNC by modality; any subset of the modalities that the backbone accepts.
          t: noise levels t_B by modality.
          fields: `text_features`, or `text_ids` where the text encoder is trained with the model; `text_mask`, where
            there is one, says which text tokens are not padding. Other fields are not read.
        """
        features = self.with_text_features(params, fields)["text_features"]
        grids = {name: self.grids[name] for name in x}
        valid = fields.get("text_mask") if self.text_encoder is None else None
        variables = {"params": params["backbone"]}
        return cast(Tokens, self.backbone.apply(variables, x, t, grids, features, text_valid_BM=valid))

    def as_read(self, params: Params) -> Params:
        """Shapes of all parameters, given as shapes, each with the dtype to hold it in where only `predict` reads it.

        Half the bytes where the network computes in bfloat16, and the same results: see `read_dtypes`.
        """
        if self.backbone.dtype == jnp.float32:
            return params
        grids, (M, D) = self.grids, (self.text.tokens, self.text.channels)
        x = {
            name: jnp.zeros((1, grid[0] * grid[1], self.modalities[name].codec.channels))
            for name, grid in grids.items()
        }
        fields = {"text_mask": jnp.ones((1, M), bool)}
        if self.text_encoder is None:
            fields["text_features"] = jnp.zeros((1, M, D))
        else:
            fields["text_ids"] = jnp.zeros((1, self.text.length), jnp.int32)
        return read_dtypes(self.predict, params, x, {name: jnp.zeros((1,)) for name in x}, fields)

    def with_text_features(self, params: Params, fields: Batch) -> Batch:
        """The fields, and `text_features` of a text encoder that is trained with the model, unless they are there."""
        if self.text_encoder is None or "text_features" in fields:
            return fields
        features = cast(jax.Array, self.text_encoder.apply({"params": params["text"]}, fields["text_ids"]))
        return {**fields, "text_features": features}

    def with_frozen_features(self, frozen_params: Mapping[str, Any], batch: Batch) -> Batch:
        """The batch, and the fields that the frozen networks add to it: text features, image latents.

        Args:
          frozen_params: parameters of the frozen networks by name.
        """
        return frozen.with_frozen_features(self.networks, frozen_params, batch)

    def encode(self, batch: Batch) -> Tokens:
        """Clean tokens x_BNC, float32, by modality; the batch has its frozen features."""
        return {name: m.codec.encode(batch) for name, m in self.modalities.items()}

    def valid(self, batch: Batch) -> Tokens:
        """Which token entries were measured, bool (B, N, C) by modality; the batch may lack its frozen features."""
        return {name: m.codec.valid(batch) for name, m in self.modalities.items()}

    def decode(self, frozen_params: Mapping[str, Any], tokens: Tokens) -> dict[str, jax.Array]:
        """The modalities' own arrays (pixels, depth) of clean tokens."""
        decoded = {}
        for name, x_BNC in tokens.items():
            decoded[name] = self.modalities[name].codec.decode(x_BNC, self.grids[name])
            if (network := self.networks.get(name)) is not None:
                assert isinstance(network, frozen.FrozenAutoencoder)
                decoded[name] = network.decode(frozen_params[name], decoded[name])
        return decoded


class ModelConfig(Protocol):
    """The parts of a config that a model is built from."""

    @property
    def modalities(self) -> Mapping[str, Modality]: ...

    @property
    def modes(self) -> Mapping[str, Mode]: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def model(self) -> BackboneConfig: ...

    @property
    def data(self) -> Resolution: ...


class Resolution(Protocol):
    """The part of the section `data` that a model is built from."""

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) that the model sees."""


def build_model(config: ModelConfig, platform: str | None = None) -> JointModel:
    """Builds the model that a config describes.

    Args:
      platform: where it will run, "cpu", "gpu" or "tpu"; values that are "auto" depend on it. By default that of this
        process's devices.

    Raises:
      ValueError: an option that the platform does not support, or a resolution that does not divide into tokens.
    """
    modalities = {m.name: m for m in sorted(config.modalities.values(), key=lambda m: m.position)}
    platform = jax.default_backend() if platform is None else platform
    dtype = config.model.on(platform)["dtype"]
    streams = tuple(Stream(m.name, m.codec.channels, m.position, m.decoder_blocks) for m in modalities.values())
    networks: dict[str, frozen.FrozenNetwork] = {}
    for name, modality in modalities.items():
        if (network := modality.network(dtype)) is not None:
            networks[name] = network
    if (encoder := config.text.network(dtype)) is not None:
        networks["text"] = encoder
    joint = JointModel(
        modalities=modalities,
        modes=dict(sorted(config.modes.items())),
        text=config.text,
        text_encoder=config.text.encoder(dtype),
        backbone=config.model.module(streams, platform),
        networks=networks,
        resolution=config.data.resolution,
    )
    joint.grids  # noqa: B018  (an indivisible resolution is found here, not in the first step)
    return joint
