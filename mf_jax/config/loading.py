"""Configs: a Python file is loaded, completed with the defaults, overridden from the command line and checked.

A config file is short: it has `get_config(argument="")` that returns what differs from the defaults, as a dict or a
ConfigDict. The defaults live with the code that they configure, in the dataclasses of `SECTIONS`; an unknown key is an
error that names the nearest. `--config=FILE:ARGUMENT` passes an argument, `--config.train.steps=300` overrides a value.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from mf_jax.config.sections import CheckpointConfig, DataConfig, EvaluateConfig, InitConfig, SampleConfig, TrainConfig
from mf_jax.configurable import build, build_kind, nearest
from mf_jax.data.augment import AugmentConfig
from mf_jax.data.sources import check_source
from mf_jax.data.sparsify import make_sparsifier
from mf_jax.models import backbones
from mf_jax.models.text import encoders
from mf_jax.parallel.sharding import MeshConfig
from mf_jax.training.optimizer import OptimizerConfig
from mf_jax.training.train_step import ObjectiveConfig

SECTIONS = {
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "checkpoint": CheckpointConfig,
    "mesh": MeshConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "init": InitConfig,
}
FREE_SECTIONS = ("modalities", "modes")  # keyed by the user's own names; checked where they are built
KINDS = {"text": encoders.KINDS, "model": backbones.KINDS}  # sections whose keys depend on their `kind`
# Here an override may add a key that has a default.
OPEN = ("data.source", "data.sparsify", "modalities.", "modes.", "init.clone", "mesh.rules")


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts and lists to tuples, all the way down: what a config is, however it was written."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def resolve(raw: Mapping[str, Any], overrides: Sequence[str] = (), trusted: bool = True) -> FrozenConfigDict:
    """Every section complete with its defaults, overrides applied, values checked.

    Args:
      raw: what a config file returns.
      overrides: "train.steps=300" and so on.
      trusted: whether `raw` may name modules to import, by a dotted kind. One that comes with a model may not.

    Raises:
      ValueError: an unknown key, a missing one, or a value that does not do.
    """
    raw = _plain(raw)
    if not trusted:
        for name, kind in dotted_kinds(raw).items():
            raise ValueError(
                f"modalities.{name}.kind is {kind!r} in the config that comes with the model: loading it would run "
                "the code of that module. If you trust it, say so with --trust-code (in Python trust_code=True)"
            )
    known = ["seed", *SECTIONS, *KINDS, *FREE_SECTIONS]
    for key in raw:
        if key not in known:
            raise ValueError(f"unknown config key {key}; {nearest(key, known)}")
    full: dict[str, Any] = {"seed": raw.get("seed", 0)}
    for name, cls in SECTIONS.items():
        full[name] = _plain(dataclasses.asdict(build(cls, raw.get(name, {}), name)))
    full["data"]["augment"] = dataclasses.asdict(build(AugmentConfig, full["data"]["augment"], "data.augment"))
    for name, kinds in KINDS.items():
        section = raw.get(name, {})
        built = build_kind(kinds, section, name)
        full[name] = {"kind": section.get("kind", next(iter(kinds))), **_plain(dataclasses.asdict(built))}
    for name in FREE_SECTIONS:
        if not raw.get(name):
            raise ValueError(f"config section {name} is missing")
        full[name] = raw[name]
    for override in overrides:
        _override(full, override)
    for name, cls in SECTIONS.items():
        build(cls, full[name], name)
    for name, kinds in KINDS.items():
        build_kind(kinds, full[name], name)
    build(AugmentConfig, full["data"]["augment"], "data.augment")
    check_source(full["data"]["source"])
    make_sparsifier(full["data"]["sparsify"])
    return FrozenConfigDict(full)


def dotted_kinds(config: Mapping[str, Any]) -> dict[str, str]:
    """By modality, the kinds that are modules outside this package: what a config, raw or resolved, has imported."""
    sections = config.get("modalities")
    if not isinstance(sections, Mapping):
        return {}
    kinds = {name: section.get("kind") for name, section in sections.items() if isinstance(section, Mapping)}
    return {name: kind for name, kind in kinds.items() if "." in str(kind)}


def foreign_kinds(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """As `difference`, of the dotted kinds in `saved` that `now` does not have for the same modality."""
    known = dotted_kinds(now)
    modalities = now.get("modalities", {})
    return [
        (f"modalities.{name}.kind", kind, modalities.get(name, {}).get("kind"))
        for name, kind in dotted_kinds(saved).items()
        if known.get(name) != kind
    ]


def _override(config: dict[str, Any], override: str) -> None:
    """Sets one value in place, "a.b.c=value". The key must exist, or have a default in code, and the type must fit."""
    path, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override --config.{override} has no value; write --config.{path}=VALUE")
    *parents, last = path.split(".")
    section = config
    for i, parent in enumerate([*parents, last]):
        if i == len(parents) and isinstance(section, dict) and path.startswith(OPEN):
            break
        if not isinstance(section, dict) or parent not in section:
            here = ".".join(path.split(".")[: i + 1])
            keys = section if isinstance(section, dict) else ()
            raise ValueError(f"unknown config key {here}; {nearest(parent, keys)}")
        if i < len(parents):
            section = section[parent]
    try:
        value = _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        value = text
    old = section.get(last)
    if isinstance(old, dict) and isinstance(value, dict) and path.startswith(OPEN):
        old = None  # a whole section in place of another, of another kind perhaps
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, dict) or (old is not None and type(value) is not type(old)):
        kind = "a section" if isinstance(old, dict) else f"{type(old).__name__}, as in {old!r}"
        raise ValueError(f"config key {path} is {kind}; it cannot be {text!r}")
    section[last] = value


def load(spec: str, overrides: Sequence[str] = ()) -> FrozenConfigDict:
    """The resolved config of "FILE.py" or "FILE.py:ARGUMENT".

    Raises:
      ValueError: no such file, no `get_config` in it, or what `resolve` finds.
    """
    file, _, argument = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(f"no config file {file}; the shipped ones are in configs/")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"config file {file} has no get_config()")
    if argument and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"config file {file} takes no argument; it was given {argument!r}")
    return resolve(module.get_config(argument) if argument else module.get_config(), overrides)


def to_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config as plain dicts and tuples."""
    return _plain(config.as_configdict() if isinstance(config, FrozenConfigDict) else config)


def difference(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, saved value, present value) wherever two resolved configs differ."""
    saved, now = to_dict(saved), to_dict(now)
    found = []
    for key in sorted({*saved, *now}):
        a, b = saved.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found
