"""The training step: the same loss and gradient on any mesh and in any number of parts, from measured entries only.

Legend: B batch, H W pixels, L text ids, N tokens, C channels per token, R modes, S noise bins.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mf_jax import train_state, train_step
from mf_jax.config import resolve
from mf_jax.joint_model import JointModel, build_model
from mf_jax.parallel import sharding

OBJECTIVE = train_step.ObjectiveConfig()
SEED = 7
# Very unequal counts of measured depth pixels, none at all among them.
UNEQUAL = (0.0, 1.0, 0.02, 0.9, 0.0, 0.3, 0.01, 1.0)


@dataclasses.dataclass(frozen=True)
class Echo(JointModel):
    """A joint model whose network is `params` times its input: instant, and it keeps what it is shown."""

    shown: list = dataclasses.field(default_factory=list, compare=False)

    def predict(self, params, x, t, ids_BL):
        self.shown.append((x, t, ids_BL))
        return {name: params[name] * x[name] for name in x}


@pytest.fixture(scope="module")
def config(make_tiny_config):
    raw = make_tiny_config()
    raw["modalities"]["depth"]["weight"] = 0.5
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
        lambda parts: jax.jit(functools.partial(train_step.loss_and_gradient, model, OBJECTIVE, SEED, parts))
    )


@pytest.fixture(scope="module")
def echo_of():
    """A function from a raw config to its Echo."""

    def make(raw):
        model = build_model(resolve(raw))
        return Echo(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})

    return make


def run_echo(echo, batch, step=0, objective=OBJECTIVE):
    """(loss, gradient, statistics), and what the network was shown; nothing compiled, so that it is all concrete."""
    weights = {name: jnp.float32(0.3) for name in echo.modalities}
    result = train_step.loss_and_gradient(echo, objective, SEED, 1, weights, batch, jnp.int32(step))
    return result, jax.tree.map(np.asarray, echo.shown[-1])


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


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8), (2, 4)])
def test_any_mesh_gives_the_result_of_one_device(data, fsdp, model, config, params, make_batch, single):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=data, fsdp=fsdp))
    layout = train_state.layout_of(model, config, mesh).params
    compute = jax.jit(functools.partial(train_step.loss_and_gradient, model, OBJECTIVE, SEED, 1))
    with sharding.scope(mesh):
        placed = sharding.put_batch(make_batch(8, share=UNEQUAL), mesh)
        result = compute(jax.device_put(params, layout), placed, jnp.int32(3))
    assert result[0].sharding.num_devices == 8
    assert_same(single, jax.tree.map(np.asarray, result))


@pytest.mark.parametrize("parts", [4])
def test_accumulation_gives_the_result_of_one_part(parts, gradient_of, params, make_batch, single):
    """With the counts of UNEQUAL a mean of the parts' means would be far off."""
    assert_same(single, gradient_of(parts)(params, make_batch(8, share=UNEQUAL), jnp.int32(3)))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_values_under_the_depth_mask_change_nothing(junk, gradient_of, params, make_batch):
    batch = make_batch(8, share=UNEQUAL)
    dirty = batch | {"depth": np.where(batch["depth_valid"], batch["depth"], junk).astype(np.float32)}
    clean, dirty = (gradient_of(1)(params, b, jnp.int32(3)) for b in (batch, dirty))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_batch_without_depth(model, gradient_of, params, make_batch):
    """No depth loss, no gradient for what only depth uses; the image learns as ever."""
    value, gradient, statistics = gradient_of(1)(params, make_batch(8, share=0.0), jnp.int32(3))
    assert float(statistics["sum"]["depth"].sum()) == 0.0 == float(statistics["count"]["depth"].sum())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    image = float(statistics["sum"]["image"].sum() / statistics["count"]["image"].sum())
    assert float(value) == pytest.approx(image, rel=1e-5) and image > 0
    for name, part in gradient["backbone"].items():
        silent = name in ("depth_out", "depth_decoder", "depth_decoder_modulation", "depth_out_modulation")
        assert all((np.abs(leaf).max() == 0) == silent for leaf in jax.tree.leaves(part)), name


def test_loss_is_the_velocity_error_of_what_the_network_was_shown(model, config, params, make_batch):
    """From the recorded x_t alone: u = (x_t - x_0) / t against the implied (x_t - y) / t, wherever t is above 0.05."""
    batch = make_batch(8, seed=5, share=UNEQUAL)
    shown = []

    @dataclasses.dataclass(frozen=True)
    class Recorder(JointModel):
        def predict(self, params, x, t, ids_BL):
            y = super().predict(params, x, t, ids_BL)
            shown.append(jax.lax.stop_gradient((x, t, y)))
            return y

    recorder = Recorder(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    compute = jax.jit(
        lambda params: (train_step.loss_and_gradient(recorder, OBJECTIVE, SEED, 1, params, batch, jnp.int32(0)))[0]
    )
    with jax.disable_jit():
        pass
    value, (x, t, y) = compute(params), shown[0]
    total = 0.0
    for name, modality in model.modalities.items():
        clean = np.asarray(modality.codec.encode(batch), np.float64)
        supervised = np.asarray(modality.codec.valid(batch)) & (t[name] > 0)[:, None, None]
        error = ((x[name] - y[name]) - (x[name] - clean)) / np.maximum(t[name], 0.05)[:, None, None]
        total += config["modalities"][name].get("weight", 1.0) * np.sum(error[supervised] ** 2) / supervised.sum()
    assert float(value) == pytest.approx(total, rel=1e-5)
