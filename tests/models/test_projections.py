"""What transformer blocks do differently on TPUs gives the numbers that it gives elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.models.flat_dit import FlatDiT
from mf_jax.models.flux2 import Flux2
from mf_jax.models.layers import FromHeads, ToHeads, by_segment, positions, rotary_table, rotate
from mf_jax.models.stream import Stream

B, H, N, E, C = 2, 3, 6, 8, 12


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotary_by_a_product_is_rotary_by_pairs(dtype):
    """Both against complex numbers in float64."""
    x = normal(B, H, N, E, dtype=dtype)
    cos, sin = rotary_table(positions(2, 3, 1), (2, 2, 2, 2), 100.0)
    pairs = np.asarray(x, np.float64).reshape(B, H, N, E // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * (cos.astype(np.float64) + 1j * sin.astype(np.float64))
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
    for by_product in (False, True):
        got = rotate(x, (cos, sin), by_product)
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=1e-6 if dtype == jnp.float32 else 0.02)
    np.testing.assert_array_equal(rotate(x, (cos, sin), True), rotate(x, (cos, sin), False))


def test_heads_at_once_are_the_same_product():
    x, mixed = normal(B, N, C), normal(B, H, N, E, seed=1)
    for layer, given, axes in ((ToHeads, x, ("embed", "heads")), (FromHeads, mixed, ("heads", "embed"))):
        options = {"features": H * E if layer is ToHeads else C, "axes": axes}
        options |= {"heads": H} if layer is ToHeads else {}
        plain, at_once = layer(**options), layer(**options, at_once=True)
        params = plain.init(jax.random.key(0), given)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, at_once.init(jax.random.key(0), given))

        def loss(params, given, module):
            y = module.apply(params, given)
            return jnp.sum(y * normal(*y.shape, seed=2)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, given, plain)
        (_, y_at_once), gradients_at_once = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, given, at_once)
        np.testing.assert_allclose(y_at_once, y, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients_at_once, gradients)


def test_a_token_takes_the_value_of_its_segment():
    values = normal(B, 3, C)
    segments = np.array([0, 0, 2, 1, 1, 2])
    np.testing.assert_array_equal(by_segment(values, segments), values[:, segments])
    assert by_segment(values[:, :1], np.zeros(N, int)).shape == (B, 1, C)
    counts = jax.grad(lambda v: jnp.sum(by_segment(v, segments)))(values)
    np.testing.assert_array_equal(counts, np.broadcast_to(np.bincount(segments)[:, None], counts.shape))


STREAMS = (Stream("image", 5, 0, 0), Stream("depth", 3, 1, 1))
MODELS = {
    "flat_dit": FlatDiT(STREAMS, width=32, layers=2, heads=4, kv_heads=2),
    "flux2": Flux2(STREAMS, width=32, heads=4, double_blocks=1, single_blocks=1, axes=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_model_for_tpus_is_the_same_function(name, remat):
    """Outputs and gradients, with the kernel interpreted on a CPU."""
    x = {"image": normal(B, 6, 5), "depth": normal(B, 6, 3, seed=1)}
    t = {"image": jnp.array([0.2, 0.9]), "depth": jnp.array([0.7, 0.4])}
    grids = {"image": (2, 3), "depth": (2, 3)}
    text = normal(B, 4, 7, seed=2)
    model = MODELS[name]
    shapes = jax.eval_shape(lambda key: model.init(key, x, t, grids, text), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, drawn)

    def loss(params, kernel, remat):
        built = dataclasses.replace(model, attention=kernel, remat=remat, parent=None)
        outputs = built.apply(params, x, t, grids, text)
        return sum(jnp.sum(y * normal(*y.shape, seed=3)) for y in outputs.values()), outputs

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(1, 2))
    (_, expected), gradient = run(params, "xla", "none")
    (_, outputs), gradient_for_tpu = run(params, "splash_interpret", remat)
    for stream, y in outputs.items():
        np.testing.assert_allclose(y, expected[stream], atol=2e-5 * np.abs(expected[stream]).max())
    flat, _ = jax.tree_util.tree_flatten_with_path(gradient)
    for (path, want), got in zip(flat, jax.tree.leaves(gradient_for_tpu), strict=True):
        scale = max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(got, want, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))
