"""The byte text encoder.

Legend: B batch, L ids, M text tokens, D feature channels.
"""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mf_jax.config.loading import resolve
from mf_jax.configurable import Kinds
from mf_jax.data.tokenizer import ByteTokenizer
from mf_jax.joint_model import build_model
from mf_jax.models.text.byte import ByteTextEncoder
from mf_jax.models.text.encoders import KINDS, ByteText, Qwen3Text, UMT5Text

ENCODER = ByteTextEncoder(group=4, width=8)
tokenize = ByteTokenizer(16)


@pytest.fixture(scope="module")
def params(randomised):
    ids_BL = np.zeros((1, 16), np.int32)
    return randomised(nn.unbox(ENCODER.init(jax.random.key(0), ids_BL))["params"], seed=4)


def encode(params, *texts):
    return np.asarray(ENCODER.apply({"params": params}, np.stack([tokenize(text) for text in texts])))


def test_features_are_grouped_bytes_times_one_matrix(params):
    text = "Gänsefüßchen"  # 15 bytes
    ids = [byte + 1 for byte in text.encode("utf-8")] + [0]
    got = encode(params, text)
    assert got.shape == (1, 4, 8)
    for m in range(4):
        group = np.concatenate([params["embedding"][i] for i in ids[4 * m : 4 * m + 4]])
        np.testing.assert_allclose(got[0, m], group @ params["join"]["kernel"], atol=1e-5)


def test_a_group_depends_on_its_own_bytes_only(params):
    a, b = encode(params, "0123456789", "0123x56789")
    np.testing.assert_array_equal(a[[0, 2, 3]], b[[0, 2, 3]])
    assert np.abs(a[1] - b[1]).max() > 0.01


def test_order_within_a_group_matters(params):
    a, b = encode(params, "ab", "ba")
    assert np.abs(a[0] - b[0]).max() > 0.01


def test_padding_is_not_a_byte(params):
    """NUL is byte 0, hence id 1; the end of a text is visible."""
    a, b = encode(params, "ab", "ab\0")
    assert np.abs(a[0] - b[0]).max() > 0.01


def test_groups_after_the_end_look_like_the_empty_prompt(params):
    text, empty = encode(params, "abcd", "")
    np.testing.assert_array_equal(text[1:], empty[1:])
    np.testing.assert_array_equal(empty, np.broadcast_to(empty[:1], empty.shape))


def test_the_empty_prompt_is_the_null_prompt(tiny_config):
    model = build_model(resolve(tiny_config))
    np.testing.assert_array_equal(ByteTokenizer(96)("")[None], model.null_text["text_ids"])


def test_sizes_must_be_multiples_of_the_group(tiny_config):
    tiny_config["text"] = dict(max_bytes=90, group=8, width=32)
    with pytest.raises(ValueError, match=r"text\.max_bytes is 90; it must be a multiple of text\.group, 8"):
        resolve(tiny_config)


def test_kinds():
    spec = Kinds(KINDS)
    assert spec.build({"width": 64}, "text") == ByteText(width=64)
    assert spec.build({"kind": "qwen3", "layers": [3, 6]}, "text") == Qwen3Text(width=12288, layers=(3, 6))
    assert spec.build({"kind": "umt5", "checkpoint": "here"}, "text") == UMT5Text(checkpoint="here", width=4096)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(kind="umt"), r"text\.kind is 'umt'; did you mean 'umt5'"),
        (dict(kind="umt5", layers=(1,)), r"unknown config key text\.layers"),
        (dict(width=60), r"text\.width is 60; it must be a multiple of text\.group, 8"),
        (dict(group=0), r"text\.group is 0; it must be a number and at least 1"),
        (dict(max_bytes=0), r"text\.max_bytes is 0; it must be a number and at least 1"),
        (dict(kind="qwen3", max_length=0), r"text\.max_length is 0; it must be a number and at least 1"),
        (dict(kind="umt5", width=0), r"text\.width is 0; it must be a number and at least 1"),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(ValueError, match=message):
        Kinds(KINDS).build(section, "text")
