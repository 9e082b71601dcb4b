"""The text encoders that a config can choose: a prompt to ids, and ids to features that the backbone attends to.

`kind` in the config's section `text` chooses; its other keys are the fields of the class.

Legend: B batch, L text ids, M text tokens, D feature channels.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mf_jax.configurable import check_at_least
from mf_jax.data.tokenizer import ByteTokenizer, Qwen3Tokenizer, UMT5Tokenizer
from mf_jax.models.frozen import FrozenFlops, FrozenNetwork
from mf_jax.models.text import qwen3, umt5
from mf_jax.models.text import qwen3_weights as qwen3_names
from mf_jax.models.text import umt5_weights as umt5_names
from mf_jax.models.text.byte import ByteTextEncoder
from mf_jax.models.text.published import FrozenText
from mf_jax.models.text.qwen3 import Qwen3, Qwen3Config
from mf_jax.models.text.umt5 import UMT5Config, UMT5Encoder
from mf_jax.models.weight_table import Entry
from mf_jax.storage.safetensors_files import TensorFiles


@dataclasses.dataclass(frozen=True)
class ByteText:
    """A tiny text encoder over bytes, trained with the model.

    Attributes:
      max_bytes: the longest text. group: bytes that make a token, of which max_bytes and width are multiples.
      width: channels of a token.
    """

    max_bytes: int = 96
    group: int = 8
    width: int = 128

    def __post_init__(self) -> None:
        check_at_least("text", self, max_bytes=1, group=1, width=1)
        for name, value in (("max_bytes", self.max_bytes), ("width", self.width)):
            if value % self.group:
                raise ValueError(f"text.{name} is {value}; it must be a multiple of text.group, {self.group}")

    @property
    def length(self) -> int:
        """L, text ids per example."""
        return self.max_bytes

    @property
    def tokens(self) -> int:
        """M, text tokens per example."""
        return self.max_bytes // self.group

    @property
    def channels(self) -> int:
        """D, feature channels."""
        return self.width

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer(self.max_bytes)

    def encoder(self, dtype: jnp.dtype) -> nn.Module | None:
        """The module that is trained with the model, ids to features; None for a frozen encoder."""
        return ByteTextEncoder(self.group, self.width, dtype)

    def network(self, dtype: jnp.dtype) -> FrozenNetwork | None:
        """The frozen encoder, None for one that is trained."""
        return None


@dataclasses.dataclass(frozen=True)
class Qwen3Text(FrozenText):
    """Qwen3, as FLUX.2 uses it.

    Attributes:
      layers: those whose states are concatenated on the channels.
    """

    PUBLISHED: ClassVar[Qwen3Config] = qwen3.QWEN3_8B
    width: int = 12288
    layers: tuple[int, ...] = (9, 18, 27)

    def tokenizer(self) -> Qwen3Tokenizer:
        return Qwen3Tokenizer(self.folder, self.max_length)

    def module(self, config: Qwen3Config, dtype: jnp.dtype) -> tuple[nn.Module, int]:
        """The module, and its features per token."""
        return Qwen3(config, self.layers, dtype), config.hidden_size * len(self.layers)

    def flops(self) -> FrozenFlops:
        """FLOPs of one text, see FrozenNetwork.flops."""
        config, source = self._sizes(Qwen3Config, qwen3.QWEN3_8B, "Qwen3-8B")
        return FrozenFlops(qwen3.forward_flops(config, self.layers[-1], self.max_length), 0, source)

    def table(self, module: Qwen3, files: TensorFiles) -> list[Entry]:
        return qwen3_names.table(module)


@dataclasses.dataclass(frozen=True)
class UMT5Text(FrozenText):
    """The encoder of UMT5, as the from-scratch family uses it."""

    PUBLISHED: ClassVar[UMT5Config] = umt5.UMT5_XXL
    width: int = 4096

    def tokenizer(self) -> UMT5Tokenizer:
        return UMT5Tokenizer(self.folder, self.max_length)

    def module(self, config: UMT5Config, dtype: jnp.dtype) -> tuple[nn.Module, int]:
        """The module, and its features per token."""
        return UMT5Encoder(config, dtype), config.d_model

    def flops(self) -> FrozenFlops:
        """FLOPs of one text, see FrozenNetwork.flops."""
        config, source = self._sizes(UMT5Config, umt5.UMT5_XXL, "UMT5-XXL")
        return FrozenFlops(umt5.forward_flops(config, self.max_length), 0, source)

    def table(self, module: UMT5Encoder, files: TensorFiles) -> list[Entry]:
        return umt5_names.table(module, files)


TextConfig = ByteText | Qwen3Text | UMT5Text
KINDS: dict[str, type[TextConfig]] = {"byte": ByteText, "qwen3": Qwen3Text, "umt5": UMT5Text}
