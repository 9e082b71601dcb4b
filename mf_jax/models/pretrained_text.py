"""What the frozen text encoders have in common: reading a published config.json, and attention with a bias.

Legend: B batch, L queries and keys, H query heads, K key/value heads, E head channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

HIDDEN = -0.5 * float(jnp.finfo(jnp.float32).max)  # the bias of a key that a query must not see
ABSENT = None


def read_config(path: str | Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
      ValueError: no such file, or no JSON object in it.
    """
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give the config.json of the checkpoint") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; give the config.json of the checkpoint")
    return values


def require(path: str | Path, values: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses a config that describes another network than the one implemented here.

    Args:
      accepted: for each key the values that are fine; with ABSENT among them the key may be missing or null.

    Raises:
      ValueError: names file, key, value and what is accepted.
    """
    for key, fine in accepted.items():
        if values.get(key) not in fine:
            raise ValueError(
                f"{path}: {key} is {json.dumps(values.get(key))}; only {' or '.join(json.dumps(v) for v in fine)} is "
                "supported"
            )


def sizes(path: str | Path, values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, int]:
    """The values of these keys.

    Raises:
      ValueError: one that is missing or not a positive integer; names file, key and value.
    """
    for key in keys:
        if key not in values:
            raise ValueError(f"{path} has no {key}; give the config.json of the checkpoint")
        if type(values[key]) is not int or values[key] < 1:
            raise ValueError(f"{path}: {key} is {json.dumps(values[key])}; it must be a positive integer")
    return {key: values[key] for key in keys}


def attention(q_BLHE: jax.Array, k_BLKE: jax.Array, v_BLKE: jax.Array, bias: jax.Array, scale: float) -> jax.Array:
    """softmax(scale q k + bias) v, H / K query heads on each key/value head; (B, L, H, E) in the dtype of v.

    Args:
      bias: float32 (B or 1, K or 1, L, L), queries before keys; HIDDEN where the key must not be seen. A query that
        sees no key at all takes the mean of the values.

    Softmax in float32. float32 inputs are multiplied as such, also where the device would by default use fewer bits.
    """
    B, L, H, E = q_BLHE.shape
    K = k_BLKE.shape[2]
    precision = jax.lax.Precision.HIGHEST if v_BLKE.dtype == jnp.float32 else None
    q_BLKGE = q_BLHE.reshape(B, L, K, H // K, E)
    logits = jnp.einsum("blkge,bmke->bkglm", q_BLKGE, k_BLKE, precision=precision, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * logits + bias[:, :, None], axis=-1).astype(v_BLKE.dtype)
    return jnp.einsum("bkglm,bmke->blkge", weights, v_BLKE, precision=precision).reshape(B, L, H, E)
