"""Whole protocols against the published evaluators' numbers, baselines, and maps with holes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mf_jax.evaluation.alignment import moge_grid
from mf_jax.evaluation.protocols import resize_bilinear, score

GOLDENS = Path(__file__).parents[1] / "goldens"
ARRAYS = np.load(GOLDENS / "evaluation.npz")
CASES = [case for case in json.loads((GOLDENS / "evaluation_index.json").read_text()) if "moge_metrics" in case]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def maps(case):
    return tuple(ARRAYS[f"{case['name']}__{kind}"] for kind in ("pred", "gt", "mask"))


def scene(seed=0, size=(48, 64)):
    rng = np.random.default_rng(seed)
    gt_HW = rng.uniform(1.0, 9.0, size)
    return gt_HW * rng.lognormal(0, 0.1, size), gt_HW, rng.random(size) < 0.7


@by_case
def test_moge_affine_matches_moge(case):
    ours = score(*maps(case), protocols=["moge_affine"])["moge_affine"]
    golden = case["moge_metrics"]["depth_affine_invariant"]
    # Ties between grid pixels and between optimal lines, and float32 there, leave a little freedom at full resolution.
    assert ours["abs_rel"] == pytest.approx(golden["rel"], rel=1e-5, abs=1e-6)
    assert ours["delta1"] == pytest.approx(golden["delta1"], abs=3e-4)


@by_case
def test_lstsq_matches_marigold(case):
    golden = case["marigold_lstsq"]
    ours = score(*maps(case), protocols=["lstsq"], depth_range=tuple(golden["clip"]))["lstsq"]
    assert ours["abs_rel"] == pytest.approx(golden["metrics"]["abs_relative_difference"], rel=1e-5, abs=1e-6)
    assert ours["delta1"] == pytest.approx(golden["metrics"]["delta1_acc"], abs=1e-6)
    assert ours["scale"] == pytest.approx(golden["scale"], rel=1e-6)


def test_the_constant_baseline_is_the_best_constant():
    pred_HW, gt_HW, valid_HW = scene()
    scores = score(pred_HW, gt_HW, valid_HW)
    grid_N = gt_HW[moge_grid(valid_HW)]

    def on_grid(constant):
        return np.mean(np.abs(constant - grid_N) / grid_N)

    moge = scores["moge_affine"]
    assert on_grid(moge["constant"]) == pytest.approx(min(on_grid(value) for value in grid_N))
    expected = np.mean(np.abs(moge["constant"] - gt_HW[valid_HW]) / (gt_HW[valid_HW] + 1e-6))
    assert moge["constant_abs_rel"] == pytest.approx(expected)
    assert scores["lstsq"]["constant"] == pytest.approx(gt_HW[valid_HW].mean())


@pytest.mark.parametrize("protocol", ["moge_affine", "lstsq"])
def test_a_constant_prediction_scores_like_the_baseline(protocol):
    _, gt_HW, valid_HW = scene()
    scores = score(np.full(gt_HW.shape, 3.0), gt_HW, valid_HW)[protocol]
    assert scores["abs_rel"] == pytest.approx(scores["constant_abs_rel"])
    assert scores["delta1"] == pytest.approx(scores["constant_delta1"])
    assert scores["abs_rel"] > 0.2


@pytest.mark.parametrize("protocol", ["moge_affine", "lstsq"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.1, 4.0), (-3.0, 50.0)])
def test_an_affine_change_of_the_truth_scores_perfectly(protocol, scale, shift):
    _, gt_HW, valid_HW = scene()
    scores = score(scale * gt_HW + shift, gt_HW, valid_HW)[protocol]
    assert scores["abs_rel"] == pytest.approx(0, abs=1e-9)
    assert (scores["delta1"], scores["negative_fraction"]) == (1.0, 0.0)
    assert (scores["scale"], scores["shift"]) == pytest.approx((1 / scale, -shift / scale), abs=1e-9)


def test_values_outside_the_mask_do_not_matter():
    pred_HW, gt_HW, valid_HW = scene()
    clean = score(pred_HW, gt_HW, valid_HW)
    dirty_gt_HW = np.where(valid_HW, gt_HW, np.nan)
    dirty_pred_HW = np.where(valid_HW, pred_HW, np.inf)
    assert score(dirty_pred_HW, dirty_gt_HW, valid_HW) == clean


def test_all_missing_is_skipped_and_not_nan():
    pred_HW, gt_HW, _ = scene()
    assert score(pred_HW, np.zeros_like(gt_HW), np.zeros(gt_HW.shape, bool)) is None


@pytest.mark.parametrize("protocol", ["moge_affine", "lstsq"])
def test_non_finite_predictions_count_as_wrong(protocol):
    _, gt_HW, valid_HW = scene()
    pred_HW = 2 * gt_HW + 1
    broken = np.random.default_rng(3).random(gt_HW.shape) < 0.25
    pred_HW[broken] = [np.nan, np.inf, -np.inf, np.nan] * (broken.sum() // 4) + [np.nan] * (broken.sum() % 4)
    share = np.mean(broken[valid_HW])
    scores = score(pred_HW, gt_HW, valid_HW)[protocol]
    assert (scores["scale"], scores["shift"]) == pytest.approx((0.5, -0.5))
    assert scores["nonfinite_fraction"] == pytest.approx(share)
    assert scores["abs_rel"] == pytest.approx(share, rel=1e-5)
    assert scores["delta1"] == pytest.approx(1 - share)


@pytest.mark.parametrize("protocol", ["moge_affine", "lstsq"])
def test_a_prediction_without_any_finite_pixel_has_finite_scores(protocol):
    _, gt_HW, valid_HW = scene()
    scores = score(np.full(gt_HW.shape, np.nan), gt_HW, valid_HW)[protocol]
    assert all(math.isfinite(value) for value in scores.values())
    assert (scores["delta1"], scores["nonfinite_fraction"], scores["scale"]) == (0.0, 1.0, 0.0)
    assert scores["abs_rel"] == pytest.approx(1.0, rel=1e-5)


def test_negative_aligned_depth_is_reported():
    gt_HW = np.full((64, 64), 10.0)
    gt_HW[:, ::2] = 1.0
    pred_HW = gt_HW.copy()
    pred_HW[0, :4] = -100.0
    scores = score(pred_HW, gt_HW, np.ones((64, 64), bool))["moge_affine"]
    assert scores["scale"] == pytest.approx(1.0)
    assert scores["negative_fraction"] == pytest.approx(4 / 4096)
    assert scores["delta1"] == 1.0  # the published definition calls a negative depth an inlier


def test_prediction_of_another_size_is_resized():
    y_H, x_W = np.arange(96), np.arange(128)
    gt_HW = 2.0 + 0.01 * (y_H[:, None] + 0.5) + 0.02 * (x_W[None, :] + 0.5)
    pred_hw = gt_HW.reshape(24, 4, 32, 4).mean(axis=(1, 3))  # a plane, exact after bilinear growth except at the border
    valid_HW = np.zeros((96, 128), bool)
    valid_HW[4:-4, 4:-4] = True
    assert score(pred_hw, gt_HW, valid_HW)["lstsq"]["abs_rel"] == pytest.approx(0, abs=1e-9)


def test_resize_bilinear_half_pixel_centres():
    np.testing.assert_allclose(resize_bilinear(np.array([[0.0, 4.0]]), (1, 4)), [[0.0, 1.0, 3.0, 4.0]])
    np.testing.assert_allclose(resize_bilinear(np.array([[0.0], [4.0]]), (1, 1)), [[2.0]])
    map_hw = np.random.default_rng(0).normal(size=(5, 7))
    np.testing.assert_array_equal(resize_bilinear(map_hw, (5, 7)), map_hw)


def test_bad_input_is_refused():
    pred_HW, gt_HW, valid_HW = scene()
    with pytest.raises(ValueError, match="unknown protocol 'moge'"):
        score(pred_HW, gt_HW, valid_HW, protocols=["moge"])
    with pytest.raises(ValueError, match="bool mask"):
        score(pred_HW, gt_HW, valid_HW.astype(float))
    with pytest.raises(ValueError, match="bool mask"):
        score(pred_HW[None], gt_HW, valid_HW)
    gt_HW[valid_HW.nonzero()[0][0], valid_HW.nonzero()[1][0]] = 0.0
    with pytest.raises(ValueError, match="at 1 pixels marked valid"):
        score(pred_HW, gt_HW, valid_HW)
