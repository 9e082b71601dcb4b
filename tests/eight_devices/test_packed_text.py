"""Packed captions on a mesh, accumulated: the loss of one caption per row on one device.

Legend: B batch, L text ids.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mf_jax.config.loading import resolve
from mf_jax.data.packing import TextLayout
from mf_jax.joint_model import build_model
from mf_jax.models import frozen
from mf_jax.models.text.packed import unpack
from mf_jax.parallel import sharding
from mf_jax.training import train_state, train_step
from mf_jax.training.config import ObjectiveConfig

B, L = 32, 24
OBJECTIVE = ObjectiveConfig(caption_dropout=0.3)


@pytest.fixture(scope="module")
def config(frames, make_frozen_config):
    """Text from the frozen encoder, images as pixels: the autoencoder would take most of the time."""
    raw = make_frozen_config(frames)
    raw["modalities"]["image"] = dict(
        kind="image", position=0, patch=8, prediction="x", noise=dict(kind="logit_normal")
    )
    raw["model"] |= dict(heads=4, kv_heads=2)
    return resolve(raw)


@pytest.fixture(scope="module")
def model(config):
    return build_model(config)


@pytest.fixture(scope="module")
def params(model, randomised):
    return randomised(nn.unbox(jax.eval_shape(model.init, jax.random.key(0))), seed=2)


@pytest.fixture(scope="module")
def batch(model, make_batch):
    batch = {name: value for name, value in make_batch(B).items() if name != "text_ids"}
    tokenizer = model.text.tokenizer()
    lengths = np.clip(np.random.default_rng(5).geometric(0.2, B), 1, 13)
    texts = [tokenizer.fields("abcdefghijklm"[-length:]) for length in lengths]
    return batch | {name: np.stack([fields[name] for fields in texts]) for name in texts[0]}


def run(model, config, params, batch, sizes, accumulate):
    """Loss, and norms of the gradient's leaves, on a mesh."""
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), devices)
    layout = train_state.state_shardings(model, config, mesh).params
    networks = frozen.load(model.networks, mesh)
    networks[frozen.EMPTY_PROMPT] = model.empty_prompt.features(networks["text"], mesh)
    compute = jax.jit(functools.partial(train_step.loss_and_gradient, model, OBJECTIVE, 7, accumulate))
    with sharding.scope(mesh):
        loss, gradient, _ = compute(
            networks, jax.device_put(params, layout), {}, sharding.put_batch(batch, mesh), jnp.int32(3)
        )
    return float(loss), np.array([float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradient)])


@pytest.fixture(scope="module")
def single(model, config, params, batch):
    return run(model, config, params, batch, {}, 1)


@pytest.mark.parametrize(
    ("sizes", "accumulate"),
    [
        (dict(data=2, fsdp=2, tensor=2), 1),
        (dict(data=1, fsdp=4, context=2), 2),
        (dict(data=2, fsdp=1, tensor=2, context=2), 4),
    ],
    ids=["data-fsdp-tensor", "fsdp-context-2", "data-tensor-context-4"],
)
def test_any_mesh_gives_the_result_of_one_device(model, config, params, batch, single, sizes, accumulate):
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes))
    group = B // (accumulate * sharding.batch_parts(mesh))
    shape, packed = TextLayout((16, L), True, group, accumulate).arrange(batch)
    assert shape.rows < group and shape.length == 16
    loss, gradient = run(model, config, params, packed, sizes, accumulate)
    assert loss == pytest.approx(single[0], rel=1e-5)
    np.testing.assert_allclose(gradient, single[1], rtol=1e-3, atol=1e-6)


def test_unpacking_stays_on_each_device():
    """No collective, where examples and rows are split over all devices."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
    place = sharding.batch_sharding(mesh)
    shapes = [((16, 24, 5), jnp.float32), ((64,), jnp.int32), ((64, 8), jnp.bool_)]
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in shapes]
    with sharding.scope(mesh):
        text = jax.jit(unpack).lower(*given).compile().as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)
