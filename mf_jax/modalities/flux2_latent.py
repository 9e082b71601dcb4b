"""Images as latents of the frozen FLUX.2 autoencoder.

Its encoder adds `image_latent` to a batch, which the codec reads; its decoder turns what the codec decodes into pixels.

Legend: B batch, h w latents, N = h * w tokens, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.configurable import check_at_least
from mf_jax.modalities.image import image_field
from mf_jax.modalities.patches import grid_of
from mf_jax.models import autoencoder_flops, frozen, weight_table
from mf_jax.models.autoencoder import AutoencoderConfig, Decoder, Encoder, from_uint8, to_uint8
from mf_jax.models.autoencoder_weights import DECODER, ENCODER, Published, inspect, published_files
from mf_jax.models.frozen import FrozenFlops
from mf_jax.models.weight_table import Entry
from mf_jax.storage.safetensors_files import TensorFiles


@dataclasses.dataclass(frozen=True)
class Codec:
    """Images as latents: `image_latent` float (B, h, w, C), normalised and packed, to tokens, row-major, and back.

    Attributes:
      checkpoint: the autoencoder's file, or a directory with ae_encoder.safetensors and ae_decoder.safetensors, or with
        ae.safetensors.
      channels: of a latent. reduction: pixels per latent and axis. Those of the published autoencoder by default.
    """

    checkpoint: str = ""
    channels: int = 128
    reduction: int = 16

    def __post_init__(self) -> None:
        check_at_least("the image latent", self, channels=1, reduction=1)

    def grid(self, resolution: tuple[int, int]) -> tuple[int, int]:
        return grid_of(resolution, self.reduction, "image latent")

    def encode(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Tokens, one per latent, float32 (B, N, C).

        Raises:
          ValueError: latents of another number of channels.
        """
        B, h, w, C = batch["image_latent"].shape
        if self.channels != C:
            raise ValueError(
                f"image_latent has {C} channels, the modality {self.channels}; set its `channels` to what the "
                "autoencoder makes"
            )
        return batch["image_latent"].astype(jnp.float32).reshape(B, h * w, C)

    def valid(self, batch: dict[str, jax.Array]) -> jax.Array:
        """All true, (B, N, C); computed from `image` where the batch has no latents yet."""
        if "image_latent" in batch:
            B, h, w, _ = batch["image_latent"].shape
        else:
            B, H, W, _ = batch["image"].shape
            h, w = self.grid((H, W))
        return jnp.ones((B, h * w, self.channels), bool)

    def decode(self, x_BNC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Latents, float32 (B, h, w, C), that the autoencoder's decoder takes."""
        return x_BNC.astype(jnp.float32).reshape(x_BNC.shape[0], *grid, x_BNC.shape[-1])

    def network(self, dtype: jnp.dtype) -> Autoencoder:
        return Autoencoder(self, dtype)

    def condition(self, value: np.ndarray, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
        """The field `image`, see `image_field`; the autoencoder makes the latents of it."""
        return image_field(value, resolution)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The frozen network: `image` uint8 (B, H, W, 3) to `image_latent`, and latents to uint8 pixels.

    Attributes:
      published: use the sizes of the published network and no files; see `as_published`.
    """

    codec: Codec
    dtype: jnp.dtype
    published: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def makes(self, resolution: tuple[int, int]) -> frozen.Shapes:
        return {"image_latent": ((*self.codec.grid(resolution), self.codec.channels), jnp.float32)}

    @property
    def _sizes(self) -> AutoencoderConfig:
        return AutoencoderConfig() if self.published else self._files[0]

    @functools.cached_property
    def _files(self) -> tuple[AutoencoderConfig, dict[str, tuple[TensorFiles, list[Entry]]]]:
        """What is read of the files: the network's sizes, and by part the open file and its weight table."""
        if not self.codec.checkpoint:
            raise ValueError("the image modality has no checkpoint of the FLUX.2 autoencoder; set its `checkpoint`")
        found: dict[str, tuple[TensorFiles, Published]] = {}
        for path in published_files(self.codec.checkpoint):
            files = TensorFiles(path)
            published = inspect({name: files.shape(name) for name in files})
            found |= {part: (files, published) for part in published.parts}
        if set(found) != {ENCODER, DECODER}:
            raise ValueError(f"{self.codec.checkpoint} holds the autoencoder's {' and '.join(found)} alone")
        config = found[ENCODER][1].config
        if (config.packed, config.reduction) != (self.codec.channels, self.codec.reduction):
            raise ValueError(
                f"the autoencoder in {self.codec.checkpoint} makes {config.packed} channels at 1/{config.reduction} of "
                f"the resolution; the image modality says {self.codec.channels} at 1/{self.codec.reduction}"
            )
        return config, {part: (files, published.table(part)) for part, (files, published) in found.items()}

    def abstract(self, mesh: jax.sharding.Mesh | None) -> Any:
        config = self._sizes
        pixels = jax.ShapeDtypeStruct((1, config.reduction, config.reduction, 3), jnp.float32)
        latents = jax.ShapeDtypeStruct((1, 1, 1, config.packed), jnp.float32)
        parts = {ENCODER: (Encoder(config), pixels), DECODER: (Decoder(config), latents)}
        return {part: frozen.abstract(module, mesh, jnp.float32, given) for part, (module, given) in parts.items()}

    def as_published(self) -> Autoencoder | None:
        there = self.codec.checkpoint and Path(self.codec.checkpoint).exists()
        return None if there else dataclasses.replace(self, published=True)

    def load(self, mesh: jax.sharding.Mesh | None) -> Any:
        """{"encoder": ..., "decoder": ...}, float32."""
        _, parts = self._files
        return {
            part: weight_table.read(parts[part][0], params, parts[part][1])
            for part, params in self.abstract(mesh).items()
        }

    def encode(self, params: Any, batch: frozen.Batch) -> frozen.Batch:
        image = from_uint8(batch["image"])
        encoder = Encoder(self._sizes, dtype=self.dtype)
        latent = cast(jax.Array, encoder.apply({"params": params[ENCODER]}, image))
        return {"image_latent": latent.astype(jnp.float32)}

    def decode(self, params: Any, value: jax.Array) -> jax.Array:
        """Latents (B, h, w, C) to uint8 (B, H, W, 3)."""
        decoder = Decoder(self._sizes, dtype=self.dtype)
        return to_uint8(cast(jax.Array, decoder.apply({"params": params[DECODER]}, value)))

    def flops(self, resolution: tuple[int, int]) -> FrozenFlops:
        if self.codec.checkpoint and Path(self.codec.checkpoint).exists():
            config, source = self._files[0], self.codec.checkpoint
        else:
            config, missing = (
                AutoencoderConfig(),
                f"there is no checkpoint {self.codec.checkpoint!r} of the image modality",
            )
            if (config.packed, config.reduction) != (self.codec.channels, self.codec.reduction):
                raise ValueError(missing)
            source = f"sizes of FLUX.2's, as {missing}"
        return FrozenFlops(*autoencoder_flops.autoencoder(config, resolution), source)
