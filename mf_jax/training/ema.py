"""Exponential moving average of the parameters, the weights that are evaluated and sampled from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """ema <- d ema + (1 - d) params, d = min(decay, (1 + step) / (10 + step)): early averages forget the start."""
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), ema, params)
