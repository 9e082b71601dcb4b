"""Fitting a relative depth map to measured depth: the alignments of affine-invariant and scale-invariant evaluation.

Everything is computed in float64 with NumPy, one map at a time.

Legend: N points; H, W pixels; h, w grid cells.
"""

import numpy as np

from mf_jax.data.resize import masked_nearest_index

MOGE_GRID = (64, 64)  # MoGe (arXiv 2410.19115) fits on at most this many points per map
_GAP = 1e-13  # stop when the lower bound is this close to the best value, relative to the spread of gt
_MAX_STEPS = 400  # halving the bracket down to float64 resolution takes at most 2 x 55


def weighted_median(value_N: np.ndarray, weight_N: np.ndarray) -> float:
    """The smallest value at which the cumulative weight reaches half of the total: a minimiser of sum w |v - m|."""
    order_N = np.argsort(value_N, kind="stable")
    return float(value_N[order_N[_half_weight(weight_N[order_N])]])


def _half_weight(sorted_weight_N: np.ndarray) -> int:
    cumulative_N = np.cumsum(sorted_weight_N)
    return int(np.searchsorted(cumulative_N, 0.5 * cumulative_N[-1]))


def _points(pred_N, gt_N, weight_N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pred_N, gt_N, weight_N = (np.asarray(a, np.float64) for a in (pred_N, gt_N, weight_N))
    if not pred_N.shape == gt_N.shape == weight_N.shape or pred_N.ndim != 1:
        raise ValueError(
            f"pred, gt and weight must be vectors of one length, got {pred_N.shape}, {gt_N.shape}, {weight_N.shape}"
        )
    for name, values_N in (("pred", pred_N), ("gt", gt_N), ("weight", weight_N)):
        bad = int(np.count_nonzero(~np.isfinite(values_N)))
        if bad:
            raise ValueError(
                f"{name} has {bad} non-finite values of {values_N.size}; leave those points out of the fit"
            )
    if weight_N.size and weight_N.min() < 0:
        raise ValueError(f"weights must not be negative, got {weight_N.min()}")
    keep_N = weight_N > 0
    if not keep_N.any():
        raise ValueError(f"nothing to fit: none of {keep_N.size} points has a positive weight")
    return pred_N[keep_N], gt_N[keep_N], weight_N[keep_N]


def fit_scale_l1(pred_N: np.ndarray, gt_N: np.ndarray, weight_N: np.ndarray) -> float:
    """Exact minimiser s of sum w |s p - g|: the median of g / p under the weights w |p| (MoGe's scale-invariant fit).

    Args:
      pred_N, gt_N, weight_N: any real dtype, finite, weights >= 0 (1 / gt makes the objective N times AbsRel).

    Returns:
      s, of either sign; 0 where every prediction is 0 (every s is then optimal).

    Raises:
      ValueError: shapes differ, a value is not finite, a weight is negative, or no weight is positive.
    """
    p_N, g_N, w_N = _points(pred_N, gt_N, weight_N)
    usable_N = p_N != 0
    if not usable_N.any():
        return 0.0
    p_N, g_N, w_N = p_N[usable_N], g_N[usable_N], w_N[usable_N]
    return weighted_median(g_N / p_N, w_N * np.abs(p_N))


def fit_affine_l1(pred_N: np.ndarray, gt_N: np.ndarray, weight_N: np.ndarray) -> tuple[float, float]:
    """Exact minimiser (s, b) of sum w |s p + b - g|, MoGe's affine-invariant alignment without truncation.

    For a fixed s the best b is the weighted median of g - s p, so the problem is to minimise the convex, piecewise
    linear h(s) = min_b sum w |s p + b - g|. With m the median point, sum w sign(s p + b - g) (p - p_m) is a
    subgradient of h whatever the ties. Two tangents, one falling and one rising, bracket the minimum and their
    crossing bounds it from below; the next s is that crossing, or the middle of the bracket where crossings
    shrink it too slowly. The search ends when the bound meets the best value, which proves optimality to
    rounding (1e-13 of min_b sum w |b - g|). Each step sorts N residuals; a few dozen steps suffice, where
    the published solver sorts N times.

    Args:
      pred_N, gt_N, weight_N: any real dtype, finite, weights >= 0 (MoGe: 1 / gt). s of either sign is allowed.

    Returns:
      (s, b). Where the minimiser is not unique, one of them; s = 0 and b = the weighted median of gt where that
      is optimal for certain: a constant prediction, a constant gt, a single point.

    Raises:
      ValueError: shapes differ, a value is not finite, a weight is negative, or no weight is positive.
    """
    p_N, g_N, w_N = _points(pred_N, gt_N, weight_N)
    p_middle, g_middle = weighted_median(p_N, w_N), weighted_median(g_N, w_N)
    p_spread = float(w_N @ np.abs(p_N - p_middle))
    g_spread = float(w_N @ np.abs(g_N - g_middle))
    if p_spread == 0 or g_spread == 0:
        return 0.0, g_middle
    # In these units h(0) = 1 and h(s) >= |s| - 1, so that the minimiser lies in [-2, 2].
    x_N, y_N, w_N = (p_N - p_middle) * (g_spread / p_spread), g_N - g_middle, w_N / g_spread
    slope = _minimise_on_bracket(lambda s: _profile(s, x_N, y_N, w_N), -2.0, 2.0)
    scale = slope * (g_spread / p_spread)
    return scale, weighted_median(g_N - scale * p_N, w_N)


def _profile(s: float, x_N: np.ndarray, y_N: np.ndarray, w_N: np.ndarray) -> tuple[float, float]:
    """h(s) = min_b sum w |s x + b - y| and one of its subgradients."""
    residual_N = y_N - s * x_N
    order_N = np.argsort(residual_N, kind="stable")
    sorted_w_N, sorted_x_N = w_N[order_N], x_N[order_N]
    middle = _half_weight(sorted_w_N)
    moment_N = sorted_w_N * (sorted_x_N - sorted_x_N[middle])
    subgradient = moment_N[:middle].sum() - moment_N[middle + 1 :].sum()
    return float(w_N @ np.abs(residual_N - residual_N[order_N[middle]])), float(subgradient)


def _minimise_on_bracket(evaluate, low: float, high: float) -> float:
    """Minimiser of a convex piecewise linear function whose minimum lies in [low, high]; see `fit_affine_l1`."""
    (value_low, slope_low), (value_high, slope_high) = evaluate(low), evaluate(high)
    best_value, best = min((value_low, low), (value_high, high))
    bisect = False
    for _ in range(_MAX_STEPS):
        if slope_low >= 0:
            return low
        if slope_high <= 0:
            return high
        width = high - low
        step = (value_high - value_low - slope_high * width) / (slope_low - slope_high)
        if best_value - (value_low + slope_low * step) <= _GAP:
            return best
        s = low + (0.5 * width if bisect else step)
        if not low < s < high:
            s = low + 0.5 * width
            if not low < s < high:
                return best
        value, slope = evaluate(s)
        best_value, best = min((best_value, best), (value, s))
        if slope == 0:
            return s
        if slope < 0:
            low, value_low, slope_low = s, value, slope
        else:
            high, value_high, slope_high = s, value, slope
        bisect = not bisect and high - low > 0.5 * width
    raise AssertionError(f"no convergence on [{low}, {high}]")


def fit_affine_lstsq(pred_N: np.ndarray, gt_N: np.ndarray) -> tuple[float, float]:
    """(s, b) minimising sum (s p + b - g)^2, Marigold's alignment; s of either sign.

    A constant prediction gives s = 0 and b = mean(gt).

    Raises:
      ValueError: shapes differ, there is no point, or a value is not finite.
    """
    p_N, g_N, _ = _points(pred_N, gt_N, np.ones(np.shape(pred_N)))
    p_mean, g_mean = p_N.mean(), g_N.mean()
    if p_N.min() == p_N.max():
        return 0.0, float(g_mean)
    scale = float((p_N - p_mean) @ (g_N - g_mean) / ((p_N - p_mean) @ (p_N - p_mean)))
    return scale, float(g_mean - scale * p_mean)


def moge_grid(valid_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels MoGe fits on: in each cell of a 64x64 grid the valid pixel nearest to the centre, if there is one.

    Returns:
      (row_N, col_N) int64 with N <= 4096; N = 0 where no pixel is valid.
    """
    mask_hw, row_hw, col_hw = masked_nearest_index(valid_HW, MOGE_GRID)
    return row_hw[mask_hw], col_hw[mask_hw]
