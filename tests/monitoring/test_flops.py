"""The FLOP formula against counts by hand. XLA's own count: test_flops_against_xla.py.

Legend: T tokens of a sequence.
"""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.interpreters import partial_eval

from mf_jax.config import loading as configs
from mf_jax.config.loading import resolve
from mf_jax.joint_model import build_model
from mf_jax.models import remat
from mf_jax.models.flat_dit import Block
from mf_jax.models.frozen import FrozenFlops
from mf_jax.monitoring import chips, flops

TEXT, IMAGE, DEPTH = 96 // 8, 2 * 2, 2 * 2  # tokens of the tiny config
TOTAL = TEXT + IMAGE + DEPTH
ENDS = {"text_in": TEXT, "image_in": IMAGE, "image_out": IMAGE, "depth_in": DEPTH, "depth_out": DEPTH}
DATA = ("image_in", "depth_in")  # their inputs need no gradient


def kernel_sizes(model):
    """Entries of every kernel, by the first two names of its path, all layers together."""
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    sizes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            sizes[names[1]] = sizes.get(names[1], 0) + math.prod(leaf.shape)
    return sizes


@pytest.fixture
def flux2_config(tiny_config):
    tiny_config["model"] = dict(kind="flux2", width=32, heads=2, double_blocks=2, single_blocks=3, axes=(4, 4, 4, 4))
    return tiny_config


def test_flat_dit_by_hand(tiny_config):
    """Every weight that a token meets is one multiply-add; attention is 2 T^2 width per block."""
    config = resolve(tiny_config)
    model = build_model(config)
    sizes = kernel_sizes(model)
    met = ENDS | {"join": TEXT, "trunk": TOTAL, "depth_decoder": DEPTH}
    multiply_adds = sum(sizes[name] * tokens for name, tokens in met.items())
    multiply_adds += 2 * (2 * TOTAL**2 * 32) + 1 * (2 * DEPTH**2 * 32)
    assert flops.forward_flops(model) == 2 * multiply_adds
    no_gradient = sum(sizes[name] * ENDS[name] for name in DATA)
    assert flops.step_flops(model, config) == 8 * 2 * (3 * multiply_adds - no_gradient)


def test_t2i_370m_by_hand():
    """256 text and 256 image tokens, width 1024, 8 heads of 128 with 2 key/value heads, MLP 3072, 30 blocks.

    The text features come from a frozen encoder: text_in has no input gradient.
    """
    config = configs.load("configs/t2i_370m.py", ["train.batch=2"])
    model = build_model(config)
    block = 1024 * 1024 + 2 * 1024 * 256 + 1024 * 1024 + 3 * 1024 * 3072
    blocks = 30 * (512 * block + 2 * 512 * 512 * 1024)
    text_in, image_in, image_out = 256 * 4096 * 1024, 256 * 128 * 1024, 256 * 1024 * 128
    forward = 2 * (blocks + text_in + image_in + image_out)
    assert forward == 404_934_885_376
    assert flops.forward_flops(model) == forward
    assert flops.step_flops(model, config) == 2 * (3 * forward - 2 * (text_in + image_in))


def flux2_by_hand(model):
    """(multiply-adds forward, those without an input gradient, those of the double blocks by stream)."""
    sizes = kernel_sizes(model)
    doubles = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))["backbone"]["double"]
    double = {
        name: tokens * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(doubles[name]) if leaf.ndim == 3)
        for name, tokens in (("text", TEXT), ("image", IMAGE), ("depth", DEPTH))
    }
    met = ENDS | {"join": TEXT, "single": TOTAL, "depth_decoder": DEPTH}
    forward = sum(sizes[name] * tokens for name, tokens in met.items()) + sum(double.values())
    forward += 5 * (2 * TOTAL**2 * 32) + 1 * (2 * DEPTH**2 * 32)
    return forward, sum(sizes[name] * ENDS[name] for name in DATA), double


def test_flux2_by_hand(flux2_config):
    config = resolve(flux2_config)
    model = build_model(config)
    forward, no_gradient, _ = flux2_by_hand(model)
    assert flops.forward_flops(model) == 2 * forward
    assert flops.step_flops(model, config) == 8 * 2 * (3 * forward - no_gradient)


def test_frozen_weights_have_no_gradient_of_their_own(flux2_config):
    """Whole streams, and single projections under the path of a stack; inputs keep their gradients."""
    model = build_model(resolve(flux2_config))
    forward, no_gradient, double = flux2_by_hand(model)
    whole = 3 * forward - no_gradient
    flux2_config["train"]["freeze"] = ("backbone/double/image", "backbone/double/text")
    assert flops.step_flops(model, resolve(flux2_config)) == 8 * 2 * (whole - double["image"] - double["text"])
    flux2_config["train"]["freeze"] = ("backbone/single/q", "backbone/single/mlp_up")
    frozen = 3 * TOTAL * (32 * 32 + 32 * 96)
    assert flops.step_flops(model, resolve(flux2_config)) == 8 * 2 * (whole - frozen)


def test_no_gradient_where_nothing_before_is_trained(tiny_config):
    """With the decoder and the output of depth alone trained, all before them is computed forward only."""
    model = build_model(resolve(tiny_config))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))["backbone"]
    trained = [name for name in params if name.startswith(("depth_decoder", "depth_out"))]
    assert {"depth_decoder", "depth_out", "depth_out_norm"} <= set(trained)
    tiny_config["train"]["freeze"] = ("text", *(f"backbone/{name}" for name in params if name not in trained))
    sizes = kernel_sizes(model)
    decoder = DEPTH * sizes["depth_decoder"] + 2 * DEPTH**2 * 32
    last = DEPTH * sizes["depth_out"]
    image_out = IMAGE * sizes["image_out"]  # counted as if something before it were trained
    expected = flops.forward_flops(model) + 2 * 2 * (decoder + last) + 2 * image_out
    assert flops.step_flops(model, resolve(tiny_config)) == 8 * expected


def test_teacher_sees_the_leading_modality_alone(flux2_config):
    config = resolve(flux2_config)
    model = build_model(config)
    _, _, double = flux2_by_hand(model)
    sizes = kernel_sizes(model)
    alone = TEXT + IMAGE
    teacher = sizes["join"] * TEXT + sizes["text_in"] * TEXT + (sizes["image_in"] + sizes["image_out"]) * IMAGE
    teacher += sizes["single"] * alone + double["text"] + double["image"] + 5 * (2 * alone**2 * 32)
    flux2_config["objective"] = dict(distill_high=1.0)
    more = flops.step_flops(model, resolve(flux2_config)) - flops.step_flops(model, config)
    assert more == 8 * 2 * teacher


def test_what_remat_computes_again(tiny_config):
    """By hand for the tiny model: a trunk of two blocks over all tokens, a decoder of one over depth."""
    q_k_v, gate_up, attention_out, mlp_down = 32 * 32 + 2 * 32 * 16, 2 * 32 * 96, 32 * 32, 96 * 32
    scores = values = 2 * TOTAL**2 * 32 + DEPTH**2 * 32
    tokens = 2 * TOTAL + DEPTH
    again = {
        "none": 0,
        "full": tokens * (q_k_v + gate_up + attention_out + mlp_down) + scores + values,
        "attention_mlp": tokens * (q_k_v + gate_up) + scores,
        "offload": tokens * (q_k_v + gate_up) + scores,
        "dots": scores + values,
    }
    assert set(flops.RECOMPUTED) == set(again)
    config = resolve(tiny_config)
    model = build_model(config)
    for preset, multiply_adds in again.items():
        other = dataclasses.replace(model, backbone=model.backbone.clone(remat=preset))
        assert flops.hardware_flops(other, config) - flops.step_flops(other, config) == 8 * 2 * multiply_adds


def test_remat_of_fused_attention_kernels():
    """Nothing is left to run of a kernel whose result and softmax sums are kept; else all of it runs again."""
    assert flops._recomputed("attention_mlp", "splash") == {flops.IN}
    assert flops._recomputed("attention_mlp", "cudnn") == {flops.IN, flops.SCORES, flops.VALUES}
    for kernel in ("splash", "cudnn", "xla"):
        assert flops._recomputed("none", kernel) == set()
        assert flops._recomputed("dots", kernel) == {flops.SCORES, flops.VALUES}
        assert flops._recomputed("full", kernel) == {flops.IN, flops.OUT, flops.SCORES, flops.VALUES}


def kernel_calls(jaxpr):
    """Pallas kernels in a jaxpr and all within it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            total += 1
            continue
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            total += kernel_calls(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("preset", ["none", "attention_mlp", "dots", "full"])
def test_splash_kernels_that_run_again(preset):
    """Its forward kernel and the two of its backward pass, and the forward one again where `_recomputed` has it."""
    sizes = dict(heads=2, kv_heads=1, head_dim=64, mlp_width=256, dtype=jnp.float32, attention="splash_interpret")
    block = remat.rematerialised(Block, preset)(**sizes)
    table = (np.ones((128, 32), np.float32), np.zeros((128, 32), np.float32))
    x, modulation = jnp.zeros((1, 128, 128)), jnp.zeros((1, 1, 384))
    params = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x, modulation, table, None))

    def total(params, x):
        return jnp.sum(block.apply(params, x, modulation, table, None)[0])

    jaxpr = jax.make_jaxpr(jax.value_and_grad(total))(params, x).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    calls = kernel_calls(needed)
    assert calls == 3 + (flops.VALUES in flops._recomputed(preset, "splash_interpret"))


def test_stacks_without_a_backward_pass_are_not_computed_again(tiny_config):
    tiny_config["model"]["remat"] = "full"
    model = build_model(resolve(tiny_config))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))["backbone"]
    trained = [name for name in params if name.startswith(("depth_decoder", "depth_out"))]
    tiny_config["train"]["freeze"] = ("text", *(f"backbone/{name}" for name in params if name not in trained))
    config = resolve(tiny_config)
    block = DEPTH * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 96) + 2 * DEPTH**2 * 32
    assert flops.hardware_flops(model, config) - flops.step_flops(model, config) == 8 * 2 * block


def test_frozen_networks_are_hardware_flops_alone(tiny_config):
    tiny_config["model"]["remat"] = "none"
    config = resolve(tiny_config)
    model = build_model(config)
    plain = flops.hardware_flops(model, config)
    assert plain == flops.step_flops(model, config)
    model.networks["image"] = types.SimpleNamespace(flops=lambda resolution: FrozenFlops(resolution[0], 1000, ""))
    assert flops.hardware_flops(model, config) == plain + 8 * 16
    assert flops.step_flops(model, config) == plain


def test_cost_of_more_layers_and_tokens(tiny_config):
    """Linear in the layers; attention is quadratic in the tokens."""

    def forward(**changed):
        return flops.forward_flops(build_model(resolve(tiny_config | changed)))

    def layers(count):
        return forward(model=tiny_config["model"] | {"layers": count})

    assert layers(5) - layers(4) == 2 * (20 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 96) + 2 * 20**2 * 32)
    tiny_config["modalities"]["depth"]["decoder_blocks"] = 0
    one, two, three = (forward(text=dict(max_bytes=8 * n, group=8, width=32)) for n in (1, 2, 3))
    assert (three - two) - (two - one) == 2 * 2 * (2 * 2 * 32)  # layers, 2 FLOPs, T^2 has second difference 2


def test_peaks(monkeypatch):
    class Device:
        device_kind = "abacus"

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert chips.peak_flops() is None
    for kind, peak in {"TPU v4": 275e12, "TPU7x": 1153.5e12, "NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12}.items():
        Device.device_kind = kind
        assert chips.peak_flops() == peak * jax.device_count()


def test_clock_of_tpus_gives_the_peak():
    flops_of_a_cycle = {"v5e": 4 * 2 * 128**2, "v5p": 8 * 2 * 128**2, "v6e": 4 * 2 * 256**2, "tpu7x": 4 * 2 * 256**2}
    for device in chips.DEVICES.values():
        if device.chip is not None and device.chip.platform == "tpu":
            assert device.chip.clock is not None
            assert device.chip.clock * flops_of_a_cycle.pop(device.chip.name) == pytest.approx(device.peak, rel=0.003)
        elif device.chip is not None:
            assert device.chip.clock is None
    assert not flops_of_a_cycle
