"""Ensembling: against Marigold's results, within the reach of its rounding, and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

from mf_jax.evaluation.ensemble import MODES, ensemble, lower_median, marigold_ensemble

ARRAYS = np.load(Path(__file__).parents[1] / "goldens" / "evaluation.npz")


def truth_and_members(members=6, size=(24, 32), noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    depth_HW = rng.uniform(0.5, 4.0, size)
    scale_N = rng.uniform(0.5, 2.0, members)[:, None, None]
    return depth_HW / depth_HW.mean(), scale_N * depth_HW * rng.lognormal(0, noise, (members, *size))


def test_marigold_without_shift_is_reproduced():
    depth_HW, uncertainty_HW = marigold_ensemble(ARRAYS["ens10_scale__in"], shift=False)
    np.testing.assert_allclose(depth_HW, ARRAYS["ens10_scale__out"], atol=2e-7)
    np.testing.assert_allclose(uncertainty_HW, ARRAYS["ens10_scale__uncertainty"], atol=2e-7)


def test_marigold_mean_is_reproduced():
    depth_HW, _ = marigold_ensemble(ARRAYS["ens4_mean__in"], reduction="mean")
    np.testing.assert_allclose(depth_HW, ARRAYS["ens4_mean__out"], atol=5e-7)


@pytest.mark.parametrize(("name", "reach"), [("ens10", 0.010), ("ens5", 0.003)])
def test_marigold_with_shifts_is_within_the_reach_of_its_rounding(name, reach):
    """Reordering the pixels moves the published function's own result by 0.011 (10 members) and 0.002 (5)."""
    depth_HW, _ = marigold_ensemble(ARRAYS[f"{name}__in"])
    golden_HW = ARRAYS[f"{name}__out"]
    assert np.abs(depth_HW - golden_HW).max() < reach
    assert np.abs(depth_HW - golden_HW).mean() < reach / 3
    assert (depth_HW.min(), depth_HW.max()) == (0.0, 1.0)


def pairwise_cost(aligned_NHW):
    i, j = np.triu_indices(len(aligned_NHW), 1)
    rms = np.sqrt(np.mean((aligned_NHW[i] - aligned_NHW[j]) ** 2, axis=(1, 2))).sum()
    middle_HW = lower_median(aligned_NHW)
    return rms + 0.02 * (abs(middle_HW.min()) + abs(1 - middle_HW.max()))


@pytest.mark.parametrize("name", ["ens10", "ens5"])
def test_shifts_minimise_the_stated_objective(name):
    """Nelder-Mead started at our optimum, which shares neither gradient nor formulas with it, finds nothing better."""
    from mf_jax.evaluation.ensemble import _fit_shifts

    x_NHW = ARRAYS[f"{name}__in"].astype(np.float64)
    low_N, high_N = x_NHW.min(axis=(1, 2)), x_NHW.max(axis=(1, 2))
    scaled_NHW = x_NHW / (high_N - low_N)[:, None, None]
    start_N = -low_N / (high_N - low_N)
    shift_N = _fit_shifts(scaled_NHW, start_N, "median")

    def cost(shift_N):
        return pairwise_cost(scaled_NHW + shift_N[:, None, None])

    found = scipy.optimize.minimize(cost, shift_N, method="Nelder-Mead", options={"maxfev": 600})
    assert cost(shift_N) < cost(start_N) - 1e-3
    assert cost(shift_N) <= found.fun + 2e-5


def test_the_stated_objective_prefers_vanishing_scales():
    """Why the scales are not fitted: shrinking every member to nothing costs less than any honest alignment."""
    x_NHW = ARRAYS["ens10__in"].astype(np.float64)
    golden_NHW = (x_NHW - x_NHW.min((1, 2), keepdims=True)) / np.ptp(x_NHW, (1, 2), keepdims=True)
    assert pairwise_cost(0.0 * x_NHW) == pytest.approx(0.02)
    assert pairwise_cost(golden_NHW) > 1.0


def test_lower_median_of_an_even_number():
    x_NHW = np.array([4.0, 1.0, 3.0, 2.0])[:, None, None]
    assert lower_median(x_NHW) == 2.0
    assert lower_median(x_NHW[:3]) == 3.0


@pytest.mark.parametrize("mode", ["scale_only", "median"])
def test_members_that_differ_in_scale_agree_exactly(mode):
    truth_HW, pred_NHW = truth_and_members()
    depth_HW, uncertainty_HW = ensemble(pred_NHW, mode)
    np.testing.assert_allclose(depth_HW, truth_HW, rtol=1e-6)
    np.testing.assert_allclose(uncertainty_HW, 0, atol=1e-6)


def test_scale_only_survives_a_wrong_mean():
    """One wild pixel spoils a member's mean, and the median then picks one member everywhere; not so in relative L1."""
    truth_HW, pred_NHW = truth_and_members(members=5, noise=0.02)
    pred_NHW[:, 0, 0] = [1.0, 1e3, 2e3, 4e3, 8e3]
    truth_HW[0, 0] = np.nan

    def error(mode):
        depth_HW = ensemble(pred_NHW, mode)[0]
        depth_HW = depth_HW * np.nanmedian(truth_HW / depth_HW)
        return np.nanmean(np.abs(depth_HW - truth_HW) / truth_HW)

    assert error("scale_only") < 0.012
    assert error("scale_only") < 0.8 * error("median")


@pytest.mark.parametrize("mode", MODES)
def test_more_members_give_a_better_map(mode):
    truth_HW, pred_NHW = truth_and_members(members=9, noise=0.1)

    def error(depth_HW):
        scale, shift = np.polyfit(depth_HW.ravel(), truth_HW.ravel(), 1)
        return np.mean(np.abs(scale * depth_HW + shift - truth_HW) / truth_HW)

    assert error(ensemble(pred_NHW, mode)[0]) < 0.6 * error(ensemble(pred_NHW[:1], mode)[0])


@pytest.mark.parametrize("mode", MODES)
def test_one_member_is_returned_normalised(mode):
    _, pred_NHW = truth_and_members(members=1)
    depth_HW, uncertainty_HW = ensemble(pred_NHW, mode)
    assert not uncertainty_HW.any()
    expected_HW = pred_NHW[0] / pred_NHW[0].mean()
    if mode == "marigold":
        expected_HW = (pred_NHW[0] - pred_NHW[0].min()) / np.ptp(pred_NHW[0])
    np.testing.assert_allclose(depth_HW, expected_HW, atol=1e-12)


@pytest.mark.parametrize("mode", ["scale_only", "median"])
def test_a_pixel_that_is_not_finite_in_one_member_is_nan_alone(mode):
    truth_HW, pred_NHW = truth_and_members()
    pred_NHW[2, 3, 4] = np.inf
    pred_NHW[1, 5, 6] = np.nan
    depth_HW, uncertainty_HW = ensemble(pred_NHW, mode)
    assert np.argwhere(np.isnan(depth_HW)).tolist() == [[3, 4], [5, 6]]
    assert np.isnan(uncertainty_HW).sum() == 2
    finite_HW = np.isfinite(depth_HW)
    np.testing.assert_allclose(depth_HW[finite_HW], truth_HW[finite_HW] / truth_HW[finite_HW].mean(), rtol=1e-6)
    assert np.isnan(ensemble(np.full((3, 2, 2), np.nan), mode)[0]).all()


@pytest.mark.parametrize("mode", ["scale_only", "median"])
def test_members_without_positive_depth_give_finite_maps(mode):
    for pred_NHW in (np.zeros((3, 4, 4)), -np.ones((4, 4, 4)), np.random.default_rng(0).normal(size=(5, 4, 4))):
        assert np.isfinite(ensemble(pred_NHW, mode)[0]).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown ensemble mode 'mean'"):
        ensemble(np.ones((2, 4, 4)), "mean")
    with pytest.raises(ValueError, match="unknown reduction"):
        marigold_ensemble(np.ones((2, 4, 4)), reduction="max")
    with pytest.raises(ValueError, match=r"\(N,H,W\)"):
        ensemble(np.ones((4, 4)))
    with pytest.raises(ValueError, match="member 1 has 1 non-finite"):
        marigold_ensemble(np.array([[[1.0, 2.0]], [[np.nan, 1.0]]]))
