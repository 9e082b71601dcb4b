"""Qwen3 against the numbers that transformers computed with the same weights.

Legend: B batch, L tokens, W width.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mf_jax.models.text import qwen3_weights
from mf_jax.models.text.qwen3 import Qwen3, Qwen3Config
from mf_jax.models.weight_table import flatten, to_ours, to_theirs
from mf_jax.parallel.sharding import RULES

ALL = (0, 1, 2, 3, 4)
ATOL = 3e-5  # float32 against float64 is 8e-6 here


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "qwen3"


@pytest.fixture(scope="module")
def golden(folder):
    return np.load(folder / "qwen3.npz")


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def config(folder):
    return Qwen3Config.from_json(folder / "config.json")


def run(config, tensors, ids_BL, mask_BL, layers=ALL, dtype=jnp.float32):
    encoder = Qwen3(config, layers, dtype)
    return jax.jit(encoder.apply)({"params": to_ours(tensors, qwen3_weights.table(encoder))}, ids_BL, mask_BL)


@pytest.fixture(scope="module")
def states(config, tensors, golden):
    """(B, L, 5, W): the embedding and the states after each layer."""
    out = run(config, tensors, golden["input_ids"], golden["attention_mask"])
    return np.asarray(out).reshape(4, 12, 5, 64)


@pytest.mark.parametrize("layer", range(4))
def test_states_equal_the_published_ones(states, golden, layer):
    """Rows of padding included."""
    np.testing.assert_allclose(states[:, :, layer], golden[f"hidden_states_{layer}"], rtol=0, atol=ATOL)


def test_the_last_state_is_before_the_final_norm(states, golden, tensors):
    x_BLW = states[:, :, 4]
    np.testing.assert_allclose(x_BLW, golden["layer4_raw"], rtol=0, atol=ATOL)
    normed = x_BLW / np.sqrt(np.mean(x_BLW**2, axis=-1, keepdims=True) + 1e-6) * tensors["model.norm.weight"]
    for name in ("hidden_states_4", "last_hidden_state_post_norm"):
        np.testing.assert_allclose(normed, golden[name], rtol=0, atol=ATOL)
    logits = normed[:, :4] @ tensors["lm_head.weight"][:64].T
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=10 * ATOL)


def test_chosen_states_are_concatenated_and_nothing_above_them_is_built(config, tensors, golden):
    needed = {name: value for name, value in tensors.items() if not name.startswith(("model.layers.3", "model.norm"))}
    del needed["lm_head.weight"]
    layers = tuple(golden["output_layers"].tolist())
    out = run(config, needed, golden["input_ids"], golden["attention_mask"], layers)
    np.testing.assert_allclose(out, golden["embedding"], rtol=0, atol=ATOL)
    few = run(config, needed, golden["input_ids"], golden["attention_mask"], (1, 3))
    np.testing.assert_allclose(few, np.concatenate([out[..., :64], out[..., 128:]], axis=-1), rtol=0, atol=1e-6)


def test_a_state_depends_on_the_real_tokens_up_to_it_alone(config, tensors, golden, states):
    ids_BL = golden["input_ids"].copy()
    ids_BL[0, 5] = 9  # real
    ids_BL[1, 9] = 9  # padding
    out = np.asarray(run(config, tensors, ids_BL, golden["attention_mask"])).reshape(states.shape)
    change = np.abs(out - states).max(axis=(2, 3))
    assert (change[0, :5] == 0).all() and (change[0, 5:] > 0.01).all()
    assert change[1, 9] > 0.01 and (np.delete(change[1], 9) == 0).all()


def test_the_mask_may_be_boolean(config, tensors, golden, states):
    out = run(config, tensors, golden["input_ids"], golden["attention_mask"].astype(bool))
    np.testing.assert_array_equal(np.asarray(out).reshape(states.shape), states)


def test_bfloat16_weights_stay_bfloat16_and_come_close(config, tensors, golden, states):
    halved = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    out = run(config, halved, golden["input_ids"], golden["attention_mask"], dtype=jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    error = np.asarray(out, np.float32).reshape(states.shape) - states
    assert np.sqrt(np.mean(error**2)) < 0.03 * states.std()


@pytest.mark.parametrize("last", [2, 4])
def test_the_table_is_the_parameters(config, tensors, last):
    encoder = Qwen3(config, (last,))
    ids = jnp.zeros((1, 3), jnp.int32)
    boxed = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)["params"]
    shapes = {path: leaf.shape for path, leaf in flatten(nn.unbox(boxed)).items()}
    tree = to_ours(tensors, qwen3_weights.table(encoder))
    assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shapes

    back = to_theirs(tree, qwen3_weights.table(encoder))
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])
    left_over = set(tensors) - set(back)
    assert {name.rsplit(".", 1)[0] for name in left_over if "layers" not in name} == {"model.norm", "lm_head"}
    assert {int(name.split(".")[2]) for name in left_over if "layers" in name} == set(range(last, 4))

    names = {axis for spec in jax.tree.leaves(nn.get_partition_spec(boxed)) for axis in spec}
    assert names <= set(RULES) | {None}


def test_the_config_is_read(config):
    assert (config.hidden_size, config.num_key_value_heads, config.rope_theta) == (64, 2, 1e6)


@pytest.fixture
def edited(folder, tmp_path):
    """A function (**changes) -> path of the config with them; a value of ... leaves the key out."""

    def write(**changes):
        values = json.loads((folder / "config.json").read_text()) | changes
        path = tmp_path / "config.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
        return path

    return write


def test_newer_files_keep_the_rotary_base_elsewhere(edited, config):
    rope = {"rope_type": "default", "rope_theta": 1000000}
    absent = {"rope_scaling": ..., "attention_bias": ..., "use_sliding_window": ...}
    assert Qwen3Config.from_json(edited(rope_theta=..., rope_parameters=rope, **absent)) == config
    with pytest.raises(ValueError, match='rope_type is "yarn"; only "default"'):
        Qwen3Config.from_json(edited(rope_theta=..., rope_parameters=rope | {"rope_type": "yarn"}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "qwen2", 'model_type is "qwen2"; only "qwen3" is supported'),
        ("model_type", ..., 'model_type is null; only "qwen3"'),
        ("attention_bias", True, "attention_bias is true; only false or null"),
        ("rope_scaling", {"rope_type": "yarn"}, 'rope_scaling is {"rope_type": "yarn"}; only null'),
        ("use_sliding_window", True, "use_sliding_window is true"),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config is .*fp8"),
        ("hidden_act", "gelu", 'hidden_act is "gelu"; only "silu"'),
        ("rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05; only 1e-06"),
        ("rope_theta", ..., "rope_theta is None; it must be a positive number"),
        ("rope_theta", True, "rope_theta is True"),
        ("head_dim", ..., "has no head_dim"),
        ("head_dim", 15, "head_dim is 15; it must be even"),
        ("vocab_size", 0, "vocab_size is 0; it must be a positive integer"),
        ("hidden_size", "64", 'hidden_size is "64"; it must be a positive integer'),
        ("num_key_value_heads", 3, "num_attention_heads is 4; it must be a multiple of num_key_value_heads, 3"),
    ],
)
def test_other_networks_are_refused(edited, key, value, message):
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_json(edited(**{key: value}))


def test_a_file_that_is_no_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"cannot read .*config\.json: No such file"):
        Qwen3Config.from_json(path)
    for content, message in (("{", "is not JSON"), ("[]", "holds no JSON object")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Qwen3Config.from_json(path)


@pytest.mark.parametrize("layers", [(), (0,), (1, 5), (-1, 2), (2, 1), (1, 1)])
def test_layers_that_are_not_there_are_refused(config, layers):
    with pytest.raises(ValueError, match=r"layers is \("):
        Qwen3(config, layers)
