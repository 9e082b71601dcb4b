"""Reading the config.json of a published text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Checks that a config describes the network that is implemented here.

    Args:
      accepted: the supported values of each key; with ABSENT among them the key may be missing or null.

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
    """The values of these keys, positive integers.

    Raises:
      ValueError: one that is missing or not a positive integer; names file, key and value.
    """
    for key in keys:
        if key not in values:
            raise ValueError(f"{path} has no {key}; give the config.json of the checkpoint")
        if type(values[key]) is not int or values[key] < 1:
            raise ValueError(f"{path}: {key} is {json.dumps(values[key])}; it must be a positive integer")
    return {key: values[key] for key in keys}
