"""The FLUX.2 autoencoder: pixels to packed, normalised latents at 1/16 of the resolution and back.

It is frozen: the statistics of its latents are among its parameters, and nothing here is updated. Encoder and decoder
are modules of their own; training needs the encoder alone. `autoencoder_weights.py` has the published files.

Legend: B batch, H W pixels, h w latents after packing, C channels, Z = 4 `latent` packed channels.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.configurable import check_at_least
from mf_jax.models.attention import attention
from mf_jax.models.layers import fan_in, with_axes

GROUPS = 32  # of the group norms
LATENT_EPS = 1e-4  # added to the variance of the latents


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The sizes of an autoencoder; by default those of the published one.

    Attributes:
      channels: of the first level; multipliers: of each level, highest resolution first.
      blocks: residual blocks per level of the encoder; the decoder has one more.
      latent: channels before packing.

    Raises:
      ValueError: a size that is not positive, no level, or channels that the group norms cannot divide.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 32

    def __post_init__(self) -> None:
        check_at_least("autoencoder", self, channels=1, blocks=1, latent=1)
        if not self.multipliers or any(multiplier < 1 for multiplier in self.multipliers):
            raise ValueError(
                f"autoencoder.multipliers is {self.multipliers}; it must hold one positive number per level"
            )
        if self.channels % GROUPS:
            raise ValueError(
                f"autoencoder.channels is {self.channels}; it must be a multiple of {GROUPS}, the groups of the norms"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def packed(self) -> int:
        """Channels of the packed latents."""
        return 4 * self.latent

    @property
    def reduction(self) -> int:
        """Pixels per packed latent and axis: a factor 2 between levels, and 2 of the packing."""
        return 2 ** len(self.multipliers)


def pack(x_BHWC: jax.Array) -> jax.Array:
    """2x2 neighbours as channels: (B, 2h, 2w, C) -> (B, h, w, 4C), channels in the order (channel, row, column)."""
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4).reshape(B, H // 2, W // 2, 4 * C)


def unpack(x_BhwZ: jax.Array) -> jax.Array:
    """Inverse of `pack`: (B, h, w, 4C) -> (B, 2h, 2w, C)."""
    B, h, w, Z = x_BhwZ.shape
    return x_BhwZ.reshape(B, h, w, Z // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(B, 2 * h, 2 * w, Z // 4)


def from_uint8(image_BHW3: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]."""
    return image_BHW3.astype(jnp.float32) / 255.0 * 2.0 - 1.0


def to_uint8(image_BHW3: jax.Array) -> jax.Array:
    """Float pixels in [-1, 1] to uint8: clipped, and truncated as the official code does, not rounded."""
    return (jnp.clip(image_BHW3.astype(jnp.float32) * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _conv(
    features: int, axes: tuple[str, str | None], dtype: jnp.dtype, name: str, size: int = 3, stride: int = 1
) -> nn.Conv:
    """A convolution with bias; with a stride of 2, one row and column of zeros below and to the right only.

    axes: logical names of its input and output channels.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2 if stride == 1 else ((0, 1), (0, 1)),
        dtype=dtype,
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        kernel_init=nn.with_logical_partitioning(fan_in, (None, None, *axes)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def _inner_conv(features: int, dtype: jnp.dtype, name: str, size: int = 3, stride: int = 1) -> nn.Conv:
    return _conv(features, ("embed", "embed_out"), dtype, name, size, stride)


def _norm(dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    """Group norm. Statistics in float32, in two passes: one pass loses the variance of nearly uniform images."""
    return nn.GroupNorm(
        GROUPS,
        epsilon=1e-6,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); a 1x1 convolution takes x to `features` where it has others."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        h = _inner_conv(self.features, self.dtype, "conv1")(nn.silu(_norm(self.dtype, "norm1")(x_BHWC)))
        h = _inner_conv(self.features, self.dtype, "conv2")(nn.silu(_norm(self.dtype, "norm2")(h)))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = _inner_conv(self.features, self.dtype, "shortcut", size=1)(x_BHWC)
        return nn.with_logical_constraint(x_BHWC + h, ("batch", None, None, "embed_activation"))


class SpatialAttention(nn.Module):
    """x + out(attention of all pixels to all, one head)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        h = _norm(self.dtype, "norm")(x_BHWC)
        q, k, v = (_inner_conv(C, self.dtype, name, size=1)(h).reshape(B, H * W, 1, C) for name in ("q", "k", "v"))
        return x_BHWC + _inner_conv(C, self.dtype, "out", size=1)(attention(q, k, v).reshape(x_BHWC.shape))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        C = x_BHWC.shape[-1]
        h = ResidualBlock(C, self.dtype, name="block_1")(x_BHWC)
        h = SpatialAttention(self.dtype, name="attention")(h)
        return ResidualBlock(C, self.dtype, name="block_2")(h)


class LatentStatistics(nn.Module):
    """Mean and variance of each packed latent channel over the data that the autoencoder was trained on; float32."""

    channels: int

    def setup(self) -> None:
        def statistic(name: str, init: nn.initializers.Initializer) -> jax.Array:
            return self.param(name, with_axes(init, ("channels",)), (self.channels,), jnp.float32)

        self.mean = statistic("mean", nn.initializers.zeros)
        self.var = statistic("var", nn.initializers.ones)

    def normalise(self, x_BhwZ: jax.Array) -> jax.Array:
        """Latents of mean 0 and variance 1 per channel, float32."""
        return (x_BhwZ.astype(jnp.float32) - self.mean) / jnp.sqrt(self.var + LATENT_EPS)

    def restore(self, x_BhwZ: jax.Array) -> jax.Array:
        """Inverse of `normalise`."""
        return x_BhwZ.astype(jnp.float32) * jnp.sqrt(self.var + LATENT_EPS) + self.mean


class Encoder(nn.Module):
    """The encoder, images to latents.

    Attributes:
      dtype: of the compute; parameters are float32.
    """

    config: AutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHW3: jax.Array) -> jax.Array:
        """Float image in [-1, 1] -> normalised packed latents, float32 (B, H/16, W/16, 128) for the published network.

        The mean of the posterior, never a sample of it.

        Raises:
          ValueError: not three channels, or a resolution that is not a multiple of the reduction.
        """
        config, dtype = self.config, self.dtype
        height, width, channels = image_BHW3.shape[1:]
        if channels != 3 or height % config.reduction or width % config.reduction:
            raise ValueError(
                f"the image is {height}x{width} with {channels} channels; the autoencoder takes 3 channels and "
                f"multiples of {config.reduction} pixels"
            )
        h = _conv(config.channels, ("channels", "embed"), dtype, "conv_in")(image_BHW3)
        for level, features in enumerate(config.widths):
            for i in range(config.blocks):
                h = ResidualBlock(features, dtype, name=f"down_{level}_block_{i}")(h)
            if level + 1 < len(config.widths):
                h = _inner_conv(features, dtype, f"down_{level}_conv", stride=2)(h)
        h = Middle(dtype, name="middle")(h)
        h = nn.silu(_norm(dtype, "norm_out")(h))
        h = _conv(2 * config.latent, ("embed", "channels"), dtype, "conv_out")(h)
        moments = _conv(2 * config.latent, ("channels", None), dtype, "quant_conv", size=1)(h)
        mean = moments[..., : config.latent]
        return LatentStatistics(config.packed, name="bn").normalise(pack(mean))


class Decoder(nn.Module):
    """The decoder, latents to images.

    Attributes:
      dtype: of the compute; parameters are float32.
    """

    config: AutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BhwZ: jax.Array) -> jax.Array:
        """Normalised packed latents -> float32 image (B, 16h, 16w, 3), about in [-1, 1], not clipped.

        Raises:
          ValueError: latents of another number of channels.
        """
        config, dtype = self.config, self.dtype
        if x_BhwZ.shape[-1] != config.packed:
            raise ValueError(f"the latents have {x_BhwZ.shape[-1]} channels; the autoencoder's have {config.packed}")
        latent = unpack(LatentStatistics(config.packed, name="bn").restore(x_BhwZ))
        h = _conv(config.latent, ("channels", None), dtype, "post_quant_conv", size=1)(latent)
        h = _conv(config.widths[-1], ("channels", "embed"), dtype, "conv_in")(h)
        h = Middle(dtype, name="middle")(h)
        for level, features in reversed(list(enumerate(config.widths))):
            for i in range(config.blocks + 1):
                h = ResidualBlock(features, dtype, name=f"up_{level}_block_{i}")(h)
            if level:
                nearest = h.repeat(2, axis=1).repeat(2, axis=2)
                h = _inner_conv(features, dtype, f"up_{level}_conv")(nearest)
        h = nn.silu(_norm(dtype, "norm_out")(h))
        return _conv(3, ("embed", "channels"), dtype, "conv_out")(h).astype(jnp.float32)
