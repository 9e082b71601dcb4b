"""The codec of image latents.

Legend: B batch, h w latents, N = h * w tokens, C channels.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.modalities.flux2_latent import Codec
from mf_jax.modalities.registry import ModalitySpec


def test_tokens_are_latents_row_by_row():
    latents_BhwC = np.random.default_rng(0).standard_normal((2, 3, 5, 128)).astype(np.float32)
    codec = Codec()
    tokens = codec.encode({"image_latent": latents_BhwC})
    assert tokens.dtype == jnp.float32 and tokens.shape == (2, 15, codec.channels)
    np.testing.assert_array_equal(tokens[1, 7], latents_BhwC[1, 1, 2])
    decoded = codec.decode(tokens, codec.grid((48, 80)))
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(decoded, latents_BhwC)


def test_stored_in_fewer_bits():
    latents = jnp.full((1, 2, 2, 128), 1.5, jnp.bfloat16)
    codec = Codec()
    tokens = codec.encode({"image_latent": latents})
    assert tokens.dtype == jnp.float32 and codec.decode(tokens.astype(jnp.bfloat16), (2, 2)).dtype == jnp.float32


def test_every_entry_is_measured():
    codec = Codec()
    batch = {"image_latent": np.zeros((3, 2, 4, 128), np.float32)}
    valid = codec.valid(batch)
    assert valid.dtype == bool and valid.shape == codec.encode(batch).shape and bool(valid.all())


def test_grid():
    assert Codec().grid((512, 256)) == (32, 16)
    with pytest.raises(ValueError, match=r"resolution 30x31 is not divisible by the image latent patch size 16.*32x32"):
        Codec().grid((30, 31))


def test_latents_of_another_autoencoder():
    batch = {"image_latent": np.zeros((1, 2, 2, 16), np.float32)}
    with pytest.raises(ValueError, match=r"image_latent has 16 channels, the modality 128; set its `channels`"):
        Codec().encode(batch)
    small = Codec(channels=16, reduction=8)
    assert small.encode(batch).shape == (1, 4, small.channels) and small.grid((16, 16)) == (2, 2)


@pytest.mark.parametrize("option", ["channels", "reduction"])
def test_impossible_options(option):
    with pytest.raises(ValueError, match=f"{option} is 0"):
        Codec(**{option: 0})


def test_named_in_a_config():
    section = dict(kind="flux2_latent", position=0, prediction="v", noise=dict(kind="logit_normal"))
    assert ModalitySpec().build(section, "modalities.image").codec == Codec()
