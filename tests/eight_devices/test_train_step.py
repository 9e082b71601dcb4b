"""The training step: the same loss and gradient on any mesh and in any number of parts, from measured entries only.

Legend: B batch, H W pixels, L text ids, N tokens, C channels per token, R modes, S noise bins.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mf_jax.config.loading import resolve
from mf_jax.joint_model import JointModel, build_model
from mf_jax.parallel import sharding
from mf_jax.training import train_state, train_step
from mf_jax.training.config import ObjectiveConfig
from mf_jax.training.train_state import TrainState

OBJECTIVE = ObjectiveConfig()
SEED = 7
# Very unequal counts of measured depth pixels, none at all among them.
UNEQUAL = (0.0, 1.0, 0.02, 0.9, 0.0, 0.3, 0.01, 1.0)


@dataclasses.dataclass(frozen=True)
class Echo(JointModel):
    """A joint model whose network is `params` times its input: instant, and it keeps what it is shown."""

    shown: list = dataclasses.field(default_factory=list, compare=False)

    def predict(self, params, x, t, fields):
        self.shown.append((x, t, fields["text_ids"]))
        return {name: params[name] * x[name] for name in x}


@pytest.fixture(scope="module")
def config(make_tiny_config):
    raw = make_tiny_config()
    raw["modalities"]["depth"]["weight"] = 0.5
    raw["model"] |= dict(heads=4, kv_heads=2)
    return resolve(raw)


@pytest.fixture(scope="module")
def model(config):
    return build_model(config)


@pytest.fixture(scope="module")
def params(model, randomised):
    return randomised(nn.unbox(jax.eval_shape(model.init, jax.random.key(0))), seed=2)


@pytest.fixture(scope="module")
def gradient_of(model):
    """Compiled by number of parts: (params, batch, step) -> (loss, gradient, statistics) on one device."""
    return functools.cache(
        lambda parts: jax.jit(
            lambda params, batch, step: train_step.loss_and_gradient(
                model, OBJECTIVE, SEED, parts, {}, params, {}, batch, step
            )
        )
    )


def echo_of(model):
    return Echo(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def compiled(echo, weight=0.3):
    """(batch, step) -> ((loss, gradient, statistics), (x_t, t, ids) that the network was shown)."""

    def run(batch, step):
        weights = dict.fromkeys(echo.modalities, jnp.float32(weight))
        result = train_step.loss_and_gradient(echo, OBJECTIVE, SEED, 1, {}, weights, {}, batch, step)
        return result, echo.shown[-1]

    jitted = jax.jit(run)
    return lambda batch, step=0: jax.tree.map(np.asarray, jitted(batch, jnp.int32(step)))


@pytest.fixture(scope="module")
def run_echo(model):
    return compiled(echo_of(model))


def assert_same(a, b, tolerance=1e-4):
    """Loss, every gradient leaf (by the leaf's largest entry) and the statistics agree."""
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a[1])[0], jax.tree.leaves(b[1]), strict=True):
        name, largest = jax.tree_util.keystr(path), float(np.abs(x).max())
        assert largest > 0, name
        np.testing.assert_allclose(x, y, atol=tolerance * largest, rtol=0, err_msg=name)
    for x, y in zip(jax.tree.leaves(a[2]), jax.tree.leaves(b[2]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)


@pytest.fixture(scope="module")
def single(gradient_of, params, make_batch):
    """The result on one device in one part, for the unequal batch."""
    return jax.tree.map(np.asarray, gradient_of(1)(params, make_batch(8, share=UNEQUAL), jnp.int32(3)))


MESHES = {
    "data": dict(data=8),
    "fsdp": dict(data=1, fsdp=8),
    "data-fsdp": dict(data=2, fsdp=4),
    "data-fsdp-tensor": dict(data=2, fsdp=2, tensor=2),
    "fsdp-context": dict(data=1, fsdp=4, context=2),
    "tensor-context": dict(data=1, fsdp=2, tensor=2, context=2),
}


def on_mesh(sizes, model, config, params, batch, rules=()):
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes))
    compute = jax.jit(functools.partial(train_step.loss_and_gradient, model, OBJECTIVE, SEED, 1, {}))
    with sharding.rules(dict(rules)):
        layout = train_state.state_shardings(model, config, mesh).params
    with sharding.rules(dict(rules)), sharding.scope(mesh):
        result = compute(jax.device_put(params, layout), {}, sharding.put_batch(batch, mesh), jnp.int32(3))
    assert result[0].sharding.num_devices == 8
    return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("mesh", MESHES)
def test_any_mesh_gives_the_result_of_one_device(mesh, model, config, params, make_batch, single):
    assert_same(single, on_mesh(MESHES[mesh], model, config, params, make_batch(8, share=UNEQUAL)))


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ("tensor-context", {}),
        ("tensor-context", {"kv_heads": ()}),
        ("data-fsdp-tensor", {"sequence": ("context", "tensor")}),
    ],
    ids=["split", "keys-whole", "sequence-over-tensor"],
)
def test_so_does_a_kernel_that_is_called_per_device(mesh, rules, model, config, params, make_batch, single):
    """The Pallas kernel, interpreted; and rules that leave heads or key/value heads whole."""
    fused = dataclasses.replace(model, backbone=model.backbone.clone(attention="splash_interpret"))
    assert_same(single, on_mesh(MESHES[mesh], fused, config, params, make_batch(8, share=UNEQUAL), rules))


def test_accumulation_gives_the_result_of_one_part(gradient_of, params, make_batch, single):
    """With the counts of UNEQUAL a mean of the parts' means would be far off."""
    assert_same(single, gradient_of(4)(params, make_batch(8, share=UNEQUAL), jnp.int32(3)))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_values_under_the_depth_mask_change_nothing(junk, gradient_of, params, make_batch):
    batch = make_batch(8, share=UNEQUAL)
    dirty = batch | {"depth": np.where(batch["depth_valid"], batch["depth"], junk).astype(np.float32)}
    clean, dirty = (gradient_of(1)(params, b, jnp.int32(3)) for b in (batch, dirty))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_batch_without_depth(gradient_of, params, make_batch):
    """No depth loss, no gradient for what only depth uses; the image learns as ever."""
    value, gradient, statistics = gradient_of(1)(params, make_batch(8, share=0.0), jnp.int32(3))
    assert float(statistics["sum"]["depth"].sum()) == 0.0 == float(statistics["count"]["depth"].sum())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    image = float(statistics["sum"]["image"].sum() / statistics["count"]["image"].sum())
    assert float(value) == pytest.approx(image, rel=1e-5) and image > 0
    for name, part in gradient["backbone"].items():
        silent = name.startswith(("depth_out", "depth_decoder"))
        assert all((np.abs(leaf).max() == 0) == silent for leaf in jax.tree.leaves(part)), name


def loss_by_hand(model, batch, x, t, y):
    """Float64, from the noised tokens: u = (x_t - x_0) / t against y, or against (x_t - y) / t, t floored at 0.05."""
    total = 0.0
    for name, modality in model.modalities.items():
        clean = np.asarray(modality.codec.encode(batch), np.float64)
        supervised = np.asarray(modality.codec.valid(batch)) & (t[name] > 0)[:, None, None]
        level = np.maximum(t[name], 1e-9)[:, None, None].astype(np.float64)
        if modality.prediction == "v":
            error = (x[name] - clean) / level - y[name]
        else:
            error = (clean - y[name]) / np.maximum(level, 0.05)
        total += modality.weight * np.sum(error[supervised] ** 2) / max(supervised.sum(), 1)
    return total


def test_loss_by_hand(model, run_echo, gradient_of, params, make_batch):
    """The network's output recomputed for what it was shown, the rest in NumPy."""
    batch = make_batch(8, seed=5, share=UNEQUAL)
    _, (x, t, ids_BL) = run_echo(batch, step=3)
    y = jax.jit(model.predict)(params, x, t, {"text_ids": ids_BL})
    value = gradient_of(1)(params, batch, jnp.int32(3))[0]
    y = {name: np.asarray(output, np.float64) for name, output in y.items()}
    assert float(value) == pytest.approx(loss_by_hand(model, batch, x, t, y), rel=1e-5)


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_loss_and_gradient_by_hand(prediction, tiny_config, make_batch):
    """A network y = w x_t, for each kind of prediction: the loss is a parabola in w."""
    for section in tiny_config["modalities"].values():
        section["prediction"] = prediction
    tiny_config["modalities"]["image"]["weight"] = 3.0
    model = build_model(resolve(tiny_config))
    batch = make_batch(8, seed=6, share=0.3)
    (value, gradient, _), (x, t, _) = compiled(echo_of(model))(batch, step=1)

    def loss(**weight):
        y = {name: weight.get(name, 0.3) * x[name].astype(np.float64) for name in x}
        return loss_by_hand(model, batch, x, t, y)

    assert float(value) == pytest.approx(loss(), rel=1e-4)
    for name in x:
        slope = (loss(**{name: 1.3}) - loss(**{name: -0.7})) / 2
        assert float(gradient[name]) == pytest.approx(slope, rel=1e-3)


def test_what_the_network_is_shown(model, run_echo, make_batch):
    """(1 - t) x_0 + t eps with standard normal noise of its own in each entry; only noise where depth is missing."""
    batch = make_batch(8, seed=8, share=0.5)
    steps = [run_echo(batch, step)[1] for step in range(12)]
    x, t = ({name: np.stack([entry[i][name] for entry in steps]) for name in model.modalities} for i in (0, 1))
    eps = {}
    for name, modality in model.modalities.items():
        level, clean = t[name][..., None, None], np.asarray(modality.codec.encode(batch))
        valid = np.broadcast_to(np.asarray(modality.codec.valid(batch)), x[name].shape)
        implied = (x[name] - (1 - level) * clean) / np.maximum(level, 1e-3)
        eps[name] = np.where(valid, implied, x[name])
        parts = [eps[name][valid & (level > 0.3)], *([eps[name][~valid]] if name == "depth" else [])]
        for part in parts:
            assert abs(part.mean()) < 4 / np.sqrt(part.size)
            assert abs(part.std() - 1) < 4 / np.sqrt(2 * part.size)
        pinned = np.broadcast_to(level == 0, x[name].shape) & valid
        assert pinned.any()
        np.testing.assert_allclose(x[name][pinned], np.broadcast_to(clean, x[name].shape)[pinned], atol=1e-6)
    image, depth = (eps[name][(t["image"] > 0.3) & (t["depth"] > 0.3)] for name in ("image", "depth"))
    for a, b in ((image[..., :64], depth), (depth[1:], depth[:-1]), (depth[:, 1:], depth[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_draws_depend_on_step_and_position_only(run_echo, make_batch):
    whole = make_batch(8, seed=9)
    half = {name: value[:4] for name, value in whole.items()}
    shown = [run_echo(batch, step)[1] for batch, step in ((whole, 5), (half, 5), (whole, 6))]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b), shown[0], shown[1])
    levels = [np.concatenate([shown[i][1]["image"], shown[i][1]["depth"]]) for i in (0, 2)]
    assert np.mean(levels[0] != levels[1]) > 0.5
    assert len(np.unique(levels[0][levels[0] > 0])) == np.sum(levels[0] > 0)


def test_caption_dropout(run_echo, make_batch):
    """At its rate of 0.1, to the empty prompt, whatever the mode."""
    batch = make_batch(8)
    shown = [run_echo(batch, step)[1] for step in range(200)]
    ids, level = (np.stack(entry) for entry in zip(*((ids, t["image"]) for _, t, ids in shown), strict=True))
    dropped = ~ids.any(axis=-1)
    kept = np.broadcast_to(batch["text_ids"], ids.shape)[~dropped]
    np.testing.assert_array_equal(ids[~dropped], kept)
    assert abs(dropped.mean() - 0.1) < 3 * np.sqrt(0.1 * 0.9 / dropped.size)
    assert abs((level[dropped] == 0).mean() - 0.2) < 3 * np.sqrt(0.2 * 0.8 / dropped.sum())


def test_statistics_by_mode_and_noise_level(model, run_echo, make_batch):
    """Cells recomputed example by example, over some steps; together they are the loss."""
    assert list(model.modes) == ["d2i", "i2d", "joint"]
    batch = make_batch(8, seed=3, share=UNEQUAL)
    seen = set()
    for step in range(6):
        (value, _, statistics), (x, t, _) = run_echo(batch, step)
        total = 0.0
        for name, modality in model.modalities.items():
            clean = np.asarray(modality.codec.encode(batch), np.float64)
            valid = np.asarray(modality.codec.valid(batch))
            sums, counts = np.zeros((3, 5)), np.zeros((3, 5))
            for b in range(8):
                mode = 0 if t["depth"][b] == 0 else 1 if t["image"][b] == 0 else 2
                level = float(t[name][b])
                if level > 0:
                    error = (0.3 * x[name][b] - clean[b]) / max(level, 0.05)
                    sums[mode, min(int(level * 5), 4)] += np.sum(error[valid[b]] ** 2)
                    counts[mode, min(int(level * 5), 4)] += valid[b].sum()
            np.testing.assert_allclose(statistics["sum"][name], sums, rtol=1e-4)
            np.testing.assert_array_equal(statistics["count"][name], counts)
            assert int(statistics["missing"][name]) == np.sum(~valid.any(axis=(1, 2))) == 2 * (name == "depth")
            total += modality.weight * sums.sum() / counts.sum()
            seen |= {(name, *cell) for cell in np.argwhere(counts).tolist()}
        assert float(value) == pytest.approx(total, rel=1e-5)
    assert len(seen) > 12


def test_one_modality_alone_is_text_to_image_training(tiny_config, make_batch):
    del tiny_config["modalities"]["depth"]
    tiny_config["modes"] = dict(t2i=dict(probability=1.0))
    model = build_model(resolve(tiny_config))
    batch = make_batch(8)
    del batch["depth"], batch["depth_valid"]
    (value, _, statistics), (x, t, _) = compiled(echo_of(model))(batch)
    assert set(x) == {"image"} and np.all(t["image"] > 0)
    y = {"image": 0.3 * x["image"].astype(np.float64)}
    assert float(value) == pytest.approx(loss_by_hand(model, batch, x, t, y), rel=1e-5)
    assert statistics["count"]["image"].shape == (1, train_step.NOISE_BINS)


def test_one_step_moves_parameters_average_and_counter(model, run_echo, make_batch):
    """Plain gradient descent in the optimizer's place, so that the new parameters are known in closed form."""
    weights = dict.fromkeys(model.modalities, jnp.float32(0.3))
    average = {"image": jnp.float32(1.0), "depth": jnp.float32(2.0)}
    optimizer = optax.sgd(0.01)
    step = train_step.make_train_step(echo_of(model), OBJECTIVE, optimizer, SEED, accumulate=1, ema_decay=0.9)
    batch = make_batch(8)
    new, metrics = jax.jit(step)(TrainState(jnp.int32(4), weights, {}, average, optimizer.init(weights)), {}, batch)
    (value, gradient, statistics), _ = run_echo(batch, step=4)
    assert int(new.step) == 5
    decay = (1 + 4) / (10 + 4)
    for name in weights:
        moved = 0.3 - 0.01 * gradient[name]
        assert float(new.params[name]) == pytest.approx(moved, rel=1e-5)
        expected = decay * float(average[name]) + (1 - decay) * moved
        assert float(new.ema[name]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
    for name, tree in (("grad_norm", gradient), ("param_norm", new.params), ("ema_norm", new.ema)):
        expected = np.sqrt(sum(float(leaf) ** 2 for leaf in tree.values()))
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-5)
    for kind, expected in statistics.items():
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), metrics[kind], expected)
