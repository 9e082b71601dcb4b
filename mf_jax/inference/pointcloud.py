"""Coloured point clouds from a depth map and its image, as .ply and .glb.

Camera axes are x right, y down, z forward; the files use glTF axes, x right, y up, z backward.

Legend: H, W pixels; N points; 3 xyz or RGB.
"""

import math
from pathlib import Path

import numpy as np
import trimesh

from mf_jax.storage.atomic_file import write_bytes

MAX_POINTS = 1_200_000


def pinhole_from_fov(size: tuple[int, int], fov_deg: float) -> np.ndarray:
    """Intrinsics (fx, fy, cx, cy) in pixels, float64, of a centred pinhole camera with square pixels.

    fov_deg is the horizontal field of view: fx = W / (2 tan(fov / 2)).
    """
    if not 0 < fov_deg < 180:
        raise ValueError(f"the field of view must be between 0 and 180 degrees, got {fov_deg}")
    height, width = size
    focal = width / (2 * math.tan(math.radians(fov_deg) / 2))
    return np.array([focal, focal, width / 2, height / 2])


def unproject(depth_HW: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Camera points (H,W,3) float64 of z-depth, in the unit of the depth; the centre of pixel (0, 0) is (0.5, 0.5)."""
    fx, fy, cx, cy = np.asarray(intrinsics, np.float64)
    depth_HW = np.asarray(depth_HW, np.float64)
    height, width = depth_HW.shape
    x_W, y_H = (np.arange(width) + 0.5 - cx) / fx, (np.arange(height) + 0.5 - cy) / fy
    return np.stack([depth_HW * x_W[None, :], depth_HW * y_H[:, None], depth_HW], axis=-1)


def usable_pixels(depth_HW: np.ndarray, edge_rtol: float = 0.04) -> np.ndarray:
    """bool (H,W): depth is finite and positive, and its 3x3 neighbourhood spans at most edge_rtol times the depth.

    Points across a depth edge would hang in the air between the two surfaces. Missing neighbours do not count.
    """
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    height, width = depth_HW.shape
    low, high = (np.pad(np.where(valid_HW, depth_HW, fill), 1, constant_values=fill) for fill in (np.inf, -np.inf))
    shifts = [(slice(y, y + height), slice(x, x + width)) for y in range(3) for x in range(3)]
    low_HW = np.minimum.reduce([low[at] for at in shifts])
    high_HW = np.maximum.reduce([high[at] for at in shifts])
    span_HW = np.subtract(high_HW, low_HW, out=np.zeros(depth_HW.shape), where=valid_HW)
    return valid_HW & (span_HW <= edge_rtol * np.where(valid_HW, depth_HW, 0))


def point_cloud(
    image_HW3: np.ndarray,
    depth_HW: np.ndarray,
    fov_deg: float = 65.0,
    edge_rtol: float = 0.04,
    intrinsics: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(points_N3 float32, colors_N3 uint8) in glTF axes, the median at the origin, at most 1.2 million points.

    Args:
      image_HW3: uint8 RGB.
      depth_HW: z-depth, any unit; what is not finite and positive is dropped, and so are depth edges.
      fov_deg: horizontal field of view, used where intrinsics are not given.
      edge_rtol: see `usable_pixels`.
      intrinsics: (fx, fy, cx, cy) in pixels of this image.

    Returns:
      N may be 0. Above the limit a random subset is kept, the same in every run.
    """
    if image_HW3.shape[:2] != depth_HW.shape:
        raise ValueError(f"image {image_HW3.shape[:2]} and depth {depth_HW.shape} differ in size")
    if intrinsics is None:
        intrinsics = pinhole_from_fov(depth_HW.shape, fov_deg)
    elif not np.isfinite(intrinsics).all():
        raise ValueError(f"intrinsics must be finite, got {intrinsics}; leave them out to use fov_deg")
    use_HW = usable_pixels(depth_HW, edge_rtol)
    points_N3 = unproject(np.where(use_HW, depth_HW, 1), intrinsics)[use_HW] * (1, -1, -1)
    colors_N3 = image_HW3[use_HW]
    if len(points_N3) > MAX_POINTS:
        keep_N = np.sort(np.random.default_rng(0).choice(len(points_N3), MAX_POINTS, replace=False))
        points_N3, colors_N3 = points_N3[keep_N], colors_N3[keep_N]
    if len(points_N3):
        points_N3 = points_N3 - np.median(points_N3, axis=0)
    return points_N3.astype(np.float32), colors_N3


def write_point_cloud(stem: str | Path, points_N3: np.ndarray, colors_N3: np.ndarray) -> tuple[Path, Path]:
    """Write `<stem>.ply` and `<stem>.glb`, each under a temporary name first. Returns both paths."""
    if len(points_N3) == 0:
        raise ValueError("the point cloud is empty: no pixel has usable depth")
    cloud = trimesh.PointCloud(points_N3, colors=colors_N3)
    ply = write_bytes(f"{stem}.ply", cloud.export(file_type="ply"))
    glb = write_bytes(f"{stem}.glb", trimesh.Scene(cloud).export(file_type="glb"))
    return ply, glb
