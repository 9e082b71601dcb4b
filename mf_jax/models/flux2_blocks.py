"""The two kinds of transformer blocks of FLUX.2: double-stream and single-stream.

Legend: B batch, N tokens of one stream, T all tokens, W width, H heads, E head channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mf_jax.models.layers import STATISTICS, by_segment, inverse_rms
from mf_jax.models.projections import Projections
from mf_jax.models.remat import projected


def modulated(x_BTW: jax.Array, shift: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Modulated LayerNorm: (1 + scale) * LayerNorm(x) + shift; statistics in float32, eps 1e-6, no parameters."""
    x = x_BTW.astype(jnp.float32)
    x = x - checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), STATISTICS)
    x = x * inverse_rms(x)
    return x.astype(dtype) * (1 + scale.astype(dtype)) + shift.astype(dtype)


class DoubleBlock(nn.Module):
    """Streams with weights of their own, one attention over all: x + gate proj(attention), then x + gate mlp.

    Attributes:
      order: of the streams in the sequence.
    """

    order: tuple[str, ...]
    width: int
    heads: int
    mlp_width: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(
        self, x: dict[str, jax.Array], modulation: dict[str, jax.Array], table: tuple
    ) -> tuple[dict[str, jax.Array], None]:
        """The streams after the block, and None for nn.scan; x (B, N, W) and modulation (B, 1, 6 W) by stream."""
        sizes = (self.width, self.heads, self.heads, self.mlp_width, self.dtype, self.attention)
        maps = {name: Projections(*sizes, name=name) for name in self.order}
        chunks = {name: jnp.split(m, 6, axis=-1) for name, m in modulation.items()}
        qkv = []
        for name in self.order:
            shift, scale, *_ = chunks[name]
            h = maps[name].given(modulated(x[name], shift, scale, self.dtype))
            qkv.append(maps[name].qkv(h))
        q, k, v = (jnp.concatenate(parts, axis=2) for parts in zip(*qkv, strict=True))
        mixed = maps[self.order[0]].attend(q, k, v, table)
        ends = np.cumsum([x[name].shape[1] for name in self.order])[:-1]
        result = {}
        for name, own in zip(self.order, jnp.split(mixed, ends, axis=2), strict=True):
            _, _, gate, shift, scale, mlp_gate = chunks[name]
            new = x[name] + gate * projected(maps[name].attention_out(own))
            h = maps[name].given(modulated(new, shift, scale, self.dtype))
            new = new + mlp_gate * projected(maps[name].mlp(h))
            result[name] = nn.with_logical_constraint(new, ("batch", "sequence", "embed_activation"))
            self.sow("intermediates", f"out_{name}", result[name])
        return result, None


class SingleBlock(Projections):
    """x + gate (attention(h) + mlp(h)), h = modulated x: attention and MLP in parallel; modulation (B, S, 3 W)."""

    def __call__(
        self, x_BTW: jax.Array, modulation_BSC: jax.Array, segments_T: np.ndarray, table: tuple
    ) -> tuple[jax.Array, None]:
        shift, scale, gate = (by_segment(m, segments_T) for m in jnp.split(modulation_BSC, 3, axis=-1))
        h = self.given(modulated(x_BTW, shift, scale, self.dtype))
        mixed = projected(self.attention_out(self.attend(*self.qkv(h), table)) + self.mlp(h))
        x_BTW = nn.with_logical_constraint(x_BTW + gate * mixed, ("batch", "sequence", "embed_activation"))
        self.sow("intermediates", "out", x_BTW)
        return x_BTW, None
