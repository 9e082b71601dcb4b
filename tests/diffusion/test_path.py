"""The straight path in closed form, and what missing entries look like on it.

Legend: B batch, N tokens, C channels per token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.diffusion.path import clean_of, interpolate, velocity_of

T_B = np.array([0.0, 0.05, 0.3, 0.77, 1.0])


@pytest.fixture
def case():
    """x_0, eps and validity (5, 7, 3) as float64 NumPy arrays."""
    generator = np.random.default_rng(0)
    x0, eps = generator.standard_normal((2, 5, 7, 3))
    return x0, eps, generator.random((5, 7, 3)) < 0.6


def single(x):
    return jnp.asarray(x, jnp.float32)


def test_interpolation(case):
    x0, eps, valid = case
    t = T_B[:, None, None]
    expected = np.where(valid, (1 - t) * x0 + t * eps, eps)
    np.testing.assert_allclose(interpolate(single(x0), single(eps), single(T_B), valid), expected, atol=5e-7)


def test_the_ends_are_data_and_noise_bit_for_bit(case):
    x0, eps, valid = (single(case[0]), single(case[1]), np.ones_like(case[2]))
    for t, end in ((0.0, x0), (1.0, eps)):
        np.testing.assert_array_equal(interpolate(x0, eps, jnp.full(5, t), valid), end)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_missing_entries_are_the_noise_at_every_level(case, junk):
    x0, eps, valid = case
    x = np.asarray(interpolate(single(np.where(valid, x0, junk)), single(eps), single(T_B), valid))
    np.testing.assert_array_equal(x[~valid], np.float32(eps)[~valid])
    np.testing.assert_array_equal(x, interpolate(single(np.where(valid, x0, 0.0)), single(eps), single(T_B), valid))


def test_a_fully_missing_map_is_what_full_noise_looks_like(case):
    x0, eps, valid = case
    missing = interpolate(single(np.full_like(x0, np.nan)), single(eps), single(T_B), np.zeros_like(valid))
    noise = interpolate(single(x0), single(eps), jnp.ones(5), np.ones_like(valid))
    np.testing.assert_array_equal(missing, noise)


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_no_gradient_flows_from_missing_entries(case, junk):
    x0, eps, valid = case
    gradient = jax.grad(lambda x: jnp.sum(interpolate(x, single(eps), single(T_B), valid) ** 2))
    g = np.asarray(gradient(single(np.where(valid, x0, junk))))
    assert np.all(g[~valid] == 0.0) and np.all(np.isfinite(g))


def test_velocity_points_from_data_to_noise_along_the_path(case):
    """u = dx/dt = eps - x_0: the paper's eq. 5 has the other sign, the FLUX weights this one."""
    x0, eps, valid = case
    every = np.ones_like(valid)
    step = 0.25
    before, after = (interpolate(single(x0), single(eps), jnp.full(5, 0.5 + s), every) for s in (-step, step))
    np.testing.assert_allclose((after - before) / (2 * step), eps - x0, atol=2e-6)
    x = interpolate(single(x0), single(eps), jnp.full(5, 0.5), every)
    for prediction, output in (("v", eps - x0), ("x", x0)):
        velocity = velocity_of(single(output), x, jnp.full(5, 0.5), prediction, t_floor=0.05)
        np.testing.assert_allclose(velocity, eps - x0, atol=2e-6)


def test_floor_under_the_noise_level(case):
    x0, eps, _ = case
    t_B = np.array([0.0, 0.01, 0.049, 0.05, 0.2])
    velocity = velocity_of(single(x0), single(eps), single(t_B), "x", t_floor=0.05)
    expected = (eps - x0) / np.array([0.05, 0.05, 0.05, 0.05, 0.2])[:, None, None]
    np.testing.assert_allclose(velocity, expected, rtol=2e-6, atol=2e-6)


def test_clean_tokens_of_both_predictions(case):
    x0, eps, valid = case
    x = interpolate(single(x0), single(eps), single(T_B), np.ones_like(valid))
    np.testing.assert_array_equal(clean_of(single(x0), x, single(T_B), "x"), single(x0))
    np.testing.assert_allclose(clean_of(single(eps - x0), x, single(T_B), "v"), x0, atol=1e-6)
