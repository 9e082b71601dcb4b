"""From a section of the config to the dataclass that it configures. An unknown key is an error that names the nearest.

No jax here: the data workers import it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: the closest known word, or the list of all."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"


def check_at_least(where: str, settings: Any, **least: float) -> None:
    """For `__post_init__`: the named fields must be numbers and not below their bounds.

    Raises:
      ValueError: naming the key, its value and the bound.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= bound:
            raise ValueError(f"{where}.{name} is {value!r}; it must be a number and at least {bound}")


def kind_of(kinds: Mapping[str, type[T]], section: Mapping[str, Any], where: str) -> type[T]:
    """The class that a section's `kind` names, the first of `kinds` without one.

    Raises:
      ValueError: an unknown kind (names the nearest).
    """
    kind = section.get("kind", next(iter(kinds)))
    if kind not in kinds:
        raise ValueError(f"{where}.kind is {kind!r}; {nearest(str(kind), kinds)}")
    return kinds[kind]


def build_kind(kinds: Mapping[str, type[T]], section: Mapping[str, Any], where: str) -> T:
    """`build` of the class that the section's `kind` names."""
    return build(kind_of(kinds, section, where), {k: v for k, v in section.items() if k != "kind"}, where)


def build(cls: type[T], section: Mapping[str, Any], where: str) -> T:
    """`cls(**section)` for a dataclass, lists made tuples.

    Args:
      where: the section's path in the config, for messages.

    Raises:
      ValueError: an unknown key (names the nearest), or one that is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in section:
        if key not in fields:
            raise ValueError(f"unknown config key {where}.{key}; {nearest(key, fields)}")
    for name, field in fields.items():
        if type(field.default) is int and isinstance(section.get(name), float):
            raise ValueError(f"config key {where}.{name} is {section[name]!r}; it must be a whole number")
        if (
            name not in section
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ValueError(f"config key {where}.{name} is missing")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in section.items()})
