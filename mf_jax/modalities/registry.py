"""The codecs that a config can choose: `kind` in a section of `modalities`.

A new modality is one file with `Codec`, a frozen dataclass whose fields are the modality's options in the config. It
needs no entry here: a dotted kind, "my_package.normals", names the module itself.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from mf_jax.configurable import Section, Spec, nearest
from mf_jax.modalities import depth, flux2_latent, image
from mf_jax.modalities.base import Codec, Modality, SharedOptions

KINDS: dict[str, type[Codec]] = {"image": image.Codec, "depth": depth.Codec, "flux2_latent": flux2_latent.Codec}
_SHARED = tuple(field.name for field in dataclasses.fields(SharedOptions))


class ModalitySpec:
    """How a section of `modalities` is read: the fields of Modality and of its codec, side by side."""

    def complete(self, given: Any, where: str) -> dict[str, Any]:
        cls, shared, own = self._parts(given, where)
        kind = {"kind": given["kind"]}
        return kind | Section(SharedOptions).complete(shared, where) | Section(cls).complete(own, where)

    def build(self, given: Any, where: str) -> Modality:
        cls, shared, own = self._parts(given, where)
        values = vars(Section(SharedOptions).build(shared, where))
        name = where.rpartition(".")[2]
        return Modality(name=name, kind=given["kind"], codec=Section(cls).build(own, where), **values)

    def plain(self, built: Modality) -> dict[str, Any]:
        shared = SharedOptions(**{name: getattr(built, name) for name in _SHARED})
        codec = Section(type(built.codec)).plain(built.codec)
        return {"kind": built.kind} | Section(SharedOptions).plain(shared) | codec

    def child(self, given: Mapping[str, Any], name: str) -> Spec | None:
        if name == "kind":
            return None
        return Section(SharedOptions if name in _SHARED else codec_class(given["kind"], "modalities")).child(
            given, name
        )

    def names(self, given: Mapping[str, Any]) -> Iterable[str]:
        own = dataclasses.fields(codec_class(given["kind"], "modalities"))
        return ["kind", *_SHARED, *(field.name for field in own)]

    def with_kind(self, given: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
        """The section with another kind: keys that it knows keep their values, the others are its defaults."""
        known = [*_SHARED, *(field.name for field in dataclasses.fields(codec_class(kind, where)))]
        return self.complete({"kind": kind} | {key: value for key, value in given.items() if key in known}, where)

    def _parts(self, given: Any, where: str) -> tuple[type[Codec], dict[str, Any], dict[str, Any]]:
        if not isinstance(given, Mapping) or "kind" not in given:
            raise ValueError(f"config key {where}.kind is missing; there are: {', '.join(KINDS)}")
        cls = codec_class(given["kind"], where)
        known = [field.name for field in dataclasses.fields(cls)]
        shared: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in given.items():
            if key == "kind":
                continue
            if key not in _SHARED and key not in known:
                raise ValueError(f"unknown config key {where}.{key}; {nearest(str(key), [*_SHARED, *known])}")
            (shared if key in _SHARED else own)[key] = value
        return cls, shared, own


def codec_class(kind: Any, where: str) -> type[Codec]:
    """The codec of a kind: an entry of KINDS, or `Codec` of the module that a dotted kind names, which is imported.

    Raises:
      ValueError: an unknown kind, a module that cannot be imported or has no such dataclass.
    """
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    if not isinstance(kind, str) or "." not in kind.strip("."):
        raise ValueError(f"{where}.kind is {kind!r}; {nearest(str(kind), KINDS)}")
    try:
        module = importlib.import_module(kind)
    except (ImportError, TypeError) as error:  # a name that begins with a dot is a TypeError
        raise ValueError(f"{where}.kind is {kind!r}: {error}") from None
    codec = getattr(module, "Codec", None)
    if not isinstance(codec, type) or not dataclasses.is_dataclass(codec):
        raise ValueError(f"{where}.kind is {kind!r}; the module {module.__name__} has no dataclass Codec")
    return module.Codec
