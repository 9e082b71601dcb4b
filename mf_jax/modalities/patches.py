"""Patches: pixel arrays to tokens and back, without overlap, row-major, channels in the order (row, column, channel).

Legend: B batch, H W pixels, K channels per pixel, N tokens, C = P * P * K channels per token.
"""

from __future__ import annotations

import jax


def grid_of(resolution: tuple[int, int], patch: int, name: str) -> tuple[int, int]:
    """(rows, columns) of patches.

    Raises:
      ValueError: the resolution is not a multiple of the patch, or the patch is not positive.
    """
    height, width = resolution
    if patch < 1:
        raise ValueError(f"the {name} patch size is {patch}; it must be at least 1")
    if height % patch or width % patch or height < patch or width < patch:
        raise ValueError(
            f"resolution {height}x{width} is not divisible by the {name} patch size {patch}; "
            f"the nearest that is: {max(1, round(height / patch)) * patch}x{max(1, round(width / patch)) * patch}"
        )
    return height // patch, width // patch


def patchify(x_BHWK: jax.Array, patch: int) -> jax.Array:
    """Pixels to patches: (B, H, W, K) -> (B, N, P * P * K)."""
    B, H, W, K = x_BHWK.shape
    x = x_BHWK.reshape(B, H // patch, patch, W // patch, patch, K)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // patch) * (W // patch), patch * patch * K)


def unpatchify(x_BNC: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Inverse of `patchify`: (B, N, P * P * K) -> (B, H, W, K)."""
    B, _, C = x_BNC.shape
    rows, columns = grid
    x = x_BNC.reshape(B, rows, columns, patch, patch, C // (patch * patch))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * patch, columns * patch, -1)
