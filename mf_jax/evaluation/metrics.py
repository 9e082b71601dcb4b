"""AbsRel and delta1 as the published evaluators define them; definitions that differ have different names.

Legend: H, W pixels. Every function takes prediction and ground truth in the same unit and a mask of the pixels that
count, all (H,W), computes in float64 and returns a float. `valid_HW` must have at least one True.
"""

import numpy as np

MOGE_EPSILON = 1e-6
DELTA1 = 1.25


def _masked(pred_HW, gt_HW, valid_HW) -> tuple[np.ndarray, np.ndarray]:
    if not pred_HW.shape == gt_HW.shape == valid_HW.shape:
        raise ValueError(
            f"prediction {pred_HW.shape}, ground truth {gt_HW.shape}, mask {valid_HW.shape} differ in size"
        )
    if not valid_HW.any():
        raise ValueError("no valid pixel: a metric over nothing is undefined")
    return pred_HW[valid_HW].astype(np.float64), gt_HW[valid_HW].astype(np.float64)


def abs_rel_moge(pred_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray) -> float:
    """mean |p - g| / (g + 1e-6), MoGe's `rel`. The prediction is not clipped."""
    p_N, g_N = _masked(pred_HW, gt_HW, valid_HW)
    return float(np.mean(np.abs(p_N - g_N) / (g_N + MOGE_EPSILON)))


def abs_rel_marigold(pred_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray) -> float:
    """mean |p - g| / g, Marigold's `abs_relative_difference`; both maps clipped beforehand (`clip_marigold`)."""
    p_N, g_N = _masked(pred_HW, gt_HW, valid_HW)
    return float(np.mean(np.abs(p_N - g_N) / g_N))


def delta1(pred_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray) -> float:
    """Share of pixels with max(g / p, p / g) < 1.25, strictly (MoGe's `delta1`, Marigold's `delta1_acc`).

    A negative prediction makes both ratios negative and counts as an inlier, as it does in MoGe's evaluator, where
    aligned predictions are not clipped: report `negative_fraction` beside it. Zero is never an inlier.
    """
    p_N, g_N = _masked(pred_HW, gt_HW, valid_HW)
    with np.errstate(divide="ignore"):
        return float(np.mean(np.maximum(g_N / p_N, p_N / g_N) < DELTA1))


def negative_fraction(pred_HW: np.ndarray, gt_HW: np.ndarray, valid_HW: np.ndarray) -> float:
    """Share of pixels whose prediction is below zero."""
    return float(np.mean(_masked(pred_HW, gt_HW, valid_HW)[0] < 0))


def clip_marigold(depth_HW: np.ndarray, depth_range: tuple[float, float]) -> np.ndarray:
    """Depth limited to [minimum, maximum] of the data set, then to at least 1e-6; Marigold does it to both maps."""
    return np.maximum(np.clip(depth_HW, *depth_range), 1e-6)
