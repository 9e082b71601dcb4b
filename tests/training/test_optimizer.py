"""Learning rate by closed form, and what weight decay, clipping and Muon touch."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mf_jax.config.loading import load, resolve
from mf_jax.configurable import Kinds
from mf_jax.joint_model import build_model
from mf_jax.parallel.sharding import is_box
from mf_jax.training.optimizer import KINDS, AdamWConfig, MuonConfig

STILL = dict(warmup=0, schedule="constant")


@pytest.fixture
def boxed(tiny_config, randomised):
    """Parameters of the tiny model, all of them random, boxed with their axis names."""
    model = build_model(resolve(tiny_config))
    return randomised(jax.eval_shape(model.init, jax.random.key(0)))


@pytest.mark.parametrize("step", [0, 1, 7, 10, 11, 500])
def test_warmup_then_constant(step):
    rate = AdamWConfig(learning_rate=3e-4, warmup=10).rate(1000)
    assert float(rate(step)) == pytest.approx(3e-4 * min((step + 1) / 11, 1.0), rel=1e-6)


@pytest.mark.parametrize("step", [0, 5, 20, 21, 60, 99, 100])
def test_warmup_then_cosine(step):
    rate = AdamWConfig(learning_rate=2e-3, warmup=20, schedule="cosine").rate(100)
    done = (step - 20) / 80
    expected = 2e-3 * ((step + 1) / 21 if step < 20 else 0.5 * (1 + math.cos(math.pi * done)))
    assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_no_warmup(schedule):
    rate = AdamWConfig(learning_rate=1e-3, warmup=0, schedule=schedule).rate(100)
    assert float(rate(0)) == pytest.approx(1e-3)


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"optimizer\.schedule is 'linear'"):
        AdamWConfig(schedule="linear").rate(100)


@pytest.mark.parametrize("wrap", ["boxed", "unboxed"])
def test_weight_decay_moves_kernels_and_nothing_else(boxed, wrap):
    """With a gradient of zero, AdamW only decays: kernel <- kernel (1 - rate * decay)."""
    params = boxed if wrap == "boxed" else nn.unbox(boxed)
    optimizer = AdamWConfig(learning_rate=0.1, weight_decay=0.5, **STILL).make(10)
    zero = jax.tree.map(np.zeros_like, params)
    updates = jax.jit(lambda p: optimizer.update(zero, optimizer.init(p), p)[0])(params)
    flat = jax.tree_util.tree_flatten_with_path(nn.unbox(params))[0]
    decayed = set()
    for (path, value), update in zip(flat, jax.tree.leaves(updates), strict=True):
        name = path[-1].key
        if name == "kernel":
            decayed.add(jax.tree_util.keystr(path))
            np.testing.assert_allclose(update, -0.1 * 0.5 * value, rtol=1e-6)
        else:
            assert name in ("scale", "embedding", "modulation_bias") or name.startswith("gate_"), name
            assert np.all(np.asarray(update) == 0.0)
    assert len(decayed) == 33


def test_two_steps_of_adamw():
    """The textbook recursion with bias correction, in float64."""
    config = AdamWConfig(learning_rate=0.01, weight_decay=0.1, b1=0.8, b2=0.9, clip=1e9, **STILL)
    w = np.array([[1.0, -2.0]])
    gradients = [np.array([[0.5, -0.1]]), np.array([[-0.3, 0.7]])]
    optimizer = config.make(10)
    params = {"layer": {"kernel": jnp.asarray(w, jnp.float32)}}
    state = optimizer.init(params)
    m = v = 0.0
    for k, g in enumerate(gradients, start=1):
        updates, state = optimizer.update({"layer": {"kernel": jnp.asarray(g, jnp.float32)}}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - 0.01 * (m / (1 - 0.8**k) / (np.sqrt(v / (1 - 0.9**k)) + 1e-8) + 0.1 * w)
    np.testing.assert_allclose(params["layer"]["kernel"], w, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    """Adam forgets the scale of a constant gradient, so it is seen in the first moment."""
    optimizer = AdamWConfig(b1=0.0, clip=1.0, **STILL).make(10)
    gradient = {"a": jnp.full(9, 2.0), "b": {"kernel": jnp.full((4, 4), -3.0)}}
    norm = math.sqrt(9 * 4.0 + 16 * 9.0)
    params = jax.tree.map(jnp.ones_like, gradient)
    update = jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params)[1])
    for scale, expected in ((1.0, 2.0 / norm), (0.5 / norm, 1.0 / norm)):
        state = update(jax.tree.map(lambda g, s=scale: g * s, gradient))
        (moments,) = (s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
        np.testing.assert_allclose(moments.mu["a"], np.full(9, expected), rtol=1e-5)


def test_moments_kept_in_bfloat16():
    """Half the memory, updated in float32: rounded once per step, so close to the exact moments after many."""
    config = AdamWConfig(learning_rate=0.01, moments="bfloat16", **STILL)
    params = {"a": jnp.ones(64), "b": {"kernel": jnp.ones((8, 8))}}
    states = {}
    for kind in ("bfloat16", "float32"):
        optimizer = dataclasses.replace(config, moments=kind).make(200)
        step = jax.jit(lambda g, state, optimizer=optimizer: optimizer.update(g, state, params))
        state = optimizer.init(params)
        generator = np.random.default_rng(0)
        for _ in range(60):
            noise = {"a": generator.standard_normal(64), "b": {"kernel": generator.standard_normal((8, 8))}}
            updates, state = step(jax.tree.map(lambda n: jnp.asarray(0.5 + n, jnp.float32), noise), state)
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
        (states[kind],) = (s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
    half, whole = states["bfloat16"], states["float32"]
    assert int(half.count) == 60 and half.count.dtype == jnp.int32
    for name, tolerance in (("mu", 0.02), ("nu", 0.03)):
        for a, b in zip(jax.tree.leaves(getattr(half, name)), jax.tree.leaves(getattr(whole, name)), strict=True):
            assert a.dtype == jnp.bfloat16
            difference = np.abs(np.asarray(a, np.float32) - np.asarray(b)).max()
            assert 0 < difference < tolerance * np.abs(b).max()


QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(g):
    """Five quintic Newton-Schulz steps on g / |g| through its singular values, float64: U p(S) V^T."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 24), (1, 24, 8)])
def test_two_steps_of_muon(shape):
    """The recursion by singular values, each layer by itself; all else by Nesterov's AdamW, in float64."""
    settings = dict(learning_rate=0.01, muon_learning_rate=0.02, b1=0.8, b2=0.9, weight_decay=0.1, clip=1e9)
    optimizer = MuonConfig(**settings, **STILL).make(10)
    generator = np.random.default_rng(0)
    w = {"trunk": {"q": {"kernel": generator.standard_normal(shape)}}, "in": {"kernel": np.ones((4, 3))}}
    w["trunk"]["norm"] = {"scale": np.ones(shape[:2])}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)
    state = optimizer.init(params)
    m = v = jax.tree.map(np.zeros_like, w)

    def nesterov(m, g, b, k):
        return b * m / (1 - b ** (k + 1)) + (1 - b) * g / (1 - b**k)

    for k in (1, 2):
        gradient = jax.tree.map(lambda x: generator.standard_normal(x.shape), w)
        in_float32 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient)
        updates, state = jax.jit(optimizer.update)(in_float32, state, params)
        params = optax.apply_updates(params, updates)

        decay = {"trunk": {"q": {"kernel": 0.95}, "norm": {"scale": 0.8}}, "in": {"kernel": 0.8}}
        m = jax.tree.map(lambda m, g, b: b * m + (1 - b) * g, m, gradient, decay)
        v = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g**2, v, gradient)
        ahead = jax.tree.map(lambda m, g, b, k=k: nesterov(m, g, b, k), m, gradient, decay)
        adam = jax.tree.map(lambda a, v, k=k: a / (np.sqrt(v / (1 - 0.9**k)) + 1e-8), ahead, v)
        direction = np.stack([orthogonalised(layer) for layer in ahead["trunk"]["q"]["kernel"]])
        direction *= 0.2 * math.sqrt(max(shape[1:]))
        assert 0.1 < np.sqrt(np.mean(direction**2)) < 0.26
        w["trunk"]["q"]["kernel"] -= 0.02 * (direction + 0.1 * w["trunk"]["q"]["kernel"])
        w["trunk"]["norm"]["scale"] -= 0.01 * adam["trunk"]["norm"]["scale"]
        w["in"]["kernel"] -= 0.01 * (adam["in"]["kernel"] + 0.1 * w["in"]["kernel"])
    jax.tree.map(lambda got, expected: np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5), params, w)


@pytest.mark.parametrize("wrap", ["boxed", "unboxed"])
def test_muon_has_the_kernels_of_the_blocks(boxed, wrap):
    """One momentum for each, two moments for all else, in the dtype asked for; boxes keep their axis names."""
    params = boxed if wrap == "boxed" else nn.unbox(boxed)
    state = MuonConfig(moments="bfloat16").make(10).init(params)
    (muon,) = (s for s in jax.tree.leaves(state, is_leaf=is_muon) if is_muon(s))
    (adam,) = (s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
    matrices, others = (
        {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(nn.unbox(tree))[0]}
        for tree in (muon.mu, adam.nu)
    )
    assert {name.split("'")[3] for name in matrices} == {"trunk", "depth_decoder"}
    kernels = ["attention_out", "k", "mlp_down", "mlp_gate", "mlp_up", "q", "v"]
    assert sorted(name.split("'")[-4] for name in matrices) == sorted(2 * kernels)
    assert len(matrices) + len(others) == len(jax.tree.leaves(nn.unbox(params)))
    assert all(x.dtype == jnp.bfloat16 for x in (matrices | others).values())
    assert muon.ns_coeffs.dtype == jnp.float32
    if wrap == "boxed":
        boxes = jax.tree.leaves(muon.mu, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
        assert all(box.names[0] == "layers" for box in boxes)


@pytest.mark.parametrize("name", ["mofo_370m", "flux2_klein_9b"])
def test_muon_has_the_kernels_of_the_real_models_blocks(name):
    """By their axis names, which the rule does not look at: stacked over layers, and nothing else is."""
    model = build_model(load(f"configs/{name}.py"))
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(MuonConfig().make(10).init, params)
    (muon,) = (s for s in jax.tree.leaves(state, is_leaf=is_muon) if is_muon(s))
    flat = jax.tree_util.tree_flatten_with_path
    stacked = [
        path
        for path, box in flat(params, is_leaf=is_box)[0]
        if is_box(box) and box.names[0] == "layers" and path[-1].key == "kernel"
    ]
    assert len(stacked) > 10
    assert [path for path, _ in flat(muon.mu, is_leaf=is_box)[0]] == stacked


def test_muons_momentum_kept_in_bfloat16():
    """The updates stay close to those of an exact momentum, and are float32."""
    params = {"trunk": {"kernel": jnp.zeros((2, 8, 8))}}
    gradients = np.random.default_rng(1).standard_normal((30, 2, 8, 8)) + 2 * np.eye(8)
    found = {}
    for moments in ("float32", "bfloat16"):
        optimizer = MuonConfig(moments=moments, clip=1e9, **STILL).make(10)
        state, step = optimizer.init(params), jax.jit(optimizer.update)
        for gradient in gradients:
            updates, state = step({"trunk": {"kernel": jnp.asarray(gradient, jnp.float32)}}, state, params)
        found[moments] = np.asarray(updates["trunk"]["kernel"])
        assert found[moments].dtype == np.float32
    difference = np.abs(found["bfloat16"] - found["float32"]).max()
    assert 0 < difference < 0.03 * np.abs(found["float32"]).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="sgd"), r"optimizer\.kind is 'sgd'; there are: adamw, muon"),
        (dict(moments="float16"), r"optimizer\.moments is 'float16'; it must be one of 'float32', 'bfloat16'"),
        (dict(moments="bfloat16", b2=0.999), r"'bfloat16' with a decay of 0\.999"),
        (dict(moments="bfloat16", b1=0.995), r"'bfloat16' with a decay of 0\.995"),
        (dict(clip=0), r"optimizer\.clip is 0; it must be a number and at least 1e-12"),
        (dict(learning_rate=-1.0), r"optimizer\.learning_rate is -1\.0; it must be a number and at least 0"),
        (dict(warmup=-1), r"optimizer\.warmup is -1; it must be a number and at least 0"),
        (dict(muon_learning_rate=0.1), r"unknown config key optimizer\.muon_learning_rate"),
        (dict(kind="muon", muon_learning_rate=-1.0), r"optimizer\.muon_learning_rate is -1\.0; it must be a number"),
        (dict(kind="muon", schedule="linear"), r"optimizer\.schedule is 'linear'; it must be one of 'constant'"),
    ],
)
def test_settings_that_would_not_work(options, message):
    with pytest.raises(ValueError, match=message):
        Kinds(KINDS).build(options, "optimizer")


def is_muon(state):
    return isinstance(state, contrib.MuonState)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)
