"""Reading of image, depth and mask files as arrays, with checks of their format.

A file is a picture that Pillow can read or, by its suffix, an array (.npy, .npz).

Legend: H, W height and width in pixels; C channels.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

ARRAY_SUFFIXES = (".npy", ".npz")

# What Pillow, numpy and zipfile raise on files that are truncated, not what their name says, or claim absurd sizes.
_BROKEN = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
    Image.DecompressionBombError,
    Warning,  # about all of that, where warnings are errors
)
_16_BIT = ("I;16", "I;16L", "I;16B", "I")


class UnreadableFile(ValueError):
    """A file that is missing, truncated, corrupt or a picture over Pillow's limit of pixels; the message names it."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UnreadableFile(f"{path} does not exist or is not a file") from error
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise UnreadableFile(
            f"{path} cannot be read; it may be truncated or not what its name says: {reason}"
        ) from error


def read_image(path: str | Path, *, upright: bool) -> np.ndarray:
    """A picture of 8 bits per channel as RGB.

    Args:
      upright: turn it as its EXIF tag says. Not for an image with depth, a mask or intrinsics: these have no such tag
        and belong to the pixels as stored.

    Returns:
      (H,W,3) uint8. Grey is repeated, alpha dropped.

    Raises:
      UnreadableFile: the file cannot be read, see there.
      ValueError: a picture of more than 8 bits; a TIFF with an orientation tag, unless upright.
    """
    mode, image_HW3 = _read_picture(Path(path), convert="RGB", upright=upright)
    if mode.startswith(("I", "F")):
        raise ValueError(f"image {path} has pixel type {mode!r}; it must have 8 bits per channel. Is it a depth map?")
    return image_HW3


def read_depth(path: str | Path, npz_key: str | None = None, *, first_channel: bool = False) -> np.ndarray:
    """A depth file as stored, without scale.

    Args:
      npz_key: the array's name in an .npz file; not needed where there is one array.
      first_channel: of an array (H,W,C), C at most 4, take the first channel. Otherwise C must be 1.

    Returns:
      (H,W) of integers from a picture; of any real dtype from an array.

    Raises:
      UnreadableFile: the file cannot be read, see there.
      ValueError: a picture that is not 16 bit with one channel, or a TIFF with an orientation tag; an array of another
        shape or dtype; an .npz with several arrays or without the one of npz_key.
    """
    path = Path(path)
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        mode, values_HW = _read_picture(path)
        if mode not in _16_BIT:
            raise ValueError(
                f"depth {path} is a picture of mode {mode!r}; depth must be 16 bit with one channel, or an array "
                f"({', '.join(ARRAY_SUFFIXES)})"
            )
        return values_HW
    values = stored = read_array(path, npz_key, "depth")
    if values.ndim == 3 and 1 <= values.shape[2] <= (4 if first_channel else 1):
        values = values[..., 0]
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        raise ValueError(f"depth {path} holds {stored.dtype} {stored.shape}; it must be numbers of shape (H, W)")
    return values


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file, a picture or an array, as (H,W) bool, True where it is not zero in any channel."""
    path = Path(path)
    values = read_array(path, None, "mask") if path.suffix.lower() in ARRAY_SUFFIXES else _read_picture(path)[1]
    return values != 0 if values.ndim == 2 else (values != 0).any(axis=-1)


def _read_picture(path: Path, convert: str | None = None, upright: bool = False) -> tuple[str, np.ndarray]:
    """The mode of the file and its pixels, converted to another mode if one is given."""
    with _reading(path), Image.open(path) as picture:
        limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns, up to twice that
        if limit is not None and picture.width * picture.height > limit:
            raise ValueError(f"{picture.width} x {picture.height} are more than {limit} pixels")
        turned = picture.format == "TIFF" and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        mode, pixels = picture.mode, np.array(picture.convert(convert) if convert else picture)
    if turned and not upright:  # Pillow does that to TIFF by itself
        raise ValueError(f"{path} has an orientation tag, so its pixels are not as stored; save it without")
    return mode, pixels


def read_array(path: Path, npz_key: str | None, what: str) -> np.ndarray:
    """The array of an .npy file, or of an .npz file; `what` names it in messages.

    Raises:
      UnreadableFile: the file cannot be read, see there.
      ValueError: an .npz with several arrays or without the one of npz_key.
    """
    if path.suffix.lower() == ".npy":
        with _reading(path), path.open("rb") as file:
            return _read_npy(file, os.fstat(file.fileno()).st_size)
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        key = npz_key or (next(iter(members)) if len(members) == 1 else None)
        if key in members:
            with archive.open(members[key]) as file:
                return _read_npy(file, archive.getinfo(members[key]).file_size)
    raise ValueError(f"{what} {path} holds the arrays {list(members)}; set npz_key to one of them (it is {npz_key!r})")


def _read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """The array of an .npy file of `size` bytes; memory for it is taken only if the file is as long as it claims."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    claimed, rest = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed > rest and not dtype.hasobject:
        raise ValueError(f"its header claims {dtype} {shape}, {claimed} bytes, and {rest} bytes follow")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
