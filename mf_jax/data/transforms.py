"""Transforms of records of a source into examples that the model trains on, in two steps.

`Examples` does what is the same every time: reading and resizing to a working resolution, which can be cached. `View`
does what is drawn anew each time: windows, mirroring, colours.

Legend: H W height and width in pixels, L text length in ids.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import DTypeLike

from mf_jax.data.augment import AugmentConfig, jitter_colour, random_window
from mf_jax.data.precomputed import IMAGE_LATENT, Shapes, fields_of
from mf_jax.data.resize import center_crop_to_aspect, masked_nearest, resize_image
from mf_jax.data.sources import Source
from mf_jax.data.sparsify import Sparsifier
from mf_jax.data.tokenizer import Tokenizer

Example = dict[str, np.ndarray]

# Fields of an example that are for the loader and not for the model.
BOOK_KEEPING = ("index", "skipped")

# Side of a working pixel, in pixels of the model at the closest crop. Compared with the same window cut from the frame
# itself, on 7-Scenes, images differ by 1.8 of 255 and depth by 0.4 %; with 1.0 by 3.3 and 0.9 %, with 0.25 by 1.3 and
# 0.3 %.
_WORKING_PIXEL = 0.5


def example_shapes(
    resolution: tuple[int, int], precomputed: Shapes | None = None
) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shape and dtype of every field of an example that the model reads, except the ids of its text.

    Args:
      precomputed: fields that come with the data, image_latent in place of image.
    """
    H, W = resolution
    given = dict(precomputed or {})
    image = {} if IMAGE_LATENT in given else {"image": ((H, W, 3), np.uint8)}
    return {**image, "depth": ((H, W), np.float32), "depth_valid": ((H, W), np.bool_), **given}


class Examples:
    """The records of a source as examples at working resolution; the same example for an index every time.

    Without crops that is `resolution`: image and depth are cropped around the centre to its aspect ratio and resized,
    the image by area, depth by masked nearest. With crops it is the whole frame, shrunk as far as the smallest window
    allows, and never enlarged.

    Args:
      source: of the records.
      resolution: (H, W) that the model sees.
      crop: as in AugmentConfig.
      tokenizer: its length is L. A caption that is too long is cut, and the first one logged. None where text_features
        are precomputed.
      precomputed: shapes and dtypes of the fields that records have from files, see mf_jax/data/precomputed.py.
      cache: keep every example in memory once it has been read, in each process that reads it.
    """

    def __init__(
        self,
        source: Source,
        *,
        resolution: tuple[int, int],
        tokenizer: Tokenizer | None,
        crop: float = 1.0,
        cache: bool = False,
        precomputed: Shapes | None = None,
    ):
        self.source = source
        self.resolution = resolution
        self.crop = crop
        self.tokenizer = tokenizer
        self.precomputed = dict(precomputed or {})
        self._cache: dict[int, Example] | None = {} if cache else None

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling, without the cached examples: a worker reads for itself."""
        return self.__dict__ | {"_cache": None if self._cache is None else {}}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """One example; to be read only, where it is cached.

        Returns:
          image (H,W,3) uint8; depth (H,W) float32 metres, 0 where missing; depth_valid (H,W) bool; text_ids (L,) int32;
          index () int64; skipped () int32. (H, W) differs between examples if there are crops. Precomputed fields take
          the place of image and of text_ids.
        """
        if self._cache is None:
            return self._read(index)
        if index not in self._cache:
            self._cache[index] = self._read(index)
        return self._cache[index]

    def _read(self, index: int) -> Example:
        record = self.source[index]
        image_HW3: np.ndarray | None = record.get("image")  # None where there are latents instead
        depth_HW, valid_HW = record["depth"], record["depth_valid"]
        if self.crop == 1.0:
            fit = functools.partial(center_crop_to_aspect, size=self.resolution)
            image_HW3 = None if image_HW3 is None else fit(image_HW3)
            depth_HW, valid_HW = fit(depth_HW), fit(valid_HW)
            size = self.resolution
        else:
            size = _working_size(valid_HW.shape, self.resolution, self.crop)
        image_HW3, depth_HW, valid_HW = _resized(image_HW3, depth_HW, valid_HW, size)
        return {
            **({} if image_HW3 is None else {"image": np.ascontiguousarray(image_HW3)}),
            "depth": np.where(valid_HW, depth_HW, np.float32(0)),
            "depth_valid": np.ascontiguousarray(valid_HW),
            **(self._text(record, self.tokenizer) if self.tokenizer else {}),
            **fields_of(record, self.precomputed, record["key"]),
            "index": np.array(index, np.int64),
            "skipped": np.array(record["skipped"], np.int32),
        }

    @staticmethod
    def _text(record: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
        """The fields of a record's caption, which is cut if it is too long."""
        caption = tokenizer.fit(record["caption"])
        if caption != record["caption"]:
            logging.log_first_n(
                logging.WARNING,
                "The caption of %s was cut to %s; further ones are cut without a message.",
                1,
                record["key"],
                tokenizer.limit,
            )
        return tokenizer.fields(caption)


@dataclasses.dataclass(frozen=True)
class View:
    """Augments and sparsifies an example: a random window, fewer depth pixels, mirrored, in other colours.

    Sparsifying comes after all resizing: the fraction then is a fraction of what the model sees. Before it, resizing
    would undo it, since nearly every large cell still holds one valid pixel. It is drawn from (seed, index), so that a
    record keeps its pixels; with crops it keeps the pattern, which falls on other points of the scene in each window.

    Attributes:
      resolution: (H, W) of the result. augment: what is drawn anew.
      sparsifier: of mf_jax.data.sparsify. seed: of the sparsifier.
    """

    resolution: tuple[int, int]
    augment: AugmentConfig
    sparsifier: Sparsifier
    seed: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """A new example with the fields of `Examples`, at (H, W) = resolution; the one given is not changed.

        Args:
          rng: generator of this position of the stream.
        """
        image_HW3: Any = example.get("image")  # None beside latents, which go without augmentation
        depth_HW, valid_HW = example["depth"], example["depth_valid"]
        mirrored = self.augment.flip and rng.random() >= 0.5
        if self.augment.crop < 1.0:
            window = random_window(valid_HW.shape, self.resolution, self.augment.crop, rng)
            image_HW3, depth_HW, valid_HW = _resized(
                image_HW3[window], depth_HW[window], valid_HW[window], self.resolution
            )
        valid_HW = self.sparsifier(depth_HW, valid_HW, np.random.default_rng((self.seed, int(example["index"]))))
        depth_HW = np.where(valid_HW, depth_HW, np.float32(0))
        if mirrored:
            image_HW3, depth_HW, valid_HW = image_HW3[:, ::-1], depth_HW[:, ::-1], valid_HW[:, ::-1]
        if self.augment.colour > 0.0:
            image_HW3 = jitter_colour(image_HW3, self.augment.colour, rng)
        seen = {"image": image_HW3, "depth": depth_HW, "depth_valid": valid_HW}
        return example | {name: np.ascontiguousarray(array) for name, array in seen.items() if array is not None}


def _working_size(frame: tuple[int, int], resolution: tuple[int, int], crop: float) -> tuple[int, int]:
    """(H, W) that a frame is shrunk to, at most its own."""
    largest = center_crop_to_aspect(np.empty(frame, bool), resolution).shape
    scale = max(target / (crop * _WORKING_PIXEL * side) for target, side in zip(resolution, largest, strict=True))
    return frame if scale >= 1.0 else (math.ceil(frame[0] * scale), math.ceil(frame[1] * scale))


def _resized(
    image_HW3: np.ndarray | None, depth_HW: np.ndarray, valid_HW: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    if valid_HW.shape == tuple(size):
        return image_HW3, depth_HW, valid_HW
    image_HW3 = None if image_HW3 is None else resize_image(image_HW3, size)
    return image_HW3, *masked_nearest(depth_HW, valid_HW, size)
