"""The modalities, the text encoder and the backbone of one config, assembled: what training and sampling call.

Legend: B batch, L text ids, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.diffusion.noise_levels import Mode
from mf_jax.modality import Modality, build_modality
from mf_jax.models.flat_dit import FlatDiT, Stream
from mf_jax.models.text import ByteTextEncoder
from mf_jax.settings import build, check_at_least

Params = Any
Tokens = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The learned byte encoder: prompts up to `max_bytes`, `group` bytes a token, `width` feature channels."""

    max_bytes: int = 96
    group: int = 8
    width: int = 128

    def __post_init__(self) -> None:
        check_at_least("text", self, max_bytes=1, group=1, width=1)
        for name, value in (("max_bytes", self.max_bytes), ("width", self.width)):
            if value % self.group:
                raise ValueError(f"text.{name} is {value}; it must be a multiple of text.group, {self.group}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The flat-token transformer. dtype: of the compute, "auto" is bfloat16 on accelerators and float32 on CPUs."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 1
    mlp_ratio: float = 3.0
    dtype: str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        check_at_least("model", self, width=8, layers=1, heads=1, kv_heads=1, mlp_ratio=0.1)
        if self.width % self.heads or self.heads % self.kv_heads or self.width // self.heads % 8:
            raise ValueError(
                f"model.width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: heads must divide the width, "
                "kv_heads the heads, and a head's channels must be a multiple of 8 (four rotary axes of pairs)"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"model.dtype is {self.dtype!r}; it must be 'auto', 'float32' or 'bfloat16'")

    @property
    def compute_dtype(self) -> jnp.dtype:
        if self.dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class JointModel:
    """Attributes:
    modalities: by name, in the order of their positions; the first leads (text follows its noise level).
    modes: training cases by name, sorted.
    resolution: (H, W) of the inputs.
    """

    modalities: dict[str, Modality]
    modes: dict[str, Mode]
    text: TextConfig
    text_encoder: nn.Module
    backbone: nn.Module
    resolution: tuple[int, int]

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        return {name: m.codec.grid(self.resolution) for name, m in self.modalities.items()}

    @property
    def null_ids(self) -> jax.Array:
        """Ids of the empty prompt, (1, L)."""
        return jnp.zeros((1, self.text.max_bytes), jnp.int32)

    def init(self, key: jax.Array) -> Params:
        """Float32 parameters {"text": ..., "backbone": ...}, boxed with their logical axis names."""
        text_key, backbone_key = jax.random.split(key)
        text = self.text_encoder.init(text_key, self.null_ids)["params"]
        x = {n: jnp.zeros((1, g[0] * g[1], self.modalities[n].codec.channels)) for n, g in self.grids.items()}
        t = {n: jnp.zeros((1,)) for n in self.modalities}
        features = jnp.zeros((1, self.text.max_bytes // self.text.group, self.text.width))
        return {"text": text, "backbone": self.backbone.init(backbone_key, x, t, self.grids, features)["params"]}

    def predict(self, params: Params, x: Tokens, t: Tokens, ids_BL: jax.Array) -> Tokens:
        """Raw float32 outputs for the modalities in x, any non-empty subset of the model's."""
        features = self.text_encoder.apply({"params": params["text"]}, ids_BL)
        grids = {name: self.grids[name] for name in x}
        return self.backbone.apply({"params": params["backbone"]}, x, t, grids, features)

    def encode(self, batch: dict[str, jax.Array]) -> tuple[Tokens, Tokens]:
        """Clean tokens and their validity, by modality."""
        clean = {name: m.codec.encode(batch) for name, m in self.modalities.items()}
        return clean, self.valid(batch)

    def valid(self, batch: dict[str, jax.Array]) -> Tokens:
        return {name: m.codec.valid(batch) for name, m in self.modalities.items()}

    def decode(self, tokens: Tokens) -> dict[str, jax.Array]:
        return {n: self.modalities[n].codec.decode(x, self.grids[n]) for n, x in tokens.items()}


def build_model(config: Mapping[str, Any]) -> JointModel:
    """The model of a resolved config.

    Raises:
      ValueError: options that do not fit together, naming them.
    """
    built = [build_modality(name, section) for name, section in config["modalities"].items()]
    modalities = {m.name: m for m in sorted(built, key=lambda m: m.position)}
    if len({m.position for m in built}) < len(built):
        raise ValueError(f"modalities share a position: { {m.name: m.position for m in built} }; give each its own")
    modes = {name: build(Mode, section, f"modes.{name}") for name, section in sorted(config["modes"].items())}
    for name, mode in modes.items():
        for clean in mode.clean:
            if clean not in modalities:
                raise ValueError(f"modes.{name}.clean names {clean!r}; the modalities are {', '.join(modalities)}")
        if set(mode.clean) == set(modalities):
            raise ValueError(f"modes.{name} holds every modality clean; one must be left to learn")
    total = sum(mode.probability for mode in modes.values())
    if abs(total - 1.0) > 1e-6:
        raise ValueError(f"the probabilities of modes sum to {total}; they must sum to 1")
    text = build(TextConfig, dict(config["text"]), "text")
    model = build(ModelConfig, dict(config["model"]), "model")
    joint = JointModel(
        modalities=modalities,
        modes=modes,
        text=text,
        text_encoder=ByteTextEncoder(text.group, text.width, model.compute_dtype),
        backbone=FlatDiT(
            streams=tuple(Stream(m.name, m.codec.channels, m.position, m.decoder_blocks) for m in modalities.values()),
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            mlp_ratio=model.mlp_ratio,
            dtype=model.compute_dtype,
            remat=model.remat,
        ),
        resolution=tuple(config["data"]["resolution"]),
    )
    joint.grids  # noqa: B018  (an indivisible resolution is found here, not in the first step)
    return joint
