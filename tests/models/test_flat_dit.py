"""The flat-token transformer against a second implementation in NumPy, float64, one example and one head at a time.

Legend: B batch, M text tokens, D text channels, N tokens of one modality, C its channels, T all tokens, W width,
H query heads, K key/value heads, E head channels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax._src.ad_checkpoint import saved_residuals

from mf_jax.diffusion.path import interpolate
from mf_jax.models.flat_dit import Block, FlatDiT, Stream
from mf_jax.models.remat import PRESETS, rematerialised

STREAMS = (Stream("image", 6, position=0, decoder_blocks=0), Stream("depth", 4, position=1, decoder_blocks=2))
MODEL = FlatDiT(STREAMS, width=64, layers=2, heads=4, kv_heads=2, mlp_ratio=1.5)
GRIDS = {"image": (2, 3), "depth": (3, 2)}  # not square, and of another shape each
M, D = 5, 7


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def embed_level(t, weights):
    phase = 1000.0 * t * 10000.0 ** (-np.arange(128) / 128)
    hidden = np.concatenate([np.cos(phase), np.sin(phase)]) @ weights["in_layer"]["kernel"]
    return silu(hidden) @ weights["out_layer"]["kernel"]


def turn(x_TE, positions_T4):
    """Channel pairs (2j, 2j + 1) as complex numbers; a quarter of the head for each of the four axes."""
    z = x_TE[:, 0::2] + 1j * x_TE[:, 1::2]
    quarter = x_TE.shape[1] // 4
    for axis in range(4):
        for j in range(quarter // 2):
            angle = positions_T4[:, axis] * 2000.0 ** (-2 * j / quarter)
            z[:, axis * (quarter // 2) + j] *= np.exp(1j * angle)
    return np.stack([z.real, z.imag], axis=-1).reshape(x_TE.shape)


def block(x_TW, weights, modulation_T3W, positions_T4):
    W = x_TW.shape[1]
    shift, scale, gate = np.split(modulation_T3W + weights["modulation_bias"], 3, axis=1)
    h = (1 + scale) * rms_norm(x_TW, weights["pre_norm"]["scale"]) + shift
    E = W // MODEL.heads
    heads = []
    for head in range(MODEL.heads):
        own = slice(head * E, (head + 1) * E)
        kv_head = head // (MODEL.heads // MODEL.kv_heads)
        shared = slice(kv_head * E, (kv_head + 1) * E)
        q = turn(rms_norm(h @ weights["q"]["kernel"][:, own], weights["q_norm"]["scale"]), positions_T4)
        k = turn(rms_norm(h @ weights["k"]["kernel"][:, shared], weights["k_norm"]["scale"]), positions_T4)
        likelihood = np.exp(q @ k.T / np.sqrt(E))
        heads.append(likelihood @ (h @ weights["v"]["kernel"][:, shared]) / likelihood.sum(axis=1, keepdims=True))
    attended = np.concatenate(heads, axis=1) @ weights["attention_out"]["kernel"]
    hidden = silu(h @ weights["mlp_gate"]["kernel"]) * (h @ weights["mlp_up"]["kernel"])
    mixed = attended + hidden @ weights["mlp_down"]["kernel"]
    return x_TW + gate * rms_norm(mixed, weights["post_norm"]["scale"])


def stack(x_TW, weights, modulation_T3W, positions_T4):
    for layer in range(weights["modulation_bias"].shape[0]):
        x_TW = block(x_TW, jax.tree.map(lambda w, i=layer: w[i], weights), modulation_T3W, positions_T4)
    return x_TW


def reference_of_one(params, x, t, text_MD):
    """Outputs of one example, by modality; x in the order of the tokens."""
    names = list(x)
    vectors = {}
    for name in names:
        vectors[name] = embed_level(t[name], params[f"time_{name}"])
        for other in names:
            if other != name:
                cross = embed_level(t[other], params[f"time_{other}_to_{name}"])
                vectors[name] = vectors[name] + params[f"gate_{other}_to_{name}"] * cross
    tokens = [text_MD @ params["text_in"]["kernel"]]
    places = [np.array([(0, 0, 0, i) for i in range(len(text_MD))], float)]
    modulation = [np.tile(silu(vectors[names[0]]) @ params[f"{names[0]}_modulation"]["kernel"], (len(text_MD), 1))]
    for name in names:
        rows, columns = GRIDS[name]
        position = next(stream.position for stream in STREAMS if stream.name == name)
        places.append(np.array([(position, r, c, 0) for r in range(rows) for c in range(columns)], float))
        tokens.append(x[name] @ params[f"{name}_in"]["kernel"])
        own = silu(vectors[name]) @ params[f"{name}_modulation"]["kernel"]
        modulation.append(np.tile(own, (rows * columns, 1)))
    trunk = stack(np.concatenate(tokens), params["trunk"], np.concatenate(modulation), np.concatenate(places))
    outputs, start = {}, len(text_MD)
    for name, place in zip(names, places[1:], strict=True):
        own = trunk[start : start + len(place)]
        start += len(place)
        activated = silu(vectors[name])
        if f"{name}_decoder" in params:
            m = np.tile(activated @ params[f"{name}_decoder_modulation"]["kernel"], (len(place), 1))
            own = stack(own, params[f"{name}_decoder"], m, place)
        shift, scale = np.split(activated @ params[f"{name}_out_modulation"]["kernel"], 2)
        own = (1 + scale) * rms_norm(own, params[f"{name}_out_norm"]["scale"]) + shift
        outputs[name] = own @ params[f"{name}_out"]["kernel"]
    return outputs


@pytest.fixture(scope="module")
def inputs():
    """x, t and text of four examples; the levels meet 0 and 1 and differ between the modalities."""
    generator = np.random.default_rng(0)
    x = {s.name: np.float32(generator.standard_normal((4, 6, s.channels))) for s in STREAMS}
    t = {"image": np.float32([0.0, 0.375, 0.8125, 1.0]), "depth": np.float32([0.625, 1.0, 0.0, 0.25])}
    return x, t, np.float32(generator.standard_normal((4, M, D)))


@pytest.fixture(scope="module")
def boxed(inputs):
    x, t, text_BMD = inputs
    return jax.jit(lambda key: MODEL.init(key, x, t, GRIDS, text_BMD))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(boxed, randomised):
    """Every parameter random, also those that start at zero or one."""
    values = randomised(nn.unbox(boxed)["params"], seed=1)
    assert all(np.all(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(values))
    return values


def forward(model, names=("image", "depth")):
    """Compiled: (params, x, t, text) -> outputs, of the modalities in `names`."""

    def run(params, x, t, text_BMD, text_valid_BM=None):
        x, t, grids = ({name: d[name] for name in names} for d in (x, t, GRIDS))
        return model.apply({"params": params}, x, t, grids, text_BMD, text_valid_BM)

    return jax.jit(run)


@pytest.fixture(scope="module")
def run():
    return forward(MODEL)


@pytest.mark.parametrize("names", [("depth", "image"), ("image",), ("depth",)], ids="+".join)
def test_forward_pass(params, inputs, names):
    """All modalities, passed in any order, and every subset: what is absent leaves no token and no cross term."""
    x, t, text_BMD = inputs
    got = forward(MODEL, names)(params, x, t, text_BMD)
    assert set(got) == set(names)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for b in range(4):
        expected = reference_of_one(
            exact,
            {stream.name: x[stream.name][b].astype(np.float64) for stream in STREAMS if stream.name in names},
            {name: float(t[name][b]) for name in names},
            text_BMD[b].astype(np.float64),
        )
        for name in names:
            assert np.std(expected[name]) > 0.1
            np.testing.assert_allclose(got[name][b], expected[name], atol=2e-4, err_msg=f"{name} of example {b}")


@pytest.mark.parametrize("names", [("image", "dpeth"), ()])
def test_unknown_or_no_modality(params, inputs, names):
    x, t, text_BMD = inputs
    with pytest.raises(ValueError, match=r"the model has the modalities \['image', 'depth'\]"):
        MODEL.apply(
            {"params": params}, dict.fromkeys(names, x["image"]), dict.fromkeys(names, t["image"]), GRIDS, text_BMD
        )


def test_outputs_are_zero_at_initialisation(boxed, inputs, run):
    x, t, text_BMD = inputs
    for output in run(nn.unbox(boxed)["params"], x, t, text_BMD).values():
        assert output.dtype == jnp.float32 and np.all(np.asarray(output) == 0.0)


def test_gates_are_all_that_carries_one_level_to_the_other_modality(params, inputs, run):
    """Attention is cut, so that only the conditioning can: closed gates, no dependence; open ones, a dependence."""
    x, t, text_BMD = inputs
    cut = params | {"trunk": params["trunk"] | {"attention_out": {"kernel": np.zeros((2, 64, 64), np.float32)}}}
    closed = cut | {name: np.zeros(1, np.float32) for name in cut if name.startswith("gate_")}
    for name, other in (("image", "depth"), ("depth", "image")):
        moved = t | {other: np.float32([0.5, 0.125, 0.75, 0.5])}
        before, after = (run(closed, x, levels, text_BMD)[name] for levels in (t, moved))
        np.testing.assert_array_equal(before, after)
        before, after = (run(cut, x, levels, text_BMD)[name] for levels in (t, moved))
        assert np.all(np.max(np.abs(np.asarray(before - after)), axis=(1, 2)) > 1e-3)


def test_gates_start_closed(boxed):
    gates = {name: value for name, value in boxed["params"].items() if name.startswith("gate_")}
    assert set(gates) == {"gate_image_to_depth", "gate_depth_to_image"}
    assert all(np.all(np.asarray(gate) == 0.0) for gate in gates.values())
    assert np.abs(boxed["params"]["time_image_to_depth"]["out_layer"]["kernel"].value).max() > 0


def test_depth_at_full_noise_cannot_be_seen_and_looks_like_missing_depth(params, inputs, run):
    x, t, text_BMD = inputs
    eps = x["depth"]
    generator = np.random.default_rng(5)
    full = jnp.ones(4)
    everywhere = np.ones(eps.shape, bool)
    outputs = []
    for scale, valid in ((1.0, everywhere), (50.0, everywhere), (np.nan, ~everywhere)):
        values = np.float32(scale * generator.standard_normal(eps.shape))
        shown = interpolate(jnp.asarray(values), jnp.asarray(eps), full, valid)
        outputs.append(run(params, x | {"depth": shown}, t | {"depth": full}, text_BMD))
    for other in outputs[1:]:
        jax.tree.map(np.testing.assert_array_equal, outputs[0], other)


def test_bfloat16_compute_is_close(params, inputs, run):
    x, t, text_BMD = inputs
    single = run(params, x, t, text_BMD)
    half = forward(dataclasses.replace(MODEL, dtype=jnp.bfloat16, parent=None))(params, x, t, text_BMD)
    for name in single:
        assert half[name].dtype == jnp.float32
        difference = np.sqrt(np.mean(np.square(half[name] - single[name])))
        assert 1e-5 < difference / np.std(single[name]) < 0.05


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in ("none", "offload")])
def test_recomputation_gives_the_same_gradients(preset, params, inputs):
    """The image alone: one stack of two blocks. What is kept is what models/remat.py says."""
    x, t, text_BMD = inputs

    def loss(model):
        run = forward(model, ("image",))
        return lambda params: jnp.sum(run(params, x, t, text_BMD)["image"] ** 2)

    recomputing = dataclasses.replace(MODEL, remat=preset, parent=None)
    plain, remat = (jax.jit(jax.grad(loss(model)))(params) for model in (MODEL, recomputing))
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    for name in ("trunk", "image_in", "image_out", "image_modulation", "time_image", "text_in"):
        for a, b in zip(jax.tree.leaves(plain[name]), jax.tree.leaves(remat[name]), strict=True):
            assert np.abs(a).max() > 0
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())

    kept = kept_by_a_block(preset)
    width, hidden = MODEL.width, int(MODEL.width * MODEL.mlp_ratio)
    heads, kv_heads = width, width * MODEL.kv_heads // MODEL.heads
    statistics = [1, 1, MODEL.heads, MODEL.kv_heads]  # of the norms of x, its update, the queries, the keys
    few = sorted([*statistics, width, width])
    products = sorted([*few, heads, kv_heads, kv_heads, hidden, hidden])
    assert kept == {"full": [], "attention_mlp": few, "dots": products}[preset]


def kept_by_a_block(preset):
    """Channels per token of what the forward pass of one block leaves for its backward pass, besides its inputs."""
    T, head_dim = 11, MODEL.width // MODEL.heads
    block = rematerialised(Block, preset)(
        MODEL.width, MODEL.heads, MODEL.kv_heads, int(MODEL.width * MODEL.mlp_ratio), jnp.float32, "xla"
    )
    table = (np.ones((T, head_dim // 2), np.float32), np.ones((T, head_dim // 2), np.float32))
    x, modulation, segments = jnp.ones((1, T, MODEL.width)), jnp.ones((1, 1, 3 * MODEL.width)), np.zeros(T, int)
    params = nn.unbox(block.init(jax.random.key(0), x, modulation, segments, table, None))

    def run(params, x, modulation):
        return block.apply(params, x, modulation, segments, table, None)[0]

    residuals = saved_residuals(run, params, x, modulation)
    return sorted(
        int(np.prod(aval.shape)) // T
        for aval, origin in residuals
        if T in aval.shape and "argument" not in origin and "constant" not in origin
    )


def test_text_that_is_padding_changes_nothing(params, inputs):
    """Neither its features nor its number; and text that is not, does."""
    x, t, text_BMD = inputs
    generator = np.random.default_rng(8)
    real = 3
    padding = generator.standard_normal((2, len(text_BMD), 4, D)).astype(np.float32)
    run = forward(MODEL)
    outputs = []
    for extra in (padding[0], 100 * padding[1], padding[0][:, :1]):
        text = jnp.concatenate([text_BMD[:, :real], extra], axis=1)
        valid = jnp.broadcast_to(jnp.arange(text.shape[1]) < real, text.shape[:2])
        outputs.append(run(params, x, t, text, valid))
    outputs.append(run(params, x, t, text_BMD[:, :real]))
    for other in outputs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), outputs[0], other)
    seen = run(params, x, t, jnp.concatenate([text_BMD[:, :real], padding[0]], axis=1))
    assert all(np.abs(seen[name] - outputs[0][name]).max() > 1e-3 for name in seen)
