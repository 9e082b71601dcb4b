"""The modalities, the text side and the backbone of one config, assembled: what training and sampling call.

Legend: B batch, L text ids, N tokens, C channels per token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.configurable import build, build_kind
from mf_jax.diffusion.noise_levels import Mode
from mf_jax.modalities.base import Batch, Modality, build_modality
from mf_jax.models import frozen
from mf_jax.models.backbones import KINDS as BACKBONES
from mf_jax.models.stream import Stream
from mf_jax.models.text import encoders

Params = Any
Tokens = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class JointModel:
    """Attributes:
    modalities: by name, in the order of their positions; the first leads (text follows its noise level).
    modes: training cases by name, sorted.
    text: as configured. text_encoder: trained with the model; None where the text encoder is frozen.
    networks: frozen networks by name: "text", or the modality that they belong to.
    resolution: (H, W) of the inputs.
    """

    modalities: dict[str, Modality]
    modes: dict[str, Mode]
    text: Any
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
        return {name: m.codec.grid(self.resolution) for name, m in self.modalities.items()}

    @property
    def sizes(self) -> list[tuple[str, str, int]]:
        """(what, logical axis, size) of the activations that a mesh may split."""
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
        """Raw float32 outputs for the modalities in x, any subset of the model's that the backbone takes.

        Args:
          fields: `text_ids`, or `text_features` where the text encoder is frozen; `text_mask`, where there is one,
            says which text tokens are not padding. Other fields are not read.
        """
        if self.text_encoder is None:
            features = fields["text_features"]
        else:
            features = self.text_encoder.apply({"params": params["text"]}, fields["text_ids"])
        grids = {name: self.grids[name] for name in x}
        valid = fields.get("text_mask") if self.text_encoder is None else None
        return self.backbone.apply({"params": params["backbone"]}, x, t, grids, features, text_valid_BM=valid)

    def prepare(self, frozen_params: Mapping[str, Any], batch: Batch) -> Batch:
        """The batch with what the frozen networks (their parameters by name) make of it."""
        return frozen.prepare(self.networks, frozen_params, batch)

    def encode(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Clean tokens of a prepared batch and their validity, by modality."""
        clean = {name: m.codec.encode(batch) for name, m in self.modalities.items()}
        return clean, self.valid(batch)

    def valid(self, batch: Batch) -> Tokens:
        return {name: m.codec.valid(batch) for name, m in self.modalities.items()}

    def decode(self, frozen_params: Mapping[str, Any], tokens: Tokens) -> dict[str, jax.Array]:
        """Tokens as the modalities' own arrays: pixels, depth."""
        decoded = {n: self.modalities[n].codec.decode(x, self.grids[n]) for n, x in tokens.items()}
        return {
            n: self.networks[n].decode(frozen_params[n], v) if n in self.networks else v for n, v in decoded.items()
        }


def build_model(config: Mapping[str, Any], platform: str | None = None) -> JointModel:
    """The model of a resolved config.

    Args:
      platform: that it is to run on, "cpu", "gpu" or "tpu", which "auto" values depend on; that of this process's
        devices unless said.

    Raises:
      ValueError: options that do not fit together, naming them.
    """
    built = [build_modality(name, section) for name, section in config["modalities"].items()]
    modalities = {m.name: m for m in sorted(built, key=lambda m: m.position)}
    if len({m.position for m in built}) < len(built):
        raise ValueError(f"modalities share a position: { {m.name: m.position for m in built} }; give each its own")
    if "text" in modalities:
        raise ValueError("a modality cannot be called 'text'; give modalities.text another name")
    modes = {name: build(Mode, section, f"modes.{name}") for name, section in sorted(config["modes"].items())}
    for name, mode in modes.items():
        if name == "partial" or (name == "joint" and mode.clean):
            raise ValueError(
                f"modes.{name} holds {mode.clean} clean; 'joint' is the name of sampling without conditions, 'partial' "
                "that of sampling with renoised ones: give this mode another name"
            )
        for clean in mode.clean:
            if clean not in modalities:
                raise ValueError(f"modes.{name}.clean names {clean!r}; the modalities are {', '.join(modalities)}")
        if set(mode.clean) == set(modalities):
            raise ValueError(f"modes.{name} holds every modality clean; one must be left to learn")
    total = sum(mode.probability for mode in modes.values())
    if abs(total - 1.0) > 1e-6:
        raise ValueError(f"the probabilities of modes sum to {total}; they must sum to 1")
    prompt = build_kind(encoders.KINDS, config["text"], "text")
    model = build_kind(BACKBONES, config["model"], "model")
    platform = jax.default_backend() if platform is None else platform
    dtype = model.on(platform)["dtype"]
    streams = tuple(Stream(m.name, m.codec.channels, m.position, m.decoder_blocks) for m in modalities.values())
    networks = {name: m.network(dtype) for name, m in modalities.items() if m.network is not None}
    if (encoder := prompt.network(dtype)) is not None:
        networks["text"] = encoder
    joint = JointModel(
        modalities=modalities,
        modes=modes,
        text=prompt,
        text_encoder=prompt.encoder(dtype),
        backbone=model.module(streams, platform),
        networks=networks,
        resolution=tuple(config["data"]["resolution"]),
    )
    joint.grids  # noqa: B018  (an indivisible resolution is found here, not in the first step)
    return joint
