"""Modalities: a codec, a noise distribution, a prediction type and a loss weight under one name.

Everything else in the program is written once, over a mapping keyed by modality name.

Legend: B batch, H W pixels, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.configurable import Kinds, check_at_least, check_one_of, part
from mf_jax.diffusion import noise_levels, path
from mf_jax.models.frozen import Batch, FrozenAutoencoder


class Codec(Protocol):
    """Conversion between a batch and tokens, as a frozen dataclass: its fields are options in the config.

    If the modality has a frozen network, the fields that it adds are in the batch when `encode` reads it.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def channels(self) -> int:
        """Channels of a token."""

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens for an (H, W) input.

        Raises:
          ValueError: the resolution does not divide into tokens.
        """

    def encode(self, batch: Batch) -> jax.Array:
        """Clean tokens x_BNC, float32, row-major."""

    def valid(self, batch: Batch) -> jax.Array:
        """Which token entries were measured, bool (B, N, C). Missing ones are noise in the input and have no loss."""

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The modality's own array, (B, H, W, ...), of clean tokens, which are 0 where nothing was measured."""

    def condition(self, value: np.ndarray, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
        """The batch fields of a condition that a user gives, for one example or for several, resized to (H, W).

        Raises:
          ValueError: an invalid shape, type or value.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """The options that every modality has, whatever its codec.

    Attributes:
      position: its coordinate on the modality axis of the rotary embedding; the lowest one leads.
      prediction: what the network outputs for it: "x" (clean tokens) or "v" (velocity).
      noise: distribution of its noise level in training.
      weight: of its loss in the sum.
      decoder_blocks: transformer blocks over its own tokens alone, after the trunk.
    """

    position: int
    prediction: str
    noise: noise_levels.LogitNormal | noise_levels.PlateauLogitNormal = dataclasses.field(
        metadata=part(Kinds(noise_levels.DISTRIBUTIONS, required=True))
    )
    weight: float = 1.0
    decoder_blocks: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality(SharedOptions):
    """One modality as the training objective and the samplers see it: a section of `modalities` in the config.

    Attributes:
      name: the section's. kind: of the codec, see modalities/registry.py.
      codec: its options stand in the section itself.
    """

    name: str
    kind: str
    codec: Codec

    def __post_init__(self) -> None:
        where = f"modalities.{self.name}"
        check_one_of(f"{where}.prediction", self.prediction, path.PREDICTIONS)
        check_at_least(where, self, position=0, weight=0, decoder_blocks=0)

    def network(self, dtype: jnp.dtype) -> FrozenAutoencoder | None:
        """The frozen network whose output the codec reads, computing in `dtype`; None if the codec needs none.

        A codec that needs one has a method `network(dtype)`.
        """
        make = getattr(self.codec, "network", None)
        return make(dtype) if make is not None else None
