"""Parameters that are trained and parameters that are not: splitting a tree in two, and putting it together again.

Frozen parameters have no gradient, no optimizer state and no moving average. A tree is nested dicts; a path is its keys
joined by "/".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mf_jax.configurable import nearest


def split(params: Mapping[str, Any], prefixes: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): what lies at or under one of the path prefixes is frozen.

    Raises:
      ValueError: a prefix under which there is nothing, or nothing left to train.
    """
    used: set[str] = set()

    def walk(node: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        trained: dict[str, Any] = {}
        frozen: dict[str, Any] = {}
        for key, value in node.items():
            here = f"{path}/{key}" if path else key
            if here in prefixes:
                used.add(here)
                frozen[key] = value
            elif isinstance(value, Mapping):
                below = walk(value, here)
                for side, part in zip((trained, frozen), below, strict=True):
                    if part:
                        side[key] = part
            else:
                trained[key] = value
        return trained, frozen

    trained, frozen = walk(params, "")
    for prefix in prefixes:
        if prefix not in used:
            raise ValueError(f"train.freeze names {prefix!r}; {nearest(prefix, _paths(params))}")
    if not trained:
        raise ValueError(f"train.freeze {tuple(prefixes)} leaves nothing to train")
    return trained, frozen


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`."""
    result = dict(trained)
    for key, value in frozen.items():
        both = key in result and isinstance(value, Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def _paths(node: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        here = f"{path}/{key}" if path else key
        found.append(here)
        if isinstance(value, Mapping):
            found += _paths(value, here)
    return found
