"""Frozen networks: pretrained networks that run before the model, outside the gradient, and are never trained.

The autoencoder that turns images into latents is one, a text encoder another. A network reads fields of the batch and
adds fields to it, which codecs and the model then read; so neither the training step nor a codec knows which networks
there are. Their weights are an argument of the step, read from published files at the start of every run: they are no
part of the train state or its checkpoints.

A network whose fields come with the data (data.precomputed) is no part of training. The features of the empty prompt,
which take the place of dropped captions, are made once, at the start of a run.
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
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # shape and dtype of fields of one example

EMPTY_PROMPT = "empty prompt"  # beside the parameters of the networks: its text features (M, D)


@dataclasses.dataclass(frozen=True)
class FrozenFlops:
    """FLOPs of a frozen network for one example.

    Attributes:
      encode: of the part that runs in every training step. decode: of the part that only samplers run; 0 for text
        encoders.
      source: where the sizes come from, for messages.
    """

    encode: int
    decode: int
    source: str


class FrozenNetwork(Protocol):
    """A frozen network: makes fields of a batch from other fields of it."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a batch that `encode` needs; it is not called where one is missing."""

    def makes(self, resolution: tuple[int, int]) -> Shapes:
        """The fields that `encode` adds, for one example of (H, W)."""

    def abstract(self, mesh: jax.sharding.Mesh | None) -> Any:
        """Shapes, dtypes and shardings of what `load` returns; no weights are read.

        Raises:
          ValueError: its files do not exist.
        """

    def as_published(self) -> FrozenNetwork | None:
        """The network with the published sizes, to compile without its files; None where they exist."""

    def load(self, mesh: jax.sharding.Mesh | None) -> Any:
        """Its parameters, read straight into their shardings on the mesh; on one device without a mesh.

        Raises:
          ValueError: files that do not exist, or do not fit the config.
        """

    def encode(self, params: Any, batch: Batch) -> Batch:
        """The fields that it adds to a batch."""

    def flops(self, resolution: tuple[int, int]) -> FrozenFlops:
        """Its FLOPs for one example of (H, W).

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
      inputs: of the module's call, arrays or jax.ShapeDtypeStruct.
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
