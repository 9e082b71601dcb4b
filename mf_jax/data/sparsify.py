"""From dense depth to what real sensors deliver: random points, LiDAR lines, maps with holes.

A sparsifier only removes pixels. It draws from a generator seeded by the record, so a record keeps the same
pixels in every epoch, as a recorded data set does: a model never sees the dense map by looking twice.

Legend: H, W height and width in pixels.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mf_jax.configurable import nearest

Sparsifier = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def none(depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps every pixel."""
    return valid_HW


def random(depth_HW: np.ndarray, valid_HW: np.ndarray, rng: np.random.Generator, *, fraction: float) -> np.ndarray:
    """Keeps round(fraction * n) of the n valid pixels, at least one, drawn uniformly.

    Args:
      fraction: above 0, at most 1.
    """
    _within("random.fraction", fraction, 0, 1)
    measured = np.flatnonzero(valid_HW)
    kept_HW = np.zeros_like(valid_HW)
    if measured.size:
        count = max(1, round(fraction * measured.size))
        kept_HW.flat[rng.choice(measured, count, replace=False)] = True
    return kept_HW


def lidar(
    depth_HW: np.ndarray,
    valid_HW: np.ndarray,
    rng: np.random.Generator,
    *,
    lines: int = 16,
    keep: float = 0.8,
    jitter: float = 0.3,
) -> np.ndarray:
    """A spinning scanner at the camera: lines of equal elevation, evenly spaced in angle.

    The camera is taken to have its focal length equal to its height (a vertical field of view of 53 degrees).
    A direction of azimuth a and elevation e is then seen at column W/2 + H tan a and row H/2 - H tan e / cos a,
    which bends the lines as real scans bend in an image. One azimuth per image column and line; the whole fan
    is shifted by a random fraction of the line spacing.

    Args:
      lines: scan lines across the image's height.
      keep: probability that a pulse returns.
      jitter: standard deviation of a return's position, in pixels.
    """
    _within("lidar.keep", keep, 0, 1)
    if lines < 1:
        raise ValueError(f"lidar.lines must be at least 1, got {lines}")
    if jitter < 0:
        raise ValueError(f"lidar.jitter must not be negative, got {jitter}")
    height, width = valid_HW.shape
    edge = np.arctan(0.5)
    elevation = -edge + 2 * edge * (np.arange(lines) + rng.uniform()) / lines
    tan_azimuth = (np.arange(width) + 0.5 - width / 2) / height
    # 1 / cos a = sqrt(1 + tan^2 a)
    row = height / 2 - height * np.tan(elevation)[:, None] * np.sqrt(1 + tan_azimuth**2)
    col = np.broadcast_to(np.arange(width) + 0.5, row.shape)
    row = np.floor(row + jitter * rng.standard_normal(row.shape)).astype(int)
    col = np.floor(col + jitter * rng.standard_normal(row.shape)).astype(int)
    returned = (rng.uniform(size=row.shape) < keep) & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    kept_HW = np.zeros_like(valid_HW)
    kept_HW[row[returned], col[returned]] = True
    return kept_HW & valid_HW


def holes(
    depth_HW: np.ndarray,
    valid_HW: np.ndarray,
    rng: np.random.Generator,
    *,
    edge: float = 0.1,
    far: float = 10.0,
    blobs: int = 3,
    radius: float = 0.1,
) -> np.ndarray:
    """A structured-light or time-of-flight camera: nothing at depth edges, nothing far away, a few blind spots.

    Args:
      edge: pixels whose depth differs from a neighbour's by more than this ratio are lost, both of them.
      far: range in metres beyond which nothing is measured.
      blobs: elliptic blind spots (glass, black or shiny surfaces), at random places.
      radius: their largest radius, as a fraction of the image's height.
    """
    for name, value in (("edge", edge), ("far", far), ("radius", radius)):
        if value <= 0:
            raise ValueError(f"holes.{name} must be positive, got {value}")
    if blobs < 0:
        raise ValueError(f"holes.blobs must not be negative, got {blobs}")
    height, width = valid_HW.shape
    lost_HW = depth_HW > far
    for axis in (0, 1):
        a_HW, b_HW = (np.moveaxis(depth_HW, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        both_HW = np.moveaxis(valid_HW, axis, 0)[:-1] & np.moveaxis(valid_HW, axis, 0)[1:]
        jump_HW = both_HW & (np.maximum(a_HW, b_HW) > (1 + edge) * np.minimum(a_HW, b_HW))
        lost_axis_HW = np.moveaxis(lost_HW, axis, 0)
        lost_axis_HW[:-1] |= jump_HW
        lost_axis_HW[1:] |= jump_HW
    row_H1, col_1W = np.ogrid[0.5 : height + 0.5, 0.5 : width + 0.5]
    for _ in range(blobs):
        (y, x), (ry, rx) = rng.uniform(size=2) * (height, width), rng.uniform(0.2, 1, size=2) * radius * height
        lost_HW |= ((row_H1 - y) / ry) ** 2 + ((col_1W - x) / rx) ** 2 < 1
    return valid_HW & ~lost_HW


KINDS = {"none": none, "random": random, "lidar": lidar, "holes": holes}


def make_sparsifier(config: Mapping[str, Any]) -> Sparsifier:
    """The sparsifier that a config names: dict(kind="random", fraction=0.2).

    Returns:
      A picklable function (depth_HW float32 metres, valid_HW bool, rng) -> valid_HW bool, a subset of its input.

    Raises:
      ValueError: no kind, an unknown kind or parameter (names the nearest), a missing one, a value out of range.
    """
    parameters = dict(config)
    if "kind" not in parameters:
        raise ValueError(f"sparsify.kind is missing; there are: {', '.join(KINDS)}")
    kind = parameters.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown sparsify.kind {kind!r}; {nearest(str(kind), KINDS)}")
    signature = inspect.signature(KINDS[kind]).parameters
    known = {name: p for name, p in signature.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in parameters:
        if name not in known:
            hint = nearest(name, known) if known else "it takes no parameters"
            raise ValueError(f"unknown parameter sparsify.{name} for kind {kind!r}; {hint}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in parameters:
            raise ValueError(f"sparsify.{name} is missing for kind {kind!r}")
    sparsifier = functools.partial(KINDS[kind], **parameters)
    # A value out of range must fail here, not in a worker an hour later.
    try:
        sparsifier(np.ones((2, 2), np.float32), np.ones((2, 2), bool), np.random.default_rng(0))
    except TypeError as error:
        raise ValueError(f"sparsify of kind {kind!r} got a value of the wrong type in {parameters}: {error}") from error
    return sparsifier


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise ValueError(f"{name} must be above {low} and at most {high}, got {value}")
