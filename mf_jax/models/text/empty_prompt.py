"""The empty prompt of a frozen text encoder: its features, which take the place of dropped captions.

Legend: B batch, M text tokens, D feature channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from mf_jax.models.frozen import Batch, FrozenNetwork
from mf_jax.models.text.published import FrozenText
from mf_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class EmptyPrompt:
    """The empty prompt of a model.

    Attributes:
      text: of the config. network: the encoder; None where features come with the data, these from a file then.
      masked: no token attends to padding, so that the features are those of the real tokens alone, else of all M.
    """

    text: FrozenText
    network: FrozenNetwork | None
    masked: bool

    @property
    def tokens(self) -> int:
        """How many tokens the features have.

        Raises:
          ValueError: a file that says it is missing or wrong; fewer tokens than a model reads that has no mask.
        """
        if self.network is not None:
            return int(self.text.tokenizer().fields("")["text_mask"].sum()) if self.masked else self.text.tokens
        tokens = len(self.text.read_empty_features())
        if not self.masked and tokens != self.text.tokens:
            raise ValueError(
                f"text.empty_features has {tokens} tokens; this model attends to padding and reads {self.text.tokens}"
            )
        return tokens

    def features(self, params: Any, mesh: jax.sharding.Mesh) -> jax.Array:
        """The features, (tokens, D), whole on every device.

        Args:
          params: of the encoder; not read where features come with the data.

        Raises:
          ValueError: as `tokens`; a length of the transformer's text that does not hold them.
        """
        place, tokens = sharding.replicated(mesh), self.tokens
        if self.text.lengths and min(self.text.lengths) < tokens:
            raise ValueError(f"text.lengths is {self.text.lengths}; the empty prompt alone has {tokens} tokens")
        if self.network is None:
            features = self.text.read_empty_features()
            return jax.make_array_from_callback(features.shape, place, lambda index: features[index])
        ids = self.text.tokenizer().fields("")
        encode = self.network.encode

        def of_prompt(params: Any) -> jax.Array:
            batch = {name: jnp.asarray(value)[None, :tokens] for name, value in ids.items()}
            return encode(params, batch)["text_features"][0]

        return cast(jax.Array, jax.jit(of_prompt, out_shardings=place)(params))


def in_place_of(dropped_B: jax.Array, batch: Batch, empty_MD: jax.Array) -> Batch:
    """The batch with the empty prompt's features, and their mask where there is one, for the examples dropped_B."""
    features_BMD = batch["text_features"]
    tokens, M = empty_MD.shape[0], features_BMD.shape[1]
    empty_MD = jnp.pad(empty_MD, ((0, M - tokens), (0, 0))).astype(features_BMD.dtype)
    text = {"text_features": jnp.where(dropped_B[:, None, None], empty_MD, features_BMD)}
    if "text_mask" in batch:
        text["text_mask"] = jnp.where(dropped_B[:, None], jnp.arange(M) < tokens, batch["text_mask"])
    return batch | text
