"""The exact affine and scale fits: against the published solver's objectives, a linear program and closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from mf_jax.evaluation import alignment
from mf_jax.evaluation.alignment import fit_affine_l1, fit_affine_lstsq, fit_scale_l1, moge_grid, weighted_median

GOLDENS = Path(__file__).parents[1] / "goldens"
ARRAYS = np.load(GOLDENS / "evaluation.npz")
CASES = [case for case in json.loads((GOLDENS / "evaluation_index.json").read_text()) if "affine_objective" in case]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def objective(scale, shift, pred_N, gt_N, weight_N):
    return float(np.sum(weight_N * np.abs(scale * pred_N + shift - gt_N)))


def grid_points(case):
    """The points of the golden's own grid."""
    name = case["name"]
    mask_hw = ARRAYS[f"{name}__lr_mask"]
    at = ARRAYS[f"{name}__lr_row"][mask_hw].astype(int), ARRAYS[f"{name}__lr_col"][mask_hw].astype(int)
    return ARRAYS[f"{name}__pred"][at].astype(np.float64), ARRAYS[f"{name}__gt"][at].astype(np.float64)


def affine_optimum_by_linear_program(pred_N, gt_N, weight_N):
    n = len(pred_N)
    line_N2, eye_NN = np.stack([pred_N, np.ones(n)], axis=1), np.eye(n)
    result = linprog(
        np.concatenate([[0, 0], weight_N]),
        A_ub=np.block([[line_N2, -eye_NN], [-line_N2, -eye_NN]]),
        b_ub=np.concatenate([gt_N, -gt_N]),
        bounds=[(None, None)] * 2 + [(0, None)] * n,
    )
    assert result.success, result.message
    return result.fun


@by_case
def test_affine_is_at_least_as_good_as_the_published_solver(case):
    pred_N, gt_N = grid_points(case)
    scale, shift = fit_affine_l1(pred_N, gt_N, 1 / gt_N)
    ours = objective(scale, shift, pred_N, gt_N, 1 / gt_N)
    published = objective(case["affine_scale"], case["affine_shift"], pred_N, gt_N, 1 / gt_N)
    assert ours <= case["affine_objective"] * (1 + 1e-6)
    assert ours <= published * (1 + 1e-12)  # the same sum in float64, free of the golden's float32 rounding


@by_case
def test_scale_matches_the_published_solver(case):
    pred_N, gt_N = grid_points(case)
    ours = objective(fit_scale_l1(pred_N, gt_N, 1 / gt_N), 0, pred_N, gt_N, 1 / gt_N)
    assert ours <= case["scale_objective"] * (1 + 1e-6)
    assert ours <= objective(case["scale_only"], 0, pred_N, gt_N, 1 / gt_N) * (1 + 1e-12)


@by_case
def test_least_squares_matches_marigold(case):
    mask_HW = ARRAYS[f"{case['name']}__mask"]
    fit = fit_affine_lstsq(ARRAYS[f"{case['name']}__pred"][mask_HW], ARRAYS[f"{case['name']}__gt"][mask_HW])
    np.testing.assert_allclose(fit, (case["marigold_lstsq"]["scale"], case["marigold_lstsq"]["shift"]), rtol=1e-6)


@by_case
def test_grid_is_the_published_grid(case):
    name = case["name"]
    mask_hw = ARRAYS[f"{name}__lr_mask"]
    row_N, col_N = moge_grid(ARRAYS[f"{name}__mask"])
    # Ties between equally near pixels may be resolved otherwise: compare the distance to the cell centre.
    assert len(row_N) == mask_hw.sum()
    cell_row_N, cell_col_N = np.nonzero(mask_hw)
    height, width = ARRAYS[f"{name}__mask"].shape

    def distance(row, col):
        y = (row.astype(float) + 0.5) * 64 / height - (cell_row_N + 0.5)
        x = (col.astype(float) + 0.5) * 64 / width - (cell_col_N + 0.5)
        return np.hypot(y * height, x * width)

    golden_N = distance(ARRAYS[f"{name}__lr_row"][mask_hw], ARRAYS[f"{name}__lr_col"][mask_hw])
    np.testing.assert_allclose(distance(row_N, col_N), golden_N, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_affine_equals_a_linear_program_on_heavy_tails(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([2, 3, 4, 7, 20, 60, 200]))
    pred_N = rng.standard_t(1.2, n) if seed % 2 else rng.integers(0, 4, n).astype(float)  # wild, or many ties
    gt_N = rng.pareto(1.0, n) + 0.1 if seed % 4 < 2 else rng.integers(1, 5, n).astype(float)
    weight_N = 1 / gt_N if seed % 3 else rng.pareto(1.0, n) + 0.01
    scale, shift = fit_affine_l1(pred_N, gt_N, weight_N)
    spread = objective(0, weighted_median(gt_N, weight_N), pred_N, gt_N, weight_N)
    optimum = affine_optimum_by_linear_program(pred_N, gt_N, weight_N)
    assert abs(objective(scale, shift, pred_N, gt_N, weight_N) - optimum) <= 1e-9 * spread


@pytest.mark.parametrize("seed", range(10))
def test_affine_equals_the_best_line_through_two_points(seed):
    """An optimal line passes through two data points, so trying all pairs is an independent exact solver."""
    rng = np.random.default_rng(100 + seed)
    pred_N, gt_N = rng.normal(size=30), rng.uniform(0.5, 9.0, 30)
    i, j = np.triu_indices(30, 1)
    scale_K = (gt_N[i] - gt_N[j]) / (pred_N[i] - pred_N[j])
    shift_K = gt_N[i] - scale_K * pred_N[i]
    residual_KN = np.abs(scale_K[:, None] * pred_N + shift_K[:, None] - gt_N) / gt_N
    fit = fit_affine_l1(pred_N, gt_N, 1 / gt_N)
    assert objective(*fit, pred_N, gt_N, 1 / gt_N) == pytest.approx(residual_KN.sum(axis=1).min(), rel=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(2.5, 0.75), (-1.25, 40.0), (1e-4, 3.0), (1e5, 7.0)])
def test_affine_recovers_an_affine_relation_despite_outliers(scale, shift):
    rng = np.random.default_rng(1)
    pred_N = rng.uniform(1.0, 20.0, 1001)
    gt_N = scale * pred_N + shift
    weight_N = 1 / gt_N
    gt_N[:300] *= rng.uniform(3, 50, 300)
    np.testing.assert_allclose(fit_affine_l1(pred_N, gt_N, weight_N), (scale, shift), rtol=1e-9)


def test_degenerate_problems():
    one = np.ones(5)
    gt_N = np.array([1.0, 2.0, 3.0, 10.0, 50.0])
    assert fit_affine_l1(7 * one, gt_N, one) == (0.0, 3.0)  # a constant prediction: the median
    assert fit_affine_l1(gt_N, 4 * one, one) == (0.0, 4.0)  # a constant ground truth
    assert fit_affine_l1(np.array([3.0]), np.array([6.0]), np.array([1.0])) == (0.0, 6.0)
    scale, shift = fit_affine_l1(np.array([1.0, 3.0]), np.array([2.0, 8.0]), np.array([1.0, 5.0]))
    assert (scale, shift) == pytest.approx((3.0, -1.0), abs=1e-12)
    # duplicates act like weights
    pred_N = np.array([0.0, 1.0, 2.0, 5.0, 9.0])
    repeat_N = np.array([3, 1, 4, 1, 5])
    repeated = fit_affine_l1(np.repeat(pred_N, repeat_N), np.repeat(gt_N, repeat_N), np.ones(repeat_N.sum()))
    weighted = fit_affine_l1(pred_N, gt_N, repeat_N)
    assert objective(*repeated, pred_N, gt_N, repeat_N) == pytest.approx(objective(*weighted, pred_N, gt_N, repeat_N))
    # points of weight zero do not count
    np.testing.assert_allclose(fit_affine_l1(gt_N, np.r_[2 * gt_N[:4] + 1, 1e6], [1, 1, 1, 1, 0]), (2, 1), rtol=1e-12)


def test_scale_closed_forms():
    assert fit_scale_l1(np.array([1.0, 1.0, 1.0]), np.array([1.0, 5.0, 9.0]), np.ones(3)) == 5.0
    assert fit_scale_l1(np.array([1.0, 1.0, 10.0]), np.array([1.0, 5.0, 90.0]), np.ones(3)) == 9.0  # weight |p|
    assert fit_scale_l1(np.array([-2.0, 0.0]), np.array([6.0, 1.0]), np.ones(2)) == -3.0
    assert fit_scale_l1(np.zeros(3), np.ones(3), np.ones(3)) == 0.0


def test_weighted_median_minimises_weighted_distance():
    rng = np.random.default_rng(0)
    value_N, weight_N = rng.integers(0, 20, 51).astype(float), rng.uniform(0, 1, 51)
    best = min(np.sum(weight_N * np.abs(value_N - m)) for m in value_N)
    assert np.sum(weight_N * np.abs(value_N - weighted_median(value_N, weight_N))) == pytest.approx(best)


def test_least_squares_equals_numpy():
    rng = np.random.default_rng(2)
    pred_N, gt_N = 1e4 + rng.normal(size=500), rng.uniform(1, 9, 500)
    centred_N2 = np.stack([pred_N - 1e4, np.ones(500)], axis=1)
    scale, offset = np.linalg.lstsq(centred_N2, gt_N, rcond=None)[0]
    np.testing.assert_allclose(fit_affine_lstsq(pred_N, gt_N), (scale, offset - 1e4 * scale), rtol=1e-9)
    assert fit_affine_lstsq(np.full(500, 3.0), gt_N) == (0.0, pytest.approx(gt_N.mean()))


def test_work_is_a_few_dozen_sorts(monkeypatch):
    profile, calls = alignment._profile, []
    monkeypatch.setattr(alignment, "_profile", lambda *args: calls.append(None) or profile(*args))
    for case in CASES:
        pred_N, gt_N = grid_points(case)
        calls.clear()
        fit_affine_l1(pred_N, gt_N, 1 / gt_N)
        assert 2 < len(calls) <= 80, case["name"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one length"):
        fit_affine_l1(np.ones(3), np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match="pred has 1 non-finite"):
        fit_affine_l1(np.array([1.0, np.nan]), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="negative"):
        fit_scale_l1(np.ones(2), np.ones(2), np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_affine_l1(np.ones(2), np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_affine_lstsq(np.ones(0), np.ones(0))
