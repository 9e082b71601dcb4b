"""Depth in pixel space: unit mean over the measured pixels, contraction to [0, 2), patches (section 3 of the paper).

Linear depth along the optical axis, neither disparity nor log depth. The scale is lost, there is no shift ambiguity.

Legend: B batch, H W pixels, N tokens, C = P^2 channels per token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.data.resize import masked_nearest
from mf_jax.modalities.patches import grid_of, patchify, unpatchify

MAX_RATIO = 1000.0  # decoded depth is at most this many times the unit: the contraction's pole at 2 is never reached


def unit_mean(depth_BHW: jax.Array, valid_BHW: jax.Array) -> jax.Array:
    """Depth divided by its mean over the valid pixels of each map; 1 where missing, so that it is always finite.

    The official inference code takes the mean over the whole map: the same where nothing is missing.
    """
    depth = jnp.where(valid_BHW, depth_BHW.astype(jnp.float32), 0.0)
    count = jnp.sum(valid_BHW, axis=(1, 2), keepdims=True)
    mean = jnp.sum(depth, axis=(1, 2), keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(valid_BHW, depth / jnp.maximum(mean, 1e-12), 1.0)


def contract(d: jax.Array) -> jax.Array:
    """Contraction of [0, inf) to [0, 2) (mip-NeRF 360 in one dimension): d for |d| <= 1, sign(d) (2 - 1/|d|) beyond."""
    magnitude = jnp.maximum(jnp.abs(d), 1.0)
    return jnp.where(jnp.abs(d) <= 1.0, d, jnp.sign(d) * (2.0 - 1.0 / magnitude))


def expand(z: jax.Array) -> jax.Array:
    """Inverse of `contract`: z / (2 m - m^2) with m = max(|z|, 1). |z| = 2 gives +-inf, beyond it the sign flips."""
    magnitude = jnp.maximum(jnp.abs(z), 1.0)
    return z / (2.0 * magnitude - jnp.square(magnitude))


@dataclasses.dataclass(frozen=True)
class Codec:
    """Depth in pixel space: `depth` (B, H, W), any unit, with `depth_valid` bool (B, H, W), to tokens and back.

    Attributes:
      patch: side of a patch in pixels.
    """

    patch: int = 8

    @property
    def channels(self) -> int:
        return self.patch**2

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        return grid_of(resolution, self.patch, "depth")

    def encode(self, batch: dict[str, jax.Array]) -> jax.Array:
        z_BHW = contract(unit_mean(batch["depth"], batch["depth_valid"]))
        return patchify(z_BHW[..., None], self.patch)

    def valid(self, batch: dict[str, jax.Array]) -> jax.Array:
        return patchify(batch["depth_valid"][..., None], self.patch)

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Relative depth, float32 (B, H, W), larger is farther; at most MAX_RATIO. 0 where z = 0, negative below."""
        z = unpatchify(x_BNC.astype(jnp.float32), grid, self.patch)[..., 0]
        return expand(jnp.clip(z, -1.0, 2.0 - 1.0 / MAX_RATIO))

    def condition(self, value: np.ndarray, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
        """`depth` and `depth_valid` of a map (H, W) or several (B, H, W), any unit; 0, negative, NaN, inf are missing.

        Raises:
          ValueError: another shape, or a map without a valid pixel.
        """
        depth_BHW = value[None] if value.ndim == 2 else value
        if depth_BHW.ndim != 3:
            raise ValueError(f"depth has shape {depth_BHW.shape}; it must be (H, W) or (B, H, W)")
        valid_BHW = np.isfinite(depth_BHW) & (depth_BHW > 0)
        if not valid_BHW.any(axis=(1, 2)).all():
            raise ValueError("depth has no valid pixel: all are 0, negative, NaN or inf")
        clean_BHW = np.where(valid_BHW, depth_BHW, 0.0).astype(np.float32)
        resized = [masked_nearest(d, v, resolution) for d, v in zip(clean_BHW, valid_BHW, strict=True)]
        return {"depth": np.stack([d for d, _ in resized]), "depth_valid": np.stack([v for _, v in resized])}
