"""Several captions in one row of a text encoder: who sees whom, and the way back to one caption per example.

Both encoders know positions only relative to each other, so a caption's place in its row changes nothing.

Legend: B batch, M text tokens, R rows, L tokens of a row, D feature channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mf_jax.parallel import sharding


def visible(segments_BL: jax.Array) -> jax.Array:
    """Which keys a query sees, bool (B, L, L): the real tokens of its own caption; for padding, all that are real.

    Args:
      segments_BL: the number of a token's caption in its row, from 1; 0 at padding. So a mask is one caption.
    """
    segments_BL = segments_BL.astype(jnp.int32)
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    return (key > 0) & ((key == query) | (query == 0))


def unpack(features_RLD: jax.Array, at_B: jax.Array, mask_BM: jax.Array) -> jax.Array:
    """The features of each example, (B, M, D), 0 at padding; every device takes its own from its own rows.

    Args:
      at_B: where an example's caption begins in the rows of its device, laid end to end.
    """

    def own(features_RLD: jax.Array, at_B: jax.Array, mask_BM: jax.Array) -> jax.Array:
        index_BM = at_B[:, None] + jnp.arange(mask_BM.shape[1])
        tokens = features_RLD.reshape(-1, features_RLD.shape[-1])
        return jnp.where(mask_BM[..., None], jnp.take(tokens, index_BM, axis=0, mode="clip"), 0)

    rows, examples = ("batch", None, None), ("batch", None)
    return sharding.per_device(own, [rows, ("batch",), examples], rows)(features_RLD, at_B, mask_BM)
