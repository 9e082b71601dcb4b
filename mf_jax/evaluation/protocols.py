"""Evaluation protocols: how a relative depth map is aligned to measured depth and scored.

A protocol is an alignment, a best constant and the metrics that belong to it. Numbers of different protocols must not
be compared, so every result carries its protocol's name. Beside each score stands the best constant map under the
same protocol: a prediction that does not beat it has learned nothing about the image.

Legend: H, W pixels of the ground truth; h, w pixels of the prediction; N points.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mf_jax.evaluation import metrics
from mf_jax.evaluation.alignment import fit_affine_l1, fit_affine_lstsq, moge_grid, weighted_median


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
      fit: (pred_HW, gt_HW, mask of the pixels to fit on) -> (scale, shift) of the prediction.
      constant: (gt_HW, valid_HW) -> depth of the best constant map. abs_rel: (pred_HW, gt_HW, valid_HW) -> AbsRel.
      clip: whether both maps are limited to the depth range before they are scored.
    """

    fit: Callable
    constant: Callable
    abs_rel: Callable
    clip: bool


def _fit_moge(pred_HW, gt_HW, fit_HW):
    at = moge_grid(fit_HW)
    return fit_affine_l1(pred_HW[at], gt_HW[at], 1.0 / gt_HW[at])


def _constant_moge(gt_HW, valid_HW):
    gt_N = gt_HW[moge_grid(valid_HW)]
    return weighted_median(gt_N, 1.0 / gt_N)


PROTOCOLS = {
    "moge_affine": Protocol(_fit_moge, _constant_moge, metrics.abs_rel_moge, clip=False),
    "lstsq": Protocol(
        lambda pred_HW, gt_HW, fit_HW: fit_affine_lstsq(pred_HW[fit_HW], gt_HW[fit_HW]),
        lambda gt_HW, valid_HW: float(gt_HW[valid_HW].mean()),
        metrics.abs_rel_marigold,
        clip=True,
    ),
}


def resize_bilinear(map_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map resized bilinearly, float64 (H,W): half-pixel centres, edge values repeated, no antialiasing.

    A non-finite value spreads to every pixel it would contribute to.
    """
    out = np.asarray(map_hw, np.float64)
    for axis, target in enumerate(size):
        source = out.shape[axis]
        centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        first = np.floor(centre).astype(int)
        share = np.expand_dims(centre - first, 1 - axis)
        near, far = out.take(first, axis), out.take(np.minimum(first + 1, source - 1), axis)
        out = np.where(share == 0, near, near * (1 - share) + far * share)
    return out


def score(
    pred_hw: np.ndarray,
    gt_HW: np.ndarray,
    valid_HW: np.ndarray,
    protocols: Sequence[str] = ("moge_affine", "lstsq"),
    depth_range: tuple[float, float] = (1e-3, 80.0),
) -> dict[str, dict[str, float]] | None:
    """Score one relative depth map against one measured map.

    `moge_affine`: the exact weighted L1 fit (weights 1/gt) on the 64x64 masked-nearest grid, scored over all valid
    pixels at the resolution of the ground truth, nothing clipped (MoGe, arXiv 2410.19115; the alignment behind
    Table 3 of Modality Forcing). `lstsq`: least squares over all valid pixels, then prediction and ground truth
    clipped to `depth_range` and scored (Marigold). Marigold's data sets also call ground truth outside of
    their range invalid beforehand: do that in `valid_HW`.

    A pixel whose prediction is NaN or infinite is left out of the fit and scored as depth 0 after it: relative error
    1, never an inlier. Its share is `nonfinite_fraction`. With no finite pixel at all, scale and shift are 0.

    Args:
      pred_hw: relative depth, larger is farther; resized to the ground truth (bilinear) where the size differs.
      gt_HW: depth, any unit; where valid it must be finite and positive.
      valid_HW: bool, the pixels that count.
      protocols: names from PROTOCOLS.
      depth_range: (minimum, maximum) in the unit of gt, used by `lstsq` only. Marigold: NYUv2 and ScanNet 1e-3 to 10,
        KITTI 1e-5 to 80, ETH3D 1e-5 to inf, DIODE 0.6 to 350.

    Returns:
      {protocol: {abs_rel, delta1, scale, shift, constant, constant_abs_rel, constant_delta1, negative_fraction,
      nonfinite_fraction, valid_pixels}}, or None where no pixel is valid: such an image is skipped and counted.
      negative_fraction is the share of valid pixels whose aligned prediction, before clipping, is below 0.

    Raises:
      ValueError: unknown protocol, shapes that do not fit, or ground truth that is not positive where valid.
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    pred_hw, gt_HW, valid_HW = np.asarray(pred_hw), np.asarray(gt_HW), np.asarray(valid_HW)
    if pred_hw.ndim != 2 or gt_HW.ndim != 2 or valid_HW.shape != gt_HW.shape or valid_HW.dtype != bool:
        raise ValueError(
            f"expected pred (h,w), gt (H,W) and a bool mask (H,W), got {pred_hw.shape}, {gt_HW.shape} and "
            f"{valid_HW.dtype} {valid_HW.shape}"
        )
    if not valid_HW.any():
        return None
    gt_HW = np.where(valid_HW, gt_HW, 1).astype(np.float64)
    bad = int(np.count_nonzero(~(np.isfinite(gt_HW) & (gt_HW > 0))))
    if bad:
        raise ValueError(f"ground truth is not finite and positive at {bad} pixels marked valid; mark them invalid")
    pred_HW = pred_hw.astype(np.float64) if pred_hw.shape == gt_HW.shape else resize_bilinear(pred_hw, gt_HW.shape)
    return {name: _score_one(PROTOCOLS[name], pred_HW, gt_HW, valid_HW, depth_range) for name in protocols}


def _score_one(protocol: Protocol, pred_HW, gt_HW, valid_HW, depth_range) -> dict[str, float]:
    finite_HW = np.isfinite(pred_HW)
    pred_HW = np.where(finite_HW, pred_HW, 0.0)
    fit_HW = valid_HW & finite_HW
    scale, shift = protocol.fit(pred_HW, gt_HW, fit_HW) if fit_HW.any() else (0.0, 0.0)
    aligned_HW = scale * pred_HW + shift
    constant = protocol.constant(gt_HW, valid_HW)
    constant_HW = np.full_like(gt_HW, constant)
    negative = metrics.negative_fraction(np.where(finite_HW, aligned_HW, 0.0), gt_HW, valid_HW)
    if protocol.clip:
        aligned_HW, constant_HW, gt_HW = (
            metrics.clip_marigold(depth_HW, depth_range) for depth_HW in (aligned_HW, constant_HW, gt_HW)
        )
    aligned_HW = np.where(finite_HW, aligned_HW, 0.0)
    return {
        "abs_rel": protocol.abs_rel(aligned_HW, gt_HW, valid_HW),
        "delta1": metrics.delta1(aligned_HW, gt_HW, valid_HW),
        "scale": scale,
        "shift": shift,
        "constant": constant,
        "constant_abs_rel": protocol.abs_rel(constant_HW, gt_HW, valid_HW),
        "constant_delta1": metrics.delta1(constant_HW, gt_HW, valid_HW),
        "negative_fraction": negative,
        "nonfinite_fraction": float(np.mean(~finite_HW[valid_HW])),
        "valid_pixels": int(np.count_nonzero(valid_HW)),
    }
