"""The Qwen3 language model as a frozen text encoder: the residual stream after some of its layers.

Block: x + attention(norm(x)), then x + down(silu(gate(h)) * up(h)) with h = norm(x). Grouped-query attention, causal,
RMS norm of every query and key head before the rotary embedding, which pairs channel j with channel j + E / 2.
FLUX.2 reads the states after layers 9, 18 and 27 of Qwen3-8B; what lies above the last one read is not built.

Legend: B batch, L tokens, W width, S states read, H query heads, K key/value heads, E head channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.attention import HIDDEN, attention
from mf_jax.models.layers import Dense, RMSNorm, rotary_table, with_axes
from mf_jax.models.text.config_json import ABSENT, read_config, require, sizes
from mf_jax.models.text.packed import visible

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_ACCEPTED = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "rms_norm_eps": (1e-6,),
    "attention_bias": (False, ABSENT),
    "rope_scaling": (ABSENT,),
    "use_sliding_window": (False, ABSENT),
    "quantization_config": (ABSENT,),
}


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """The sizes of a Qwen3 model, named as in its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; it must be even, the rotary embedding turns pairs")

    @classmethod
    def from_json(cls, path: str | Path) -> Qwen3Config:
        """The sizes in a published config.json.

        Raises:
          ValueError: not such a file, a value that is missing, out of range or not supported, by name.
        """
        values = read_config(path)
        rope = values.get("rope_parameters")  # where newer files keep it
        if isinstance(rope, dict):
            require(f"{path}: rope_parameters", rope, {"rope_type": ("default", ABSENT)})
            values = {"rope_theta": rope.get("rope_theta")} | values
        require(path, values, _ACCEPTED)
        theta = values.get("rope_theta")
        if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
            raise ValueError(f"{path}: rope_theta is {theta!r}; it must be a positive number")
        return cls(**sizes(path, values, _SIZES), rope_theta=float(theta))


# From its published config.json: for counting FLOPs and compiling where that file is not at hand.
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


def forward_flops(config: Qwen3Config, layers: int, tokens: int) -> int:
    """FLOPs of the first `layers` layers, 2 per multiply-add of the matrix products, padding included.

    Attention is causal, and computed, and counted, in full.
    """
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    weights = config.hidden_size * (2 * heads + 2 * kv_heads + 3 * config.intermediate_size)
    return 2 * layers * (tokens * weights + 2 * tokens**2 * heads)


def rotate_halves(x_BLHE: jax.Array, table: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Rotary embedding on channel pairs (j, j + E / 2), in float32; `table` as `layers.rotary_table` makes it."""
    cos, sin = (entry[:, None, :] for entry in table)
    first, second = jnp.split(x_BLHE.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLHE.dtype)


def causal_bias(mask_BL: jax.Array) -> jax.Array:
    """Bias of the logits, float32 (B, 1, L, L): a query sees those tokens up to itself that packed.visible says."""
    L = mask_BL.shape[1]
    seen_BLL = jnp.tril(jnp.ones((L, L), bool)) & visible(mask_BL)
    return jnp.where(seen_BLL, 0.0, HIDDEN)[:, None]


class Layer(nn.Module):
    """One scanned layer. Its output is also written to row `slot` of the states read, if there is such a row."""

    config: Qwen3Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], slot: jax.Array, bias: jax.Array, table: tuple
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        c = self.config
        x_BLW, states_SBLW = carry
        B, L, W = x_BLW.shape
        h = RMSNorm("norm", self.dtype, name="attention_norm")(x_BLW)

        def project(count: int, name: str, axis: str) -> jax.Array:
            y = Dense(count * c.head_dim, ("embed", axis), self.dtype, name=name)(h)
            return y.reshape(B, L, count, c.head_dim)

        q = RMSNorm("head", self.dtype, name="q_norm")(project(c.num_attention_heads, "q", "heads"))
        k = RMSNorm("head", self.dtype, name="k_norm")(project(c.num_key_value_heads, "k", "kv_heads"))
        v = project(c.num_key_value_heads, "v", "kv_heads")
        mixed = attention(rotate_halves(q, table), rotate_halves(k, table), v, bias=bias, scale=c.head_dim**-0.5)
        x_BLW = x_BLW + Dense(W, ("heads", "embed"), self.dtype, name="o")(mixed.reshape(B, L, -1))

        h = RMSNorm("norm", self.dtype, name="mlp_norm")(x_BLW)
        hidden = nn.silu(Dense(c.intermediate_size, ("embed", "mlp"), self.dtype, name="gate")(h))
        hidden = hidden * Dense(c.intermediate_size, ("embed", "mlp"), self.dtype, name="up")(h)
        x_BLW = x_BLW + Dense(W, ("mlp", "embed"), self.dtype, name="down")(hidden)
        x_BLW = nn.with_logical_constraint(x_BLW, ("batch", "sequence", "embed_activation"))
        return (x_BLW, states_SBLW.at[slot].set(x_BLW, mode="drop")), None


class Qwen3(nn.Module):
    """Qwen3 up to the last layer that is read.

    Attributes:
      config: of the published model; its layers above the last one in `layers` are not built.
      layers: the states to read, increasing; k is the residual stream after k layers, 0 the embedding.
      dtype: of the compute and the result. Norms, rotary embedding and softmax are float32.

    Raises:
      ValueError: `layers` do not increase, or the model does not have them.
    """

    config: Qwen3Config
    layers: tuple[int, ...] = (9, 18, 27)
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        last = self.config.num_hidden_layers
        if not self.layers or not set(self.layers) <= set(range(last + 1)) or max(self.layers) == 0:
            raise ValueError(f"layers is {self.layers}; the model has layers 1 to {last}, and 0 is its embedding")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers is {self.layers}; they must increase")
        super().__post_init__()

    @nn.compact
    def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """States of the chosen layers, concatenated on the channels: (B, L, S * W), state after state.

        Args:
          ids_BL: integer tokens, padded on the right.
          mask_BL: true (or 1) where a token is real; of several captions in a row, their numbers (packed.visible).
            The states of padding are computed, and returned, like others.
        """
        c = self.config
        B, L = ids_BL.shape
        embedding = self.param(
            "embedding",
            with_axes(nn.initializers.normal(1.0), ("vocabulary", "embed")),
            (c.vocab_size, c.hidden_size),
            jnp.float32,
        )
        x_BLW = nn.with_logical_constraint(
            embedding[ids_BL].astype(self.dtype), ("batch", "sequence", "embed_activation")
        )
        S = len(self.layers)
        slots = np.full(self.layers[-1] + 1, S)
        slots[list(self.layers)] = np.arange(S)
        states_SBLW = jnp.zeros((S, B, L, c.hidden_size), self.dtype).at[slots[0]].set(x_BLW, mode="drop")
        states_SBLW = nn.with_logical_constraint(states_SBLW, (None, "batch", "sequence", "embed_activation"))

        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.layers[-1],
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, name="layers")
        table = rotary_table(np.arange(L)[:, None], (c.head_dim,), c.rope_theta)
        (_, states_SBLW), _ = stack((x_BLW, states_SBLW), jnp.asarray(slots[1:]), causal_bias(mask_BL), table)
        return states_SBLW.transpose(1, 2, 0, 3).reshape(B, L, S * c.hidden_size)
