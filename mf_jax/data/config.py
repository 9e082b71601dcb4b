"""The section `data` of a config: which records a run reads, and how examples are made of them."""

from __future__ import annotations

import dataclasses

from mf_jax.configurable import Kinds, Section, check_at_least, nearest, part
from mf_jax.data import precomputed
from mf_jax.data.augment import AugmentConfig
from mf_jax.data.sources import KINDS as SOURCES
from mf_jax.data.sources import PrecomputedConfig, Source, SourceConfig
from mf_jax.data.sparsify import KINDS as SPARSIFIERS
from mf_jax.data.sparsify import KeepAll, Sparsifier


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The source of records, and how examples are made of them.

    Attributes:
      source: where records come from: kind "procedural" or "folder", with its own keys.
      resolution: (H, W) that the model sees, in pixels.
      sparsify: how depth is thinned out in training: kind "none", "random", "lidar" or "holes", with its own keys.
      precomputed: what comes with the data in training instead of from a frozen encoder, which is then neither loaded
        nor run: "image_latent", "text_features", both or none.
      augment: what is drawn anew each time an example is seen in training: flip, crop, colour, see AugmentConfig.
      cache: keep records in memory once read, resized, in each worker: for folders of a few thousand frames.
      workers: processes that make examples; 0 makes them in the training process.
    """

    source: SourceConfig = dataclasses.field(metadata=part(Kinds(SOURCES, required=True)))
    resolution: tuple[int, int]
    sparsify: Sparsifier = dataclasses.field(default_factory=KeepAll, metadata=part(Kinds(SPARSIFIERS, required=True)))
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig, metadata=part(Section(AugmentConfig)))
    cache: bool = False
    workers: int = 1
    precomputed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.cache, bool):
            raise ValueError(f"data.cache is {self.cache!r}; it must be True or False")
        size = self.resolution
        if not isinstance(size, tuple) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
            raise ValueError(f"data.resolution is {size!r}; it must be two positive integers, (height, width)")
        check_at_least("data", self, workers=0)
        self._check_precomputed()

    def _check_precomputed(self) -> None:
        for name in self.precomputed:
            if name not in precomputed.FIELDS:
                raise ValueError(f"data.precomputed names {name!r}; {nearest(name, precomputed.FIELDS)}")
        if len(set(self.precomputed)) < len(self.precomputed):
            raise ValueError(f"data.precomputed is {self.precomputed!r}; name each field once")
        drawn = {"flip": self.augment.flip, "crop": self.augment.crop < 1.0, "colour": self.augment.colour > 0.0}
        if precomputed.IMAGE_LATENT in self.precomputed and any(drawn.values()):
            given = ", ".join(f"{name}={getattr(self.augment, name)}" for name, on in drawn.items() if on)
            raise ValueError(
                f"data.augment has {given}, which latents from files cannot follow; leave data.augment out, or "
                "'image_latent' out of data.precomputed"
            )

    def open(self, split: str) -> Source:
        """The records of a split, with images and captions.

        Raises:
          ValueError: a split that is not configured or empty, or whatever the source itself finds invalid.
        """
        return self.source.open(split, self.resolution)

    def open_training(self) -> Source:
        """The records of the split "train", with the fields of `precomputed` in place of those they are made of.

        Raises:
          ValueError: as `open`; a source that has no such fields.
        """
        if not self.precomputed:
            return self.open("train")
        if not isinstance(self.source, PrecomputedConfig):
            raise ValueError(
                f"data.precomputed is {self.precomputed!r}, and this source has no such files; use a source of kind "
                "'folder', or data.precomputed=()"
            )
        return self.source.open_precomputed("train", self.resolution, self.precomputed)
