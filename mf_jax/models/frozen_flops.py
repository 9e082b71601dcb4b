"""Forward FLOPs of the frozen networks by formula from their sizes, 2 per multiply-add, attention counted in full.

Counted are matrix products and convolutions, at every token and pixel: those of padding too, which the networks compute
like others, and the taps of a convolution that lie on its border of zeros. Left out are norms, activations, softmax,
rotary embedding and table look-ups.

Legend: C channels of a convolution, H W rows and columns that it makes, L tokens.
"""

from __future__ import annotations

import dataclasses

from mf_jax.models.autoencoder import AutoencoderConfig
from mf_jax.models.text.qwen3 import Qwen3Config
from mf_jax.models.text.umt5 import UMT5Config

# The published text encoders, by their config.json: what `show` goes by where that file is not at hand.
QWEN3_8B = Qwen3Config(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1e6,
)
UMT5_XXL = UMT5Config(
    vocab_size=256384,
    d_model=4096,
    d_ff=10240,
    d_kv=64,
    num_layers=24,
    num_heads=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
)


@dataclasses.dataclass(frozen=True)
class FrozenFlops:
    """FLOPs of a frozen network for one example.

    Attributes:
      encode: of what runs in every training step. decode: of what samplers run besides; 0 for text encoders.
      source: where the sizes come from, for people.
    """

    encode: int
    decode: int
    source: str


def qwen3(config: Qwen3Config, layers: int, tokens: int) -> int:
    """Its first `layers` layers. Attention is causal, and computed, and counted, in full."""
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    weights = config.hidden_size * (2 * heads + 2 * kv_heads + 3 * config.intermediate_size)
    return 2 * layers * (tokens * weights + 2 * tokens**2 * heads)


def umt5(config: UMT5Config, tokens: int) -> int:
    """The encoder."""
    heads = config.num_heads * config.d_kv
    weights = config.d_model * (4 * heads + 3 * config.d_ff)
    return 2 * config.num_layers * (tokens * weights + 2 * tokens**2 * heads)


def autoencoder(config: AutoencoderConfig, resolution: tuple[int, int]) -> tuple[int, int]:
    """(encoder, decoder) of the FLUX.2 autoencoder for an image of (H, W)."""
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
