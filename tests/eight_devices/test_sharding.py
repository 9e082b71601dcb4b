"""Where parameters and batches lie on a mesh of eight simulated devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from mf_jax.config.loading import resolve
from mf_jax.joint_model import build_model
from mf_jax.parallel import sharding
from mf_jax.parallel.sharding import MeshConfig, make_mesh
from mf_jax.training import train_state

# The dimension that is split over fsdp, by (parent, name) of the parameter; None is whole on every device.
SPLIT = {
    "trunk/q/kernel": 1, "trunk/k/kernel": 1, "trunk/v/kernel": 1, "trunk/attention_out/kernel": 2,
    "trunk/mlp_gate/kernel": 1, "trunk/mlp_up/kernel": 1, "trunk/mlp_down/kernel": 2,
    "trunk/pre_norm/scale": None, "trunk/post_norm/scale": None, "trunk/q_norm/scale": None,
    "trunk/modulation_bias": None,
    "depth_decoder/mlp_down/kernel": 2,
    "image_in/kernel": 1, "image_out/kernel": 0, "depth_in/kernel": 1, "depth_out/kernel": 0, "text_in/kernel": 1,
    "image_modulation/kernel": 0, "depth_out_modulation/kernel": 0, "image_out_norm/scale": None,
    "time_image/in_layer/kernel": 1, "time_image/out_layer/kernel": 0, "gate_image_to_depth": None,
    "embedding": None, "join/kernel": None,
}  # fmt: skip


def names_of(path):
    return "/".join(entry.key for entry in path[1:])


@pytest.fixture(scope="module")
def setting(make_tiny_config):
    config = resolve(make_tiny_config())
    return build_model(config), config


@pytest.fixture(scope="module")
def parameters(setting):
    """Initial parameters by name, made on a mesh of two by four."""
    state = train_state.new(*setting, make_mesh(MeshConfig(data=2, fsdp=4)))
    return {names_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}


def test_parameters_lie_as_the_table_says(parameters):
    for name, dimension in SPLIT.items():
        leaf = parameters[name]
        assert leaf.sharding.mesh.shape == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
        expected = list(leaf.shape)
        if dimension is not None:
            expected[dimension] //= 4
        assert leaf.addressable_shards[0].data.shape == tuple(expected), name
    shares = {name: leaf.addressable_shards[0].data.size / leaf.size for name, leaf in parameters.items()}
    split = sum(leaf.size for name, leaf in parameters.items() if shares[name] == 0.25)
    assert split > 0.95 * sum(leaf.size for leaf in parameters.values())


def test_optimizer_and_average_lie_as_their_parameters(setting):
    layout = train_state.state_shardings(*setting, make_mesh(MeshConfig(data=2, fsdp=4)))
    specs = [leaf.spec for leaf in jax.tree.leaves(layout.params)]
    assert [leaf.spec for leaf in jax.tree.leaves(layout.ema)] == specs
    adam = [leaf.spec for leaf in jax.tree.leaves(layout.opt_state) if leaf.spec != PartitionSpec()]
    sharded = [spec for spec in specs if spec != PartitionSpec()]
    assert adam == 2 * sharded and len(sharded) > 25


def test_initial_parameters_do_not_depend_on_the_mesh(setting, parameters):
    model, config = setting
    single = jax.jit(lambda key: nn.unbox(model.init(key)))(
        jax.random.fold_in(jax.random.key(config.seed), train_state.INIT_STREAM)
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(single)[0]:
        assert leaf.sharding.num_devices == 1
        np.testing.assert_allclose(parameters[names_of(path)], leaf, rtol=1e-6)


def test_every_axis_name_of_the_model_is_in_the_table(setting, monkeypatch):
    """flax leaves an unknown name unsharded without a word."""
    model, _ = setting
    constrained = []

    def record(x, names):
        constrained.append(names)
        return x

    monkeypatch.setattr(nn, "with_logical_constraint", record)
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    specs = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=lambda s: isinstance(s, PartitionSpec))
    used = {name for spec in [*specs, *constrained] for name in spec if name is not None}
    assert constrained and {"embed", "layers", "mlp", "batch"} <= used
    assert used <= set(sharding.RULES)
    assert {axis for axes in sharding.RULES.values() for axis in axes} == set(sharding.AXES)


def test_indivisible_dimension():
    boxed = {"layer": {"kernel": nn.LogicallyPartitioned(np.zeros((6, 8), np.float32), ("embed", "mlp"))}}
    with pytest.raises(
        ValueError, match=r"layer.*kernel.*\(6, 8\): dimension 0 \(6\).*mesh axis fsdp\*context of size 4"
    ):
        sharding.shardings(boxed, make_mesh(MeshConfig(data=2, fsdp=4)))
    sharding.shardings(boxed, make_mesh(MeshConfig(data=4, fsdp=2)))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1), (8, 1, 1, 1)),
        ((1, -1), (1, 8, 1, 1)),
        ((2, 4), (2, 4, 1, 1)),
        ((-1, 4), (2, 4, 1, 1)),
        ((-1, 8), (1, 8, 1, 1)),
        ((2, 2, 2), (2, 2, 2, 1)),
        ((1, -1, 1, 2), (1, 4, 1, 2)),
    ],
)
def test_mesh_sizes(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor", "context") and mesh.devices.shape == shape


def test_slices_repeat_the_mesh_along_data():
    """Devices of two slices, dealt in any order: all axes but data stay within a slice."""
    by_slice = [SimpleNamespace(id=i, slice_index=i % 2, process_index=0, platform="tpu") for i in range(8)]
    assert sharding.mesh_sizes(MeshConfig(data=1, fsdp=-1, slices=2), 8) == {
        "data": 2, "fsdp": 4, "tensor": 1, "context": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"mesh\.slices is 3; 8 devices cannot be dealt evenly"):
        make_mesh(MeshConfig(slices=3))
    with pytest.raises(ValueError, match=r"mesh\.slices is 2; the devices are of 1"):
        make_mesh(MeshConfig(slices=2))
    with pytest.raises(ValueError, match=r"mesh\.slices is 4; the devices are of 2"):
        make_mesh(MeshConfig(slices=4), by_slice)


def test_rules_can_be_overridden(setting, make_tiny_config):
    model, config = setting
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    kernel = ("backbone", "trunk", "mlp_down", "kernel")

    def spec_of():
        leaf = train_state.state_shardings(model, config, mesh).params
        for key in kernel:
            leaf = leaf[key]
        return leaf.spec

    assert spec_of() == PartitionSpec(None, "tensor", ("fsdp", "context"))
    with sharding.rules({"mlp": (), "embed": ("fsdp", "tensor")}):
        assert spec_of() == PartitionSpec(None, None, ("fsdp", "tensor"))
    overridden = resolve(make_tiny_config(), ["mesh.rules.mlp=()", "mesh.rules.sequence=('context','tensor')"])
    assert dict(overridden.mesh.rules) == {"mlp": (), "sequence": ("context", "tensor")}
    for override, message in (
        ("mesh.rules.mpl=()", r"mesh\.rules names the axis 'mpl'; did you mean 'mlp'"),
        ("mesh.rules.mlp='model'", r"mesh\.rules\.mlp is 'model'; the mesh axes are data, fsdp, tensor, context"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(make_tiny_config(), [override])


def test_activations_that_the_mesh_does_not_divide(setting):
    """Two heads and one key/value head, 12 + 4 + 4 tokens."""
    model, _ = setting
    sharding.check_divisible(model.sizes, make_mesh(MeshConfig(data=4, context=2)))
    for sizes, message in (
        (dict(data=4, tensor=2), r"model\.kv_heads: 1 is not divisible by mesh axis tensor of size 2"),
        (dict(data=1, context=8), r"text tokens \(section text\): 12 is not divisible by mesh axis context of size 8"),
    ):
        with pytest.raises(ValueError, match=message):
            sharding.check_divisible(model.sizes, make_mesh(MeshConfig(**sizes)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 2), "does not fit the devices, there are 8"),
        ((-1, 3), "there are 8"),
        ((-1, 16), "there are 8"),
        ((-1, -1), "at most one may be -1"),
        ((0, 8), "the others positive"),
        ((-2, 4), "the others positive"),
    ],
)
def test_impossible_mesh_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(*sizes))


def test_a_batch_is_split_over_all_devices(make_batch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    batch = make_batch(16)
    placed = sharding.put_batch(batch, mesh)
    assert set(placed) == set(batch)
    for name, value in placed.items():
        assert len({shard.device for shard in value.addressable_shards}) == 8
        assert {shard.data.shape for shard in value.addressable_shards} == {(2, *batch[name].shape[1:])}
        np.testing.assert_array_equal(value, batch[name])


def test_activations_follow_the_rules_inside_the_scope_only():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def constrain(x):
        return nn.with_logical_constraint(x, ("batch", "sequence", "embed_activation"))

    x = np.zeros((8, 3, 4), np.float32)
    with sharding.scope(mesh):
        inside = jax.jit(constrain)(x)
    assert {shard.data.shape for shard in inside.addressable_shards} == {(1, 3, 4)}
    outside = jax.jit(lambda x: constrain(x) + 0)(x)
    assert len(outside.addressable_shards) == 1
