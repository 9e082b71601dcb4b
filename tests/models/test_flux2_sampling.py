"""Sampling with FLUX.2 and depth, from noise to tokens, against the official inference code; and from pixels to pixels.

The network is compiled once for each batch size; the sampler runs uncompiled around it, so that each call can be seen.

Legend: B batch, N tokens of one modality, C channels, S steps, H W pixels.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.diffusion.sampler import euler
from mf_jax.diffusion.schedule import schedules
from mf_jax.modalities import depth as depth_modality
from mf_jax.modalities import flux2_latent
from mf_jax.modalities.patches import unpatchify

STEPS, T_FLOOR = 8, 0.05
NAMES = {"image": "rgb", "depth": "depth"}  # ours and theirs
CLEAN = {"joint": (), "i2d": ("image",), "d2i": ("depth",)}
TAGS = {
    "dit_v1": ["joint_anone_cfg4_zeronull", "joint_am3_mu0_cfg1", "joint_anone_cfg1_rgbx_depthv"]
    + ["joint_anone_cfg1_mixmu"],
    "dit_v2": [],
}
for tags in TAGS.values():
    tags += [f"{mode}_cfg{scale}" for mode in ("joint_anone", "joint_a5", "i2d", "d2i") for scale in (1, 4)]


@pytest.fixture(scope="module")
def network(official):
    """A function folder -> predict for `euler`."""

    @functools.cache
    def compiled(folder):
        golden = official(folder)
        return jax.jit(lambda x, t, text: golden.model.apply({"params": golden.params}, x, t, golden.grids, text))

    return compiled


def sample(predict, given, mode, walk, noise, prediction, scale, null):
    """`euler` as the official sampler is called, and the list of its network's calls (x, t, outputs).

    Args:
      given: arrays of the golden file: prompt and clean tokens. noise: of the modalities that are drawn.
      prediction: by modality. null: text of the empty prompt.
    """
    calls = []

    def seen(x, t, text):
        with jax.disable_jit(False):
            calls.append((x, t, predict(x, t, text)))
        return calls[-1][-1]

    conditions = {}
    for name in CLEAN[mode]:
        clean = given[f"clean_{NAMES[name]}"]
        conditions[name] = (clean, np.ones(clean.shape, bool))
        noise = noise | {name: np.full(clean.shape, 9.0, np.float32)}  # never shown, at t = 0
    noise = {name: noise[name] for name in NAMES}
    null = np.broadcast_to(null, given["ctx"].shape)
    guidance = dict.fromkeys(NAMES, scale)
    with jax.disable_jit():
        tokens = euler(seen, noise, walk, prediction, conditions, given["ctx"], null, guidance, T_FLOOR)
    return tokens, calls


def case_of(golden, tag):
    """(the golden file's entry on a case, its arrays by their name without the tag)."""
    entry = next(e for e in json.loads((golden.folder / "sample_cases.json").read_text()) if e["tag"] == tag)
    arrays = golden.arrays("sample")
    own = {name.removeprefix(f"{tag}__"): value for name, value in arrays.items() if name.startswith(f"{tag}__")}
    return entry, arrays | own


def walk_of(entry):
    """Our schedules for a case."""
    by_modality = {
        key: {name: entry["schedule"][f"{there}_shift_{key}"] for name, there in NAMES.items()}
        for key in ("mu", "sigma")
    }
    alpha = entry["log2_alpha"]
    pinned = dict.fromkeys(CLEAN[entry["mode"]], 0.0)
    return schedules(
        tuple(NAMES), entry["num_steps"], pinned, **by_modality, log2_alpha=None if alpha is None else {"depth": alpha}
    )


@pytest.mark.parametrize(("folder", "tag"), [(folder, tag) for folder, tags in TAGS.items() for tag in tags])
def test_sampled_tokens(folder, tag, official, network):
    entry, given = case_of(official(folder), tag)
    walk = walk_of(entry)
    for name, there in NAMES.items():
        np.testing.assert_allclose(walk[name], given[f"t_{there}"], atol=1e-6)
    noise = {name: given[f"noise_{there}"] for name, there in NAMES.items() if f"noise_{there}" in given}
    prediction = {name: "x" if entry[f"{there}_use_x_prediction"] else "v" for name, there in NAMES.items()}
    null = given["null_text_embed"] if entry["uses_null_text_embed"] else np.zeros_like(given["ctx"][:1])
    tokens, calls = sample(network(folder), given, entry["mode"], walk, noise, prediction, entry["cfg_scale"], null)
    assert len(calls) == STEPS == entry["num_steps"]
    if tag == "joint_am3_mu0_cfg1":
        tokens["depth"] = official_last_step(tokens["depth"], calls[-1])
    for name, there in NAMES.items():
        if name in CLEAN[entry["mode"]]:
            np.testing.assert_array_equal(tokens[name], given[f"clean_{there}"])
        np.testing.assert_allclose(tokens[name], given[there], atol=1e-3, rtol=0)


def official_last_step(tokens, last):
    """What the official sampler returns where ours returns the predicted clean depth.

    Its last step is a step like the others: from t below the floor of 0.05 it goes t / 0.05 of the way.
    """
    x, t, outputs = (values["depth"] for values in last)
    level = float(t[0])
    assert 0.0 < level < T_FLOOR
    np.testing.assert_array_equal(tokens, outputs)
    return x + (0.0 - level) * (x - outputs) / max(level, T_FLOOR)


def test_every_case_is_tested(official):
    for folder, tags in TAGS.items():
        cases = json.loads((official(folder).folder / "sample_cases.json").read_text())
        assert sorted(tags) == sorted(case["tag"] for case in cases)


@pytest.fixture(scope="module")
def pipeline(official):
    """Numbers of the whole way, with the network of dit_v1 and the autoencoder of flux2_vae; one image."""
    arrays = official("dit_v1").arrays("pipeline")
    assert arrays["num_steps"] == STEPS
    return arrays | {"clean_rgb": arrays["clean_rgb_tokens"]}


@pytest.fixture(scope="module")
def autoencoder(goldens):
    """(codec of the image modality, its frozen network, that network's parameters)."""
    codec = flux2_latent.Codec(checkpoint=str(goldens / "flux2_vae"), channels=16, reduction=8)
    network = codec.network(jnp.float32)
    return codec, network, network.load(None)


def run_pipeline(network, given, mode, walk, scale):
    noise = {name: given[f"{mode}_noise_{there}"] for name, there in NAMES.items() if name not in CLEAN[mode]}
    tokens, _ = sample(
        network("dit_v1"), given, mode, walk, noise, {"image": "v", "depth": "x"}, scale, given["null_text_embed"]
    )
    return tokens


def assert_same_map(tokens, official_tokens, official_map):
    """The decoded depth, where the random network stays between -1, below which ours is clipped, and the pole at 2."""
    codec, grid = depth_modality.Codec(patch=8), (4, 6)
    z = unpatchify(official_tokens, grid, 8)[0, ..., 0]
    usual = (z > -1) & (z < 1.9)
    assert usual.mean() > 0.7
    for given, tolerance in ((official_tokens, 1e-5), (tokens, 2e-3)):
        ours = np.asarray(codec.decode(jnp.asarray(given), grid))[0]
        np.testing.assert_allclose(ours[usual], official_map[usual], rtol=tolerance, atol=tolerance)


def test_from_an_image_to_its_depth(network, pipeline, autoencoder):
    codec, encoder, params = autoencoder
    batch = jax.jit(encoder.encode)(params, {"image": pipeline["image_u8"]})
    clean = np.asarray(codec.encode(batch))
    np.testing.assert_allclose(clean, pipeline["clean_rgb_tokens"], atol=1e-4)
    walk = schedules(tuple(NAMES), STEPS, {"image": 0.0})
    tokens = run_pipeline(network, pipeline | {"clean_rgb": clean}, "i2d", walk, scale=1.0)
    np.testing.assert_allclose(tokens["depth"], pipeline["i2d_depth_tokens"], atol=1e-3)
    assert_same_map(tokens["depth"], pipeline["i2d_depth_tokens"], pipeline["i2d_depth_map"])


def test_from_text_to_image_and_depth(network, pipeline, autoencoder):
    codec, decoder, params = autoencoder
    walk = schedules(tuple(NAMES), STEPS, {}, log2_alpha={"depth": 5.0})
    tokens = run_pipeline(network, pipeline, "joint", walk, scale=4.0)
    np.testing.assert_allclose(tokens["image"], pipeline["joint_rgb_tokens"], atol=1e-3)
    np.testing.assert_allclose(tokens["depth"], pipeline["joint_depth_tokens"], atol=1e-3)
    assert_same_map(tokens["depth"], pipeline["joint_depth_tokens"], pipeline["joint_depth_map"])
    pixels = np.asarray(jax.jit(decoder.decode)(params, codec.decode(tokens["image"], (4, 6))))[0]
    off = np.abs(pixels.astype(int) - pipeline["joint_rgb_u8"])
    assert pixels.dtype == np.uint8
    assert off.max() <= 1 and np.mean(off > 0) < 0.02
