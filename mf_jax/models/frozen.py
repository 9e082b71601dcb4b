"""Frozen networks: pretrained, never trained, run before the model, outside the gradient.

An autoencoder that turns images into latents is one, a text encoder another. A network reads fields of the batch and
adds fields to it, which codecs and the model then read; so neither the training step nor a codec knows which networks
there are. Their weights are an argument of the step, read from published files at the start of every run: they are no
part of the train state or its checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mf_jax.parallel import sharding

Batch = dict[str, jax.Array]


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


class FrozenNetwork(Protocol):
    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of a batch without which it has nothing to do."""

    def abstract(self, mesh: jax.sharding.Mesh | None) -> Any:
        """Shapes, dtypes and shardings of what `load` returns; no weights are read.

        Raises:
          ValueError: files that are not there.
        """

    def as_published(self) -> FrozenNetwork | None:
        """Where its files are not there: itself at the published network's sizes, to be compiled but not loaded."""

    def load(self, mesh: jax.sharding.Mesh | None) -> Any:
        """Its parameters, each made where it belongs; on one device without a mesh.

        Raises:
          ValueError: files that are not there or do not fit.
        """

    def encode(self, params: Any, batch: Batch) -> Batch:
        """The fields that it adds to a batch."""

    def flops(self, resolution: tuple[int, int]) -> FrozenFlops:
        """What it costs for an example of (H, W).

        Raises:
          ValueError: its sizes are not known.
        """


@runtime_checkable
class FrozenAutoencoder(FrozenNetwork, Protocol):
    """The frozen network of a modality: `encode` makes what its codec reads, `decode` is the way back."""

    def decode(self, params: Any, value: jax.Array) -> jax.Array:
        """What the codec decodes, as the modality's own array: latents to pixels."""


def abstract(module: nn.Module, mesh: jax.sharding.Mesh | None, dtype: jnp.dtype, *inputs: Any) -> Any:
    """Shapes and shardings of a module's parameters, all of one dtype; on one device without a mesh.

    Args:
      inputs: to call it with, arrays or jax.ShapeDtypeStruct.
    """
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in inputs)))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    plain = nn.unbox(boxed["params"])
    layout = jax.tree.map(lambda _: single, plain) if mesh is None else sharding.shardings(boxed["params"], mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), plain, layout)


def load(networks: Mapping[str, FrozenNetwork], mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """Parameters of every network by name."""
    return {name: network.load(mesh) for name, network in networks.items()}


def with_frozen_features(
    networks: Mapping[str, FrozenNetwork], frozen_params: Mapping[str, Any], batch: Batch
) -> Batch:
    """The batch, and the fields that the networks add to it; a network whose inputs it lacks is skipped."""
    for name, network in networks.items():
        if all(field in batch for field in network.reads):
            batch = batch | network.encode(frozen_params[name], batch)
    return batch
