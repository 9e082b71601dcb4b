"""Masked velocity-space loss of one modality, returned as sums so that the caller divides once, globally.

Legend: B batch, N tokens, C channels per token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mf_jax.diffusion.path import per_token


def loss_mask(valid_BNC: jax.Array, t_B: jax.Array) -> jax.Array:
    """Token entries with a loss, (B, N, C): measured, and not pinned at t = 0, where the velocity cannot be known."""
    return valid_BNC & (per_token(t_B) > 0.0)


def squared_error(
    y_BNC: jax.Array,
    x0_BNC: jax.Array,
    eps_BNC: jax.Array,
    t_B: jax.Array,
    mask_BNC: jax.Array,
    prediction: str,
    t_floor: float,
) -> jax.Array:
    """Squared velocity error summed over each example, float32 (B,).

    "v": |y - (eps - x_0)|^2 (eq. 6). "x": |y - x_0|^2 / max(t, t_floor)^2, which is eq. 7 with a floor under t.
    Masked-out entries add exactly nothing to the sum or to its gradient, whatever they hold.

    Args:
      y_BNC: raw network output. x0_BNC: clean tokens. eps_BNC: noise. t_B: noise levels.
      mask_BNC: bool, the entries that count; see `loss_mask`.
      prediction: what y is, "x" (clean tokens) or "v" (velocity).
    """
    y_BNC = y_BNC.astype(jnp.float32)
    if prediction == "v":
        error = y_BNC - (eps_BNC - jnp.where(mask_BNC, x0_BNC, 0.0))
    else:
        error = (y_BNC - jnp.where(mask_BNC, x0_BNC, 0.0)) / jnp.maximum(per_token(t_B), t_floor)
    return jnp.sum(jnp.square(jnp.where(mask_BNC, error, 0.0)), axis=(1, 2))
