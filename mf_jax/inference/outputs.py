"""What a sample leaves on disk, in the layout of the official scripts, and reading images and depth given by a user.

Legend: H, W pixels; 3 RGB; C channels.
"""

import datetime
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mf_jax.inference.pointcloud import point_cloud, write_point_cloud
from mf_jax.inference.visualize import colorize_depth
from mf_jax.storage.atomic_file import write_bytes

_SLUG_LENGTH = 48


def write_sample(
    directory: str | Path,
    image_HW3: np.ndarray,
    depth_HW: np.ndarray | None,
    metadata: Mapping,
    pointcloud: bool = True,
    fov_deg: float = 65.0,
    edge_rtol: float = 0.04,
    others: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write one sample to a new folder `<directory>/<YYYYmmdd_HHMMSS>_<prompt slug>/` and return its path.

    Files: rgb.png; depth_raw.npy (float32, relative, larger is farther, unchanged); depth_magma.png; cloud.ply and
    cloud.glb (unless pointcloud is False or no pixel has usable depth); NAME.npy of every other modality; metadata.json
    last, so that its presence marks a complete folder. A second sample in the same second gets the suffix _2.

    Args:
      image_HW3: uint8 RGB.
      depth_HW: float, any unit; None, of a model without depth, writes no depth and no point cloud.
      metadata: JSON types; `prompt` names the folder. img_hw is added, and the number of points as cloud_points.
      fov_deg, edge_rtol: see `pointcloud.point_cloud`.
      others: modalities beside image and depth.

    Raises:
      ValueError: image is not uint8 (H,W,3), depth has another size, or metadata cannot be written as JSON.
    """
    image_HW3 = np.asarray(image_HW3)
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H,W,3), got {image_HW3.dtype} {image_HW3.shape}")
    if depth_HW is not None:
        depth_HW = np.asarray(depth_HW, np.float32)
        if depth_HW.shape != image_HW3.shape[:2]:
            raise ValueError(f"depth {depth_HW.shape} and image {image_HW3.shape[:2]} differ in size")
    metadata = {**metadata, "img_hw": list(image_HW3.shape[:2])}
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata cannot be written as JSON: {error}") from error

    folder = _new_folder(Path(directory), str(metadata.get("prompt", "")))
    write_bytes(folder / "rgb.png", png_bytes(image_HW3))
    for name, array in (others or {}).items():
        write_bytes(folder / f"{name}.npy", _npy(array))
    if depth_HW is not None:
        write_bytes(folder / "depth_raw.npy", _npy(depth_HW))
        write_bytes(folder / "depth_magma.png", png_bytes(colorize_depth(depth_HW)))
    if depth_HW is not None and pointcloud:
        points_N3, colors_N3 = point_cloud(image_HW3, depth_HW, fov_deg, edge_rtol)
        if len(points_N3):
            write_point_cloud(folder / "cloud", points_N3, colors_N3)
        metadata["cloud_points"] = len(points_N3)
    write_bytes(folder / "metadata.json", (json.dumps(metadata, indent=2, allow_nan=False) + "\n").encode())
    return folder


def _new_folder(directory: Path, prompt: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "_", prompt.lower())[:_SLUG_LENGTH].strip("_") or "no_prompt"
    name = f"{datetime.datetime.now():%Y%m%d_%H%M%S}_{slug}"
    directory.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        folder = directory / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            attempt += 1


def png_bytes(image_HW3: np.ndarray) -> bytes:
    """A uint8 RGB picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _open_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as a picture; it may be truncated or of another format: {error}"
        ) from error


def read_image(path: str | Path) -> np.ndarray:
    """Any 8-bit picture as uint8 RGB (H,W,3), turned upright by its EXIF tag; transparency is dropped.

    Raises:
      ValueError: missing or unreadable file, or more than 8 bits per channel.
    """
    path = Path(path)
    picture = _open_picture(path)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{path} has pixel type {picture.mode}, which is no 8-bit colour image; is it a depth map?")
    return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def read_depth(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A depth map given by a user: (depth_HW float32, 0 where missing; valid_HW bool).

    `.npy` holds floats, (H,W) or (H,W,C), of which channel 0 is used; everything else must be a picture with one
    16-bit channel (PNG or TIFF). Zero, negative, NaN and infinite values are missing. The unit is kept: only relative
    depth matters to the model.

    Raises:
      ValueError: missing or unreadable file, 8-bit or colour picture, wrong shape or dtype, or not one valid pixel.
    """
    path = Path(path)
    depth_HW = _read_npy(path) if path.suffix == ".npy" else _read_16_bit(path)
    with np.errstate(over="ignore"):
        depth_HW = depth_HW.astype(np.float32)
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    if not valid_HW.any():
        raise ValueError(f"{path} holds no depth: none of its {depth_HW.size} pixels is finite and positive")
    return np.where(valid_HW, depth_HW, np.float32(0)), valid_HW


def _read_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as .npy; it may be truncated: {error}") from error
    if array.dtype.kind != "f":
        raise ValueError(f"{path} has dtype {array.dtype}; depth in .npy must be floating point")
    if array.ndim == 3 and 1 <= array.shape[2] <= 4:
        array = array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{path} has shape {array.shape}; expected (H,W) or (H,W,C) with at most 4 channels")
    return array


def _read_16_bit(path: Path) -> np.ndarray:
    picture = _open_picture(path)
    if not picture.mode.startswith("I"):
        raise ValueError(
            f"{path} has pixel type {picture.mode}; depth must have one 16-bit channel (8 bits are too coarse: "
            "256 levels) or be a .npy of floats"
        )
    return np.array(picture)
