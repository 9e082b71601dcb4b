"""FLUX.2, and FLUX.2 with further modalities: the transformer of the released Modality Forcing model.

A stack of double-stream blocks, in which text and every modality have weights of their own and attend to each other, a
stack of single-stream blocks over the joined sequence [text, modality 1, modality 2, ...], and for some modalities a
decoder: single-stream blocks over their own tokens alone. Called with the first modality alone it is the text-to-image
FLUX.2, with the same parameters. All modulation heads are shared by the blocks of a stack; text follows the noise level
of the first modality. No biases, LayerNorm without parameters; full attention without a mask, padded text included.

Legend: B batch, M text tokens, D text channels, N tokens of one modality, C its channels, T all tokens, W width,
H heads, E head channels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models.flux2_blocks import DoubleBlock, SingleBlock, modulated
from mf_jax.models.layers import Dense, TimeEmbedder, positions, rotary_table, text_positions
from mf_jax.models.remat import rematerialised
from mf_jax.models.stream import Stream

TEXT = "text"


class Flux2(nn.Module):
    """The FLUX.2 transformer with a stream per modality.

    Attributes:
      streams: the modalities in the order of their tokens; a call may pass any subset that has the first.
      double_blocks, single_blocks: lengths of the two stacks.
      axes: rotary channels for modality, row, column and text index; they sum to the channels of a head.
      cross_mixing: every modality's conditioning also sees the noise levels of the others, through gates that start at
        zero.
      guidance_embedding: the first modality's conditioning takes a guidance scale.
      attention: kernel, see models/attention.py. remat: preset, see models/remat.py.
    """

    streams: tuple[Stream, ...]
    width: int
    heads: int
    double_blocks: int
    single_blocks: int
    axes: tuple[int, ...] = (32, 32, 32, 32)
    mlp_ratio: float = 3.0
    theta: float = 2000.0
    cross_mixing: bool = True
    guidance_embedding: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x: dict[str, jax.Array],
        t: dict[str, jax.Array],
        grids: dict[str, tuple[int, int]],
        text_BMD: jax.Array,
        guidance_B: jax.Array | None = None,
        text_valid_BM: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Raw outputs (velocity or clean tokens, as each modality is trained), float32 (B, N, C) by modality.

        Args:
          x: noised tokens (B, N, C) of the modalities present. t: their noise levels (B,).
          grids: their (rows, columns).
          text_BMD: text features. text_valid_BM: not read, the released model attends to padding.
          guidance_B: guidance scale, for models with a guidance embedding; without it the term is dropped.

        Raises:
          ValueError: a modality that the model does not have, or the first one missing; a guidance scale without an
            embedding for it.
        """
        known = [stream.name for stream in self.streams]
        if known[0] not in x or any(name not in known for name in x):
            raise ValueError(
                f"the model has the modalities {known} and needs {known[0]!r}; it was called with {list(x)}"
            )
        if guidance_B is not None and not self.guidance_embedding:
            raise ValueError("a guidance scale was given to a model without guidance embedding")
        streams = [stream for stream in self.streams if stream.name in x]
        names = [stream.name for stream in streams]
        vectors = self._conditioning({name: t[name] for name in names}, guidance_B)
        of_first = vectors[names[0]]

        B, M, _ = text_BMD.shape
        h = {TEXT: Dense(self.width, ("text", "embed"), self.dtype, name="text_in")(text_BMD)}
        tables = {TEXT: rotary_table(text_positions(M), self.axes, self.theta)}
        for s in streams:
            h[s.name] = Dense(self.width, ("channels", "embed"), self.dtype, name=f"{s.name}_in")(x[s.name])
            tables[s.name] = rotary_table(positions(*grids[s.name], s.position), self.axes, self.theta)
        table = tuple(np.concatenate([entry[i] for entry in tables.values()]) for i in range(2))

        double = {TEXT: self._modulation(of_first, 6, "text_double_modulation")}
        double |= {name: self._modulation(vectors[name], 6, f"{name}_double_modulation") for name in names}
        order = (TEXT, *names)
        h = self._stack(DoubleBlock, self.double_blocks, "double", h, double, table, order=order)

        lengths = [h[name].shape[1] for name in order]
        single = [self._modulation(vectors[name], 3, f"{name}_single_modulation") for name in names]
        segments_T = np.repeat([0, *range(len(single))], lengths)
        modulation_BSC = jnp.concatenate(single, axis=1)
        joined = jnp.concatenate([h[name] for name in order], axis=1)
        joined = self._stack(SingleBlock, self.single_blocks, "single", joined, modulation_BSC, segments_T, table)

        outputs = {}
        for s, own in zip(streams, jnp.split(joined, np.cumsum(lengths)[:-1], axis=1)[1:], strict=True):
            if s.decoder_blocks:
                modulation = self._modulation(vectors[s.name], 3, f"{s.name}_decoder_modulation")
                name = f"{s.name}_decoder"
                segments_N = np.zeros(own.shape[1], int)
                own = self._stack(SingleBlock, s.decoder_blocks, name, own, modulation, segments_N, tables[s.name])
            shift, scale = jnp.split(self._modulation(vectors[s.name], 2, f"{s.name}_out_modulation"), 2, axis=-1)
            own = modulated(own, shift, scale, jnp.float32)
            head = Dense(s.channels, ("embed", "channels"), jnp.float32, nn.initializers.zeros, name=f"{s.name}_out")
            outputs[s.name] = head(own)
        return outputs

    def _conditioning(self, t: dict[str, jax.Array], guidance_B: jax.Array | None) -> dict[str, jax.Array]:
        """One vector per modality from its own noise level, plus what guidance and the other levels add."""
        vectors = {name: TimeEmbedder(self.width, self.dtype, name=f"time_{name}")(t_B) for name, t_B in t.items()}
        first = next(iter(t))
        if self.guidance_embedding and (guidance_B is not None or self.is_initializing()):
            scale_B = jnp.ones_like(t[first]) if guidance_B is None else guidance_B
            vectors[first] = vectors[first] + TimeEmbedder(self.width, self.dtype, name="guidance")(scale_B)
        mixed = dict(vectors)
        for name in t if self.cross_mixing else ():
            for other in t:
                if other == name:
                    continue
                gate = self.param(f"gate_{other}_to_{name}", nn.initializers.zeros, (1,), jnp.float32)
                cross = TimeEmbedder(self.width, self.dtype, name=f"time_{other}_to_{name}")(t[other])
                mixed[name] = mixed[name] + gate.astype(self.dtype) * cross
        for name, vector_BW in mixed.items():
            self.sow("intermediates", f"vector_{name}", vector_BW)
        return mixed

    def _modulation(self, vector_BW: jax.Array, chunks: int, name: str) -> jax.Array:
        """(B, 1, chunks * W), zero at initialisation: every block starts as the identity."""
        dense = Dense(chunks * self.width, ("embed", "modulation"), self.dtype, nn.initializers.zeros, name=name)
        return dense(nn.silu(vector_BW))[:, None, :]

    def _stack(self, block: type[nn.Module], blocks: int, name: str, x: Any, *inputs: Any, **fields: Any) -> Any:
        """x after a stack of blocks.

        Args:
          inputs: what every block takes besides x.
          fields: further fields of the block, besides sizes, dtype and kernel.
        """
        stack = nn.scan(
            rematerialised(block, self.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        sizes = {"width": self.width, "heads": self.heads, "mlp_width": int(self.width * self.mlp_ratio)}
        kind = {"dtype": self.dtype, "attention": self.attention}
        return stack(**sizes, **kind, name=name, **fields)(x, *inputs)[0]
