"""The transformers that a config can choose: `kind` in its section `model`, whose other keys are the class's fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.models.flat_dit import FlatDiT
from mf_jax.models.flux2 import Flux2
from mf_jax.models.stream import Stream
from mf_jax.settings import check_at_least


def compute_dtype(name: str) -> jnp.dtype:
    """ "auto" is bfloat16 on accelerators and float32 on CPUs.

    Raises:
      ValueError: another name than "auto", "float32", "bfloat16".
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"model.dtype is {name!r}; it must be 'auto', 'float32' or 'bfloat16'")
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class FlatDiTConfig:
    """The flat-token transformer of the from-scratch family, which `width` alone scales (section 4 of the paper).

    Attributes:
      heads: 0 makes them 128 channels each. kv_heads: 0 makes them a quarter of the heads, which fits the parameter
        counts of the paper; it gives neither.
      dtype: of the compute, see `compute_dtype`.
    """

    width: int = 256
    layers: int = 30
    heads: int = 0
    kv_heads: int = 0
    mlp_ratio: float = 3.0
    dtype: str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        check_at_least("model", self, width=8, layers=1, heads=0, kv_heads=0, mlp_ratio=0.1)
        heads, kv_heads = self.head_counts
        if self.width % heads or heads % kv_heads or self.width // heads % 8:
            raise ValueError(
                f"model.width {self.width}, heads {heads}, kv_heads {kv_heads}: heads must divide the width, "
                "kv_heads the heads, and a head's channels must be a multiple of 8 (four rotary axes of pairs)"
            )
        if self.dtype != "auto":  # which depends on the devices, and a config touches none
            compute_dtype(self.dtype)

    @property
    def head_counts(self) -> tuple[int, int]:
        """Query heads, and key/value heads."""
        heads = self.heads or max(self.width // 128, 1)
        return heads, self.kv_heads or max(heads // 4, 1)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return compute_dtype(self.dtype)

    def module(self, streams: tuple[Stream, ...]) -> nn.Module:
        heads, kv_heads = self.head_counts
        return FlatDiT(
            streams=streams,
            width=self.width,
            layers=self.layers,
            heads=heads,
            kv_heads=kv_heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.compute_dtype,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class Flux2Config:
    """FLUX.2 with a stream per modality, the released 9B sizes by default. Attributes: those of models.flux2.Flux2."""

    width: int = 4096
    heads: int = 32
    double_blocks: int = 8
    single_blocks: int = 24
    axes: tuple[int, ...] = (32, 32, 32, 32)
    mlp_ratio: float = 3.0
    theta: float = 2000.0
    cross_mixing: bool = True
    guidance_embedding: bool = False
    dtype: str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        check_at_least("model", self, width=8, heads=1, double_blocks=1, single_blocks=1, mlp_ratio=0.1, theta=1)
        if self.width % self.heads or len(self.axes) != 4 or any(size % 2 for size in self.axes):
            raise ValueError(
                f"model.width {self.width}, heads {self.heads}, axes {self.axes}: heads must divide the width, and "
                "axes are four even numbers of channels (modality, row, column, text index)"
            )
        if sum(self.axes) != self.width // self.heads:
            raise ValueError(f"model.axes {self.axes} must sum to the channels of a head, {self.width // self.heads}")
        if self.dtype != "auto":  # which depends on the devices, and a config touches none
            compute_dtype(self.dtype)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return compute_dtype(self.dtype)

    def module(self, streams: tuple[Stream, ...]) -> nn.Module:
        return Flux2(streams=streams, **dataclasses.asdict(self) | {"dtype": self.compute_dtype})


KINDS: dict[str, Any] = {"flat_dit": FlatDiTConfig, "flux2": Flux2Config}
