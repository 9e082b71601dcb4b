"""The pixel image codec.

Legend: B batch, H W pixels, N tokens, C = 3 P^2 channels per token.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.modalities.image import Codec


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_every_byte_survives_the_round_trip(patch):
    image = np.random.default_rng(0).permutation(np.arange(2 * 16 * 32 * 3) % 256).astype(np.uint8)
    image_BHW3 = image.reshape(2, 16, 32, 3)
    codec = Codec(patch)
    tokens = codec.encode({"image": image_BHW3})
    assert tokens.dtype == jnp.float32 and tokens.shape == (2, 16 * 32 // patch**2, codec.channels)
    decoded = codec.decode(tokens, codec.grid((16, 32)))
    assert decoded.dtype == jnp.uint8
    np.testing.assert_array_equal(decoded, image_BHW3)


def test_range():
    image = np.array([0, 255], np.uint8).repeat(3).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(Codec(1).encode({"image": image})[0], [[-1.0] * 3, [1.0] * 3])


def test_values_out_of_range_are_clipped():
    tokens = jnp.array([[[-7.0, 1.0001, 40.0]]])
    np.testing.assert_array_equal(Codec(1).decode(tokens, (1, 1)).ravel(), [0, 255, 255])


def test_rounding_is_to_the_nearest_byte():
    value = np.array([100.4, 100.6, 101.0]) / 127.5 - 1
    np.testing.assert_array_equal(Codec(1).decode(jnp.asarray(value)[None, None], (1, 1)).ravel(), [100, 101, 101])


def test_every_entry_is_measured():
    codec = Codec(4)
    image = np.zeros((3, 8, 12, 3), np.uint8)
    valid = codec.valid({"image": image})
    assert valid.dtype == bool and valid.shape == codec.encode({"image": image}).shape and bool(valid.all())


def test_indivisible_resolution():
    with pytest.raises(ValueError, match=r"resolution 30x31 is not divisible by the image patch size 8.*32x32"):
        Codec(8).grid((30, 31))


def test_a_condition_is_stretched_to_the_resolution():
    """Four quarters of one colour each keep their colours; a picture or several."""
    quarters_HW = np.array([[10, 20], [30, 40]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    image_HW3 = quarters_HW[..., None].repeat(3, axis=2)
    image_BHW3 = Codec(2).condition(image_HW3, (4, 2))["image"]
    expected_HW = np.array([[10, 20], [30, 40]]).repeat(2, axis=0)
    np.testing.assert_array_equal(image_BHW3, expected_HW[None, ..., None].repeat(3, axis=3))
    assert Codec(2).condition(np.stack([image_HW3] * 3), (4, 4))["image"].shape == (3, 4, 4, 3)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_what_cannot_be_a_condition(image):
    with pytest.raises(ValueError, match=r"it must be uint8 \(H, W, 3\) or \(B, H, W, 3\)"):
        Codec(2).condition(image, (4, 4))
