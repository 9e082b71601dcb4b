"""FLOPs of a training step by formula, 2 per multiply-add, attention counted in full; and the peaks of known devices.

Counted are the matrix products: projections, attention scores and values, feed-forward, token inputs and outputs.
Left out are norms, softmax, rotary embedding, and what has no token axis (noise-level embedders, modulation).
The backward pass counts twice the forward, recomputation under remat does not count (model FLOPs).

Legend: T tokens of a sequence, W width.
"""

from __future__ import annotations

import jax

from mf_jax.joint_model import JointModel

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


def block_flops(tokens: int, width: int, heads: int, kv_heads: int, mlp_width: int) -> int:
    """Forward FLOPs of one block for one sequence."""
    head_dim = width // heads
    projections = width * head_dim * (2 * heads + 2 * kv_heads)
    feed_forward = 3 * width * mlp_width
    attention = 2 * tokens * heads * head_dim
    return 2 * tokens * (projections + feed_forward + attention)


def forward_flops(model: JointModel) -> int:
    """Forward FLOPs of one example with all modalities."""
    dit = model.backbone
    shape = (dit.width, dit.heads, dit.kv_heads, int(dit.width * dit.mlp_ratio))
    text_tokens = model.text.max_bytes // model.text.group
    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    total = dit.layers * block_flops(text_tokens + sum(tokens.values()), *shape)
    total += 2 * text_tokens * model.text.width * (model.text.width + dit.width)
    for name, modality in model.modalities.items():
        total += modality.decoder_blocks * block_flops(tokens[name], *shape)
        total += 2 * tokens[name] * 2 * modality.codec.channels * dit.width
    return total


def step_flops(model: JointModel, batch: int) -> int:
    """Model FLOPs of one training step: forward and backward of the whole batch."""
    return 3 * batch * forward_flops(model)


def peak_flops() -> float | None:
    """Peak of all devices together, FLOP/s; None where it is not known (CPUs, unlisted chips)."""
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return peak * jax.device_count() if peak else None
