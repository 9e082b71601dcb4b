"""The text encoders that a config can choose: a prompt to ids, and ids to features that the backbone attends to.

`kind` in the config's section `text` chooses; its other keys are the fields of the class.

Legend: B batch, L text ids, M text tokens, D feature channels.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.configurable import check_at_least
from mf_jax.data.tokenizer import ByteTokenizer, Qwen3Tokenizer, UMT5Tokenizer
from mf_jax.models import frozen, weight_table
from mf_jax.models.frozen import FrozenFlops, FrozenNetwork
from mf_jax.models.text import qwen3, umt5
from mf_jax.models.text import qwen3_weights as qwen3_names
from mf_jax.models.text import umt5_weights as umt5_names
from mf_jax.models.text.byte import ByteTextEncoder
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
class FrozenText(abc.ABC):
    """A published text encoder, never trained.

    Attributes:
      checkpoint: its directory: config.json, tokenizer.json and safetensors.
      max_length: L, the ids that every prompt is padded to.
      width: D; it must be what the published encoder makes.
    """

    PUBLISHED: ClassVar[Qwen3Config | UMT5Config]
    checkpoint: str = ""
    max_length: int = 512
    width: int = 0

    def __post_init__(self) -> None:
        check_at_least("text", self, max_length=1, width=1)

    @property
    def length(self) -> int:
        """L, text ids per example."""
        return self.max_length

    @property
    def tokens(self) -> int:
        """M, text tokens per example."""
        return self.max_length

    @property
    def channels(self) -> int:
        """D, feature channels."""
        return self.width

    @property
    def folder(self) -> Path:
        """The checkpoint's directory.

        Raises:
          ValueError: none is configured.
        """
        if not self.checkpoint:
            raise ValueError("the config has no text encoder; set text.checkpoint to the directory of a published one")
        return Path(self.checkpoint)

    @abc.abstractmethod
    def tokenizer(self) -> Qwen3Tokenizer | UMT5Tokenizer:
        """The tokenizer of the checkpoint."""

    @abc.abstractmethod
    def module(self, config: Any, dtype: jnp.dtype) -> tuple[nn.Module, int]:
        """The module, and its features per token."""

    @abc.abstractmethod
    def table(self, module: Any, files: TensorFiles) -> list[Entry]:
        """The weight table between the module and the checkpoint's files."""

    @abc.abstractmethod
    def flops(self) -> FrozenFlops:
        """FLOPs of one text, see FrozenNetwork.flops."""

    def encoder(self, dtype: jnp.dtype) -> nn.Module | None:
        """None: nothing of it is trained."""
        return None

    def network(self, dtype: jnp.dtype) -> FrozenNetwork | None:
        return TextNetwork(self, dtype)

    def _sizes(self, kind: Any, published: Any, name: str) -> tuple[Any, str]:
        """The encoder's config, and where it comes from: config.json, or without one the published encoder `name`.

        Raises:
          ValueError: there is no config.json, and `width` is not that of the published encoder.
        """
        if self.checkpoint and (file := self.folder / "config.json").is_file():
            return kind.from_json(file), str(file)
        missing = f"there is no config.json in text.checkpoint {self.checkpoint!r}"
        if self.width != type(self).width:
            raise ValueError(missing)
        return published, f"sizes of {name}, as {missing}"

    def sizes(self, published: bool) -> Any:
        """The encoder's sizes: those of the published one, or those in the checkpoint's config.json."""
        return self.PUBLISHED if published else type(self.PUBLISHED).from_json(self.folder / "config.json")


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


@dataclasses.dataclass(frozen=True)
class TextNetwork:
    """A frozen text encoder: text_ids, text_mask (B, L) to text_features (B, M, D) in the dtype of the compute.

    Attributes:
      published: use the sizes of the published encoder and no files; see `as_published`.
    """

    text: FrozenText
    dtype: jnp.dtype
    published: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text_ids", "text_mask")

    @functools.cached_property
    def _module(self) -> nn.Module:
        module, width = self.text.module(self.text.sizes(self.published), self.dtype)
        if width != self.text.width:
            raise ValueError(
                f"the encoder in {self.text.folder} makes {width} features; text.width is {self.text.width}"
            )
        return module

    def abstract(self, mesh: jax.sharding.Mesh | None) -> Any:
        ids = jax.ShapeDtypeStruct((1, self.text.length), jnp.int32)
        mask = jax.ShapeDtypeStruct(ids.shape, bool)
        return frozen.abstract(self._module, mesh, self.dtype, ids, mask)

    def as_published(self) -> TextNetwork | None:
        there = self.text.checkpoint and Path(self.text.checkpoint).is_dir()
        return None if there else dataclasses.replace(self, published=True)

    def load(self, mesh: jax.sharding.Mesh | None) -> Any:
        """Parameters in the dtype of the compute."""
        if (ids := self.text.tokenizer().vocab_size) > self._module.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {self.text.folder} has {ids} ids, its encoder {self._module.config.vocab_size}: "
                "they are not of one checkpoint"
            )
        files = TensorFiles(self.text.folder)
        result = weight_table.read(files, self.abstract(mesh), self.text.table(self._module, files))
        files.close()
        return result

    def encode(self, params: Any, batch: frozen.Batch) -> frozen.Batch:
        features = self._module.apply({"params": params}, batch["text_ids"], batch["text_mask"])
        return {"text_features": cast(jax.Array, features)}

    def flops(self, resolution: tuple[int, int]) -> FrozenFlops:
        return self.text.flops()


TextConfig = ByteText | Qwen3Text | UMT5Text
KINDS: dict[str, type[TextConfig]] = {"byte": ByteText, "qwen3": Qwen3Text, "umt5": UMT5Text}
