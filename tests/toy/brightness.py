"""A third modality in one file, as a user would add one: the brightness of the image's right-hand neighbour pixel.

In training it is computed from the image, and half of the pixels count as missing, so that its mask is exercised too.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from mf_jax.data.resize import masked_nearest
from mf_jax.modalities.patches import grid_of, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class Codec:
    patch: int = 8

    @property
    def channels(self):
        return self.patch**2

    def grid(self, resolution):
        return grid_of(resolution, self.patch, "brightness")

    def encode(self, batch):
        if "brightness" in batch:
            return patchify(batch["brightness"][..., None], self.patch)
        brightness_BHW = batch["image"].astype(jnp.float32).mean(axis=-1) / 127.5 - 1.0
        return patchify(jnp.roll(brightness_BHW, 1, axis=2)[..., None], self.patch)

    def valid(self, batch):
        if "brightness" in batch:
            return patchify(~jnp.isnan(batch["brightness"])[..., None], self.patch)
        B, H, W, _ = batch["image"].shape
        checker_HW = (jnp.arange(H)[:, None] + jnp.arange(W)) % 2 == 0
        return patchify(jnp.broadcast_to(checker_HW, (B, H, W))[..., None], self.patch)

    def decode(self, x_BNC, grid):
        return unpatchify(x_BNC, grid, self.patch)[..., 0]

    def condition(self, value, resolution):
        """One map (H, W) in [-1, 1], NaN where it is not known."""
        if value.ndim != 2:
            raise ValueError(f"brightness has shape {value.shape}; it must be (H, W)")
        brightness_HW, valid_HW = masked_nearest(value, np.isfinite(value), resolution)
        return {"brightness": np.where(valid_HW, brightness_HW, np.nan)[None].astype(np.float32)}
