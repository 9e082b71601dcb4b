"""Ensembling: several predictions for one image combined into one depth map.

Marigold's ensembling (arXiv 2312.02145) is made for maps with unknown scale and shift. Its stated objective, the sum
over pairs of the RMS difference plus 0.02 (|min| + |1 - max|), is not what its result minimises: in exact arithmetic
it is lowest where every scale goes to zero (the regulariser costs 0.02 at most), and only the rounding of its float32
evaluation keeps BFGS near the min-max initialisation. The order of the pixels alone then moves the result by about
0.01. `marigold` is the reproducible form of that: scales stay at their initial values, shifts minimise the objective.

Modality Forcing depth is linear with unit mean: its scale is lost but its zero is the camera. A free shift would add an
ambiguity that the prediction does not have, so `scale_only` is the default.

Legend: N members; H, W pixels; K pixels in a row.
"""

import numpy as np
import scipy.optimize

from mf_jax.evaluation.alignment import fit_scale_l1

MODES = ("scale_only", "median", "marigold")
_REGULARIZER = 0.02
_FIT_SIZE = 1024  # Marigold fits on a nearest-neighbour copy with no side longer than this


def ensemble(pred_NHW: np.ndarray, mode: str = "scale_only") -> tuple[np.ndarray, np.ndarray]:
    """One map from N, and the median absolute deviation of the aligned members per pixel.

    Modes:
      scale_only: every member gets the scale that brings it closest to the consensus in relative L1, the distance
        that evaluation measures; consensus and scales are refined in turn. Result has unit mean.
      median: members divided by their means, then the median. Result as it comes.
      marigold: affine alignment, see `marigold_ensemble`. Result in [0, 1].
    The median of an even number of members is the lower of the middle two, as in Marigold.

    Args:
      pred_NHW: any real dtype. A member that is not positive on average is divided by its mean magnitude instead. For
        scale_only and median a pixel that is not finite in every member is NaN in both results; marigold refuses it.

    Returns:
      (depth_HW, uncertainty_HW) float64, both in the unit of the result.

    Raises:
      ValueError: unknown mode, wrong shape, no member; for marigold a non-finite value.
    """
    if mode not in MODES:
        raise ValueError(f"unknown ensemble mode {mode!r}; known: {', '.join(MODES)}")
    if mode == "marigold":
        return marigold_ensemble(pred_NHW)
    pred_NHW = _checked(pred_NHW)
    depth_HW, uncertainty_HW = np.full((2, *pred_NHW.shape[1:]), np.nan)
    finite_HW = np.isfinite(pred_NHW).all(axis=0)
    if finite_HW.any():
        aligned_NK = _unit_mean(pred_NHW[:, finite_HW])
        if mode == "scale_only" and len(aligned_NK) > 1:
            aligned_NK = _agree_in_scale(aligned_NK)
        depth_HW[finite_HW] = depth_K = lower_median(aligned_NK)
        uncertainty_HW[finite_HW] = lower_median(np.abs(aligned_NK - depth_K))
    return depth_HW, uncertainty_HW


def _checked(pred_NHW) -> np.ndarray:
    pred_NHW = np.asarray(pred_NHW, np.float64)
    if pred_NHW.ndim != 3 or pred_NHW.size == 0:
        raise ValueError(f"predictions must be (N,H,W) with N >= 1, got {pred_NHW.shape}")
    return pred_NHW


def _unit_mean(x_NK: np.ndarray) -> np.ndarray:
    mean_N1 = x_NK.mean(axis=1, keepdims=True)
    size_N1 = np.where(mean_N1 > 0, mean_N1, np.abs(x_NK).mean(axis=1, keepdims=True))
    return x_NK / np.where(size_N1 > 0, size_N1, 1.0)


def lower_median(x_N: np.ndarray) -> np.ndarray:
    """Median over the first axis (any further axes); for even N the lower of the two middle values, not their mean."""
    middle = (len(x_N) - 1) // 2
    return np.partition(x_N, middle, axis=0)[middle]


def _agree_in_scale(aligned_NK: np.ndarray) -> np.ndarray:
    for _ in range(10):
        consensus_K = lower_median(aligned_NK)
        weight_K = np.where(consensus_K > 0, 1 / np.where(consensus_K > 0, consensus_K, 1), 0.0)
        if not weight_K.any():
            return aligned_NK
        scale_N = np.array([fit_scale_l1(member_K, consensus_K, weight_K) for member_K in aligned_NK])
        log_N = np.log(np.where(scale_N > 0, scale_N, 1.0))
        scale_N = np.exp(log_N - log_N.mean())
        aligned_NK = aligned_NK * scale_N[:, None]
        if np.abs(np.log(scale_N)).max() < 1e-4:
            break
    mean = lower_median(aligned_NK).mean()
    return aligned_NK / (mean if mean > 0 else 1.0)


def marigold_ensemble(
    pred_NHW: np.ndarray, shift: bool = True, reduction: str = "median"
) -> tuple[np.ndarray, np.ndarray]:
    """Marigold's ensembling in a reproducible form; the module's docstring says what differs and why.

    Args:
      pred_NHW: affine-invariant depth, finite.
      shift: True scales every member by 1 / (max - min) and fits the shifts (BFGS, at most 50 iterations, tolerance
        1e-6); False scales it by 1 / max and shifts nothing (Marigold's shift_invariant=False).
      reduction: "median" (lower) or "mean".

    Returns:
      (depth_HW, uncertainty_HW) float64: the reduced map brought to [0, 1] (without shift: divided by its maximum), and
      the lower median absolute deviation (mean: standard deviation, N - 1) on the same scale.

    Raises:
      ValueError: unknown reduction, wrong shape, no member, or a non-finite value.
    """
    if reduction not in ("median", "mean"):
        raise ValueError(f"unknown reduction {reduction!r}; known: median, mean")
    pred_NHW = _checked(pred_NHW)
    bad_N = np.count_nonzero(~np.isfinite(pred_NHW), axis=(1, 2))
    if bad_N.any():
        raise ValueError(f"member {bad_N.argmax()} has {bad_N.max()} non-finite pixels; leave it out of the ensemble")
    low_N, high_N = pred_NHW.min(axis=(1, 2)), pred_NHW.max(axis=(1, 2))
    scale_N = 1 / np.maximum(high_N - low_N if shift else high_N, 1e-6)
    aligned_NHW = pred_NHW * scale_N[:, None, None]
    if shift:
        aligned_NHW = aligned_NHW + _fit_shifts(aligned_NHW, -scale_N * low_N, reduction)[:, None, None]
    if reduction == "median":
        depth_HW = lower_median(aligned_NHW)
        uncertainty_HW = lower_median(np.abs(aligned_NHW - depth_HW))
    else:
        depth_HW = aligned_NHW.mean(axis=0)
        uncertainty_HW = aligned_NHW.std(axis=0, ddof=min(1, len(aligned_NHW) - 1))
    floor = depth_HW.min() if shift else 0.0
    span = max(depth_HW.max() - floor, 1e-6)
    return (depth_HW - floor) / span, uncertainty_HW / span


def _fit_shifts(scaled_NHW: np.ndarray, start_N: np.ndarray, reduction: str) -> np.ndarray:
    """Shifts minimising the sum over pairs of RMS differences plus the regulariser, with its exact gradient."""
    members, height, width = scaled_NHW.shape
    stride = max(1.0, max(height, width) / _FIT_SIZE)
    rows, cols = (((np.arange(int(n / stride)) + 0.5) * stride).astype(int) for n in (height, width))
    x_NK = scaled_NHW[:, rows][:, :, cols].reshape(members, -1)
    mean_N = x_NK.mean(axis=1)
    covariance_NN = np.cov(x_NK, bias=True).reshape(members, members)
    variance_N = np.diag(covariance_NN)
    spread2_NN = np.maximum(variance_N[:, None] + variance_N[None, :] - 2 * covariance_NN, 0)

    def cost_and_gradient(shift_N):
        centre_N = mean_N + shift_N
        gap_NN = centre_N[:, None] - centre_N[None, :]
        rms_NN = np.sqrt(spread2_NN + gap_NN**2)
        gradient_N = np.divide(gap_NN, rms_NN, out=np.zeros_like(gap_NN), where=rms_NN > 0).sum(axis=1)
        aligned_NK = x_NK + shift_N[:, None]
        reduced_K = lower_median(aligned_NK) if reduction == "median" else aligned_NK.mean(axis=0)
        pulls = ((reduced_K.argmin(), 0.0), (reduced_K.argmax(), 1.0))
        for at, target in pulls:
            owner_N = aligned_NK[:, at] == reduced_K[at] if reduction == "median" else np.ones(members, bool)
            gradient_N = gradient_N + _REGULARIZER * np.sign(reduced_K[at] - target) * owner_N / owner_N.sum()
        pull = sum(abs(reduced_K[at] - target) for at, target in pulls)
        return 0.5 * rms_NN.sum() + _REGULARIZER * pull, gradient_N

    result = scipy.optimize.minimize(
        cost_and_gradient, start_N, jac=True, method="BFGS", tol=1e-6, options={"maxiter": 50}
    )
    return result.x
