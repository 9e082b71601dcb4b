"""The masked velocity-space loss against its formula in float64.

Legend: B batch, N tokens, C channels per token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.diffusion.loss import loss_mask, squared_error

T_B = np.array([0.06, 0.3, 0.77, 1.0])
FLOOR = 0.05


@pytest.fixture
def case():
    """x_0, eps, an output y and validity, (4, 6, 5), float64."""
    generator = np.random.default_rng(1)
    x0, eps, y = generator.standard_normal((3, 4, 6, 5))
    return x0, eps, y, generator.random((4, 6, 5)) < 0.5


def error(y, x0, eps, t_B, valid, prediction):
    """The loss as the training step calls it, everything float32."""
    y, x0, eps, t_B = (jnp.asarray(a, jnp.float32) for a in (y, x0, eps, t_B))
    return squared_error(y, x0, eps, t_B, loss_mask(jnp.asarray(valid), t_B), prediction, FLOOR)


def test_velocity_prediction(case):
    x0, eps, y, valid = case
    expected = np.sum(np.where(valid, (y - (eps - x0)) ** 2, 0), axis=(1, 2))
    np.testing.assert_allclose(error(y, x0, eps, T_B, valid, "v"), expected, rtol=1e-6)


def test_clean_prediction_is_the_velocity_error_that_it_implies(case):
    """Eq. 7, literally: the implied velocity (x_t - y) / t against eps - x_0."""
    x0, eps, y, valid = case
    t = T_B[:, None, None]
    x = (1 - t) * x0 + t * eps
    expected = np.sum(np.where(valid, ((x - y) / t - (eps - x0)) ** 2, 0), axis=(1, 2))
    np.testing.assert_allclose(error(y, x0, eps, T_B, valid, "x"), expected, rtol=1e-6)


def test_both_predictions_agree_above_the_floor(case):
    x0, eps, y, valid = case
    t = T_B[:, None, None]
    velocity = ((1 - t) * x0 + t * eps - y) / t
    np.testing.assert_allclose(error(y, x0, eps, T_B, valid, "x"), error(velocity, x0, eps, T_B, valid, "v"), rtol=1e-4)


def test_floor(case):
    x0, eps, y, valid = case
    t_B = np.array([1e-6, 0.02, 0.05, 0.08])
    weight = np.array([400.0, 400.0, 400.0, 1 / 0.08**2])
    expected = weight * np.sum(np.where(valid, (y - x0) ** 2, 0), axis=(1, 2))
    np.testing.assert_allclose(error(y, x0, eps, t_B, valid, "x"), expected, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_values_under_the_mask_change_neither_loss_nor_gradient(case, prediction, junk):
    x0, eps, y, valid = case
    value_and_grad = jax.value_and_grad(lambda y, x0: jnp.sum(error(y, x0, eps, T_B, valid, prediction)))
    clean = value_and_grad(jnp.float32(y), jnp.float32(np.where(valid, x0, 0.0)))
    dirty = value_and_grad(jnp.float32(y), jnp.float32(np.where(valid, x0, junk)))
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert np.all(np.asarray(dirty[1])[~valid] == 0.0)
    assert np.all(np.asarray(dirty[1])[valid] != 0.0)


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_outputs_under_the_mask_or_of_a_pinned_modality_may_even_be_infinite(case, prediction):
    x0, eps, y, valid = case
    t_B = np.array([0.0, 0.3, 0.77, 1.0])
    supervised = valid & (t_B > 0)[:, None, None]
    value_and_grad = jax.value_and_grad(lambda y: jnp.sum(error(y, x0, eps, t_B, valid, prediction)))
    clean = value_and_grad(jnp.float32(np.where(supervised, y, 0.0)))
    for junk in (np.inf, np.nan):
        dirty = value_and_grad(jnp.float32(np.where(supervised, y, junk)))
        np.testing.assert_array_equal(clean[0], dirty[0])
        np.testing.assert_array_equal(clean[1], dirty[1])


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_a_pinned_modality_has_exactly_no_loss_and_no_gradient(case, prediction):
    x0, eps, y, valid = case
    t_B = np.array([0.0, 0.5, 0.0, 1e-6])
    value = np.asarray(error(y, x0, eps, t_B, valid, prediction))
    gradient = np.asarray(jax.grad(lambda y: jnp.sum(error(y, x0, eps, t_B, valid, prediction)))(jnp.float32(y)))
    pinned = t_B == 0.0
    assert np.all(value[pinned] == 0.0) and np.all(gradient[pinned] == 0.0)
    assert np.all(value[~pinned] > 0.0)


def test_mask_counts_measured_entries_of_unpinned_examples(case):
    valid = case[3]
    mask = np.asarray(loss_mask(jnp.asarray(valid), jnp.array([0.0, 0.5, 1.0, 1e-6])))
    np.testing.assert_array_equal(mask[1:], valid[1:])
    assert not mask[0].any()


def test_low_precision_outputs_are_compared_in_single_precision(case):
    x0, eps, y, valid = case
    y = jnp.asarray(y, jnp.bfloat16)
    low = squared_error(y, *(jnp.float32(a) for a in (x0, eps, T_B)), jnp.asarray(valid), "v", FLOOR)
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, error(y.astype(jnp.float32), x0, eps, T_B, valid, "v"))
