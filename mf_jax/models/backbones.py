"""The transformers that a config can choose: `kind` in the section `model`; its other keys are the class's fields."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mf_jax.configurable import check_at_least
from mf_jax.models import attention, remat
from mf_jax.models.flat_dit import FlatDiT
from mf_jax.models.flux2 import Flux2
from mf_jax.models.stream import Stream


def compute_dtype(name: str, platform: str) -> jnp.dtype:
    """The dtype of the compute; "auto" is bfloat16 on accelerators and float32 on CPUs (platform "cpu").

    Raises:
      ValueError: another name than "auto", "float32", "bfloat16".
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"model.dtype is {name!r}; it must be 'auto', 'float32' or 'bfloat16'")
    if name == "auto":
        return jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class Compute:
    """The compute options that every transformer has.

    Attributes:
      dtype: "auto", "float32" or "bfloat16", see `compute_dtype`. Parameters and losses are float32.
      attention: "auto" or a kernel, see models/attention.py. remat: preset, see models/remat.py.
    """

    dtype: str = "auto"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self) -> None:
        compute_dtype(self.dtype, "cpu")
        if self.attention != "auto" and self.attention not in attention.KERNELS:
            raise ValueError(
                f"model.attention is {self.attention!r}; it must be one of auto, {', '.join(attention.KERNELS)}"
            )
        remat.check(self.remat)

    def on(self, platform: str) -> dict[str, Any]:
        """The module's fields dtype, attention and remat, with "auto" resolved for a platform.

        Raises:
          ValueError: an option that this platform does not support.
        """
        dtype = compute_dtype(self.dtype, platform)
        remat.check(self.remat, platform)
        return {
            "dtype": dtype,
            "attention": attention.kernel_for(self.attention, platform, dtype),
            "remat": self.remat,
        }


@dataclasses.dataclass(frozen=True)
class FlatDiTConfig(Compute):
    """The flat-token transformer of the from-scratch family, scaled by `width` alone (section 4 of the paper).

    Attributes:
      width: channels of a token. layers: blocks of the trunk.
      heads: query heads; 0 for one per 128 channels. kv_heads: key/value heads; 0 for a quarter of the heads, which
        fits the paper's parameter counts; the paper gives neither.
      mlp_ratio: hidden width of the gated MLP, in widths.
    """

    MASKS_TEXT: ClassVar[bool] = True  # no token attends to the padding of the text
    width: int = 256
    layers: int = 30
    heads: int = 0
    kv_heads: int = 0
    mlp_ratio: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("model", self, width=8, layers=1, heads=0, kv_heads=0, mlp_ratio=0.1)
        heads, kv_heads = self.head_counts
        if self.width % heads or heads % kv_heads or self.width // heads % 8:
            raise ValueError(
                f"model.width {self.width}, heads {heads}, kv_heads {kv_heads}: heads must divide the width, "
                "kv_heads the heads, and a head's channels must be a multiple of 8 (four rotary axes of pairs)"
            )

    @property
    def head_counts(self) -> tuple[int, int]:
        """Query heads, and key/value heads."""
        heads = self.heads or max(self.width // 128, 1)
        return heads, self.kv_heads or max(heads // 4, 1)

    def module(self, streams: tuple[Stream, ...], platform: str) -> nn.Module:
        """The flax module for these modalities, to run on a platform."""
        heads, kv_heads = self.head_counts
        return FlatDiT(
            streams=streams,
            width=self.width,
            layers=self.layers,
            heads=heads,
            kv_heads=kv_heads,
            mlp_ratio=self.mlp_ratio,
            **self.on(platform),
        )


@dataclasses.dataclass(frozen=True)
class Flux2Config(Compute):
    """FLUX.2 with a stream per modality; by default the sizes of the released 9B model.

    Attributes:
      width: channels of a token. heads: of attention.
      double_blocks: first stack, in which each stream has weights of its own.
      single_blocks: second stack, whose weights the streams share.
      axes: rotary channels for modality, row, column and text index; they sum to the channels of a head.
      mlp_ratio: hidden width of the gated MLP, in widths. theta: base of the rotary frequencies.
      cross_mixing: every modality's conditioning also sees the others' noise levels, through gates that start at zero.
      guidance_embedding: the first modality's conditioning takes a guidance scale.
    """

    MASKS_TEXT: ClassVar[bool] = False
    width: int = 4096
    heads: int = 32
    double_blocks: int = 8
    single_blocks: int = 24
    axes: tuple[int, ...] = (32, 32, 32, 32)
    mlp_ratio: float = 3.0
    theta: float = 2000.0
    cross_mixing: bool = True
    guidance_embedding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("model", self, width=8, heads=1, double_blocks=1, single_blocks=1, mlp_ratio=0.1, theta=1)
        if self.width % self.heads or len(self.axes) != 4 or any(size % 2 for size in self.axes):
            raise ValueError(
                f"model.width {self.width}, heads {self.heads}, axes {self.axes}: heads must divide the width, and "
                "axes are four even numbers of channels (modality, row, column, text index)"
            )
        if sum(self.axes) != self.width // self.heads:
            raise ValueError(f"model.axes {self.axes} must sum to the channels of a head, {self.width // self.heads}")

    def module(self, streams: tuple[Stream, ...], platform: str) -> nn.Module:
        """The flax module for these modalities, to run on a platform."""
        return Flux2(streams=streams, **dataclasses.asdict(self) | self.on(platform))


BackboneConfig = FlatDiTConfig | Flux2Config
KINDS: dict[str, type[BackboneConfig]] = {"flat_dit": FlatDiTConfig, "flux2": Flux2Config}
