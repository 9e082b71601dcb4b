"""The linear maps of a transformer block: into attention and out of it, and the gated MLP; all transformers have them.

On TPUs ("splash") they are written for that compiler: heads before tokens as the attention kernel takes them, rotary
embedding by a product, gradients of intermediate results whole. Everywhere else the same numbers are made as a CPU does
fastest.

Legend: B batch, N tokens, W width, H query heads, K key/value heads, E head channels, F hidden width of the MLP.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.attention import heads_first
from mf_jax.models.layers import Dense, FromHeads, RMSNorm, ToHeads, rotate
from mf_jax.models.remat import product


@jax.custom_vjp
def with_whole_gradient(x: Any) -> Any:
    """x; its gradient is written to memory before anything reads it.

    A TPU's compiler fuses what makes an operand into each product that reads it, and repeats it for every tile.
    """
    return x


with_whole_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


class Projections(nn.Module):
    """The linear maps of one stream of tokens."""

    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    dtype: jnp.dtype
    attention: str

    def setup(self) -> None:
        width, dtype, tpu = self.width, self.dtype, self.for_tpu
        kv_width = width // self.heads * self.kv_heads
        self.q = ToHeads(width, ("embed", "heads"), dtype, heads=self.heads, at_once=tpu)
        self.k = ToHeads(kv_width, ("embed", "kv_heads"), dtype, heads=self.kv_heads, at_once=tpu)
        self.v = ToHeads(kv_width, ("embed", "kv_heads"), dtype, heads=self.kv_heads, at_once=tpu)
        self.q_norm = RMSNorm("head", dtype)
        self.k_norm = RMSNorm("head", dtype)
        self.attention_out = FromHeads(width, ("heads", "embed"), dtype, at_once=tpu)
        self.mlp_gate = Dense(self.mlp_width, ("embed", "mlp"), dtype)
        self.mlp_up = Dense(self.mlp_width, ("embed", "mlp"), dtype)
        self.mlp_down = Dense(width, ("mlp", "embed"), dtype)

    @property
    def for_tpu(self) -> bool:
        return self.attention.startswith("splash")

    @nn.nowrap
    def given(self, h_BNW: jax.Array) -> jax.Array:
        """The input of `qkv` and `mlp`, where it is computed."""
        return with_whole_gradient(h_BNW) if self.for_tpu else h_BNW

    @nn.nowrap
    def qkv(self, h_BNW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, H, N, E) and keys (B, K, N, E), normalised per head, and values (B, K, N, E)."""
        q, k, v = (product(f(h_BNW)) for f in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v

    @nn.nowrap
    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        table: tuple[np.ndarray, np.ndarray],
        valid_BN: jax.Array | None = None,
    ) -> jax.Array:
        """Attention (B, H, N, E), after the rotary embedding of queries and keys; `valid_BN` as of `heads_first`."""
        q, k = (rotate(x, table, by_product=self.for_tpu) for x in (q, k))
        return heads_first(q, k, v, self.attention, valid_BN)

    @nn.nowrap
    def mlp(self, h_BNW: jax.Array) -> jax.Array:
        """The gated MLP, (B, N, W)."""
        gate_BNF, up_BNF = product(self.mlp_gate(h_BNW)), product(self.mlp_up(h_BNW))
        if self.for_tpu:
            gate_BNF, up_BNF = with_whole_gradient((gate_BNF, up_BNF))
        return self.mlp_down(nn.silu(gate_BNF) * up_BNF)
