"""RGB images as pixel patches.

Legend: B batch, H W pixels, N tokens, C = 3 P^2 channels per token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.data.resize import resize_image
from mf_jax.modalities.patches import grid_of, patchify, unpatchify


def image_field(image: np.ndarray, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
    """The batch field `image` of a picture uint8 (H, W, 3) or several (B, H, W, 3), resized to the resolution.

    Raises:
      ValueError: another shape or type.
    """
    image_BHW3 = image[None] if image.ndim == 3 else image
    if image_BHW3.ndim != 4 or image_BHW3.shape[-1] != 3 or image_BHW3.dtype != np.uint8:
        raise ValueError(
            f"image has shape {image_BHW3.shape} and dtype {image_BHW3.dtype}; it must be uint8 (H, W, 3) or "
            "(B, H, W, 3)"
        )
    return {"image": np.stack([resize_image(image_HW3, resolution) for image_HW3 in image_BHW3])}


@dataclasses.dataclass(frozen=True)
class Codec:
    """RGB pixels: `image` uint8 (B, H, W, 3) to tokens and back; every pixel is measured.

    Attributes:
      patch: side of a patch in pixels.
      scale: tokens are pixels in [-scale, scale]. Neighbouring pixels are alike, so noise of standard deviation 1 hides
        the layout of a picture in [-1, 1] only where t is close to 1; a smaller scale lets more noise levels teach it.
        The velocity-space loss shrinks by scale^2, which the modality's weight can make up for.
    """

    patch: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the image scale is {self.scale}; it must be positive")

    @property
    def channels(self) -> int:
        return 3 * self.patch**2

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        return grid_of(resolution, self.patch, "image")

    def encode(self, batch: dict[str, jax.Array]) -> jax.Array:
        return patchify(batch["image"].astype(jnp.float32) / 127.5 - 1.0, self.patch) * self.scale

    def valid(self, batch: dict[str, jax.Array]) -> jax.Array:
        B, H, W, _ = batch["image"].shape
        return jnp.ones((B, H * W // self.patch**2, self.channels), bool)

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """uint8 (B, H, W, 3), values outside [-scale, scale] clipped."""
        image = unpatchify(x_BNC.astype(jnp.float32) / self.scale, grid, self.patch)
        return jnp.round(jnp.clip(image * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)

    def condition(self, value: np.ndarray, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
        return image_field(value, resolution)
