"""Loading of configs: from a Python file, completed with the defaults, overridden from the command line and checked.

A config file is short: it has `get_config(argument="")` that returns what differs from the defaults, as a dict or a
ConfigDict. The defaults live with the code that they configure, in the dataclasses that `Config` is made of. An unknown
key is an error that names the nearest known one. `--config=FILE:ARGUMENT` passes an argument,
`--config.train.steps=300` overrides a value.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from mf_jax.config.config import Config
from mf_jax.configurable import Kinds, Named, Section, Spec, nearest
from mf_jax.modalities.registry import ModalitySpec

SPEC = Section(Config)


def resolve(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The checked Config of a raw mapping: defaults filled in, then overrides applied.

    Args:
      raw: what a config file returns, or `to_dict` of a Config.
      overrides: "train.steps=300" and so on. Another `kind` in a section keeps the values of the keys that it knows.

    Raises:
      ValueError: an unknown key, a missing one, or an invalid value.
    """
    full = SPEC.complete(_plain(raw), "")
    for override in overrides:
        _override(full, override)
    return SPEC.build(full, "")


def resolve_saved(raw: Mapping[str, Any], overrides: Sequence[str] = (), trusted: bool = False) -> Config:
    """The Config that is saved in a checkpoint or an export, which an older version may have written.

    Args:
      trusted: whether it may name modules to import, by a dotted kind.

    Raises:
      ValueError: as `resolve`; a dotted kind that is not trusted.
    """
    saved: dict[str, Any] = _plain(raw)
    if not trusted:
        for name, kind in dotted_kinds(saved).items():
            raise ValueError(
                f"modalities.{name}.kind is {kind!r} in the config that comes with the model: loading it would run "
                "the code of that module. If you trust it, say so with --trust-code (in Python trust_code=True)"
            )
    optimizer = saved.get("optimizer", {})
    if isinstance(optimizer, dict) and optimizer.get("kind", "adamw") == "adamw":  # older versions saved it for both
        optimizer = {key: value for key, value in optimizer.items() if key != "muon_learning_rate"}
    return resolve(saved | {"optimizer": optimizer}, overrides)


def to_dict(config: Config) -> dict[str, Any]:
    """A config as plain dicts and tuples, the form in which it is saved."""
    return SPEC.plain(config)


def _plain(value: Any) -> Any:
    """The value with dicts in place of ConfigDicts and tuples in place of lists, at every level."""
    if isinstance(value, ConfigDict | FrozenConfigDict | Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def dotted_kinds(raw: Mapping[str, Any]) -> dict[str, str]:
    """The modules outside this package that resolving a config imports: its dotted kinds, by modality.

    Args:
      raw: as for `resolve`.
    """
    sections = raw.get("modalities")
    if not isinstance(sections, Mapping):
        return {}
    kinds = {name: section.get("kind") for name, section in sections.items() if isinstance(section, Mapping)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, str) and "." in kind}


def _override(config: dict[str, Any], override: str) -> None:
    """Sets one value in place, "a.b.c=value". The key must exist, or have a default in code, and the type must fit."""
    path, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override --config.{override} has no value; write --config.{path}=VALUE")
    *parents, last = path.split(".")
    section: dict[str, Any] = config
    spec: Spec | None = SPEC
    for i, parent in enumerate(parents):
        here = ".".join(parents[: i + 1])
        below = _child(spec, section, parent, here)
        if parent not in section and isinstance(spec, Named):
            raise ValueError(f"unknown config key {here}; {nearest(parent, section)}")
        section, spec = section.setdefault(parent, {}), below
        if not isinstance(section, dict):
            raise ValueError(f"config key {here} is a value; it has no key {path.removeprefix(here + '.')}")
    child = _child(spec, section, last, path)
    try:
        value = _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        value = text
    old = section.get(last)
    if isinstance(value, dict) and (child is not None or isinstance(old, dict)):
        section[last] = child.complete(value, path) if child else value  # a whole section in place of another
        return
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, dict) or (old is not None and type(value) is not type(old)):
        kind = "a section" if isinstance(old, dict) else f"{type(old).__name__}, as in {old!r}"
        raise ValueError(f"config key {path} is {kind}; it cannot be {text!r}")
    if last == "kind" and isinstance(spec, Kinds | ModalitySpec):
        changed = spec.with_kind(section, value, ".".join(parents))
        section.clear()
        section.update(changed)
    section[last] = value


def _child(spec: Spec | None, section: Mapping[str, Any], name: str, where: str) -> Spec | None:
    """The spec of a key of a section; None in a free mapping, which has no spec and takes any key."""
    if spec is None:
        return None
    try:
        return spec.child(section, name)
    except KeyError:
        raise ValueError(f"unknown config key {where}; {nearest(name, spec.names(section))}") from None


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of "FILE.py" or "FILE.py:ARGUMENT".

    Raises:
      ValueError: no such file, not Python, no `get_config` in it, or an invalid config, as `resolve`.
    """
    file, _, argument = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(f"no config file {file}; the shipped ones are in configs/")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"config file {file} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"config file {file} has no get_config()")
    if argument and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"config file {file} takes no argument; it was given {argument!r}")
    return resolve(module.get_config(argument) if argument else module.get_config(), overrides)


def difference(saved: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """(key, saved value, present value) of every key in which two configs differ."""
    return _difference(to_dict(saved), to_dict(now), "")


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted({*saved, *now}):
        a, b = saved.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _difference(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found
