"""Layers shared by the transformers.

Legend: B batch, N tokens, C D channels, H heads, E head channels, A rotary axes.
Parameters are float32 and carry logical axis names (parallel/sharding.py maps them to the mesh); compute is in `dtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mf_jax.parallel.sharding import is_split

STATISTICS = "statistics"  # the name of a norm's statistics for remat policies
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def with_axes(init: nn.initializers.Initializer, names: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """An initializer for `Module.param` whose array carries logical axis names.

    flax boxes the array with its names when it initialises, and `Module.param` returns it unboxed; its annotations show
    the box there as well.
    """
    return cast(Callable[..., jax.Array], nn.with_logical_partitioning(init, names))


class Dense(nn.Module):
    """Linear map of the last axis, no bias. `axes` are the logical names of the kernel's (input, output) axes.

    float32 is computed as such, also where the device would by default use fewer bits.
    Leading axes are flattened first: the gradient of a 3-D product costs twice that of the 2-D one on a CPU. Where
    tokens are split over devices they are kept, because a flattened axis could not be split.
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = fan_in

    @nn.compact
    def __call__(self, x: jax.Array, heads: int = 0, heads_in: bool = False) -> jax.Array:
        given = x.shape[1] * x.shape[3] if heads_in else x.shape[-1]
        kernel = self.param("kernel", with_axes(self.kernel_init, self.axes), (given, self.features), jnp.float32)
        precision = jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else None
        if heads:
            split = kernel.astype(self.dtype).reshape(given, heads, -1)
            return jnp.einsum("bnc,che->bhne", x.astype(self.dtype), split, precision=precision)
        if heads_in:
            split = kernel.astype(self.dtype).reshape(x.shape[1], x.shape[3], -1)
            return jnp.einsum("bhne,hec->bnc", x.astype(self.dtype), split, precision=precision)
        rows = x if is_split("sequence") else x.reshape(-1, x.shape[-1])
        y = jnp.matmul(rows.astype(self.dtype), kernel.astype(self.dtype), precision=precision)
        return y.reshape(*x.shape[:-1], self.features)


def inverse_rms(x: jax.Array) -> jax.Array:
    """1 / rms(x) over the last axis, kept as 1, eps 1e-6; named, so that remat presets can keep it."""
    return checkpoint_name(jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6), STATISTICS)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, statistics in float32."""

    axis: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", with_axes(nn.initializers.ones, (self.axis,)), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * inverse_rms(x)
        return (x * scale).astype(self.dtype)


def sinusoid(t_B: jax.Array, channels: int = 256) -> jax.Array:
    """Embedding of the noise level: [cos, sin] of 1000 t 10000^(-k / half), float32 (B, channels)."""
    half = channels // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
    phase = 1000.0 * t_B.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class TimeEmbedder(nn.Module):
    """Two linear layers with a SiLU between, on the sinusoid of a noise level: (B,) -> (B, C)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t_B: jax.Array) -> jax.Array:
        hidden = Dense(self.features, ("time", "embed"), self.dtype, name="in_layer")(sinusoid(t_B))
        return Dense(self.features, ("embed", "embed_out"), self.dtype, name="out_layer")(nn.silu(hidden))


def positions(rows: int, columns: int, modality: int) -> np.ndarray:
    """Rotary positions of a grid of tokens, row-major: (modality, row, column, 0) each, (N, 4)."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.full_like(row, modality), row, column, np.zeros_like(row)], axis=1)


def text_positions(length: int) -> np.ndarray:
    """Rotary positions of text tokens: (0, 0, 0, index) each, (M, 4)."""
    return np.concatenate([np.zeros((length, 3), int), np.arange(length)[:, None]], axis=1)


def rotary_table(positions_NA: np.ndarray, axes: Sequence[int], theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotary table: cos and sin of the angle of every channel pair, each float32 (N, E / 2).

    The head is cut into consecutive segments of `axes` channels; pair j of the segment of axis a turns by
    position_a * theta^(-2 j / axes_a).
    """
    angles = [positions_NA[:, a, None] * theta ** (-2.0 * np.arange(size // 2) / size) for a, size in enumerate(axes)]
    angle_NF = np.concatenate(angles, axis=1)
    return np.cos(angle_NF).astype(np.float32), np.sin(angle_NF).astype(np.float32)


def rotate(x_BHNE: jax.Array, table: tuple[np.ndarray, np.ndarray], by_product: bool = False) -> jax.Array:
    """Rotary embedding on interleaved channel pairs (2j, 2j + 1), in float32.

    Args:
      by_product: swap the channels of the pairs by a product with a matrix of 0 and +-1, exact in any dtype. A TPU,
        whose vectors are 128 channels, does that in one pass, and needs several to take the pairs apart.
    """
    cos, sin = table
    if by_product:
        E = x_BHNE.shape[-1]
        swap_EE = np.zeros((E, E), np.float32)
        even = np.arange(0, E, 2)
        swap_EE[even + 1, even], swap_EE[even, even + 1] = -1, 1  # (a, b) to (-b, a)
        precision = jax.lax.Precision.HIGHEST if x_BHNE.dtype == jnp.float32 else None
        swapped = jnp.einsum(
            "bhne,ef->bhnf",
            x_BHNE,
            jnp.asarray(swap_EE, x_BHNE.dtype),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        turned = x_BHNE.astype(jnp.float32) * np.repeat(cos, 2, axis=1) + swapped * np.repeat(sin, 2, axis=1)
        return turned.astype(x_BHNE.dtype)
    pairs = x_BHNE.astype(jnp.float32).reshape(*x_BHNE.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([cos * even - sin * odd, sin * even + cos * odd], axis=-1)
    return turned.reshape(x_BHNE.shape).astype(x_BHNE.dtype)


@jax.custom_vjp
def with_whole_gradient(x: Any) -> Any:
    """x; its gradient is written to memory before anything reads it.

    A TPU's compiler fuses what makes an operand into each product that reads it, and repeats it for every tile.
    """
    return x


with_whole_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def by_segment(values_BSC: jax.Array, segments_N: np.ndarray) -> jax.Array:
    """The value of each token's segment: (B, N, C), or (B, 1, C) where there is one segment only.

    Args:
      segments_N: int, which of the S values a token takes. Selecting them is fused into what reads them; values repeated
        per token would be written and read like activations, and so would their gradient.
    """
    result = values_BSC[:, :1]
    for s in range(1, values_BSC.shape[1]):
        result = jnp.where((segments_N == s)[:, None], values_BSC[:, s : s + 1], result)
    return result
