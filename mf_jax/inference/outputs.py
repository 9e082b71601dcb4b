"""Writing a sample to disk, in the layout of the official scripts.

Legend: H, W pixels; 3 RGB.
"""

import datetime
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

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
