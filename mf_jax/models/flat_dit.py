"""The flat-token diffusion transformer of the from-scratch family (section 4 of the paper).

One sequence [text, modality 1, modality 2, ...] through one trunk; every token is modulated by the noise level of its
own modality, text by that of the first one present. Block: attention and gated MLP in parallel between a pre- and a
post-RMSNorm, grouped-query attention, rotary positions on the axes (modality, row, column, text index). The modulation
is shared by all blocks, plus a bias per block. A modality may end in blocks over its own tokens alone (the paper's
depth decoder). Heads, activation and the way that noise levels enter are not in the paper; they are FLUX.2's here.

Legend: B batch, M text tokens, D text channels, N tokens of one modality, C its channels, T all tokens, W width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.attention import heads_first
from mf_jax.models.layers import (
    Dense,
    RMSNorm,
    TimeEmbedder,
    by_segment,
    positions,
    rotary_table,
    rotate,
    text_positions,
    with_axes,
    with_whole_gradient,
)
from mf_jax.models.remat import product, projected, rematerialised
from mf_jax.models.stream import Stream

ROPE_THETA = 2000.0


def rope_axes(head_dim: int) -> tuple[int, int, int, int]:
    """Rotary channels of the axes (modality, row, column, text index): four equal, even segments of a head."""
    return (head_dim // 4,) * 4


class Block(nn.Module):
    """x + gate * post(attention(h) + mlp(h)), h = (1 + scale) * pre(x) + shift; modulation by segment."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(
        self,
        x_BTW: jax.Array,
        modulation_BSC: jax.Array,
        segments_T: np.ndarray,
        table: tuple,
        valid_BT: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        B, T, W = x_BTW.shape
        bias = self.param("modulation_bias", with_axes(nn.initializers.zeros, ("modulation",)), (3 * W,))
        chunks = jnp.split(modulation_BSC + bias.astype(self.dtype), 3, axis=-1)
        shift, scale, gate = (by_segment(chunk, segments_T) for chunk in chunks)
        tpu = self.attention.startswith("splash")
        h = RMSNorm("norm", self.dtype, name="pre_norm")(x_BTW) * (1 + scale) + shift
        if tpu:
            h = with_whole_gradient(h)

        def project(count: int, name: str, axis: str) -> jax.Array:
            dense = Dense(count * self.head_dim, ("embed", axis), self.dtype, name=name)
            return product(dense(h, heads=count))

        q = RMSNorm("head", self.dtype, name="q_norm")(project(self.heads, "q", "heads"))
        k = RMSNorm("head", self.dtype, name="k_norm")(project(self.kv_heads, "k", "kv_heads"))
        v = project(self.kv_heads, "v", "kv_heads")
        q, k = (rotate(x, table, by_product=tpu) for x in (q, k))
        mixed_BHTE = heads_first(q, k, v, self.attention, valid_BT)
        mixed = Dense(W, ("heads", "embed"), self.dtype, name="attention_out")(mixed_BHTE, heads_in=True)

        gate_BTF = product(Dense(self.mlp_width, ("embed", "mlp"), self.dtype, name="mlp_gate")(h))
        up_BTF = product(Dense(self.mlp_width, ("embed", "mlp"), self.dtype, name="mlp_up")(h))
        if tpu:
            gate_BTF, up_BTF = with_whole_gradient((gate_BTF, up_BTF))
        hidden = nn.silu(gate_BTF) * up_BTF
        mixed = projected(mixed + Dense(W, ("mlp", "embed"), self.dtype, name="mlp_down")(hidden))

        x_BTW = x_BTW + gate * RMSNorm("norm", self.dtype, name="post_norm")(mixed)
        return nn.with_logical_constraint(x_BTW, ("batch", "sequence", "embed_activation")), None


class FlatDiT(nn.Module):
    """The flat-token transformer.

    Attributes:
      streams: the modalities, in the order of their tokens; a call may pass any subset of them.
      width, layers, heads, kv_heads, mlp_ratio: of the trunk; the decoder blocks have the same shape.
      attention: kernel, see models/attention.py. remat: preset, see models/remat.py.
    """

    streams: tuple[Stream, ...]
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_ratio: float = 3.0
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"

    def _stack(self, blocks: int, name: str) -> nn.Module:
        return nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.heads,
            self.kv_heads,
            self.width // self.heads,
            int(self.width * self.mlp_ratio),
            self.dtype,
            self.attention,
            name=name,
        )

    def _conditioning(self, t: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """One vector per modality from its own noise level, plus the others' through gates that start at zero."""
        vectors = {name: TimeEmbedder(self.width, self.dtype, name=f"time_{name}")(t_B) for name, t_B in t.items()}
        mixed = dict(vectors)
        for name in t:
            for other in t:
                if other == name:
                    continue
                gate = self.param(f"gate_{other}_to_{name}", nn.initializers.zeros, (1,), jnp.float32)
                cross = TimeEmbedder(self.width, self.dtype, name=f"time_{other}_to_{name}")(t[other])
                mixed[name] = mixed[name] + gate.astype(self.dtype) * cross
        return mixed

    def _modulation(self, vector_BW: jax.Array, chunks: int, name: str) -> jax.Array:
        """(B, 1, chunks * W), zero at initialisation: every block starts as the identity."""
        dense = Dense(chunks * self.width, ("embed", "modulation"), self.dtype, nn.initializers.zeros, name=name)
        return dense(nn.silu(vector_BW))[:, None, :]

    @nn.compact
    def __call__(
        self,
        x: dict[str, jax.Array],
        t: dict[str, jax.Array],
        grids: dict[str, tuple[int, int]],
        text_BMD: jax.Array,
        text_valid_BM: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Raw outputs (velocity or clean tokens, as each modality is trained), float32 (B, N, C) by modality.

        Args:
          x: noised tokens (B, N, C) of the modalities present. t: their noise levels (B,).
          grids: their (rows, columns).
          text_BMD: text features. text_valid_BM: which of them are not padding (nothing attends to padding); by default
            all.

        Raises:
          ValueError: a modality that the model does not have, or none at all.
        """
        known = [stream.name for stream in self.streams]
        if not x or any(name not in known for name in x):
            raise ValueError(f"the model has the modalities {known}; it was called with {list(x)}")
        streams = [stream for stream in self.streams if stream.name in x]
        axes = rope_axes(self.width // self.heads)
        vectors = self._conditioning({stream.name: t[stream.name] for stream in streams})

        B, M, _ = text_BMD.shape
        tokens = [Dense(self.width, ("text", "embed"), self.dtype, name="text_in")(text_BMD)]
        tables = [rotary_table(text_positions(M), axes, ROPE_THETA)]
        lengths = [M]
        modulations = []
        for s in streams:
            tokens.append(Dense(self.width, ("channels", "embed"), self.dtype, name=f"{s.name}_in")(x[s.name]))
            tables.append(rotary_table(positions(*grids[s.name], s.position), axes, ROPE_THETA))
            lengths.append(x[s.name].shape[1])
            modulations.append(self._modulation(vectors[s.name], 3, f"{s.name}_modulation"))
        modulation_BSC = jnp.concatenate(modulations, axis=1)
        segments_T = np.repeat([0, *range(len(streams))], lengths)
        table = tuple(np.concatenate([entry[i] for entry in tables]) for i in range(2))
        h = nn.with_logical_constraint(jnp.concatenate(tokens, axis=1), ("batch", "sequence", "embed_activation"))
        valid_BT = None
        if text_valid_BM is not None:
            valid_BT = jnp.pad(text_valid_BM, ((0, 0), (0, sum(lengths) - M)), constant_values=True)
        h, _ = self._stack(self.layers, "trunk")(h, modulation_BSC, segments_T, table, valid_BT)

        outputs = {}
        for s, own, own_table in zip(
            streams, jnp.split(h, np.cumsum(lengths)[:-1], axis=1)[1:], tables[1:], strict=True
        ):
            if s.decoder_blocks:
                modulation = self._modulation(vectors[s.name], 3, f"{s.name}_decoder_modulation")
                own, _ = self._stack(s.decoder_blocks, f"{s.name}_decoder")(
                    own, modulation, np.zeros(own.shape[1], int), own_table, None
                )
            shift, scale = jnp.split(self._modulation(vectors[s.name], 2, f"{s.name}_out_modulation"), 2, axis=-1)
            own = RMSNorm("norm", self.dtype, name=f"{s.name}_out_norm")(own) * (1 + scale) + shift
            head = Dense(s.channels, ("embed", "channels"), jnp.float32, nn.initializers.zeros, name=f"{s.name}_out")
            outputs[s.name] = head(own)
        return outputs
