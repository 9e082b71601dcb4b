"""The byte text encoder, trained with the model: ids (B, L) to features (B, M, D) that a backbone attends to.

Legend: B batch, L ids, M text tokens, D feature channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.models.layers import Dense, with_axes

VOCABULARY = 257  # 256 bytes, and 0 for padding


class ByteTextEncoder(nn.Module):
    """A tiny trained encoder: byte embeddings, `group` neighbours joined into one token. "" is all padding."""

    group: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        B, L = ids_BL.shape
        table = self.param(
            "embedding",
            with_axes(nn.initializers.normal(1.0), ("vocabulary", "text")),
            (VOCABULARY, self.width // self.group),
            jnp.float32,
        )
        x = table[ids_BL].astype(self.dtype).reshape(B, L // self.group, -1)
        return Dense(self.width, ("text", "text_out"), self.dtype, name="join")(x)
