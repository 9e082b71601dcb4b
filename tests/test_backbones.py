"""The transformers that a config can choose."""

import pytest

from mf_jax.backbones import KINDS, FlatDiTConfig, Flux2Config
from mf_jax.models.stream import Stream
from mf_jax.settings import build_kind

STREAMS = (Stream("image", 8, 0, 0),)


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(1024, 8, 2), (1536, 12, 3), (3072, 24, 6), (64, 1, 1)])
def test_width_alone_decides_the_heads(width, heads, kv_heads):
    """128 channels a head, a quarter as many key/value heads, and the paper's feed-forward width of three times."""
    model = FlatDiTConfig(width=width).module(STREAMS)
    assert (model.heads, model.kv_heads, model.layers, model.mlp_ratio) == (heads, kv_heads, 30, 3.0)


def test_heads_may_be_given():
    assert FlatDiTConfig(width=64, heads=4, kv_heads=2).head_counts == (4, 2)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(kind="flux"), r"model\.kind is 'flux'; did you mean 'flux2'"),
        (dict(kind="flux2", width=100), "heads must divide the width"),
        (dict(kind="flux2", width=64, heads=4, axes=(4, 4, 4, 3)), "four even numbers"),
        (dict(kind="flux2", width=64, heads=4, axes=(4, 4, 4, 8)), "must sum to the channels of a head, 16"),
        (dict(kind="flux2", dtype="float16"), r"model\.dtype is 'float16'"),
        (dict(width=60, heads=5), "must be a multiple of 8"),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(ValueError, match=message):
        build_kind(KINDS, section, "model")


def test_defaults_are_the_released_sizes():
    model = Flux2Config().module(STREAMS)
    assert (model.width, model.heads, model.double_blocks, model.single_blocks) == (4096, 32, 8, 24)
