"""FLOPs of a training step by formula, 2 per multiply-add, attention counted in full; and the peaks of known devices.

Counted are the matrix products: projections, attention scores and values, feed-forward, token inputs and outputs.
Left out are norms, softmax, rotary embedding, and what has no token axis (noise-level embedders, modulation).
Recomputation under remat does not count (model FLOPs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mf_jax.joint_model import JointModel
from mf_jax.models.flux2 import Flux2
from mf_jax.settings import build
from mf_jax.train_step import ObjectiveConfig

# Dense bf16 peak per chip, FLOP/s (vendors' data sheets), by jax's device_kind.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Forward FLOPs of one example in the part of the model whose parameters lie under `path`.

    Attributes:
      weights: of products with parameters. attention: of scores and values.
    """

    path: str
    weights: int
    attention: int = 0


def _blocks(path: str, blocks: int, tokens: int, width: int, heads: int, kv_heads: int, mlp_width: int) -> Part:
    """A stack of blocks over one sequence."""
    head_dim = width // heads
    projections = width * head_dim * (2 * heads + 2 * kv_heads)
    weights = projections + 3 * width * mlp_width
    return Part(path, 2 * blocks * tokens * weights, 2 * blocks * tokens * 2 * tokens * heads * head_dim)


def parts(model: JointModel) -> list[Part]:
    """The model with all its modalities, part by part."""
    net = model.backbone
    text = model.text.tokens
    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    total = text + sum(tokens.values())
    kv_heads = net.heads if isinstance(net, Flux2) else net.kv_heads
    shape = (net.width, net.heads, kv_heads, int(net.width * net.mlp_ratio))
    found = [Part("backbone/text_in", 2 * text * model.text.channels * net.width)]
    if model.text_encoder is not None:
        found.append(Part("text", 2 * text * model.text.channels**2))
    if isinstance(net, Flux2):
        for name, count in {"text": text, **tokens}.items():
            found.append(Part(f"backbone/double/{name}", _blocks("", net.double_blocks, count, *shape).weights))
        found.append(Part("backbone/double", 0, _blocks("", net.double_blocks, total, *shape).attention))
        found.append(_blocks("backbone/single", net.single_blocks, total, *shape))
    else:
        found.append(_blocks("backbone/trunk", net.layers, total, *shape))
    for name, modality in model.modalities.items():
        ends = 2 * tokens[name] * modality.codec.channels * net.width
        found += [Part(f"backbone/{name}_in", ends), Part(f"backbone/{name}_out", ends)]
        if modality.decoder_blocks:
            found.append(_blocks(f"backbone/{name}_decoder", modality.decoder_blocks, tokens[name], *shape))
    return found


def forward_flops(model: JointModel) -> int:
    """Forward FLOPs of one example with all modalities."""
    return sum(part.weights + part.attention for part in parts(model))


def teacher_flops(model: JointModel) -> int:
    """Forward FLOPs of the self-distillation teacher for one example: the model with its leading modality alone."""
    alone = {model.leading: model.modalities[model.leading]}
    return forward_flops(dataclasses.replace(model, modalities=alone))


def step_flops(model: JointModel, config: Mapping[str, Any]) -> int:
    """Model FLOPs of one training step of a resolved config.

    The backward pass costs the forward's products twice: once for the inputs, once for the parameters, which is left
    out where they are frozen. The teacher of self-distillation counts with its forward pass. The frozen autoencoder and
    text encoder are not part of the model.
    """
    example = teacher_flops(model) if distills(config) else 0
    for part in parts(model):
        frozen = any(part.path == path or part.path.startswith(f"{path}/") for path in config["train"]["freeze"])
        example += (2 if frozen else 3) * part.weights + 3 * part.attention
    return config["train"]["batch"] * example


def distills(config: Mapping[str, Any]) -> bool:
    return build(ObjectiveConfig, config["objective"], "objective").distills


def peak_flops() -> float | None:
    """Peak of all devices together, FLOP/s; None where it is not known (CPUs, unlisted chips)."""
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return peak * jax.device_count() if peak else None
