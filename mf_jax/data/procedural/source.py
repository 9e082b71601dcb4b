"""The procedural RGB-D data set: rendered scenes by random access, in any number, without a download.

Legend: H, W height and width in pixels.

Scene number `index` of a split depends on (seed, split, index) alone, so records can be read in any order, by
any number of workers, and two splits never share a scene.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import ClassVar

import numpy as np

from mf_jax.configurable import check_at_least, nearest
from mf_jax.data.procedural.scene import Scene
from mf_jax.data.procedural.scene_caption import caption
from mf_jax.data.procedural.scene_sampler import sample_scene
from mf_jax.data.procedural.shading import render

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ProceduralConfig:
    """The procedural data set.

    Attributes:
      seed: of the data set; another seed gives other scenes.
      train, validation, test: number of scenes in each split.
    """

    seed: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0

    def __post_init__(self) -> None:
        check_at_least("data.source", self, seed=0, train=0, validation=0, test=0)

    def open(self, split: str, resolution: tuple[int, int]) -> ProceduralSource:
        """The scenes of a split, drawn at (H, W).

        Raises:
          ValueError: no such split, or no scenes in it.
        """
        if split not in SPLITS:
            raise ValueError(f"procedural scenes have no split {split!r}; {nearest(split, SPLITS)}")
        size = getattr(self, split)
        if size < 1:
            raise ValueError(f"split {split!r} is empty: data.source.{split} is {size}; set it to a number of scenes")
        return ProceduralSource(split, size, seed=self.seed, resolution=resolution)


@dataclasses.dataclass(frozen=True)
class ProceduralSource:
    """A split of the procedural data set: rooms and open grounds with simple solids, with exact depth.

    Attributes:
        split: "train", "validation" or "test".
        size: number of scenes in the split. A larger size only adds scenes at the end.
        seed: non-negative; another seed is another data set.
        resolution: height and width in pixels. It changes the sampling of the views, not the scenes.
        max_unreadable: 0, as nothing is read.

    Raises:
        ValueError: for an unknown split, a negative size or seed, or a resolution that is not two positive
            integers.
    """

    split: str
    size: int
    seed: int = 0
    resolution: tuple[int, int] = (64, 64)
    max_unreadable: ClassVar[int] = 0

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; use one of {', '.join(SPLITS)}")
        for name in ("size", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 0:
                raise ValueError(f"{name} is {value!r}; use a non-negative integer")
        resolution = tuple(self.resolution)
        if len(resolution) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in resolution):
            raise ValueError(f"resolution is {self.resolution!r}; use two positive integers: height, width")
        object.__setattr__(self, "resolution", resolution)

    def __len__(self) -> int:
        return self.size

    def path(self, index: int) -> str:
        """The key of record `index`; there is no file."""
        return f"procedural/{self.split}/{operator.index(index)}"

    def scene(self, index: int) -> Scene:
        """The scene behind a record. Raises IndexError unless 0 <= index < len(self)."""
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of split {self.split!r}, which has scenes 0 to {self.size - 1}")
        entropy = np.random.SeedSequence(int(self.seed), spawn_key=(SPLITS.index(self.split), index))
        return sample_scene(np.random.Generator(np.random.Philox(entropy)))

    def __getitem__(self, index: int) -> dict:
        """Renders a scene.

        Returns:
            image (H, W, 3) uint8 RGB; depth (H, W) float32 z-depth in metres, 0 where missing (the sky, and
            ground too far away to measure); depth_valid (H, W) bool; caption, ASCII of at most 96 bytes; key
            "procedural/<split>/<index>"; intrinsics (4,) float32 fx, fy, cx, cy in pixels, where the centre
            of the top left pixel is (0.0, 0.0); skipped, always 0.

        Raises:
            IndexError: unless 0 <= index < len(self).
        """
        scene = self.scene(index)
        image_HW3, depth_HW, label_HW, intrinsics = render(scene, self.resolution)
        return {
            "image": image_HW3,
            "depth": depth_HW,
            "depth_valid": depth_HW > 0,
            "caption": caption(scene, label_HW),
            "key": self.path(index),
            "intrinsics": intrinsics,
            "skipped": 0,
        }
