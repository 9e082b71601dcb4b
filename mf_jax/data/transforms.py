"""From a record of a source to the example that the model trains on.

Legend: B batch, H W height and width in pixels, L text length in bytes.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from mf_jax.data.resize import center_crop_to_aspect, masked_nearest, resize_image
from mf_jax.data.sparsify import Sparsifier
from mf_jax.data.tokenizer import ByteTokenizer


class Examples:
    """The records of a source as examples; random access, and the same example for an index every time.

    Image and depth are cropped around the centre to the aspect ratio of `resolution` and resized, the image by
    area, depth by masked nearest. Sparsifying comes after resizing: the fraction then is a fraction of what the
    model sees. Before it, resizing would undo it, since nearly every large cell still holds one valid pixel.

    Args:
      source: records as in the data contract.
      resolution: (H, W) of the examples.
      sparsifier: of mf_jax.data.sparsify; drawn from (seed, index).
      tokenizer: its length is L. A caption that is too long is cut, and the first one logged.
      seed: of the sparsifier.
    """

    def __init__(
        self,
        source: Sequence[Mapping[str, Any]],
        *,
        resolution: tuple[int, int],
        sparsifier: Sparsifier,
        tokenizer: ByteTokenizer,
        seed: int,
    ):
        self.source = source
        self.resolution = tuple(resolution)
        self.sparsifier = sparsifier
        self.tokenizer = tokenizer
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example.

        Returns:
          image (H,W,3) uint8; depth (H,W) float32 metres, 0 where missing; depth_valid (H,W) bool; text_ids (L,) int32;
          index () int64; skipped () int32.
        """
        record = self.source[index]
        fit = functools.partial(center_crop_to_aspect, size=self.resolution)
        image_HW3, depth_HW, valid_HW = fit(record["image"]), fit(record["depth"]), fit(record["valid"])
        if image_HW3.shape[:2] != self.resolution:
            image_HW3 = resize_image(image_HW3, self.resolution)
            depth_HW, valid_HW = masked_nearest(depth_HW, valid_HW, self.resolution)
        valid_HW = self.sparsifier(depth_HW, valid_HW, np.random.default_rng((self.seed, index)))
        caption = self.tokenizer.fit(record["caption"])
        if caption != record["caption"]:
            logging.log_first_n(
                logging.WARNING,
                "The caption of %s was cut to %d bytes; further ones are cut without a message.",
                1,
                record["key"],
                self.tokenizer.max_bytes,
            )
        return {
            "image": np.ascontiguousarray(image_HW3),
            "depth": np.where(valid_HW, depth_HW, np.float32(0)),
            "depth_valid": np.ascontiguousarray(valid_HW),
            "text_ids": self.tokenizer(caption),
            "index": np.int64(index),
            "skipped": np.int32(record["skipped"]),
        }


def random_flip(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Mirrors image and depth left to right, one time in two."""
    if rng.random() < 0.5:
        return example
    mirrored = {name: np.ascontiguousarray(example[name][:, ::-1]) for name in ("image", "depth", "depth_valid")}
    return example | mirrored
