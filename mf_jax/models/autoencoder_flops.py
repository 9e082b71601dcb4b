"""Forward FLOPs of the FLUX.2 autoencoder, computed from its sizes: 2 per multiply-add, attention in full.

Counted are convolutions and matrix products, with the taps that lie on a border of zeros. Left out are norms and
activations.

Legend: C channels of a convolution, H W rows and columns that it makes.
"""

from __future__ import annotations

from mf_jax.models.autoencoder import AutoencoderConfig


def autoencoder(config: AutoencoderConfig, resolution: tuple[int, int]) -> tuple[int, int]:
    """Forward FLOPs of (encoder, decoder) for one image of (H, W)."""
    return _encoder(config, *resolution), _decoder(config, *resolution)


def _conv(H: int, W: int, C_in: int, C_out: int, size: int = 3) -> int:
    return 2 * H * W * size**2 * C_in * C_out


def _residual(H: int, W: int, C_in: int, C_out: int) -> int:
    shortcut = _conv(H, W, C_in, C_out, size=1) if C_in != C_out else 0
    return _conv(H, W, C_in, C_out) + _conv(H, W, C_out, C_out) + shortcut


def _middle(H: int, W: int, C: int) -> int:
    attention = 4 * _conv(H, W, C, C, size=1) + 2 * 2 * (H * W) ** 2 * C
    return 2 * _residual(H, W, C, C) + attention


def _encoder(config: AutoencoderConfig, H: int, W: int) -> int:
    C = config.channels
    total = _conv(H, W, 3, C)
    for level, width in enumerate(config.widths):
        for _ in range(config.blocks):
            total += _residual(H, W, C, width)
            C = width
        if level + 1 < len(config.widths):
            H, W = H // 2, W // 2
            total += _conv(H, W, C, C)
    moments = 2 * config.latent
    return total + _middle(H, W, C) + _conv(H, W, C, moments) + _conv(H, W, moments, moments, size=1)


def _decoder(config: AutoencoderConfig, H: int, W: int) -> int:
    shrunk = 2 ** (len(config.widths) - 1)
    H, W, C = H // shrunk, W // shrunk, config.widths[-1]
    total = _conv(H, W, config.latent, config.latent, size=1) + _conv(H, W, config.latent, C) + _middle(H, W, C)
    for level, width in reversed(list(enumerate(config.widths))):
        for _ in range(config.blocks + 1):
            total += _residual(H, W, C, width)
            C = width
        if level:
            H, W = 2 * H, 2 * W
            total += _conv(H, W, C, C)
    return total + _conv(H, W, C, 3)
