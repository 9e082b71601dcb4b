"""The linear path between data and noise, and the conversions between outputs, velocities and clean tokens on it.

Legend: B batch, N tokens, C channels per token. t_B is the noise level, 0 clean and 1 pure noise.
Convention (that of the FLUX weights): x_t = (1 - t) x_0 + t eps and u = dx_t/dt = eps - x_0. The paper's eq. 5 uses
the opposite sign for the velocity; squared losses are the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

PREDICTIONS = ("x", "v")


def per_token(t_B: jax.Array) -> jax.Array:
    """Noise levels broadcastable over tokens and channels: (B,) -> (B, 1, 1)."""
    return t_B[:, None, None]


def interpolate(x0_BNC: jax.Array, eps_BNC: jax.Array, t_B: jax.Array, valid_BNC: jax.Array) -> jax.Array:
    """Noised tokens x_t (eq. 5). Where `valid` is False the result is the noise itself, whatever t and x_0 are.

    The selection is a `where`, never a product: a NaN or inf in a missing value cannot leak.
    """
    t = per_token(t_B)
    return jnp.where(valid_BNC, (1.0 - t) * jnp.where(valid_BNC, x0_BNC, 0.0) + t * eps_BNC, eps_BNC)


def velocity_of(y_BNC: jax.Array, x_BNC: jax.Array, t_B: jax.Array, prediction: str, t_floor: float) -> jax.Array:
    """Velocity implied by a raw network output y: y itself for "v", (x_t - y) / max(t, t_floor) for "x" (eq. 7)."""
    if prediction == "v":
        return y_BNC
    return (x_BNC - y_BNC) / jnp.maximum(per_token(t_B), t_floor)


def clean_of(y_BNC: jax.Array, x_BNC: jax.Array, t_B: jax.Array, prediction: str) -> jax.Array:
    """Clean tokens implied by a raw network output y: y itself for "x", x_t - t y for "v"."""
    if prediction == "x":
        return y_BNC
    return x_BNC - per_token(t_B) * y_BNC
