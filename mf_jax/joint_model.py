"""The joint model: the modalities, the text encoder and the backbone of one config, as training and sampling use them.

Legend: B batch, L text ids, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
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
from mf_jax.models.text.empty_prompt import EmptyPrompt, in_place_of
from mf_jax.models.text.encoders import TextConfig
from mf_jax.models.text.published import FrozenText

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
      masks_text: no token attends to the padding of the text.
      precomputed: shapes and dtypes of the fields that come with the data, of one example, see `with_precomputed`.
    """

    modalities: dict[str, Modality]
    modes: dict[str, Mode]
    text: TextConfig
    text_encoder: nn.Module | None
    backbone: nn.Module
    networks: dict[str, frozen.FrozenNetwork]
    resolution: tuple[int, int]
    masks_text: bool = True
    precomputed: frozen.Shapes = dataclasses.field(default_factory=dict)

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
        found = [("text tokens (section text)", "sequence", length) for length in self.text_lengths]
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

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Numbers of text tokens that a training step may have, ascending; the last is the model's own."""
        return tuple(sorted({*getattr(self.text, "lengths", ()), self.text.tokens}))

    @property
    def packs_text(self) -> bool:
        """Whether captions share rows of the text encoder in training."""
        return "text" in self.networks and self.masks_text and isinstance(self.text, FrozenText) and self.text.pack

    def with_text_tokens(self, tokens: int) -> JointModel:
        """The model with a shorter text in the transformer, for counting FLOPs."""
        if tokens == self.text.tokens or not isinstance(self.text, FrozenText):
            return self
        return dataclasses.replace(self, text=dataclasses.replace(self.text, max_length=tokens, lengths=()))

    @property
    def text_shapes(self) -> frozen.Shapes:
        """Shapes and dtypes of an example's text fields, as the tokenizer makes them."""
        shapes: frozen.Shapes = {"text_ids": ((self.text.length,), jnp.int32)}
        return shapes if self.text_encoder is not None else shapes | {"text_mask": ((self.text.length,), jnp.bool_)}

    def with_precomputed(self, fields: Collection[str]) -> JointModel:
        """The model for batches that have these fields already: without the frozen networks that make them.

        Raises:
          ValueError: a field that no frozen network of the model makes.
        """
        made = {name: network.makes(self.resolution) for name, network in self.networks.items()}
        shapes = {field: shape for of_one in made.values() for field, shape in of_one.items() if field in fields}
        for field in fields:
            if field not in shapes:
                known = ", ".join(sorted(field for of_one in made.values() for field in of_one)) or "none"
                raise ValueError(
                    f"data.precomputed names {field!r}; what the frozen networks of this config make is: {known}"
                )
        if "text_features" in shapes and self.masks_text:
            shapes["text_mask"] = ((self.text.tokens,), jnp.bool_)
        networks = {name: network for name, network in self.networks.items() if not set(made[name]) <= set(fields)}
        return dataclasses.replace(self, networks=networks, precomputed=shapes)

    @property
    def empty_prompt(self) -> EmptyPrompt | None:
        """What dropped captions are replaced by after encoding; None where the text encoder is trained."""
        if not isinstance(self.text, FrozenText):
            return None
        return EmptyPrompt(self.text, self.networks.get("text"), self.masks_text)

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

    def training_features(self, frozen_params: Mapping[str, Any], batch: Batch, dropped_B: jax.Array | None) -> Batch:
        """The batch with its frozen features, in which dropped captions are the empty prompt.

        Args:
          frozen_params: and, where captions are dropped and the text encoder is frozen, EMPTY_PROMPT.
          dropped_B: bool; None where no captions are dropped.
        """
        if dropped_B is None:
            return self.with_frozen_features(frozen_params, batch)
        if self.text_encoder is not None:
            null = {n: jnp.where(dropped_B[:, None], value, batch[n]) for n, value in self.null_text.items()}
            return self.with_frozen_features(frozen_params, batch | null)
        batch = self.with_frozen_features(frozen_params, batch)
        return in_place_of(dropped_B, batch, frozen_params[frozen.EMPTY_PROMPT])

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
        masks_text=config.model.MASKS_TEXT,
    )
    if len(joint.text_lengths) > 1 and not joint.masks_text:
        raise ValueError(
            f"text.lengths is {joint.text_lengths}; this transformer attends to padding, so its text has one length: "
            "leave text.lengths out"
        )
    joint.grids  # noqa: B018  (an indivisible resolution is found here, not in the first step)
    return joint
