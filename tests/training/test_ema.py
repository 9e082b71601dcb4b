"""The moving average in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.training import ema


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_closed_form(decay):
    """ema_k = d_k ema_(k-1) + (1 - d_k) params_k with d_k = min(decay, (1 + k) / (10 + k))."""
    generator = np.random.default_rng(0)
    trajectory = generator.standard_normal((40, 5))
    average = {"a": {"kernel": jnp.asarray(trajectory[0], jnp.float32)}}
    expected = trajectory[0]
    for step, params in enumerate(trajectory[1:]):
        average = ema.update(average, {"a": {"kernel": jnp.asarray(params, jnp.float32)}}, jnp.int32(step), decay)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * params
    np.testing.assert_allclose(average["a"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_constant_parameters_are_their_own_average():
    params = {"w": jnp.array([0.1, -3.0, 7.7])}
    for step in (0, 10, 100_000):
        np.testing.assert_array_equal(ema.update(params, params, jnp.int32(step), 0.9999)["w"], params["w"])


def test_late_in_training_the_decay_is_the_configured_one():
    average = ema.update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.int32(10_000_000), 0.99)
    np.testing.assert_allclose(average["w"], 0.01, rtol=1e-4)
