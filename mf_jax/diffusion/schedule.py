"""Sampling schedules: the noise levels a sampler walks through, per modality, from 1 (noise) down to 0 (clean).

Legend: S sampling steps; a schedule has S + 1 nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def shift(t: np.ndarray, mu: float, sigma: float = 1.0) -> np.ndarray:
    """Shifted noise levels t' = e^mu / (e^mu + (1/t - 1)^sigma).

    0 and 1 are fixed points; mu > 0 spends more steps at high noise.
    """
    t = np.asarray(t, np.float64)
    with np.errstate(divide="ignore"):
        odds = np.power(1.0 / t - 1.0, sigma)
    return np.exp(mu) / (np.exp(mu) + odds)


def warp(t: np.ndarray, log2_alpha: float) -> np.ndarray:
    """Warped noise levels alpha t / (1 + (alpha - 1) t), alpha = 2^log2_alpha; alpha > 1 stays noisier for longer."""
    t, alpha = np.asarray(t, np.float64), 2.0**log2_alpha
    return alpha * t / (1.0 + (alpha - 1.0) * t)


def schedules(
    modalities: tuple[str, ...],
    steps: int,
    pinned: Mapping[str, float],
    mu: float | Mapping[str, float] = 1.1,
    sigma: float | Mapping[str, float] = 1.0,
    log2_alpha: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """One schedule per modality, float32 (S + 1,).

    Args:
      modalities: names in the model's own order; the first one leads.
      pinned: modalities held at one noise level throughout; 0.0 makes a condition.
      mu, sigma: shift of each modality's grid, or one number for all.
      log2_alpha: modalities that follow the leader's schedule, warped, instead of walking their own
        (ignored where the modality or the leader is pinned).

    Raises:
      ValueError: steps < 1, or a name that is not a modality.
    """
    if steps < 1:
        raise ValueError(f"sampling steps is {steps}; it must be at least 1")
    log2_alpha = log2_alpha or {}
    for name in [*pinned, *log2_alpha]:
        if name not in modalities:
            raise ValueError(f"unknown modality {name!r} in a schedule; there are: {', '.join(modalities)}")
    linear = np.linspace(1.0, 0.0, steps + 1)

    def own(name: str) -> np.ndarray:
        if name in pinned:
            return np.full(steps + 1, pinned[name])
        m = mu[name] if isinstance(mu, Mapping) else mu
        s = sigma[name] if isinstance(sigma, Mapping) else sigma
        return shift(linear, m, s)

    result = {}
    for name in modalities:
        if name in log2_alpha and name not in pinned and modalities[0] not in pinned:
            t = warp(own(modalities[0]), log2_alpha[name])
        else:
            t = own(name)
        result[name] = t.astype(np.float32)
    return result
