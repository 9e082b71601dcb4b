"""Conversion between config sections (nested mappings) and the frozen dataclasses that the code uses.

A dataclass declares with `part` which of its fields are sections themselves. `complete` fills in the defaults, `build`
makes the object, `plain` turns it into mappings again. An unknown key is an error that names the nearest known one. No
jax here: the data workers import it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Spec(Protocol):
    """How one part of a config is completed, built and turned back into plain values.

    `given` is the part as the user wrote it, `where` its dotted path for error messages. An unknown or missing key and
    an invalid value are ValueErrors.
    """

    def complete(self, given: Any, where: str) -> Any:
        """A copy of the part as plain mappings and values, with the defaults of all keys that are not given."""

    def build(self, given: Any, where: str) -> Any:
        """The object that the part describes; keys that are not given have their defaults."""

    def plain(self, built: Any) -> Any:
        """Inverse of `build`."""

    def child(self, given: Mapping[str, Any], name: str) -> Spec | None:
        """The spec of the entry `name`, None for a plain value.

        Raises:
          KeyError: the part cannot have such an entry.
        """

    def names(self, given: Mapping[str, Any]) -> Iterable[str]:
        """Names of the entries that this part can have, as far as they are known."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A section that is one dataclass: its keys are the fields."""

    cls: type

    def complete(self, given: Any, where: str) -> dict[str, Any]:
        _check_keys(self.cls, given, where)
        result = {}
        for field in _fields(self.cls).values():
            spec = spec_of(field)
            if field.name in given:
                value = given[field.name]
                result[field.name] = spec.complete(value, _join(where, field.name)) if spec else value
            elif (value := _default(field)) is not dataclasses.MISSING:
                result[field.name] = spec.plain(value) if spec else value
        return result

    def build(self, given: Any, where: str) -> Any:
        _check_keys(self.cls, given, where)
        values = {}
        hints = _hints(self.cls)
        for name, field in _fields(self.cls).items():
            if name not in given:
                if _default(field) is dataclasses.MISSING:
                    raise ValueError(f"config key {_join(where, name)} is missing")
                continue
            value, spec = given[name], spec_of(field)
            values[name] = spec.build(value, _join(where, name)) if spec else _frozen(value)
            if not spec and not _is_of(values[name], hints.get(name)):
                wanted = _WORDS.get(hints[name], f"of the type {field.type}")
                raise ValueError(f"config key {_join(where, name)} is {value!r}; it must be {wanted}")
        return self.cls(**values)

    def plain(self, built: Any) -> dict[str, Any]:
        result = {}
        for name, field in _fields(type(built)).items():
            spec = spec_of(field)
            result[name] = spec.plain(getattr(built, name)) if spec else getattr(built, name)
        return result

    def child(self, given: Mapping[str, Any], name: str) -> Spec | None:
        return spec_of(_fields(self.cls)[name])

    def names(self, given: Mapping[str, Any]) -> Iterable[str]:
        return _fields(self.cls)


@dataclasses.dataclass(frozen=True)
class Kinds:
    """A section whose key `kind` chooses a dataclass; its other keys are the fields of that dataclass.

    Attributes:
      table: dataclasses by kind; the first is the default.
      required: `kind` must be given.
    """

    table: Mapping[str, type]
    required: bool = False

    def complete(self, given: Any, where: str) -> dict[str, Any]:
        kind, rest = self._kind(given, where)
        return {"kind": kind, **Section(self.table[kind]).complete(rest, where)}

    def build(self, given: Any, where: str) -> Any:
        kind, rest = self._kind(given, where)
        return Section(self.table[kind]).build(rest, where)

    def plain(self, built: Any) -> dict[str, Any]:
        kind = next(kind for kind, cls in self.table.items() if cls is type(built))
        return {"kind": kind, **Section(type(built)).plain(built)}

    def child(self, given: Mapping[str, Any], name: str) -> Spec | None:
        return None if name == "kind" else Section(self.table[self._kind(given, "")[0]]).child(given, name)

    def names(self, given: Mapping[str, Any]) -> Iterable[str]:
        return ["kind", *_fields(self.table[self._kind(given, "")[0]])]

    def with_kind(self, given: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
        """The section completed with another kind: keys that it knows keep their values, others get its defaults."""
        _, rest = self._kind({**given, "kind": kind}, where)
        known = _fields(self.table[kind])
        return self.complete({"kind": kind} | {key: value for key, value in rest.items() if key in known}, where)

    def _kind(self, given: Any, where: str) -> tuple[str, dict[str, Any]]:
        _check_mapping(given, where)
        if self.required and "kind" not in given:
            raise ValueError(f"config key {where}.kind is missing; there are: {', '.join(self.table)}")
        kind = given.get("kind", next(iter(self.table)))
        if not isinstance(kind, str) or kind not in self.table:
            raise ValueError(f"{where}.kind is {kind!r}; {nearest(str(kind), self.table)}")
        return kind, {key: value for key, value in given.items() if key != "kind"}


@dataclasses.dataclass(frozen=True)
class Named:
    """A section whose entries have names that the user chooses, all read by one spec; at least one entry."""

    spec: Spec

    def complete(self, given: Any, where: str) -> dict[str, Any]:
        self._check(given, where)
        return {name: self.spec.complete(part, _join(where, name)) for name, part in given.items()}

    def build(self, given: Any, where: str) -> dict[str, Any]:
        self._check(given, where)
        return {name: self.spec.build(part, _join(where, name)) for name, part in given.items()}

    def plain(self, built: Any) -> dict[str, Any]:
        return {name: self.spec.plain(part) for name, part in built.items()}

    def child(self, given: Mapping[str, Any], name: str) -> Spec | None:
        return self.spec

    def names(self, given: Mapping[str, Any]) -> Iterable[str]:
        return given

    def _check(self, given: Any, where: str) -> None:
        _check_mapping(given, where)
        if not given:
            raise ValueError(f"config section {where} is empty; give it at least one entry")


def part(spec: Spec) -> dict[str, Spec]:
    """Field metadata naming the field's spec: `optimizer: T = dataclasses.field(metadata=part(Section(T)))`."""
    return {"spec": spec}


def spec_of(field: dataclasses.Field) -> Spec | None:
    """The spec that reads a field of a section; None for a plain value."""
    return field.metadata.get("spec")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an error message: the closest known word, or the list of all."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"


def check_at_least(where: str, settings: Any, **least: float) -> None:
    """Checks, for `__post_init__`, that fields are numbers and not below their bounds.

    Args:
      where: dotted path of the section, for the message. settings: the dataclass. least: lower bound by field name.

    Raises:
      ValueError: naming the key, its value and the bound.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= bound:
            raise ValueError(f"{where}.{name} is {value!r}; it must be a number and at least {bound}")


def check_one_of(where: str, value: Any, known: Iterable[Any]) -> None:
    """Checks, for `__post_init__`, that a value is one of the known ones, and of the same type.

    Raises:
      ValueError: naming the key, its value and the known ones.
    """
    known = tuple(known)
    if not any(value == one and type(value) is type(one) for one in known):
        raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, known))}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields; none where an annotation names what its module does not have at run time."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {}


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type: whole numbers are numbers too, True and False are neither."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(each) and all(map(_is_of, value, each))
    if origin is Mapping:
        keys, values = arguments
        return isinstance(value, Mapping) and all(_is_of(k, keys) and _is_of(v, values) for k, v in value.items())
    return True


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _check_mapping(given: Any, where: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"config key {where} is {given!r}; it must be a section, a mapping of keys to values")


def _check_keys(cls: type, given: Any, where: str) -> None:
    _check_mapping(given, where)
    known = _fields(cls)
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) if known else "it takes no keys"
            raise ValueError(f"unknown config key {_join(where, str(key))}; {hint}")


def _frozen(value: Any) -> Any:
    """The value with tuples in place of lists, at every level."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
