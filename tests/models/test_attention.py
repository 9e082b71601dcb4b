"""Attention: each kernel against the definition in NumPy, float64, forward and backward.

Legend: B batch, N queries, M keys, H query heads, K key/value heads, E head channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.models.attention import HIDDEN, _blocks, _padded, attention, kernel_for, kernel_for_sampling

B, H, K, E = 2, 6, 2, 8


def arrays(N=7, M=None, E=E, seed=2):
    generator = np.random.default_rng(seed)
    M = N if M is None else M
    q = generator.standard_normal((B, N, H, E))
    k, v = generator.standard_normal((2, B, M, K, E))
    return q, k, v


def single(*float64):
    return [jnp.asarray(a, jnp.float32) for a in float64]


def definition(q, k, v, valid=None, bias=None, scale=None):
    k, v = (np.repeat(a, H // K, axis=2) for a in (k, v))
    logits = np.einsum("bnhe,bmhe->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + np.repeat(bias, H // bias.shape[1], axis=1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    if valid is not None:
        weights = weights * valid[:, None, None, :]
    return np.einsum("bhnm,bmhe->bnhe", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize(
    ("kernel", "N", "M"),
    [
        ("xla", 7, 5),
        ("heads", 7, 5),
        ("splash_interpret", 130, 130),
        ("splash_interpret", 7, 300),
        ("splash_interpret", 7, 700),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_kernel_is_the_definition(kernel, N, M, padded):
    """Values and gradients; lengths that are no multiple of a tile, and different ones."""
    q, k, v = arrays(N, M)
    valid = np.random.default_rng(3).random((B, M)) < 0.6 if padded else None
    weight = np.random.default_rng(4).standard_normal((B, N, H, E)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=3)
    def run(q, k, v, kernel):
        def loss(q, k, v):
            out = attention(q, k, v, kernel, None if valid is None else jnp.asarray(valid))
            return jnp.sum(out * weight), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    (_, out), gradients = run(*single(q, k, v), kernel)
    np.testing.assert_allclose(out, definition(q, k, v, valid), atol=2e-5)
    step, generator = 1e-5, np.random.default_rng(5)
    for i, gradient in enumerate(gradients):
        for _ in range(4):
            along = generator.standard_normal(gradient.shape)
            up, down = (
                np.sum(weight * definition(*[a + s * along if j == i else a for j, a in enumerate((q, k, v))], valid))
                for s in (step, -step)
            )
            slope = float(np.sum(np.asarray(gradient, np.float64) * along))
            assert slope == pytest.approx((up - down) / (2 * step), abs=2e-4 * float(np.linalg.norm(gradient)))
    if padded:
        hidden = np.asarray(gradients[1])[~valid], np.asarray(gradients[2])[~valid]
        assert all(np.all(part == 0) for part in hidden)


@pytest.mark.parametrize("kernel", ["xla", "splash_interpret"])
def test_values_of_hidden_keys_change_nothing(kernel):
    q, k, v = single(*arrays(9))
    valid = jnp.asarray(np.arange(9) % 3 > 0)[None].repeat(B, axis=0)
    dirty = [jnp.where(valid[..., None, None], x, 1e4) for x in (k, v)]
    clean = attention(q, k, v, kernel, valid)
    np.testing.assert_array_equal(attention(q, *dirty, kernel, valid), clean)


def test_bias_and_scale():
    q, k, v = arrays()
    bias = np.random.default_rng(6).standard_normal((B, K, 7, 7))
    bias[:, :, :, 4:] = HIDDEN
    got = attention(*single(q, k, v), bias=jnp.asarray(bias, jnp.float32), scale=0.5)
    np.testing.assert_allclose(got, definition(q, k, v, bias=bias, scale=0.5), atol=1e-5)
    shared = attention(*single(q, k, v), bias=jnp.asarray(bias[:1, :1], jnp.float32))
    np.testing.assert_allclose(shared, definition(q, k, v, bias=bias[:1, :1].repeat(B, axis=0)), atol=1e-5)
    with pytest.raises(ValueError, match="attention with a bias has the kernel 'xla', not 'cudnn'"):
        attention(*single(q, k, v), kernel="cudnn", bias=jnp.zeros((1, 1, 7, 7)))


@pytest.mark.parametrize("kernel", ["xla", "splash_interpret"])
def test_a_query_without_any_key_is_finite(kernel):
    q, k, v = single(*arrays(5))
    valid = jnp.zeros((B, 5), bool)
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(attention(q, k, v, kernel, valid)))(q)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "kernel"),
    [
        ("auto", "cpu", jnp.float32, "xla"),
        ("auto", "tpu", jnp.bfloat16, "splash"),
        ("auto", "tpu", jnp.float32, "splash"),
        ("auto", "gpu", jnp.bfloat16, "cudnn"),
        ("auto", "gpu", jnp.float32, "xla"),
        ("xla", "tpu", jnp.bfloat16, "xla"),
        ("splash", "cpu", jnp.float32, "splash_interpret"),
    ],
)
def test_the_kernel_of_a_platform(name, platform, dtype, kernel):
    assert kernel_for(name, platform, dtype) == kernel


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "message"),
    [
        ("flash", "tpu", jnp.bfloat16, "'flash'; it must be one of auto, xla, splash, cudnn"),
        ("splash", "gpu", jnp.bfloat16, "a kernel for TPUs; the platform is 'gpu'"),
        ("cudnn", "cpu", jnp.bfloat16, "for bfloat16 on GPUs; this is bfloat16 on cpu"),
        ("cudnn", "gpu", jnp.float32, "for bfloat16 on GPUs; this is float32 on gpu"),
    ],
)
def test_a_kernel_that_cannot_run(name, platform, dtype, message):
    with pytest.raises(ValueError, match=message):
        kernel_for(name, platform, dtype)


def test_lengths_of_the_splash_kernel():
    """Up to 1280 the next multiple of 128; above, one with a divisor between 512 and 1280."""
    for length, padded in ((1, 128), (130, 256), (1280, 1280), (1281, 1536), (2176, 2304), (2560, 2560), (2700, 3072)):
        assert _padded(length) == padded


@pytest.mark.parametrize(
    ("length", "channels", "itemsize", "tiles"),
    [
        (256, 128, 2, (256, 256, 256)),
        (640, 128, 2, (640, 640, 640)),  # its parts would be of 128 keys
        (768, 128, 2, (768, 768, 384)),
        (2560, 64, 2, (1280, 1280, 256)),
        (2560, 128, 2, (1280, 1280, 256)),
        (2560, 128, 4, (640, 1280, 256)),
        (2560, 192, 2, (640, 640, 640)),
        (2560, 2048, 4, (128, 128, 128)),
    ],
)
def test_tiles_of_the_splash_kernel(length, channels, itemsize, tiles):
    """Queries, keys, and of these at a time in the forward pass; in the backward pass all of them."""
    blocks = _blocks(length, length, channels, itemsize)
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute) == tiles
    assert (blocks.block_q_dkv, blocks.block_kv_dkv, blocks.block_kv_dkv_compute) == (tiles[0], tiles[1], tiles[1])


def test_the_cudnn_kernel_is_called_with_the_right_mask(monkeypatch):
    """The kernel itself needs a GPU; XLA stands in for it, through the same interface."""
    real, asked = jax.nn.dot_product_attention, []

    def stand_in(*args, implementation, **kwargs):
        asked.append(implementation)
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = arrays(7, 5)
    valid = np.random.default_rng(3).random((B, 5)) < 0.6
    got = attention(*single(q, k, v), "cudnn", jnp.asarray(valid))
    np.testing.assert_allclose(got, definition(q, k, v, valid), atol=1e-5)
    np.testing.assert_allclose(attention(*single(q, k, v), "cudnn"), definition(q, k, v), atol=1e-5)
    assert asked == ["cudnn"] * 2


def test_kernels_for_sampling():
    """Another one than in training only where XLA's would run on a CPU."""
    for name, platform, expected in (("xla", "cpu", "heads"), ("xla", "gpu", "xla"), ("splash", "tpu", "splash")):
        assert kernel_for_sampling(name, platform) == expected
    assert kernel_for_sampling("splash_interpret", "cpu") == "splash_interpret"
