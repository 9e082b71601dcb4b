"""The encoder of UMT5, a multilingual T5, as a frozen text encoder.

Block: x + attention(norm(x)), then x + wo(gelu(wi_0(h)) * wi_1(h)) with h = norm(x). The logits of the attention are
not scaled; position enters through them alone, as a learned bias per head and bucket of distances, in every layer.

Legend: B batch, L tokens, W width, H heads, E head channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.attention import HIDDEN, attention
from mf_jax.models.layers import Dense, RMSNorm, with_axes
from mf_jax.models.text.config_json import ABSENT, read_config, require, sizes
from mf_jax.models.text.packed import visible

_ACCEPTED = {
    "model_type": ("umt5",),
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new", ABSENT),
    "layer_norm_epsilon": (1e-6,),
    "quantization_config": (ABSENT,),
}


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """The sizes of a UMT5 encoder, named as in its config.json."""

    vocab_size: int
    d_model: int
    d_ff: int
    d_kv: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int

    def __post_init__(self) -> None:
        exact = self.relative_attention_num_buckets // 4
        if self.relative_attention_num_buckets % 4 or self.relative_attention_max_distance <= exact:
            raise ValueError(
                f"relative_attention_num_buckets {self.relative_attention_num_buckets} must be a multiple of 4, and "
                f"relative_attention_max_distance {self.relative_attention_max_distance} above a quarter of it"
            )

    @classmethod
    def from_json(cls, path: str | Path) -> UMT5Config:
        """The sizes in a published config.json; what it says of the decoder is not read.

        Raises:
          ValueError: not such a file, a value that is missing, out of range or not supported, by name.
        """
        values = read_config(path)
        require(path, values, _ACCEPTED)
        return cls(**sizes(path, values, [field.name for field in dataclasses.fields(cls)]))


# From its published config.json: for counting FLOPs and compiling where that file is not at hand.
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


def forward_flops(config: UMT5Config, tokens: int) -> int:
    """FLOPs of the encoder, 2 per multiply-add of the matrix products, padding included."""
    heads = config.num_heads * config.d_kv
    weights = config.d_model * (4 * heads + 3 * config.d_ff)
    return 2 * config.num_layers * (tokens * weights + 2 * tokens**2 * heads)


def position_buckets(positions: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each relative position, key minus query.

    Half of the buckets are for keys after the query. Of each half, one half counts single steps, the other grows
    geometrically up to max_distance, and its last bucket holds everything beyond. float32, as it was in training.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(positions)
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(distance < exact, distance, far) + half * (positions > 0)


class Layer(nn.Module):
    """One scanned layer. hidden_B1LL is the bias of the logits that hides padding and other captions."""

    config: UMT5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLW: jax.Array, hidden_B1LL: jax.Array, buckets_LL: np.ndarray) -> tuple[jax.Array, None]:
        c = self.config
        B, L, W = x_BLW.shape
        h = RMSNorm("norm", self.dtype, name="attention_norm")(x_BLW)
        q, k, v = (
            Dense(c.num_heads * c.d_kv, ("embed", "heads"), self.dtype, name=name)(h).reshape(B, L, c.num_heads, c.d_kv)
            for name in ("q", "k", "v")
        )
        bias = self.param(
            "position_bias",
            with_axes(nn.initializers.normal(1.0), (None, "heads")),
            (c.relative_attention_num_buckets, c.num_heads),
            jnp.float32,
        )
        bias_HLL = bias.astype(jnp.float32)[buckets_LL].transpose(2, 0, 1)
        mixed = attention(q, k, v, bias=bias_HLL[None] + hidden_B1LL, scale=1.0)
        x_BLW = x_BLW + Dense(W, ("heads", "embed"), self.dtype, name="o")(mixed.reshape(B, L, -1))

        h = RMSNorm("norm", self.dtype, name="mlp_norm")(x_BLW)
        hidden = nn.gelu(Dense(c.d_ff, ("embed", "mlp"), self.dtype, name="wi_0")(h), approximate=True)
        hidden = hidden * Dense(c.d_ff, ("embed", "mlp"), self.dtype, name="wi_1")(h)
        x_BLW = x_BLW + Dense(W, ("mlp", "embed"), self.dtype, name="wo")(hidden)
        return nn.with_logical_constraint(x_BLW, ("batch", "sequence", "embed_activation")), None


class UMT5Encoder(nn.Module):
    """The encoder of UMT5.

    Attributes:
      config: of the published model.
      dtype: of the compute and the result. Norms and softmax are float32.
    """

    config: UMT5Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """Features (B, L, W), zero at padding.

        Args:
          ids_BL: integer tokens.
          mask_BL: true (or 1) where a token is real; of several captions in a row, their numbers (packed.visible).
        """
        c = self.config
        hidden_B1LL = jnp.where(visible(mask_BL), 0.0, HIDDEN)[:, None]
        embedding = self.param(
            "embedding",
            with_axes(nn.initializers.normal(1.0), ("vocabulary", "embed")),
            (c.vocab_size, c.d_model),
            jnp.float32,
        )
        x_BLW = nn.with_logical_constraint(
            embedding[ids_BL].astype(self.dtype), ("batch", "sequence", "embed_activation")
        )
        index_L = np.arange(ids_BL.shape[1])
        buckets_LL = position_buckets(
            index_L[None, :] - index_L[:, None],
            c.relative_attention_num_buckets,
            c.relative_attention_max_distance,
        )
        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, name="layers")
        x_BLW, _ = stack(x_BLW, hidden_B1LL, buckets_LL)
        return jnp.where(mask_BL[..., None] > 0, RMSNorm("norm", self.dtype, name="final_norm")(x_BLW), 0)
