"""Sparsifiers, which turn dense depth into what real sensors deliver: random points, LiDAR lines, maps with holes.

A sparsifier only removes pixels. It draws from a generator seeded by the record, so a record keeps the same
pixels in every epoch, as a recorded data set does, and epochs do not add up to the dense map. `kind` in
data.sparsify chooses one; its other keys are the class's fields.

Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from mf_jax.configurable import check_at_least


class Sparsifier(Protocol):
    """Removes depth pixels; a frozen, picklable dataclass."""

    def __call__(self, depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The pixels that stay valid, (H, W) bool, a subset of those given.

        Args:
          depth_HW: float32 metres. valid_HW: bool, where depth was measured. rng: seeded by the record.
        """


@dataclasses.dataclass(frozen=True)
class KeepAll:
    """Keeps every pixel."""

    def __call__(self, depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return valid_HW


@dataclasses.dataclass(frozen=True)
class RandomPixels:
    """Keeps round(fraction * n) of the n valid pixels, at least one, drawn uniformly.

    Attributes:
      fraction: above 0 and at most 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        _check_share(self, "fraction")

    def __call__(self, depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        measured = np.flatnonzero(valid_HW)
        kept_HW = np.zeros_like(valid_HW)
        if measured.size:
            count = max(1, round(self.fraction * measured.size))
            kept_HW.flat[rng.choice(measured, count, replace=False)] = True
        return kept_HW


@dataclasses.dataclass(frozen=True)
class LidarLines:
    """Keeps the lines of a spinning scanner at the camera: lines of equal elevation, evenly spaced in angle.

    The camera is taken to have its focal length equal to its height (a vertical field of view of 53 degrees).
    A direction of azimuth a and elevation e is then seen at column W/2 + H tan a and row H/2 - H tan e / cos a,
    which bends the lines as real scans bend in an image. One azimuth per image column and line; the whole fan
    is shifted by a random fraction of the line spacing.

    Attributes:
      lines: scan lines across the image's height.
      keep: probability that a pulse returns.
      jitter: standard deviation of a return's position, in pixels.
    """

    lines: int = 16
    keep: float = 0.8
    jitter: float = 0.3

    def __post_init__(self) -> None:
        _check_share(self, "keep")
        check_at_least("data.sparsify", self, lines=1, jitter=0)

    def __call__(self, depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = valid_HW.shape
        edge = np.arctan(0.5)
        elevation = -edge + 2 * edge * (np.arange(self.lines) + rng.uniform()) / self.lines
        tan_azimuth = (np.arange(width) + 0.5 - width / 2) / height
        # 1 / cos a = sqrt(1 + tan^2 a)
        row = height / 2 - height * np.tan(elevation)[:, None] * np.sqrt(1 + tan_azimuth**2)
        col = np.broadcast_to(np.arange(width) + 0.5, row.shape)
        row = np.floor(row + self.jitter * rng.standard_normal(row.shape)).astype(int)
        col = np.floor(col + self.jitter * rng.standard_normal(row.shape)).astype(int)
        returned = (rng.uniform(size=row.shape) < self.keep) & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        kept_HW = np.zeros_like(valid_HW)
        kept_HW[row[returned], col[returned]] = True
        return kept_HW & valid_HW


@dataclasses.dataclass(frozen=True)
class Holes:
    """Removes what a structured-light or time-of-flight camera misses: depth edges, far surfaces, a few blind spots.

    Attributes:
      edge: pixels whose depth differs from a neighbour's by more than this ratio are lost, both of them.
      far: range in metres beyond which nothing is measured.
      blobs: elliptic blind spots (glass, black or shiny surfaces), at random places.
      radius: their largest radius, as a fraction of the image's height.
    """

    edge: float = 0.1
    far: float = 10.0
    blobs: int = 3
    radius: float = 0.1

    def __post_init__(self) -> None:
        check_at_least("data.sparsify", self, edge=0, far=0, blobs=0, radius=0)
        for name in ("edge", "far", "radius"):
            if getattr(self, name) == 0:
                raise ValueError(f"data.sparsify.{name} is 0; it must be positive")

    def __call__(self, depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = valid_HW.shape
        lost_HW = depth_HW > self.far
        for axis in (0, 1):
            a_HW, b_HW = (np.moveaxis(depth_HW, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
            both_HW = np.moveaxis(valid_HW, axis, 0)[:-1] & np.moveaxis(valid_HW, axis, 0)[1:]
            jump_HW = both_HW & (np.maximum(a_HW, b_HW) > (1 + self.edge) * np.minimum(a_HW, b_HW))
            lost_axis_HW = np.moveaxis(lost_HW, axis, 0)
            lost_axis_HW[:-1] |= jump_HW
            lost_axis_HW[1:] |= jump_HW
        row_H1, col_1W = np.ogrid[0.5 : height + 0.5, 0.5 : width + 0.5]
        for _ in range(self.blobs):
            (y, x), (ry, rx) = rng.uniform(size=2) * (height, width), rng.uniform(0.2, 1, size=2) * self.radius * height
            lost_HW |= ((row_H1 - y) / ry) ** 2 + ((col_1W - x) / rx) ** 2 < 1
        return valid_HW & ~lost_HW


KINDS: dict[str, type[Sparsifier]] = {"none": KeepAll, "random": RandomPixels, "lidar": LidarLines, "holes": Holes}


def _check_share(settings: Sparsifier, name: str) -> None:
    """ValueError for a field that is not above 0 and at most 1."""
    check_at_least("data.sparsify", settings, **{name: 0})
    if not 0 < getattr(settings, name) <= 1:
        raise ValueError(f"data.sparsify.{name} is {getattr(settings, name)}; it must be above 0 and at most 1")
