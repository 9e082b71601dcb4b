"""FLUX.2 with one, two and three streams against a second implementation in NumPy, float64, one example at a time.

That one is held to the official numbers first, which exist for image and depth alone.

Legend: B batch, M text tokens, N tokens of one stream, T all tokens, C channels, W width, H heads, E head channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.models.flux2 import Flux2
from mf_jax.models.stream import Stream
from mf_jax.parallel.sharding import RULES

MODEL = Flux2(
    streams=(
        Stream("image", 6, position=0, decoder_blocks=1),
        Stream("depth", 4, position=1, decoder_blocks=2),
        Stream("albedo", 5, position=2, decoder_blocks=0),  # last of the streams, first of the alphabet
    ),
    width=32,
    heads=2,
    double_blocks=2,
    single_blocks=1,
    axes=(2, 6, 4, 4),
    mlp_ratio=1.5,
    guidance_embedding=True,
)
GRIDS = {"image": (2, 3), "depth": (3, 2), "albedo": (1, 4)}
M, D = 5, 7


def silu(x):
    return x / (1 + np.exp(-x))


def modulated(x_NW, shift, scale):
    variance = np.var(x_NW, axis=1, keepdims=True)
    return (1 + scale) * (x_NW - np.mean(x_NW, axis=1, keepdims=True)) / np.sqrt(variance + 1e-6) + shift


def embedded(t, weights):
    phase = 1000.0 * t * 10000.0 ** (-np.arange(128) / 128)
    hidden = np.concatenate([np.cos(phase), np.sin(phase)]) @ weights["in_layer"]["kernel"]
    return silu(hidden) @ weights["out_layer"]["kernel"]


def normed_and_turned(x_NE, scale, positions_N4, model):
    """RMSNorm, then channel pairs (2j, 2j + 1) as complex numbers, turned by position and axis."""
    x = x_NE / np.sqrt(np.mean(x_NE**2, axis=1, keepdims=True) + 1e-6) * scale
    angles = [
        positions_N4[:, [axis]] * model.theta ** (-2 * np.arange(size // 2) / size)
        for axis, size in enumerate(model.axes)
    ]
    z = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * np.concatenate(angles, axis=1))
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def attended(h, weights, places, model):
    """Joint attention of streams with weights of their own, head by head: (N, W) of each stream."""
    E = model.width // model.heads
    heads = []
    for head in range(model.heads):
        q, k, v = (
            [h[s] @ weights[s][part]["kernel"][:, head * E : (head + 1) * E] for s in h] for part in ("q", "k", "v")
        )
        q, k = (
            np.concatenate(
                [
                    normed_and_turned(x, weights[s][f"{part}_norm"]["scale"], places[s], model)
                    for s, x in zip(h, parts, strict=True)
                ]
            )
            for part, parts in (("q", q), ("k", k))
        )
        likelihood = np.exp(q @ k.T / np.sqrt(E))
        heads.append(likelihood @ np.concatenate(v) / likelihood.sum(axis=1, keepdims=True))
    ends = np.cumsum([len(x) for x in h.values()])[:-1]
    parts = np.split(np.concatenate(heads, axis=1), ends)
    return {s: x @ weights[s]["attention_out"]["kernel"] for s, x in zip(h, parts, strict=True)}


def mlp(h_NW, weights):
    gate, up = (h_NW @ weights[part]["kernel"] for part in ("mlp_gate", "mlp_up"))
    return silu(gate) * up @ weights["mlp_down"]["kernel"]


def layers(weights):
    """The blocks of a stack, one tree each."""
    return [jax.tree.map(lambda w, i=i: w[i], weights) for i in range(len(jax.tree.leaves(weights)[0]))]


def single(h, weights, chunks, places, model):
    """A single-stream block: every stream with the same weights and its own modulation."""
    inner = {s: modulated(x, *chunks[s][:2]) for s, x in h.items()}
    mixed = attended(inner, dict.fromkeys(h, weights), places, model)
    return {s: x + chunks[s][2] * (mixed[s] + mlp(inner[s], weights)) for s, x in h.items()}


def reference_of_one(model, params, grids, x, t, text_MD, guidance):
    """Outputs of one example by stream; x in the order of the tokens."""
    names = list(x)
    vectors = {name: embedded(t[name], params[f"time_{name}"]) for name in names}
    if guidance is not None:
        vectors[names[0]] = vectors[names[0]] + embedded(guidance, params["guidance"])
    if model.cross_mixing:
        for name in names:
            for other in set(names) - {name}:
                cross = embedded(t[other], params[f"time_{other}_to_{name}"])
                vectors[name] = vectors[name] + params[f"gate_{other}_to_{name}"] * cross
    vectors["text"] = vectors[names[0]]

    def chunks(name, kind, number):
        return np.split(silu(vectors[name]) @ params[f"{name}_{kind}_modulation"]["kernel"], number)

    position = {stream.name: stream.position for stream in model.streams}
    places = {"text": np.array([(0, 0, 0, i) for i in range(len(text_MD))])}
    h = {"text": text_MD @ params["text_in"]["kernel"]}
    for name in names:
        rows, columns = grids[name]
        places[name] = np.array([(position[name], r, c, 0) for r in range(rows) for c in range(columns)])
        h[name] = x[name] @ params[f"{name}_in"]["kernel"]
    double = {name: chunks(name, "double", 6) for name in h}
    for weights in layers(params["double"]):
        mixed = attended({s: modulated(value, *double[s][:2]) for s, value in h.items()}, weights, places, model)
        h = {s: value + double[s][2] * mixed[s] for s, value in h.items()}
        h = {s: v + double[s][5] * mlp(modulated(v, *double[s][3:5]), weights[s]) for s, v in h.items()}
    own = {name: chunks(name, "single", 3) for name in names}
    own["text"] = own[names[0]]
    for weights in layers(params["single"]):
        h = single(h, weights, own, places, model)
    outputs = {}
    for name in names:
        alone = {name: h[name]}
        if f"{name}_decoder" in params:
            for weights in layers(params[f"{name}_decoder"]):
                alone = single(alone, weights, {name: chunks(name, "decoder", 3)}, places, model)
        outputs[name] = modulated(alone[name], *chunks(name, "out", 2)) @ params[f"{name}_out"]["kernel"]
    return outputs


def reference(model, params, grids, x, t, text_BMD, guidance_B):
    """Outputs (B, N, C) by stream."""
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, t, text_BMD, guidance_B))
    params, x, t, text_BMD, guidance_B = exact
    rows = [
        reference_of_one(
            model,
            params,
            grids,
            {stream.name: x[stream.name][b] for stream in model.streams if stream.name in x},
            {name: level[b] for name, level in t.items()},
            text_BMD[b],
            None if guidance_B is None else guidance_B[b],
        )
        for b in range(len(text_BMD))
    ]
    return {name: np.stack([row[name] for row in rows]) for name in x}


@pytest.mark.parametrize("folder", ["dit_v2", "dit_guidance"])
def test_reference_is_the_official_network(official, folder):
    golden = official(folder)
    forward = golden.arrays("forward")
    x = {"image": forward["img"], "depth": forward["depth"]}
    t = {"image": forward["t_rgb"], "depth": forward["t_depth"]}
    outputs = reference(golden.model, golden.params, golden.grids, x, t, forward["ctx"], forward.get("guidance"))
    np.testing.assert_allclose(outputs["image"], forward["rgb_out"], atol=2e-4)
    np.testing.assert_allclose(outputs["depth"], forward["depth_out"], atol=2e-4)


@pytest.fixture(scope="module")
def inputs():
    """x, t, text and guidance of two examples."""
    generator = np.random.default_rng(0)
    shapes = {s.name: (2, GRIDS[s.name][0] * GRIDS[s.name][1], s.channels) for s in MODEL.streams}
    x = {name: np.float32(generator.standard_normal(shape)) for name, shape in shapes.items()}
    t = {"image": np.float32([0.375, 1.0]), "depth": np.float32([0.625, 0.0]), "albedo": np.float32([0.0, 0.25])}
    return x, t, np.float32(generator.standard_normal((2, M, D))), np.float32([0.03125, 0.0625])


@pytest.fixture(scope="module")
def boxed(inputs):
    x, t, text_BMD, _ = inputs
    return jax.jit(lambda key: MODEL.init(key, x, t, GRIDS, text_BMD))(jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def params(boxed, randomised):
    return randomised(nn.unbox(boxed), seed=1)


@pytest.mark.parametrize(
    ("names", "guided"),
    [
        (("image",), False),
        (("image",), True),
        (("albedo", "image"), True),
        (("depth", "albedo", "image"), False),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else ("guided" if value else "plain"),
)
def test_any_streams(params, inputs, names, guided):
    """Passed in any order; what is absent leaves no token and no cross term."""
    x, t, text_BMD, guidance_B = inputs
    x, t, grids = ({name: values[name] for name in names} for values in (x, t, GRIDS))
    guidance_B = guidance_B if guided else None
    run = jax.jit(lambda p, x, t, text, scale: MODEL.apply({"params": p}, x, t, grids, text, scale))
    got = run(params, x, t, text_BMD, guidance_B)
    expected = reference(MODEL, params, grids, x, t, text_BMD, guidance_B)
    assert set(got) == set(names)
    for name in names:
        assert got[name].dtype == jnp.float32 and np.std(expected[name]) > 0.1
        np.testing.assert_allclose(got[name], expected[name], atol=2e-4, err_msg=name)


def test_a_new_model_is_silent_and_its_gates_are_closed(boxed, inputs):
    """Heads, gates and modulations are zero; what lies before them is not, or nothing would train."""
    fresh = nn.unbox(boxed)
    zero = {name for name in fresh if all(np.all(np.asarray(leaf) == 0.0) for leaf in jax.tree.leaves(fresh[name]))}
    assert zero == {name for name in fresh if name.startswith("gate_") or name.endswith(("_modulation", "_out"))}
    assert sum(name.startswith("gate_") for name in zero) == 6
    for name in set(fresh) - zero:
        for path, leaf in jax.tree_util.tree_leaves_with_path(fresh[name]):
            spread = 0.0 if "'scale'" in jax.tree_util.keystr(path) else leaf.shape[-2] ** -0.5
            assert np.std(leaf) == pytest.approx(spread, rel=0.3), (name, path)


def test_parameters_are_laid_out_by_known_axes(boxed):
    """Those of one stream's half of the double blocks lie under one path; every axis is named in the table."""
    specs = nn.get_partition_spec(boxed)
    assert set(boxed["double"]) == {"text", "image", "depth", "albedo"}
    assert set(boxed["single"]) == set(boxed["double"]["text"]) == set(boxed["depth_decoder"])
    names = {axis for spec in jax.tree.leaves(specs) for axis in spec}
    assert names - {None} <= set(RULES)
    for stack in (specs["double"]["text"], specs["single"], specs["depth_decoder"]):
        assert stack["mlp_down"]["kernel"] == jax.sharding.PartitionSpec("layers", "mlp", "embed")
        assert stack["q"]["kernel"] == jax.sharding.PartitionSpec("layers", "embed", "heads")
