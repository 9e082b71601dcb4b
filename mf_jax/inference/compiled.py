"""The programs of a sampling call, compiled for a mesh: encoding, the sampler's loop, decoding.

The batch is split over the devices of the mesh; one that they do not divide is padded with copies of its last example.
What a program is compiled for are shapes, the conditions that are given and whether there is guidance. Noise keys,
schedules, guidance scales and everything encoded are arguments: other values compile nothing.

Where there are several processes, all call the methods alike.

Legend: B batch, N tokens, C channels per token, S steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mf_jax.diffusion.sampler import euler
from mf_jax.joint_model import JointModel, Params, Tokens
from mf_jax.modalities.base import Batch
from mf_jax.parallel import inference_mesh, sharding
from mf_jax.parallel.processes import ProcessGroup

Conditions = dict[str, tuple[jax.Array, Any]]  # by modality: clean tokens (B, N, C), and which entries were measured


class Program:
    """A jitted function whose processes wait for each other when they have compiled it.

    Compiling takes one of them longer than another, and collectives have short timeouts.
    """

    def __init__(self, jitted: Any, group: ProcessGroup):
        self._jitted, self._group = jitted, group
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        key = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            self._compiled[key] = self._jitted.lower(*arguments).compile()
            self._group.barrier()
        return self._compiled[key](*arguments)


class CompiledSampler:
    """A model with its weights, on a mesh.

    Args:
      params, frozen_params: of the model and of its frozen networks by name, on the mesh.
      rules: MeshConfig.rules of the mesh. t_floor: as of `euler`.
      group: the processes of the mesh.
    """

    def __init__(
        self,
        model: JointModel,
        params: Params,
        frozen_params: Mapping[str, Any],
        mesh: jax.sharding.Mesh,
        rules: Mapping[str, Any],
        t_floor: float,
        group: ProcessGroup,
    ):
        self.model, self.params, self.frozen_params, self.mesh = model, params, frozen_params, mesh
        self._rules, self._t_floor, self._group = rules, t_floor, group
        with self._scope():
            self._split = sharding.batch_sharding(mesh)
            self._parts = inference_mesh.batch_parts(mesh)
        self._features = Program(jax.jit(self._text_features), group)
        self._tokens = Program(jax.jit(self._condition_tokens, out_shardings=self._split), group)
        self._run = Program(jax.jit(self._sampled, out_shardings=self._split), group)
        self._decode = Program(jax.jit(model.decode, out_shardings=self._split), group)

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        with sharding.rules(self._rules), sharding.scope(self.mesh):
            yield

    def padded(self, count: int) -> int:
        """The size of the batch that `count` examples are padded to."""
        return -(-count // self._parts) * self._parts

    def rows(self, count: int) -> np.ndarray:
        """Indices of the examples of a batch that this process's devices hold: of conditions it reads no others."""
        with self._scope():
            rows = sharding.batch_rows(self.mesh, self.padded(count))
        return rows[rows < count]

    def processes(self, count: int) -> np.ndarray:
        """For each example of a batch the process that holds it, int (count,); the first where several do."""
        with self._scope():
            return inference_mesh.row_processes(self.mesh, self.padded(count))[:count]

    def text(self, fields: Mapping[str, np.ndarray], count: int) -> Batch:
        """What the model reads of a text, encoded: of one that all examples share (1, ...), or of `count`."""
        with self._scope():
            if count > 1:
                given = {name: self._put(value, count) for name, value in fields.items()}
            else:
                given = {name: inference_mesh.put_whole(value, self.mesh) for name, value in fields.items()}
            return self._features(self.params, self.frozen_params, given)

    def conditions(self, fields: Mapping[str, Mapping[str, np.ndarray]], count: int) -> Conditions:
        """The conditions of `count` examples, from batch fields by modality with a leading axis of count or 1."""
        with self._scope():
            placed = {name: {key: self._put(v, count) for key, v in of_one.items()} for name, of_one in fields.items()}
            return self._tokens(self.frozen_params, placed)

    def sample(
        self,
        noise_keys: np.ndarray,
        schedules: Mapping[str, np.ndarray],
        conditions: Conditions,
        text: Batch,
        null_text: Batch | None,
        guidance: Mapping[str, float],
    ) -> Tokens:
        """Clean tokens x_BNC of all modalities, of the padded batch.

        Args:
          noise_keys: key data (count, ...) of every example's noise.
          schedules: float32 (S + 1,) by modality. conditions, text, null_text: as the methods above return them.
          guidance: scales by modality; empty for none, and null_text is not needed then.
        """
        scales = {name: np.float32(scale) for name, scale in guidance.items()}
        with self._scope():
            keys = self._put(noise_keys, len(noise_keys))
            return self._run(self.params, keys, dict(schedules), conditions, text, null_text, scales)

    def decode(self, tokens: Tokens, count: int) -> dict[str, np.ndarray]:
        """The modalities' own arrays (count, ...), in every process."""
        with self._scope():
            decoded = jax.block_until_ready(self._decode(self.frozen_params, tokens))
            self._group.barrier()  # a process waits for another's collective for half a minute only
            return {name: _gathered(value)[:count] for name, value in decoded.items()}

    def _put(self, value: np.ndarray, count: int) -> jax.Array:
        return inference_mesh.put_rows(value, self.padded(count), self.mesh)

    def _text_features(self, params: Params, frozen_params: Mapping[str, Any], fields: Batch) -> Batch:
        fields = self.model.with_text_features(params, self.model.with_frozen_features(frozen_params, fields))
        return {name: value for name, value in fields.items() if name != "text_ids"}

    def _condition_tokens(self, frozen_params: Mapping[str, Any], fields: Mapping[str, Batch]) -> Conditions:
        tokens = {}
        for name, of_one in fields.items():
            codec, batch = self.model.modalities[name].codec, self.model.with_frozen_features(frozen_params, of_one)
            valid_BNC = codec.valid(batch)
            tokens[name] = jnp.where(valid_BNC, codec.encode(batch), 0.0), valid_BNC
        return tokens

    def _sampled(
        self,
        params: Params,
        noise_keys: jax.Array,
        schedules: Tokens,
        conditions: Conditions,
        text: Batch,
        null_text: Batch | None,
        guidance: Tokens,
    ) -> Tokens:
        batch = len(noise_keys)

        def of_each(value: jax.Array) -> jax.Array:
            whole = jnp.broadcast_to(value, (batch, *value.shape[1:]))
            return jax.lax.with_sharding_constraint(whole, self._split)

        noise = {}
        key_B = jax.random.wrap_key_data(noise_keys)
        for i, (name, (rows, columns)) in enumerate(self.model.grids.items()):
            shape = (rows * columns, self.model.modalities[name].codec.channels)
            noise[name] = jax.vmap(lambda k, i=i, s=shape: jax.random.normal(jax.random.fold_in(k, i), s))(key_B)
        return euler(
            functools.partial(self.model.predict, params),
            noise,
            schedules,
            {name: modality.prediction for name, modality in self.model.modalities.items()},
            conditions,
            jax.tree.map(of_each, text),
            jax.tree.map(of_each, null_text),
            guidance,
            self._t_floor,
        )


def _gathered(value: jax.Array) -> np.ndarray:
    """The whole array on the host, also where devices of other processes hold parts of it."""
    return np.asarray(value if value.is_fully_addressable else multihost_utils.process_allgather(value, tiled=True))
