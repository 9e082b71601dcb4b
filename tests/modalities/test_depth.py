"""The depth codec against the official inference code, and what a mask may and may not change.

Legend: B batch, H W pixels, N tokens, C = P^2 channels per token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.modalities.depth import MAX_RATIO, Codec, contract, expand, unit_mean

encode = jax.jit(Codec.encode, static_argnums=0)
decode = jax.jit(Codec.decode, static_argnums=(0, 2))


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "depth_codec.npz")


def dense(depth_HW):
    depth_BHW = np.asarray(depth_HW, np.float32)[None]
    return {"depth": depth_BHW, "depth_valid": np.ones(depth_BHW.shape, bool)}


def sparse(seed=0, share=0.4):
    """A batch (3, 16, 16) whose missing pixels hold 0, as the loader makes them."""
    generator = np.random.default_rng(seed)
    valid_BHW = generator.random((3, 16, 16)) < share
    depth_BHW = np.where(valid_BHW, generator.uniform(0.5, 80.0, valid_BHW.shape), 0.0).astype(np.float32)
    return {"depth": depth_BHW, "depth_valid": valid_BHW}


@pytest.mark.parametrize("name", ["m0", "m1", "m2", "m3", "m4_const"])
@pytest.mark.parametrize("patch", [8, 16])
def test_tokens_and_decoded_map_of_the_official_code(golden, name, patch):
    depth_HW = golden[f"{name}__map"]
    codec = Codec(patch)
    grid = codec.grid(depth_HW.shape)
    expected = golden[f"{name}__tokens_p{patch}"]
    assert grid == expected.shape[:2]
    tokens_BNC = encode(codec, dense(depth_HW))
    assert tokens_BNC.dtype == jnp.float32
    np.testing.assert_allclose(tokens_BNC[0], expected.reshape(-1, codec.channels), rtol=3e-6, atol=1e-6)
    decoded_BHW = decode(codec, jnp.asarray(expected).reshape(1, -1, codec.channels), grid)
    np.testing.assert_allclose(decoded_BHW[0], golden[f"{name}__decoded_p{patch}"], rtol=3e-6)


def test_contraction_alone(golden):
    z_HW = contract(jnp.asarray(golden["m2__map"]))
    tokens = golden["m2__tokens_p8_contract_only"].reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, 64)
    np.testing.assert_allclose(z_HW, tokens, rtol=3e-6)


def test_expansion_at_the_edges(golden):
    """Near the pole at 2 the official formula is ill-conditioned: compared there through its inverse, 2 - 1/d."""
    z, expected = golden["edge__values"], golden["edge__values_decoded"]
    got = np.asarray(expand(jnp.asarray(z)))
    calm = ~(np.abs(np.abs(z) - 2.0) < 0.02)
    np.testing.assert_allclose(got[calm], expected[calm], rtol=3e-6, equal_nan=True)
    pole = np.isin(np.abs(z), 2.0)
    np.testing.assert_array_equal(got[pole], expected[pole])
    near = ~calm & ~pole
    assert np.all(np.sign(got[near]) == np.sign(expected[near]))
    np.testing.assert_allclose(1 / got[near].astype(np.float64), 1 / expected[near].astype(np.float64), atol=5e-7)


def test_expansion_of_edge_tokens(golden):
    """The pure formula; `decode` stays away from the pole on purpose."""
    z = golden["edge__tokens_p8"].reshape(2, 3, 8, 8).transpose(0, 2, 1, 3).reshape(16, 24)
    expected = golden["edge__decoded_p8"]
    got = np.asarray(expand(jnp.asarray(z)))
    assert np.isnan(expected).any() and np.isinf(expected).any()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    calm = np.abs(np.abs(z) - 2.0) > 0.02
    np.testing.assert_allclose(got[calm], expected[calm], rtol=3e-6, equal_nan=True)


def test_contraction_of_extreme_depth():
    d = jnp.array([0.0, 1e-6, 1.0, 1e6, jnp.inf, -1.5, -jnp.inf, jnp.nan])
    np.testing.assert_allclose(contract(d), [0.0, 1e-6, 1.0, 2.0, 2.0, -(2 - 1 / 1.5), -2.0, np.nan], rtol=2e-6)


def test_every_map_of_a_batch_has_its_own_mean(golden):
    """As the official code gives it map by map; in one call it takes a common mean, which training must not."""
    maps_BHW = golden["batch__map"]
    tokens = encode(Codec(16), {"depth": maps_BHW, "depth_valid": np.ones(maps_BHW.shape, bool)})
    np.testing.assert_allclose(tokens.reshape(2, 2, 3, 256), golden["batch__tokens_p16_per_map_calls"], rtol=3e-6)
    assert np.abs(tokens.reshape(2, 2, 3, 256) - golden["batch__tokens_p16_joint_call"]).max() > 0.1


def test_mean_over_measured_pixels_only():
    batch = sparse()
    scaled = np.asarray(unit_mean(batch["depth"], batch["depth_valid"]), np.float64)
    for depth_HW, valid_HW, got_HW in zip(batch["depth"], batch["depth_valid"], scaled, strict=True):
        np.testing.assert_allclose(got_HW[valid_HW], depth_HW[valid_HW] / depth_HW[valid_HW].mean(), rtol=2e-6)
        assert got_HW[valid_HW].mean() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, -5.0, 1e30])
def test_values_under_the_mask_never_matter(junk):
    batch = sparse()
    dirty = batch | {"depth": np.where(batch["depth_valid"], batch["depth"], junk).astype(np.float32)}
    np.testing.assert_array_equal(encode(Codec(8), batch), encode(Codec(8), dirty))
    gradient_of = jax.jit(jax.grad(lambda d: jnp.sum(jnp.square(encode(Codec(8), dirty | {"depth": d})))))
    gradient = gradient_of(dirty["depth"])
    assert np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient)[~batch["depth_valid"]] == 0.0)


def test_a_map_without_a_measured_pixel_is_finite():
    nothing = np.zeros((1, 16, 16), bool)
    tokens = encode(Codec(8), {"depth": np.full((1, 16, 16), np.nan, np.float32), "depth_valid": nothing})
    assert np.all(np.isfinite(tokens))
    assert not Codec(8).valid({"depth_valid": nothing}).any()


def test_validity_follows_the_pixels_into_the_patches():
    """Each measured pixel marks exactly the token entry that its depth goes to."""
    for row, column in ((0, 0), (3, 12), (15, 8)):
        valid_BHW = np.zeros((1, 16, 16), bool)
        valid_BHW[0, row, column] = True
        mark = np.asarray(Codec(8).valid({"depth_valid": valid_BHW}))
        assert mark.dtype == bool and mark.sum() == 1
        assert mark[0, (row // 8) * 2 + column // 8, (row % 8) * 8 + column % 8]


@pytest.mark.parametrize("unit", [1.0, 1000.0, 1e-3])
def test_round_trip_up_to_scale(unit):
    depth_BHW = np.random.default_rng(2).uniform(0.2, 50.0, (2, 24, 16)).astype(np.float32) * np.float32(unit)
    codec = Codec(8)
    tokens = encode(codec, {"depth": depth_BHW, "depth_valid": np.ones(depth_BHW.shape, bool)})
    assert float(tokens.min()) >= 0.0 and float(tokens.max()) < 2.0
    decoded = decode(codec, tokens, codec.grid((24, 16)))
    np.testing.assert_allclose(decoded, depth_BHW / depth_BHW.mean(axis=(1, 2), keepdims=True), rtol=1e-5)


def test_decoding_stays_away_from_the_pole():
    z = np.array([1.9, 1.999, 2.0, 2.001, 3.0, 1e9, np.inf, 0.0, -0.5, -1.0, -7.0, -np.inf], np.float32)
    tokens = np.zeros((1, 1, 64), np.float32)
    tokens[0, 0, : z.size] = z
    depth = np.asarray(decode(Codec(8), jnp.asarray(tokens), (1, 1))).ravel()[: z.size]
    np.testing.assert_allclose(depth[:7], [10.0, *[MAX_RATIO] * 6], rtol=2e-4)
    np.testing.assert_array_equal(depth[7:], [0.0, -0.5, -1.0, -1.0, -1.0])
    assert depth.max() <= MAX_RATIO


def test_indivisible_resolution():
    with pytest.raises(ValueError, match=r"resolution 60x64 is not divisible by the depth patch size 8.*64x64"):
        Codec(8).grid((60, 64))


def test_a_condition_is_stretched_without_inventing_depth():
    depth_HW = np.array([[1.0, np.nan, 3.0, -1.0], [0.0, np.inf, np.nan, 5.0]])
    fields = Codec(1).condition(depth_HW, (4, 8))
    assert fields["depth"].dtype == np.float32 and fields["depth_valid"].dtype == bool
    valid_HW = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(fields["depth_valid"][0], valid_HW.repeat(2, axis=0).repeat(2, axis=1))
    clean_HW = np.where(valid_HW, depth_HW, 0)
    np.testing.assert_array_equal(fields["depth"][0], clean_HW.repeat(2, axis=0).repeat(2, axis=1))
    assert Codec(1).condition(np.stack([depth_HW] * 3), (2, 4))["depth"].shape == (3, 2, 4)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.ones(3), r"depth has shape \(3,\); it must be \(H, W\)"),
        (np.stack([np.ones((2, 2)), np.full((2, 2), np.nan)]), "depth has no valid pixel"),
    ],
)
def test_what_cannot_be_a_condition(depth, message):
    with pytest.raises(ValueError, match=message):
        Codec(1).condition(depth, (2, 2))


def test_missing_depth_is_0_in_a_map_whose_tokens_are_0_there():
    decoded = decode(Codec(8), jnp.zeros((1, 4, 64)), (2, 2))
    np.testing.assert_array_equal(decoded, np.zeros((1, 16, 16)))
