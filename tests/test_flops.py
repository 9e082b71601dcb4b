"""The FLOP formula against a count from the parameters' shapes and against XLA's own count.

Legend: T tokens of a sequence.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mf_jax import flops
from mf_jax.config import resolve
from mf_jax.joint_model import build_model


def kernel_sizes(model):
    """Entries of every kernel, by the first two names of its path, all layers together."""
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    sizes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            sizes[names[1]] = sizes.get(names[1], 0) + math.prod(leaf.shape)
    return sizes


def test_count_by_hand(tiny_config):
    """Every weight that a token meets is one multiply-add; attention is 2 T^2 width per block."""
    config = resolve(tiny_config)
    model = build_model(config)
    sizes = kernel_sizes(model)
    text, image, depth = 96 // 8, 2 * 2, 2 * 2
    total = text + image + depth
    met = {
        "join": text, "text_in": text, "image_in": image, "image_out": image, "depth_in": depth, "depth_out": depth,
        "trunk": total, "depth_decoder": depth,
    }  # fmt: skip
    multiply_adds = sum(sizes[name] * tokens for name, tokens in met.items())
    multiply_adds += 2 * (2 * total**2 * 32) + 1 * (2 * depth**2 * 32)
    assert flops.forward_flops(model) == 2 * multiply_adds
    assert flops.step_flops(model, config) == 3 * 8 * 2 * multiply_adds


def test_flux2_by_hand(tiny_config):
    """Every weight that a token meets; 2 T^2 width of attention per block; no weight gradients where frozen."""
    tiny_config["model"] = dict(kind="flux2", width=32, heads=2, double_blocks=2, single_blocks=3, axes=(4, 4, 4, 4))
    config = resolve(tiny_config)
    model = build_model(config)
    sizes = kernel_sizes(model)
    doubles = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))["backbone"]["double"]
    text, image, depth = 96 // 8, 2 * 2, 2 * 2
    total = text + image + depth
    met = {
        "join": text, "text_in": text, "image_in": image, "image_out": image, "depth_in": depth, "depth_out": depth,
        "single": total, "depth_decoder": depth,
    }  # fmt: skip
    multiply_adds = sum(sizes[name] * tokens for name, tokens in met.items())
    double = {
        name: tokens * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(doubles[name]) if leaf.ndim == 3)
        for name, tokens in (("text", text), ("image", image), ("depth", depth))
    }
    multiply_adds += sum(double.values()) + 5 * (2 * total**2 * 32) + 1 * (2 * depth**2 * 32)
    assert flops.forward_flops(model) == 2 * multiply_adds
    assert flops.step_flops(model, config) == 3 * 8 * 2 * multiply_adds

    tiny_config["train"]["freeze"] = ("backbone/double/image", "backbone/double/text")
    frozen = 2 * (double["image"] + double["text"])
    assert flops.step_flops(model, resolve(tiny_config)) == 8 * (3 * 2 * multiply_adds - frozen)
    tiny_config["objective"] = dict(distill_high=1.0)
    alone = text + image
    teacher = sizes["join"] * text + sizes["text_in"] * text + (sizes["image_in"] + sizes["image_out"]) * image
    teacher += sizes["single"] * alone + double["text"] + double["image"] + 5 * (2 * alone**2 * 32)
    assert flops.step_flops(model, resolve(tiny_config)) == 8 * (3 * 2 * multiply_adds - frozen + 2 * teacher)


def test_xla_counts_the_same(tiny_config):
    """One layer per stack, as XLA counts the body of a loop once; wide, so that what is left out is small.

    The noise-level embedders and the modulation, which the formula leaves out, are added; the rest of what it leaves
    out (norms, softmax, rotary embedding, activations) is the difference of up to 3 %.
    """
    tiny_config["data"]["resolution"] = (128, 128)
    tiny_config["model"] = dict(width=512, layers=1, heads=8, kv_heads=2, dtype="float32")
    tiny_config["text"] = dict(max_bytes=96, group=4, width=128)
    model = build_model(resolve(tiny_config))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    x = {
        name: jax.ShapeDtypeStruct((1, rows * columns, model.modalities[name].codec.channels), jnp.float32)
        for name, (rows, columns) in model.grids.items()
    }
    t = dict.fromkeys(x, jax.ShapeDtypeStruct((1,), jnp.float32))
    ids = {"text_ids": jax.ShapeDtypeStruct((1, 96), jnp.int32)}
    counted = jax.jit(model.predict).lower(params, x, t, ids).cost_analysis()["flops"]
    once = sum(size for name, size in kernel_sizes(model).items() if "time_" in name or "modulation" in name)
    expected = flops.forward_flops(model) + 2 * once
    assert 2 * once < 0.02 * expected
    assert expected == pytest.approx(counted, rel=0.03)
    assert expected <= counted


def test_cost_of_more_layers_and_tokens(tiny_config):
    """Linear in the layers; attention is quadratic in the tokens."""
    part = flops._blocks("trunk", 1, tokens=100, width=64, heads=4, kv_heads=2, mlp_width=192)
    block = part.weights + part.attention
    assert block == 2 * 100 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 192) + 4 * 100**2 * 64
    tiny_config["model"]["layers"] = 5
    more = flops.forward_flops(build_model(resolve(tiny_config)))
    tiny_config["model"]["layers"] = 4
    less = flops.forward_flops(build_model(resolve(tiny_config)))
    assert more - less == sum(dataclasses.astuple(flops._blocks("", 1, 20, 32, 2, 1, 96))[1:])


def test_peak_of_an_unlisted_device_is_unknown(monkeypatch):
    class Device:
        device_kind = "abacus"

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert flops.peak_flops() is None
    Device.device_kind = "TPU v4"
    assert flops.peak_flops() == 275e12 * jax.device_count()
