"""Pictures of depth maps, of errors, and of examples side by side (contact sheets).

Colours show disparity (1 / depth) in magma, near bright, between the 5th and 95th percentile of the measured pixels.
Missing pixels have a colour that no colour map contains, and do not count in percentiles.

Legend: H, W pixels; 3 RGB.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

MISSING_RGB = (0, 120, 130)
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
_TILE, _MARGIN, _LINE = 160, 6, 20
COLUMNS = ("image", "ground truth", "prediction", "relative error")


def _measured(depth_HW: np.ndarray, valid_HW: np.ndarray | None) -> np.ndarray:
    usable_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    if valid_HW is None:
        return usable_HW
    if valid_HW.shape != depth_HW.shape:
        raise ValueError(f"depth {depth_HW.shape} and mask {valid_HW.shape} differ in size")
    return usable_HW & valid_HW


def disparity_limits(depth_HW: np.ndarray, valid_HW: np.ndarray | None = None) -> tuple[float, float]:
    """(5th, 95th) percentile of 1 / depth over the measured pixels; (0, 1) where there is none."""
    use_HW = _measured(depth_HW, valid_HW)
    if not use_HW.any():
        return 0.0, 1.0
    low, high = np.percentile(1.0 / depth_HW[use_HW].astype(np.float64), (5, 95))
    return float(low), float(high)


def colorize_depth(
    depth_HW: np.ndarray, valid_HW: np.ndarray | None = None, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Depth as colour, uint8 (H,W,3); pixels that are masked, non-finite or not positive get MISSING_RGB.

    Args:
      depth_HW: larger is farther, any unit.
      valid_HW: bool; None means every finite positive pixel.
      limits: (low, high) disparity of the darkest and brightest colour, from `disparity_limits` of another map to
        colour both alike; None takes this map's own.
    """
    use_HW = _measured(depth_HW, valid_HW)
    low, high = disparity_limits(depth_HW, valid_HW) if limits is None else limits
    disparity_HW = 1.0 / np.where(use_HW, depth_HW, 1).astype(np.float64)
    return _paint((disparity_HW - low) / max(high - low, 1e-12), use_HW, "magma")


def colorize_error(pred_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray, limit: float = 0.5) -> np.ndarray:
    """|pred - gt| / gt from 0 (dark) to `limit` and beyond (bright) in inferno, uint8 (H,W,3); MISSING_RGB where gt is
    missing. A non-finite prediction is at the limit."""
    use_HW = _measured(gt_HW, valid_HW)
    gt_safe_HW = np.where(use_HW, gt_HW, 1).astype(np.float64)
    pred_safe_HW = np.where(np.isfinite(pred_HW), pred_HW, np.finfo(np.float32).max).astype(np.float64)
    return _paint(np.abs(pred_safe_HW - gt_safe_HW) / gt_safe_HW / limit, use_HW, "inferno")


def _paint(level_HW: np.ndarray, use_HW: np.ndarray, name: str) -> np.ndarray:
    color_HW3 = colormaps[name](np.clip(level_HW, 0, 1), bytes=True)[..., :3]
    return np.where(use_HW[..., None], color_HW3, np.array(MISSING_RGB, np.uint8))


def contact_sheet(rows: Sequence[Mapping]) -> np.ndarray:
    """Examples as rows of image | ground truth | prediction | relative error; one uint8 (H,W,3) picture.

    Ground truth and prediction share the colour range of the ground truth. Small maps are enlarged by whole factors
    without smoothing, until the shorter side has 160 pixels.

    Args:
      rows: per example a mapping with `image` uint8 (H,W,3); `depth` (H,W) with `depth_valid` bool (H,W), both absent
        or None where there is no ground truth; `prediction` (H,W), already aligned to the unit of depth, or None;
        optional `caption` str, drawn below. Sizes may differ between rows, not within one.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    tiles = [[_enlarge(tile) for tile in _row_tiles(row)] for row in rows]
    heights = [max(tile.shape[0] for tile in row_tiles) for row_tiles in tiles]
    pitch = _MARGIN + max(tile.shape[1] for row_tiles in tiles for tile in row_tiles)
    size = (_MARGIN + len(COLUMNS) * pitch, _MARGIN + _LINE + sum(heights) + len(rows) * (_MARGIN + _LINE))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, title in enumerate(COLUMNS):
        draw.text((_MARGIN + column * pitch, _MARGIN), title, fill=_INK, font=font)
    top = _MARGIN + _LINE
    for row, row_tiles, height in zip(rows, tiles, heights, strict=True):
        for column, tile in enumerate(row_tiles):
            sheet.paste(Image.fromarray(tile), (_MARGIN + column * pitch, top))
        caption = _shorten(row.get("caption") or "", sheet.width - 2 * _MARGIN, font)
        draw.text((_MARGIN, top + height + 2), caption, fill=_INK, font=font)
        top += height + _LINE + _MARGIN
    return np.array(sheet)


def _row_tiles(row: Mapping) -> list[np.ndarray]:
    image_HW3, depth_HW, pred_HW = row["image"], row.get("depth"), row.get("prediction")
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H,W,3), got {image_HW3.dtype} {image_HW3.shape}")
    size = image_HW3.shape[:2]
    for name, map_HW in (("depth", depth_HW), ("depth_valid", row.get("depth_valid")), ("prediction", pred_HW)):
        if map_HW is not None and map_HW.shape != size:
            raise ValueError(f"{name} is {map_HW.shape} but the image of its row is {size}; resize it first")
    nothing_HW3 = np.full_like(image_HW3, MISSING_RGB)
    limits = None if depth_HW is None else disparity_limits(depth_HW, row["depth_valid"])
    return [
        image_HW3,
        nothing_HW3 if depth_HW is None else colorize_depth(depth_HW, row["depth_valid"], limits),
        nothing_HW3 if pred_HW is None else colorize_depth(pred_HW, limits=limits),
        nothing_HW3 if depth_HW is None or pred_HW is None else colorize_error(pred_HW, depth_HW, row["depth_valid"]),
    ]


def _enlarge(tile_HW3: np.ndarray) -> np.ndarray:
    factor = math.ceil(_TILE / min(tile_HW3.shape[:2]))
    return tile_HW3.repeat(factor, axis=0).repeat(factor, axis=1)


def _shorten(text: str, width: int, font) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
