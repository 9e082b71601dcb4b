"""The UMT5 encoder against the numbers that transformers computed with the same weights (tests/goldens/make_umt5.py).

Legend: B batch, L tokens, W width.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mf_jax.models.text import umt5_weights
from mf_jax.models.text.umt5 import UMT5Config, UMT5Encoder, position_buckets
from mf_jax.models.weight_table import flatten, to_ours, to_theirs
from mf_jax.parallel.sharding import RULES

ATOL = 2e-5


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "umt5"


@pytest.fixture(scope="module")
def golden(folder):
    return np.load(folder / "umt5.npz")


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def config(folder):
    return UMT5Config.from_json(folder / "config.json")


def run(config, tensors, ids_BL, mask_BL, dtype=jnp.float32):
    encoder = UMT5Encoder(config, dtype)
    return jax.jit(encoder.apply)({"params": to_ours(tensors, umt5_weights.table(encoder, tensors))}, ids_BL, mask_BL)


@pytest.fixture(scope="module")
def features(config, tensors, golden):
    return np.asarray(run(config, tensors, golden["ids"], golden["mask"]))


def test_features_equal_the_published_ones_and_padding_is_zero(features, golden):
    real_BL = golden["mask"].astype(bool)
    np.testing.assert_allclose(features[real_BL], golden["last"][real_BL], rtol=0, atol=ATOL)
    np.testing.assert_array_equal(features[~real_BL], 0)
    assert np.abs(golden["last"][~real_BL]).max() > 0.1


@pytest.mark.parametrize("layers", [1, 2])
def test_the_states_between_layers(config, tensors, golden, layers):
    """An encoder cut off after some layers, whose final norm is then applied to the published state."""
    out = run(dataclasses.replace(config, num_layers=layers), tensors, golden["ids"], golden["mask"])
    x_BLW = golden[f"hidden_{layers}"]
    normed = x_BLW / np.sqrt(np.mean(x_BLW**2, axis=-1, keepdims=True) + 1e-6)
    expected = normed * tensors["encoder.final_layer_norm.weight"] * golden["mask"][..., None]
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("buckets", "distance"), [(8, 16), (32, 128)])
def test_buckets_equal_the_published_ones(golden, buckets, distance):
    got = position_buckets(golden["positions"], buckets, distance)
    np.testing.assert_array_equal(got, golden[f"bucket_{buckets}_{distance}"])


def test_padding_changes_nothing(config, tensors, golden, features):
    """What is padded, and how much of it there is."""
    ids_BL = np.where(golden["mask"], golden["ids"], 7)
    out = run(config, tensors, ids_BL, golden["mask"].astype(bool))
    np.testing.assert_array_equal(out, features)
    short = run(config, tensors, golden["ids"][1:, :23], golden["mask"][1:, :23])
    np.testing.assert_allclose(short, features[1:, :23], rtol=0, atol=1e-5)


def test_bfloat16_weights_stay_bfloat16_and_come_close(config, tensors, golden, features):
    halved = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    out = run(config, halved, golden["ids"], golden["mask"], jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    error = np.asarray(out, np.float32) - features
    assert np.sqrt(np.mean(error**2)) < 0.03 * features.std()


def test_the_table_is_the_parameters(config, tensors):
    encoder = UMT5Encoder(config)
    ids = jnp.zeros((1, 3), jnp.int32)
    boxed = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)["params"]
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(boxed)).items()}
    tree = to_ours(tensors, umt5_weights.table(encoder))
    assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shapes

    back = to_theirs(tree, umt5_weights.table(encoder))
    assert set(back) == set(tensors)
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])

    names = {axis for spec in jax.tree.leaves(nn.get_partition_spec(boxed)) for axis in spec}
    assert names <= set(RULES) | {None}


def test_the_embedding_may_have_its_other_name(config, tensors, golden, features):
    encoder = UMT5Encoder(config)
    other = dict(tensors)
    other["encoder.embed_tokens.weight"] = other.pop("shared.weight")
    assert umt5_weights.table(encoder, other)[0].theirs == "encoder.embed_tokens.weight"
    np.testing.assert_array_equal(run(config, other, golden["ids"], golden["mask"]), features)
    both = other | {"shared.weight": tensors["shared.weight"], "decoder.block.0.layer.0.layer_norm.weight": None}
    assert umt5_weights.table(encoder, both) == umt5_weights.table(encoder)


def test_the_config_is_read(config):
    assert config == UMT5Config(100, 32, 64, 12, 3, 4, 8, 16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "t5", 'model_type is "t5"; only "umt5" is supported'),
        ("feed_forward_proj", "relu", 'feed_forward_proj is "relu"; only "gated-gelu"'),
        ("dense_act_fn", "gelu", 'dense_act_fn is "gelu"; only "gelu_new" or null'),
        ("layer_norm_epsilon", 1e-5, "layer_norm_epsilon is 1e-05; only 1e-06"),
        ("quantization_config", {"quant_method": "int8"}, "quantization_config is .*int8"),
        ("d_kv", ..., "has no d_kv"),
        ("d_kv", 12.0, "d_kv is 12.0; it must be a positive integer"),
        ("relative_attention_num_buckets", 6, "relative_attention_num_buckets 6 must be a multiple of 4"),
        ("relative_attention_max_distance", 2, "relative_attention_max_distance 2 above a quarter"),
    ],
)
def test_other_networks_are_refused(folder, tmp_path, key, value, message):
    values = json.loads((folder / "config.json").read_text()) | {key: value}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(ValueError, match=message):
        UMT5Config.from_json(path)
