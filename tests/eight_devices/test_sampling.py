"""Sampling on a mesh of eight devices: the noise is bitwise that of one device, the samples are the same.

Legend: B batch, N tokens, C channels per token.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import mf_jax
from mf_jax import train
from mf_jax.config.loading import resolve
from mf_jax.diffusion.schedule import schedules
from mf_jax.inference.compiled import CompiledSampler
from mf_jax.inference.pipeline import Pipeline, _noise_keys
from mf_jax.joint_model import JointModel, build_model
from mf_jax.parallel import inference_mesh, sharding
from mf_jax.parallel.processes import ProcessGroup
from mf_jax.parallel.sharding import MeshConfig, make_mesh

MESHES = {"data": dict(data=8), "fsdp": dict(data=1, fsdp=8), "both": dict(data=2, fsdp=4)}


def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def config(make_tiny_config):
    return resolve(make_tiny_config())


@pytest.fixture(scope="module")
def pipeline_on(config, randomised):
    """A function mesh -> Pipeline of a model of random weights on it."""
    model = build_model(config)
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    params = randomised(nn.unbox(boxed), seed=4)

    def make(mesh):
        placed = jax.device_put(params, sharding.shardings(boxed, mesh))
        return Pipeline(
            config, CompiledSampler(model, placed, {}, mesh, {}, config.objective.t_floor, ProcessGroup()), 0
        )

    return make


@pytest.fixture(scope="module")
def alone(pipeline_on):
    return pipeline_on(one_device())


class Identity(JointModel):
    """A model that predicts its input as the clean tokens: after one step its sample is the noise."""

    def predict(self, params, x, t, fields):
        return x


@pytest.mark.parametrize("sizes", [None, *MESHES.values()], ids=["one", *MESHES])
@pytest.mark.parametrize("seeds", [np.asarray(7), np.array([3, 1, 2**31, 3, 5])], ids=["one seed", "seeds"])
def test_noise_is_bitwise_that_of_seed_and_example(config, sizes, seeds):
    """On one device, on any mesh, in a batch that the devices do not divide."""
    model = build_model(config)
    model = Identity(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    mesh = one_device() if sizes is None else make_mesh(MeshConfig(**sizes))
    compiled = CompiledSampler(model, {"text": {}}, {}, mesh, {}, 0.05, ProcessGroup())
    text = {"text_features": np.zeros((1, 12, 32), np.float32)}
    tokens = compiled.sample(_noise_keys(seeds, 5), schedules(tuple(model.modalities), 1, {}), {}, text, None, {})
    for i, (name, grid) in enumerate(model.grids.items()):
        shape = (grid[0] * grid[1], model.modalities[name].codec.channels)
        for example in range(5):
            one = jax.random.key(int(seeds[example])) if seeds.ndim else jax.random.fold_in(jax.random.key(7), example)
            expected = jax.random.normal(jax.random.fold_in(one, i), shape)
            np.testing.assert_array_equal(tokens[name][example], expected)


@pytest.mark.parametrize("mesh", MESHES)
def test_samples_are_those_of_one_device(alone, pipeline_on, mesh):
    """With guidance, a prompt for each or one for all, conditions, a second pass; five and nine examples."""
    many = pipeline_on(make_mesh(MeshConfig(**MESHES[mesh])))
    leaf = many.params["backbone"]["trunk"]["q"]["kernel"]
    assert leaf.addressable_shards[0].data.size * MESHES[mesh].get("fsdp", 1) == leaf.size
    assert [many.compiled.padded(count) for count in (1, 5, 8, 9)] == [8, 8, 8, 16]
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    depth = generator.uniform(1, 9, (9, 16, 16)).astype(np.float32)
    depth[:, 3:6] = 0
    for settings in (
        dict(mode="joint", prompt=["a", "b", "c", "d", "e"], guidance=3.0, refine=True),
        dict(mode="i2d", image=image, seed=np.arange(5)),
        dict(mode="d2i", prompt="a room", depth=depth, guidance=2.0),
        dict(mode="partial", prompt="a room", depth=depth[0], batch=3),
    ):
        expected = alone.sample(**settings, steps=3)
        got = many.sample(**settings, steps=3)
        for name, value in expected.items():
            assert got[name].shape == value.shape and np.ptp(value.astype(float)) > 0
            if name == "image":  # 8 bits, rounded
                assert np.abs(got[name].astype(int) - value).max() <= 1
            else:
                np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_is_loaded_onto_all_devices(config, tmp_path, monkeypatch):
    """Whole on each, or split where a device is said to be too small; a file of another mesh either way."""
    train.train(resolve_with(config, "train.steps=1", "mesh.fsdp=4"), tmp_path)
    whole = mf_jax.load(tmp_path)
    assert whole.compiled.mesh.shape["data"] == 8
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole.params))
    monkeypatch.setattr(inference_mesh, "fsdp_size", lambda bytes_on: 2 if bytes_on(make_mesh(MeshConfig())) else 0)
    split = mf_jax.load(tmp_path)
    assert dict(split.compiled.mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    a, b = (pipeline.sample("joint", "a room", steps=2, batch=3) for pipeline in (whole, split))
    np.testing.assert_allclose(a["depth"], b["depth"], rtol=1e-4, atol=1e-5)


def resolve_with(config, *overrides):
    from mf_jax.config.loading import to_dict

    return resolve(to_dict(config), list(overrides))


@pytest.mark.parametrize(
    ("memory", "size"),
    [(None, 1), (1600, 1), (1599, 2), (800, 2), (799, 4), (400, 8), (1, 8)],
)
def test_parameters_are_split_over_as_few_devices_as_they_fit_on(memory, size):
    """800 bytes, half of a device's memory for them; in four parts they would take more than in two."""
    held = {1: 800, 2: 400, 4: 300, 8: 200}
    assert inference_mesh.fsdp_size(lambda mesh: held[mesh.shape["fsdp"]], memory) == size


def test_a_size_that_does_not_divide_a_parameter_is_left_out():
    def bytes_on(mesh):
        if mesh.shape["fsdp"] == 2:
            raise ValueError("not divisible")
        return 800 // mesh.shape["fsdp"]

    assert inference_mesh.fsdp_size(bytes_on, 1000) == 4


def test_rows_and_whole_arrays():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    value = np.arange(10).reshape(5, 2)
    rows = inference_mesh.put_rows(value, 8, mesh)
    np.testing.assert_array_equal(rows, value[[0, 1, 2, 3, 4, 4, 4, 4]])
    assert {shard.data.shape for shard in rows.addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(inference_mesh.put_rows(value[:1], 16, mesh), np.repeat(value[:1], 16, axis=0))
    whole = inference_mesh.put_whole(value, mesh)
    assert whole.is_fully_replicated and len(whole.addressable_shards) == 8
    np.testing.assert_array_equal(inference_mesh.row_processes(mesh, 8), np.zeros(8))
