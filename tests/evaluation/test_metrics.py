"""AbsRel and delta1 on hand-computed values and their published edge behaviour."""

import numpy as np
import pytest

from mf_jax.evaluation.metrics import abs_rel_marigold, abs_rel_moge, clip_marigold, delta1, negative_fraction


def rows(*values):
    return (np.array([value], np.float32) for value in values)


def test_hand_computed_values_over_the_mask_only():
    pred_HW, gt_HW = rows([1.0, 3.0, 8.0, 99.0], [2.0, 2.0, 8.0, 1.0])
    valid_HW = np.array([[True, True, True, False]])
    assert abs_rel_marigold(pred_HW, gt_HW, valid_HW) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert delta1(pred_HW, gt_HW, valid_HW) == pytest.approx(1 / 3)


def test_moge_adds_epsilon_to_the_denominator():
    pred_HW, gt_HW = rows([2e-6], [1e-6])
    valid_HW = np.ones((1, 1), bool)
    assert abs_rel_moge(pred_HW, gt_HW, valid_HW) == pytest.approx(0.5, rel=1e-5)
    assert abs_rel_marigold(pred_HW, gt_HW, valid_HW) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("pred", "inlier"),
    [(1.25, 0), (1.2499, 1), (0.8, 0), (0.8001, 1), (-5.0, 1), (0.0, 0)],  # strict; negative counts, zero does not
)
def test_delta1_threshold(pred, inlier):
    assert delta1(np.array([[pred]]), np.ones((1, 1)), np.ones((1, 1), bool)) == inlier


def test_negative_fraction():
    pred_HW, gt_HW = rows([-1.0, 0.0, 1.0, -3.0], [1.0, 1.0, 1.0, 1.0])
    assert negative_fraction(pred_HW, gt_HW, np.array([[True, True, True, False]])) == pytest.approx(1 / 3)


def test_marigold_clip():
    clipped_HW = clip_marigold(np.array([[-4.0, 0.5, 5.0, 500.0]]), (1e-3, 80.0))
    np.testing.assert_allclose(clipped_HW, [[1e-3, 0.5, 5.0, 80.0]])
    assert clip_marigold(np.zeros((1, 1)), (0.0, np.inf)) == 1e-6


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="no valid pixel"):
        delta1(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="differ in size"):
        abs_rel_moge(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 3), bool))
