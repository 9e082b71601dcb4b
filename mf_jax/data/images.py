"""Image, depth and mask files as arrays, with the format checked.

Legend: H, W height and width in pixels.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

# What PIL and numpy raise on files that are truncated or not what their name says.
_BROKEN = (OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)
_16_BIT = ("I;16", "I;16L", "I;16B", "I")


class UnreadableFile(Exception):
    """A file that is missing, truncated or corrupt."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise UnreadableFile(f"{path}: {error}") from error


def read_image(path: Path) -> np.ndarray:
    """An 8-bit image file as RGB.

    Returns:
      (H,W,3) uint8. Grey is repeated, alpha dropped; EXIF rotation is not applied, as depth files have none.

    Raises:
      UnreadableFile: missing, truncated or corrupt.
      ValueError: an image of 16 bit.
    """
    with _reading(path), Image.open(path) as file:
        mode, image_HW3 = file.mode, np.array(file.convert("RGB"))
    if mode in _16_BIT:
        raise ValueError(f"image {path} has 16 bits per channel; images must have 8")
    return image_HW3


def read_depth(path: Path, npz_key: str | None = None) -> np.ndarray:
    """A depth file as stored, without scale.

    Returns:
      (H,W) uint16 from a PNG; any real dtype from .npy and .npz.

    Raises:
      UnreadableFile: missing, truncated or corrupt.
      ValueError: a PNG that is not 16 bit with one channel, an array that is not (H,W) or (H,W,1), an .npz without
        npz_key or with several arrays, another kind of file.
    """
    if path.suffix.lower() == ".png":
        with _reading(path), Image.open(path) as file:
            mode, values_HW = file.mode, np.array(file)
        if mode not in _16_BIT:
            raise ValueError(f"depth {path} is a PNG of mode {mode!r}; depth must be 16 bit with one channel")
        return values_HW.astype(np.uint16)
    values = _read_array(path, npz_key, "depth")
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(f"depth {path} holds {values.dtype} {values.shape}; it must be numbers of shape (H, W)")
    return values


def read_mask(path: Path) -> np.ndarray:
    """A mask file (.png, .npy or .npz) as (H,W) bool, True where it is not zero in any channel."""
    if path.suffix.lower() == ".png":
        with _reading(path), Image.open(path) as file:
            values = np.array(file)
    else:
        values = _read_array(path, None, "mask")
    return values != 0 if values.ndim == 2 else (values != 0).any(axis=-1)


def _read_array(path: Path, npz_key: str | None, what: str) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        with _reading(path), path.open("rb") as file:
            return np.load(file)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{what} {path} is neither .png, .npy nor .npz")
    with _reading(path), path.open("rb") as file, np.load(file) as arrays:
        names = arrays.files
        key = npz_key or (names[0] if len(names) == 1 else None)
        if key in names:
            return arrays[key]
    raise ValueError(f"{what} {path} holds the arrays {names}; set npz_key to one of them (it is {npz_key!r})")
