"""The FLOP formula against XLA's own count of the same computation.

XLA counts the body of a loop once, so the blocks are unrolled here. It also counts what the formula leaves out: norms,
softmax, rotary embedding and activations by the element, and the products without token axis; the models are wide
enough that this is a small share. Nothing is compiled or run: XLA counts before it optimises.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mf_jax.config.loading import resolve
from mf_jax.joint_model import build_model
from mf_jax.monitoring import flops
from mf_jax.training import partition, train_state
from mf_jax.training.train_step import make_train_step

FLAT = dict(width=512, layers=2, heads=4, kv_heads=1)
FLUX2 = dict(kind="flux2", width=512, heads=4, double_blocks=2, single_blocks=2)
STREAMS = ("backbone/double/image", "backbone/double/text")
BATCH = 2


@pytest.fixture
def wide_config(tiny_config, monkeypatch):
    """A function (model, freeze) -> resolved config of a wide, shallow model, whose blocks are not in a loop."""
    monkeypatch.setattr(nn, "scan", functools.partial(nn.scan, unroll=True))

    def make(model, frozen=()):
        tiny_config["model"] = model | dict(dtype="float32")
        tiny_config["modalities"]["depth"]["decoder_blocks"] = 2  # jax keeps the loop of a single one
        tiny_config["data"]["resolution"] = (128, 128)
        tiny_config["text"] = dict(max_bytes=256, group=4, width=128)
        tiny_config["train"] |= dict(batch=BATCH, freeze=frozen)
        return resolve(tiny_config)

    return make


def abstract(model):
    """(x, t, fields) of `predict`, shapes alone."""
    x = {
        name: jax.ShapeDtypeStruct((BATCH, rows * columns, model.modalities[name].codec.channels), jnp.float32)
        for name, (rows, columns) in model.grids.items()
    }
    fields = {"text_ids": jax.ShapeDtypeStruct((BATCH, model.text.length), jnp.int32)}
    return x, dict.fromkeys(x, jax.ShapeDtypeStruct((BATCH,), jnp.float32)), fields


def counted(function, *arguments):
    lowered = jax.jit(function).lower(*arguments)
    assert "stablehlo.while" not in lowered.as_text()
    return lowered.cost_analysis()["flops"]


def gradient_count(model, config):
    def loss(trained, frozen, x, t, fields):
        return sum(jnp.sum(y) for y in model.predict(partition.combine(trained, frozen), x, t, fields).values())

    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    return counted(jax.value_and_grad(loss), *partition.partition(params, config.train.freeze), *abstract(model))


@pytest.mark.parametrize("sizes", [FLAT, FLUX2], ids=["flat_dit", "flux2"])
def test_forward(wide_config, sizes):
    model = build_model(wide_config(sizes))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    found = counted(model.predict, params, *abstract(model))
    assert found == pytest.approx(BATCH * flops.forward_flops(model), rel=0.01)
    assert found >= BATCH * flops.forward_flops(model)


@pytest.mark.parametrize(
    ("sizes", "frozen"),
    [
        (FLAT, ()),
        (FLAT, ("backbone/trunk",)),
        (FLAT, ("text", "backbone/text_in", "backbone/trunk/mlp_up", "backbone/depth_decoder/q")),
        (FLUX2, ()),
        (FLUX2, STREAMS),
    ],
    ids=["flat_dit", "flat_dit-frozen_trunk", "flat_dit-frozen_projections", "flux2", "flux2-frozen_streams"],
)
def test_forward_and_backward(wide_config, sizes, frozen):
    config = wide_config(sizes, frozen)
    model = build_model(config)
    assert gradient_count(model, config) == pytest.approx(flops.step_flops(model, config), rel=0.01)


def test_training_the_last_part_alone(wide_config):
    """The backward pass ends at the decoder: less than half of what it costs with all before it."""
    model = build_model(wide_config(FLAT))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))["backbone"]
    trained = ("depth_decoder", "depth_out")
    frozen = ("text", *(f"backbone/{name}" for name in params if not name.startswith(trained)))
    everything = flops.step_flops(model, wide_config(FLAT))
    config = wide_config(FLAT, frozen)
    assert flops.step_flops(model, config) < 0.6 * everything
    assert gradient_count(model, config) == pytest.approx(flops.step_flops(model, config), rel=0.01)


@pytest.mark.parametrize("sizes", [FLAT, FLUX2], ids=["flat_dit", "flux2"])
@pytest.mark.parametrize("preset", ["full", "attention_mlp", "dots"])
def test_remat(wide_config, sizes, preset):
    config = wide_config(sizes | dict(remat=preset))
    model = build_model(config)
    assert gradient_count(model, config) == pytest.approx(flops.hardware_flops(model, config), rel=0.01)


@pytest.mark.parametrize("sizes", [FLAT, FLUX2], ids=["flat_dit", "flux2"])
def test_train_step(wide_config, sizes):
    """All of it: noise, loss, gradient, AdamW, EMA, statistics. The optimizer counts by the parameter, so more tokens
    per parameter would bring the two closer."""
    config = wide_config(sizes)
    model = build_model(config)
    step = make_train_step(model, config.objective, config.optimizer.make(config.train.steps), 0, 1, 0.99)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 128, 128, 3), jnp.uint8),
        "depth": jax.ShapeDtypeStruct((BATCH, 128, 128), jnp.float32),
        "depth_valid": jax.ShapeDtypeStruct((BATCH, 128, 128), bool),
        "text_ids": jax.ShapeDtypeStruct((BATCH, 256), jnp.int32),
    }
    found = jax.jit(step).lower(train_state.abstract(model, config), {}, batch).cost_analysis()["flops"]
    assert found == pytest.approx(flops.step_flops(model, config), rel=0.05)
