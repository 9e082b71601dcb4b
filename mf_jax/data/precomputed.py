"""Precomputed fields: what a frozen encoder makes of a record, read from a file instead.

    image_latent   (h, w, C): the autoencoder's latents of the image
    text_features  (m, D): the text encoder's features of the caption, a row for each of its m tokens

Files are .npy or .npz of float32, float16 or bfloat16 (which numpy writes as two raw bytes per value).

Legend: h w latents, C channels of a latent, M text tokens, m of them real, D feature channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from mf_jax.data.images import read_array

IMAGE_LATENT, TEXT_FEATURES = "image_latent", "text_features"
FIELDS = (IMAGE_LATENT, TEXT_FEATURES)
DIMENSIONS = {IMAGE_LATENT: "(h, w, C)", TEXT_FEATURES: "(tokens, D)"}
Shapes = Mapping[str, tuple[tuple[int, ...], DTypeLike]]


def read(path: str | Path, field: str) -> np.ndarray:
    """A file of one field as it is stored, float32, float16 or bfloat16.

    Raises:
      UnreadableFile: the file cannot be read, see there.
      ValueError: another dtype, or another number of dimensions.
    """
    value = read_array(Path(path), None, field)
    if value.dtype == np.dtype("V2"):
        value = value.view(ml_dtypes.bfloat16)
    if value.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
        raise ValueError(f"{field} {path} holds {value.dtype}; it must be float32, float16 or bfloat16")
    if value.ndim != DIMENSIONS[field].count(",") + 1:
        raise ValueError(f"{field} {path} has shape {value.shape}; it must be {DIMENSIONS[field]}")
    return value


def fields_of(record: Mapping[str, np.ndarray], wanted: Shapes, where: str) -> dict[str, np.ndarray]:
    """The precomputed fields of an example, in the shapes and dtypes that the model reads.

    Args:
      record: has them as stored.
      wanted: shape and dtype by field; with text_mask among them, text may have fewer rows and is padded with zeros.
      where: the record's name, for messages.

    Raises:
      ValueError: a field of another shape.
    """
    result = {}
    for name in FIELDS:
        if name not in wanted:
            continue
        (shape, dtype), value = wanted[name], record[name]
        rows = len(value)
        may_be_short = name == TEXT_FEATURES and "text_mask" in wanted
        if value.shape[1:] != shape[1:] or not (1 <= rows <= shape[0] if may_be_short else rows == shape[0]):
            limit = f"{shape[0]} rows or fewer" if may_be_short else f"{shape[0]} rows"
            raise ValueError(
                f"{name} of {where} has shape {value.shape}; the config's model reads {shape}, {limit}: was it made "
                "for another resolution, text length or encoder?"
            )
        result[name] = np.zeros(shape, dtype)
        result[name][:rows] = value
        if may_be_short:
            result["text_mask"] = np.arange(shape[0]) < rows
    return result
