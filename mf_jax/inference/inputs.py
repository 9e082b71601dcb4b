"""Reading depth files of users as conditions for the pipeline; images are read by mf_jax.data.images.read_image.

Legend: H, W pixels; C channels.
"""

from pathlib import Path

import numpy as np

from mf_jax.data.images import ARRAY_SUFFIXES, read_depth


def read_relative_depth(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a depth map of any unit: (depth_HW float32, 0 where missing; valid_HW bool).

    An array (.npy, or .npz with one array) holds floats, (H,W) or (H,W,C), of which channel 0 is used; everything else
    must be a picture with one 16-bit channel (PNG or TIFF). Zero, negative, NaN and infinite values are missing. The
    unit is kept: only relative depth matters to the model.

    Raises:
      ValueError: missing or unreadable file, 8-bit or colour picture, wrong shape or dtype, or not one valid pixel.
    """
    depth_HW = read_depth(path, first_channel=True)
    if Path(path).suffix.lower() in ARRAY_SUFFIXES and depth_HW.dtype.kind != "f":
        raise ValueError(f"depth {path} has dtype {depth_HW.dtype}; arrays of depth must be floating point")
    with np.errstate(over="ignore"):
        depth_HW = depth_HW.astype(np.float32)
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    if not valid_HW.any():
        raise ValueError(f"{path} holds no depth: none of its {depth_HW.size} pixels is finite and positive")
    return np.where(valid_HW, depth_HW, np.float32(0)), valid_HW
