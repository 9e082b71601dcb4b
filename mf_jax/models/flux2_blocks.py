"""The two kinds of transformer blocks of FLUX.2: double-stream and single-stream.

Legend: B batch, N tokens of one stream, T all tokens, W width, H heads, E head channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.attention import heads_first
from mf_jax.models.layers import Dense, RMSNorm, by_segment, inverse_rms, rotate
from mf_jax.models.remat import projected


def modulated(x_BTW: jax.Array, shift: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Modulated LayerNorm: (1 + scale) * LayerNorm(x) + shift; statistics in float32, eps 1e-6, no parameters."""
    x = x_BTW.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * inverse_rms(x)
    return x.astype(dtype) * (1 + scale.astype(dtype)) + shift.astype(dtype)


class Projections(nn.Module):
    """The linear maps of one stream: into attention and out of it, and the gated MLP."""

    width: int
    heads: int
    mlp_width: int
    dtype: jnp.dtype
    attention: str

    def setup(self) -> None:
        def dense(features: int, given: str, made: str) -> Dense:
            return Dense(features, (given, made), self.dtype)

        self.q = dense(self.width, "embed", "heads")
        self.k = dense(self.width, "embed", "heads")
        self.v = dense(self.width, "embed", "heads")
        self.q_norm = RMSNorm("head", self.dtype)
        self.k_norm = RMSNorm("head", self.dtype)
        self.attention_out = dense(self.width, "heads", "embed")
        self.mlp_gate = dense(self.mlp_width, "embed", "mlp")
        self.mlp_up = dense(self.mlp_width, "embed", "mlp")
        self.mlp_down = dense(self.width, "mlp", "embed")

    def qkv(self, h_BNW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries and keys, normalised per head, and values, each (B, H, N, E)."""
        B, N, _ = h_BNW.shape
        q, k, v = (f(h_BNW).reshape(B, N, self.heads, -1).swapaxes(1, 2) for f in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v

    def merged(self, mixed_BHNE: jax.Array) -> jax.Array:
        """The heads joined and projected out, (B, N, W)."""
        B, _, N, _ = mixed_BHNE.shape
        return self.attention_out(mixed_BHNE.swapaxes(1, 2).reshape(B, N, -1))

    def mlp(self, h_BNW: jax.Array) -> jax.Array:
        """The gated MLP, (B, N, W)."""
        return self.mlp_down(nn.silu(self.mlp_gate(h_BNW)) * self.mlp_up(h_BNW))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, table: tuple[np.ndarray, np.ndarray], kernel: str) -> jax.Array:
    """Attention (B, H, N, E), after the rotary embedding of queries and keys."""
    q, k = (rotate(x, table, by_product=kernel.startswith("splash")) for x in (q, k))
    return heads_first(q, k, v, kernel)


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
        sizes = (self.width, self.heads, self.mlp_width, self.dtype, self.attention)
        maps = {name: Projections(*sizes, name=name) for name in self.order}
        chunks = {name: jnp.split(m, 6, axis=-1) for name, m in modulation.items()}
        qkv = []
        for name in self.order:
            shift, scale, *_ = chunks[name]
            qkv.append(maps[name].qkv(modulated(x[name], shift, scale, self.dtype)))
        q, k, v = (jnp.concatenate(parts, axis=2) for parts in zip(*qkv, strict=True))
        mixed = attend(q, k, v, table, self.attention)
        ends = np.cumsum([x[name].shape[1] for name in self.order])[:-1]
        result = {}
        for name, own in zip(self.order, jnp.split(mixed, ends, axis=2), strict=True):
            _, _, gate, shift, scale, mlp_gate = chunks[name]
            new = x[name] + gate * projected(maps[name].merged(own))
            new = new + mlp_gate * projected(maps[name].mlp(modulated(new, shift, scale, self.dtype)))
            result[name] = nn.with_logical_constraint(new, ("batch", "sequence", "embed_activation"))
            self.sow("intermediates", f"out_{name}", result[name])
        return result, None


class SingleBlock(Projections):
    """x + gate (attention(h) + mlp(h)), h = modulated x: attention and MLP in parallel; modulation (B, S, 3 W)."""

    def __call__(
        self, x_BTW: jax.Array, modulation_BSC: jax.Array, segments_T: np.ndarray, table: tuple
    ) -> tuple[jax.Array, None]:
        shift, scale, gate = (by_segment(m, segments_T) for m in jnp.split(modulation_BSC, 3, axis=-1))
        h = modulated(x_BTW, shift, scale, self.dtype)
        mixed = projected(self.merged(attend(*self.qkv(h), table, self.attention)) + self.mlp(h))
        x_BTW = nn.with_logical_constraint(x_BTW + gate * mixed, ("batch", "sequence", "embed_activation"))
        self.sow("intermediates", "out", x_BTW)
        return x_BTW, None
