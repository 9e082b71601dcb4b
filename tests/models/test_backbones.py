"""The transformers that a config can choose."""

import dataclasses

import jax.numpy as jnp
import pytest

from mf_jax.configurable import Kinds
from mf_jax.models.backbones import KINDS, FlatDiTConfig, Flux2Config
from mf_jax.models.stream import Stream

STREAMS = (Stream("image", 8, 0, 0),)


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(1024, 8, 2), (1536, 12, 3), (3072, 24, 6), (64, 1, 1)])
def test_width_alone_decides_the_heads(width, heads, kv_heads):
    """128 channels a head, a quarter as many key/value heads, and the paper's feed-forward width of three times."""
    model = FlatDiTConfig(width=width).module(STREAMS, "cpu")
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
        (dict(width=64, heads=4, kv_heads=3), "kv_heads the heads"),
        (dict(layers=0), r"model\.layers is 0; it must be a number and at least 1"),
        (dict(width=-256), r"model\.width is -256; it must be a number and at least 8"),
        (dict(mlp_ratio=0), r"model\.mlp_ratio is 0; it must be a number and at least 0\.1"),
        (dict(dtype="float16"), r"model\.dtype is 'float16'"),
        (dict(kind="flux2", double_blocks=0), r"model\.double_blocks is 0; it must be a number and at least 1"),
        (dict(kind="flux2", single_blocks=0), r"model\.single_blocks is 0; it must be a number and at least 1"),
        (dict(kind="flux2", heads=0), r"model\.heads is 0; it must be a number and at least 1"),
        (dict(kind="flux2", theta=0.5), r"model\.theta is 0\.5; it must be a number and at least 1"),
        (dict(kind="flux2", remat=True), r"model\.remat is True"),
        (dict(attention="flash"), r"model\.attention is 'flash'; it must be one of auto, xla, splash, cudnn"),
        (dict(remat=True), r"model\.remat is True; it must be a string"),
        (dict(remat="half"), r"model\.remat is 'half'; it must be one of none, dots, attention_mlp, offload, full"),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(ValueError, match=message):
        Kinds(KINDS).build(section, "model")


def test_defaults_are_the_released_sizes():
    model = Flux2Config().module(STREAMS, "cpu")
    assert (model.width, model.heads, model.double_blocks, model.single_blocks) == (4096, 32, 8, 24)


@pytest.mark.parametrize(
    "config",
    [
        FlatDiTConfig(width=64, layers=3, heads=4, kv_heads=2, mlp_ratio=2.0),
        Flux2Config(width=64, heads=2, double_blocks=2, single_blocks=3, axes=(8, 8, 8, 8), mlp_ratio=2.0, theta=100.0),
        Flux2Config(cross_mixing=False, guidance_embedding=True),
    ],
)
def test_a_module_has_the_sizes_of_its_config(config):
    module = config.module(STREAMS, "cpu")
    assert module.streams == STREAMS
    for field in dataclasses.fields(config):
        if field.name not in ("dtype", "attention"):
            assert getattr(module, field.name) == getattr(config, field.name), field.name


@pytest.mark.parametrize("config", [FlatDiTConfig(remat="full"), Flux2Config(remat="full")])
def test_auto_depends_on_the_platform(config):
    fields = {platform: config.module(STREAMS, platform) for platform in ("cpu", "tpu", "gpu")}
    assert {name: (m.dtype, m.attention, m.remat) for name, m in fields.items()} == {
        "cpu": (jnp.float32, "xla", "full"),
        "tpu": (jnp.bfloat16, "splash", "full"),
        "gpu": (jnp.bfloat16, "cudnn", "full"),
    }


def test_a_cpu_has_no_other_memory_to_offload_to():
    assert FlatDiTConfig(remat="offload").module(STREAMS, "tpu").remat == "offload"
    with pytest.raises(ValueError, match=r"model\.remat is 'offload'; the memory of a CPU is the host's already"):
        FlatDiTConfig(remat="offload").module(STREAMS, "cpu")
