"""A published text encoder as a frozen network: its options in the config, its files, its features.

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
import numpy as np

from mf_jax.configurable import check_at_least
from mf_jax.data.tokenizer import Qwen3Tokenizer, UMT5Tokenizer
from mf_jax.models import frozen, weight_table
from mf_jax.models.frozen import FrozenFlops, FrozenNetwork
from mf_jax.models.text.packed import unpack
from mf_jax.models.text.qwen3 import Qwen3Config
from mf_jax.models.text.umt5 import UMT5Config
from mf_jax.models.weight_table import Entry
from mf_jax.storage.safetensors_files import TensorFiles


@dataclasses.dataclass(frozen=True)
class FrozenText(abc.ABC):
    """A published text encoder, never trained.

    Attributes:
      checkpoint: its directory: config.json, tokenizer.json and safetensors.
      max_length: L, the ids that every prompt is padded to.
      width: D; it must be what the published encoder makes.
      empty_features: safetensors file with the features of the empty prompt, text_features (tokens, D), which dropped
        captions are replaced by. Read only where data.precomputed has text_features.
      lengths: those that a training step's text may have in the transformer beside max_length: the shortest that holds
        the batch's captions. Each is a program to compile.
      pack: in training, encode several captions in one row, so that little of it is padding. Transformers that attend
        to padding (FLUX.2) need a row for each.
      expected_tokens: of a caption on average, for what `compile` and `show` say of packed text; 0: not known, and no
        row is assumed to be shared.
    """

    PUBLISHED: ClassVar[Qwen3Config | UMT5Config]
    checkpoint: str = ""
    max_length: int = 512
    width: int = 0
    empty_features: str = ""
    lengths: tuple[int, ...] = ()
    pack: bool = True
    expected_tokens: int = 0

    def __post_init__(self) -> None:
        check_at_least("text", self, max_length=1, width=1, expected_tokens=0)
        if any(type(n) is not int or not 1 <= n <= self.max_length for n in self.lengths):
            raise ValueError(
                f"text.lengths is {self.lengths!r}; it must be whole numbers from 1 to text.max_length, "
                f"{self.max_length}"
            )
        if self.expected_tokens > self.max_length:
            raise ValueError(
                f"text.expected_tokens is {self.expected_tokens}; a caption has at most text.max_length tokens, "
                f"{self.max_length}"
            )

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

    def read_empty_features(self) -> np.ndarray:
        """Features (tokens, D) of the empty prompt, from the file `empty_features`.

        Raises:
          ValueError: no such file, or not such features in it.
        """
        if not self.empty_features:
            raise ValueError(
                "text features come with the data, and captions are dropped (objective.caption_dropout): set "
                "text.empty_features to a safetensors file with the features of the empty prompt, or caption_dropout "
                "to 0"
            )
        files = TensorFiles(self.empty_features)
        shapes = {name: files.shape(name) for name in files}
        shape = shapes.get("text_features", ())
        if len(shape) != 2 or shape[1] != self.width or not 1 <= shape[0] <= self.max_length:
            raise ValueError(
                f"text.empty_features {self.empty_features} holds {shapes}; it must hold text_features of at most "
                f"{self.max_length} tokens by {self.width} channels"
            )
        features = files["text_features"]
        files.close()
        return features

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
class TextNetwork:
    """A frozen text encoder: text_ids, text_mask (B, L) to text_features (B, M, D) in the dtype of the compute.

    Captions that share rows, with text_segments and text_at, are as data.packing.TextLayout.arrange makes them.

    Attributes:
      published: use the sizes of the published encoder and no files; see `as_published`.
    """

    text: FrozenText
    dtype: jnp.dtype
    published: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text_ids", "text_mask")

    def makes(self, resolution: tuple[int, int]) -> frozen.Shapes:
        return {"text_features": ((self.text.tokens, self.text.channels), self.dtype)}

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
        segments = batch.get("text_segments", batch["text_mask"])
        features = cast(jax.Array, self._module.apply({"params": params}, batch["text_ids"], segments))
        if "text_at" in batch:
            features = unpack(features, batch["text_at"], batch["text_mask"])
        return {"text_features": features}

    def flops(self, resolution: tuple[int, int]) -> FrozenFlops:
        return self.text.flops()
