"""Distributions of the training noise level t in [0, 1] (0 clean, 1 noise), and the draw of the training mode.

Legend: B batch.
Both distributions are sampled through their inverse CDF, so one uniform number per example is all the randomness.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax.scipy.special import logit, ndtr, ndtri


def _check(mu: float, sigma: float) -> None:
    if not abs(mu) <= 5.0 or not 0.05 <= sigma <= 5.0:
        raise ValueError(f"noise mu {mu}, sigma {sigma}: mu must be within -5 to 5, sigma within 0.05 to 5")


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mu + sigma n), n ~ N(0, 1): the image's noise level (section 3, timestep shift mu = 1.1).

    Sampling a centred logit-normal and shifting it by alpha = exp(mu), t -> alpha t / (1 + (alpha - 1) t), is the same.

    Attributes:
      mu: mean of logit(t): the larger, the more noise. sigma: standard deviation of logit(t).
    """

    mu: float = 1.1
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _check(self.mu, self.sigma)

    def quantile(self, u_B: jax.Array) -> jax.Array:
        """Inverse of `cdf`: probabilities in (0, 1) to noise levels t_B."""
        return jax.nn.sigmoid(self.mu + self.sigma * ndtri(u_B))

    def cdf(self, t_B: jax.Array) -> jax.Array:
        """Probability of a noise level of at most t."""
        return ndtr((logit(t_B) - self.mu) / self.sigma)


@dataclasses.dataclass(frozen=True)
class PlateauLogitNormal:
    """Logit-normal density up to its mode t*, constant from there to t = 1, renormalised: the depth's noise level.

    The shift comes first, the plateau after it (the FLUX.2 report's definition), so high noise stays frequent.
    For mu = 1.1, sigma = 1: t* = 0.86074 and P(t <= t*) = 0.68157.

    Attributes:
      mu, sigma: of the logit-normal below the plateau, as in LogitNormal.
    """

    mu: float = 1.1
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _check(self.mu, self.sigma)

    @functools.cached_property
    def mode(self) -> float:
        """t*: the largest root of logit(t) - mu = sigma^2 (2 t - 1), where the density is stationary."""

        def slope(t: float) -> float:
            return math.log(t / (1 - t)) - self.mu - self.sigma**2 * (2 * t - 1)

        upper = 1 - 1e-12
        lower = upper
        while slope(lower) > 0:
            upper, lower = lower, lower - 1e-3
        for _ in range(80):
            middle = (lower + upper) / 2
            lower, upper = (middle, upper) if slope(middle) < 0 else (lower, middle)
        return (lower + upper) / 2

    @functools.cached_property
    def _mass(self) -> tuple[float, float]:
        """Unnormalised mass below t* and on the plateau."""
        z = (math.log(self.mode / (1 - self.mode)) - self.mu) / self.sigma
        density = NormalDist().pdf(z) / (self.sigma * self.mode * (1 - self.mode))
        return NormalDist().cdf(z), density * (1 - self.mode)

    @property
    def probability_below_mode(self) -> float:
        """P(t <= t*)."""
        below, plateau = self._mass
        return below / (below + plateau)

    def quantile(self, u_B: jax.Array) -> jax.Array:
        """Inverse of `cdf`: probabilities in (0, 1) to noise levels t_B."""
        below, plateau = self._mass
        p = self.probability_below_mode
        rising = jax.nn.sigmoid(self.mu + self.sigma * ndtri(jnp.minimum(u_B, p) * (below + plateau)))
        flat = self.mode + (u_B - p) / (1 - p) * (1 - self.mode)
        return jnp.where(u_B < p, rising, flat)

    def cdf(self, t_B: jax.Array) -> jax.Array:
        """Probability of a noise level of at most t."""
        below, plateau = self._mass
        rising = ndtr((logit(jnp.minimum(t_B, self.mode)) - self.mu) / self.sigma) / (below + plateau)
        p = self.probability_below_mode
        return jnp.where(t_B < self.mode, rising, p + (1 - p) * (t_B - self.mode) / (1 - self.mode))


DISTRIBUTIONS = {"logit_normal": LogitNormal, "plateau_logit_normal": PlateauLogitNormal}


@dataclasses.dataclass(frozen=True)
class Mode:
    """A training case: its probability, and the modalities that it holds clean (t = 0) as conditions.

    Attributes:
      probability: of the case; those of all modes sum to 1. clean: names of the modalities that it holds clean.
    """

    probability: float
    clean: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"the probability of a mode is {self.probability}; it must be in [0, 1]")


def draw(
    key_B: jax.Array,
    distributions: dict[str, LogitNormal | PlateauLogitNormal],
    modes: dict[str, Mode],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Draws the noise level of every modality, independently, and the mode of every example (section 3 of the paper).

    Args:
      key_B: one key per example, so that an example's draw does not depend on the rest of the batch.
      distributions: by modality. modes: by name; their probabilities sum to 1.

    Returns:
      {modality: t_B float32}, and mode_B int32, the position of the drawn mode in `modes`.
    """
    edges = jnp.cumsum(jnp.array([mode.probability for mode in modes.values()]))

    def one(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        u = jax.random.uniform(key, (len(distributions) + 1,), minval=1e-6, maxval=1 - 1e-6)
        mode = jnp.minimum(jnp.sum(edges <= u[0] * edges[-1]), len(modes) - 1)
        t = {}
        for i, (name, distribution) in enumerate(distributions.items(), start=1):
            clean = jnp.array([name in m.clean for m in modes.values()])
            t[name] = jnp.where(clean[mode], 0.0, distribution.quantile(u[i]))
        return t, mode.astype(jnp.int32)

    return jax.vmap(one)(key_B)
