"""RGB images as pixel patches in [-1, 1].

Legend: B batch, H W pixels, N tokens, C = 3 P^2 channels per token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mf_jax.modalities.patches import grid_of, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class Codec:
    """`batch["image"]` uint8 (B, H, W, 3) <-> tokens. Every pixel is measured."""

    patch: int = 8

    @property
    def channels(self) -> int:
        return 3 * self.patch**2

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        return grid_of(resolution, self.patch, "image")

    def encode(self, batch: dict[str, jax.Array]) -> jax.Array:
        return patchify(batch["image"].astype(jnp.float32) / 127.5 - 1.0, self.patch)

    def valid(self, batch: dict[str, jax.Array]) -> jax.Array:
        B, H, W, _ = batch["image"].shape
        return jnp.ones((B, H * W // self.patch**2, self.channels), bool)

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """uint8 (B, H, W, 3), values outside [-1, 1] clipped."""
        image = unpatchify(x_BNC.astype(jnp.float32), grid, self.patch)
        return jnp.round(jnp.clip(image * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)
