"""What a modality is: a codec, a noise distribution, a prediction type and a loss weight under one name.

Everything else in the program is written once, over a mapping keyed by modality name. A new modality is one file with a
codec, named by `kind` in the config: `kind="depth"` is `mf_jax.modalities.depth`, a dotted kind is imported as it is.
The file offers `Codec`, a frozen dataclass whose fields are the modality's options in the config, and, where the codec
reads what a frozen network makes, `network(codec, dtype)`.

Legend: B batch, H W pixels, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mf_jax.configurable import build, check_at_least
from mf_jax.diffusion import noise_levels, path
from mf_jax.models.frozen import Batch, FrozenNetwork

SHARED = ("position", "weight", "decoder_blocks")  # keys of a modality that are no options of its codec


class Codec(Protocol):
    """Between a batch and tokens. What a frozen network makes of a batch is in it already when `encode` reads it."""

    @property
    def channels(self) -> int:
        """Channels of a token."""

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens for an (H, W) input; ValueError if it does not divide."""

    def encode(self, batch: Batch) -> jax.Array:
        """Clean tokens x_BNC, float32, row-major."""

    def valid(self, batch: Batch) -> jax.Array:
        """Which token entries were measured, bool (B, N, C). Missing ones are noise in the input and have no loss."""

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Tokens back to the modality's own array, (B, H, W, ...)."""


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality as the training objective and the samplers see it.

    Attributes:
      position: its coordinate on the modality axis of the rotary embedding; the lowest one leads.
      noise: distribution of its noise level in training.
      prediction: what the network outputs for it: "x" (clean tokens) or "v" (velocity).
      weight: of its loss in the sum.
      decoder_blocks: transformer blocks over its own tokens alone, after the trunk.
      network: makes the frozen network, computing in a dtype, that its codec reads the result of; None without one.
    """

    name: str
    position: int
    codec: Codec
    noise: noise_levels.LogitNormal | noise_levels.PlateauLogitNormal
    prediction: str
    weight: float = 1.0
    decoder_blocks: int = 0
    network: Callable[[jnp.dtype], FrozenNetwork] | None = None

    def __post_init__(self) -> None:
        check_at_least(f"modalities.{self.name}", self, position=0, weight=0, decoder_blocks=0)


def build_modality(name: str, section: Mapping[str, Any]) -> Modality:
    """A Modality from its section of the config.

    Raises:
      ValueError: an unknown kind, noise distribution, prediction or option, or a missing one.
    """
    section = dict(section)
    for key in ("kind", "position", "prediction", "noise"):
        if key not in section:
            raise ValueError(f"config key modalities.{name}.{key} is missing")
    kind = section.pop("kind")
    noise = dict(section.pop("noise"))
    prediction = section.pop("prediction")
    if prediction not in path.PREDICTIONS:
        raise ValueError(f"modalities.{name}.prediction is {prediction!r}; it must be one of {path.PREDICTIONS}")
    noise_kind = noise.pop("kind", None)
    if noise_kind not in noise_levels.DISTRIBUTIONS:
        raise ValueError(
            f"modalities.{name}.noise.kind is {noise_kind!r}; it must be one of {tuple(noise_levels.DISTRIBUTIONS)}"
        )
    try:
        module = importlib.import_module(kind if "." in kind else f"mf_jax.modalities.{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(f"modalities.{name}.kind is {kind!r}: {error}") from None
    shared = {key: section.pop(key) for key in SHARED if key in section}
    codec = build(module.Codec, section, f"modalities.{name}")
    network = getattr(module, "network", None)
    return Modality(
        name=name,
        noise=build(noise_levels.DISTRIBUTIONS[noise_kind], noise, f"modalities.{name}.noise"),
        prediction=prediction,
        codec=codec,
        network=functools.partial(network, codec) if network else None,
        **shared,
    )
