"""Sources of records: their interface, and the kinds that a config can choose (`kind` in data.source)."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from mf_jax.data.procedural.source import ProceduralConfig
from mf_jax.data.readers.folder import FolderConfig


@runtime_checkable
class Source(Protocol):
    """Random access to records: dicts of image, depth, depth_valid, caption, key, intrinsics, skipped.

    image (H,W,3) uint8; depth (H,W) float32 z in metres, 0 where missing; depth_valid (H,W) bool; caption str ("" if
    none); key str, unique; intrinsics (4,) float32 fx, fy, cx, cy in pixels of the image, NaN if unknown; skipped
    int, unreadable files passed over to get this record: the files of records index, index + 1 and so on, cyclically.
    """

    @property
    def max_unreadable(self) -> int:
        """How many different records may be unreadable before training and evaluation give up."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def path(self, index: int) -> str:
        """Where record `index` comes from, for messages. Must not read it, as it may be unreadable."""
        ...


class SourceConfig(Protocol):
    """The config of one kind of source, a frozen dataclass."""

    def open(self, split: str, resolution: tuple[int, int]) -> Source:
        """The records of a split.

        Args:
          split: "train", "validation" or "test", or any other that the source defines.
          resolution: (H, W) that the model sees, for sources that make their records.

        Raises:
          ValueError: a split that is not configured or empty, or whatever the source itself finds invalid.
        """


@runtime_checkable
class PrecomputedConfig(Protocol):
    """The config of a kind of source that can read precomputed fields (mf_jax/data/precomputed.py)."""

    def open_precomputed(self, split: str, resolution: tuple[int, int], fields: tuple[str, ...]) -> Source:
        """The records of a split with these fields: image_latent in place of image, text_features beside caption.

        Raises:
          ValueError: as `SourceConfig.open`; fields that it has no files for.
        """


KINDS: dict[str, type[SourceConfig]] = {"procedural": ProceduralConfig, "folder": FolderConfig}
