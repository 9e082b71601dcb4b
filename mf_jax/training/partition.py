"""Partition of a parameter tree into trained and untrained parameters, and its inverse.

Untrained parameters have no gradient, no optimizer state and no moving average. A tree is nested dicts; a path is its
keys joined by "/".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mf_jax.configurable import nearest


def partition(params: Mapping[str, Any], prefixes: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, untrained): the parameters at or under one of the path prefixes are untrained.

    Raises:
      ValueError: a prefix that matches no parameter, or no parameter left to train.
    """
    used: set[str] = set()

    def walk(node: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        trained: dict[str, Any] = {}
        untrained: dict[str, Any] = {}
        for key, value in node.items():
            full_path = f"{path}/{key}" if path else key
            if full_path in prefixes:
                used.add(full_path)
                untrained[key] = value
            elif isinstance(value, Mapping):
                below = walk(value, full_path)
                for side, part in zip((trained, untrained), below, strict=True):
                    if part:
                        side[key] = part
            else:
                trained[key] = value
        return trained, untrained

    trained, untrained = walk(params, "")
    for prefix in prefixes:
        if prefix not in used:
            raise ValueError(f"train.freeze names {prefix!r}; {nearest(prefix, _paths(params))}")
    if not trained:
        raise ValueError(f"train.freeze {tuple(prefixes)} leaves nothing to train")
    return trained, untrained


def combine(trained: Mapping[str, Any], untrained: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `partition`."""
    result = dict(trained)
    for key, value in untrained.items():
        both = key in result and isinstance(value, Mapping)
        result[key] = combine(result[key], value) if both else value
    return result


def _paths(node: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        full_path = f"{path}/{key}" if path else key
        found.append(full_path)
        if isinstance(value, Mapping):
            found += _paths(value, full_path)
    return found
