"""Resizing of depth by masked nearest, which never mixes values, and of images by area.

Legend: H, W source height and width in pixels; h, w target; y, x window rows and columns.
"""

import numpy as np
from PIL import Image


def _axis_windows(source: int, target: int, grow: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source positions inside each target cell of one axis.

    Everything is an exact integer in units of 1 / (2 target) source pixels: pixel j has its centre at
    (2 j + 1) target, cell i at (2 i + 1) source, and the cell's window reaches `source` to each side; with `grow`
    at least `target`, which is half a source pixel.

    Returns:
      (index_hy int, distance_hy int64, inside_hy bool); index is always a legal position.
    """
    half = max(source, target) if grow else source
    centre_h = (2 * np.arange(target, dtype=np.int64) + 1) * source
    # The first pixel beyond the open end: the smallest j with (2 j + 1) target > centre - half.
    first_h = (centre_h - half + target) // (2 * target)
    position_hy = first_h[:, None] + np.arange(half // target + 1)
    distance_hy = (2 * position_hy + 1) * target - centre_h[:, None]
    inside_hy = (distance_hy <= half) & (position_hy >= 0) & (position_hy < source)
    keep_y = inside_hy.any(axis=0)
    return np.clip(position_hy, 0, source - 1)[:, keep_y], distance_hy[:, keep_y], inside_hy[:, keep_y]


def masked_nearest_index(
    valid_HW: np.ndarray, size: tuple[int, int], grow: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the valid pixel nearest to each target cell's centre, inside the cell's receptive field.

    The receptive field is the cell itself, H/h by W/w source pixels, open on the left and top, closed on the
    right and bottom, so that a pixel feeds one cell only. Ties go to the upper, then the left pixel. This is
    the sampling on which MoGe (arXiv 2410.19115) aligns depth for evaluation.

    Args:
      valid_HW: bool.
      size: (h, w).
      grow: where the target is finer than the source, widen the receptive field to one source pixel. Without
        it, a cell that holds no pixel centre stays empty, as in MoGe.

    Returns:
      mask_hw bool, True where the cell holds a valid pixel; row_hw and col_hw int64, that pixel (meaningful
      only where mask is True, but always legal indices).
    """
    (height, width), (h, w) = valid_HW.shape, size
    if h < 1 or w < 1:
        raise ValueError(f"target size must be positive, got {size}")
    row_hy, dy_hy, in_hy = _axis_windows(height, h, grow)
    col_wx, dx_wx, in_wx = _axis_windows(width, w, grow)
    # Compare squared distances in source pixels over a common denominator: (dy / 2h)^2 + (dx / 2w)^2.
    dy2_hy, dx2_wx = (dy_hy * w) ** 2, (dx_wx * h) ** 2
    far = np.iinfo(np.int64).max
    best_hw = np.full((h, w), far)
    row_hw = np.zeros((h, w), np.int64)
    col_hw = np.zeros((h, w), np.int64)
    for y in range(row_hy.shape[1]):
        seen_hwx = valid_HW[row_hy[:, y]][:, col_wx] & in_wx & in_hy[:, y, None, None]
        distance_hwx = np.where(seen_hwx, dx2_wx, far)
        x_hw = distance_hwx.argmin(axis=-1)
        nearest_hw = np.take_along_axis(distance_hwx, x_hw[..., None], axis=-1)[..., 0]
        total_hw = np.where(nearest_hw < far, nearest_hw, far - dy2_hy[:, y, None]) + dy2_hy[:, y, None]
        better_hw = total_hw < best_hw
        best_hw = np.where(better_hw, total_hw, best_hw)
        row_hw = np.where(better_hw, row_hy[:, y, None], row_hw)
        col_hw = np.where(better_hw, np.take_along_axis(col_wx[None], x_hw[..., None], axis=-1)[..., 0], col_hw)
    return best_hw < far, row_hw, col_hw


def masked_nearest(depth_HW: np.ndarray, valid_HW: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth at another size without mixing: every target value is one valid source value, or missing.

    Shrinking takes the valid pixel nearest to each target pixel's centre inside its footprint; growing takes
    the source pixel under the centre.

    Args:
      depth_HW: any dtype; values where valid is False are never read.
      valid_HW: bool.
      size: (h, w).

    Returns:
      depth_hw, the dtype of depth_HW, 0 where missing; valid_hw bool.
    """
    if depth_HW.shape != valid_HW.shape:
        raise ValueError(f"depth {depth_HW.shape} and valid {valid_HW.shape} differ in size")
    mask_hw, row_hw, col_hw = masked_nearest_index(valid_HW, size, grow=True)
    return np.where(mask_hw, depth_HW[row_hw, col_hw], depth_HW.dtype.type(0)), mask_hw


def resize_image(image_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at another size, uint8 (h,w,3): area average when shrinking (no aliasing), bilinear when growing."""
    h, w = size
    shrinks = h <= image_HW3.shape[0] and w <= image_HW3.shape[1]
    resample = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image_HW3).resize((w, h), resample))


def center_crop_to_aspect(array_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest centred window of array_HW (any trailing axes) with the aspect ratio h:w; a view, not a copy."""
    (height, width), (h, w) = array_HW.shape[:2], size
    crop_h = max(1, min(height, round(width * h / w)))
    crop_w = max(1, min(width, round(height * w / h)))
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    return array_HW[top : top + crop_h, left : left + crop_w]
