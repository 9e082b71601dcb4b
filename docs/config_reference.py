"""The reference of all config keys, made from the classes that they configure: python docs/config_reference.py

Writes docs/config_reference.md: per section a table of key, type, default and meaning. The meaning is what the class's
docstring says of the field under "Attributes:", so that it is written once, beside the code that it is of.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
from collections.abc import Iterator, Mapping

FILE = pathlib.Path(__file__).with_suffix(".md")
REQUIRED = "required"
PLAIN = "Keys outside of sections"

Section = type | Mapping[str, type]  # the dataclass of a section, or the dataclasses by the section's `kind`


@dataclasses.dataclass(frozen=True)
class Key:
    name: str
    type: str
    default: str
    meaning: str


def sections() -> dict[str, Section]:
    """The sections of a config by path. NAME is a name of the user's choice."""
    from mf_jax.config.config import Config

    return {PLAIN: Config} | dict(_sections_of(Config, ""))


def _sections_of(cls: type, where: str) -> Iterator[tuple[str, Section]]:
    """The sections below a dataclass, each before its own."""
    from mf_jax import configurable
    from mf_jax.modalities import registry
    from mf_jax.modalities.base import SharedOptions

    for field in dataclasses.fields(cls):
        spec, path = configurable.spec_of(field), f"{where}{field.name}"
        if isinstance(spec, configurable.Named):
            spec, path = spec.spec, f"{path}.NAME"
        if isinstance(spec, configurable.Section):
            found: list[Section] = [spec.cls]
        elif isinstance(spec, configurable.Kinds):
            found = [spec.table]
        elif isinstance(spec, registry.ModalitySpec):
            found = [SharedOptions, registry.KINDS]
        else:
            continue
        for section in found:
            yield path if section is found[0] else f"{path}, by kind", section
            for component in section.values() if isinstance(section, Mapping) else [section]:
                yield from _sections_of(component, f"{path}.")


def keys(cls: type) -> list[Key]:
    """The keys of a dataclass that are values, in the order in which it declares them."""
    from mf_jax.configurable import spec_of

    fields = [field for field in dataclasses.fields(cls) if field.init]
    meanings = _meanings(cls, [field.name for field in fields])
    return [
        Key(field.name, _type(field), _default(field), meanings.get(field.name, ""))
        for field in fields
        if spec_of(field) is None
    ]


def _type(field: dataclasses.Field) -> str:
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return REQUIRED if field.default is dataclasses.MISSING else repr(field.default)


def _meanings(cls: type, names: list[str]) -> dict[str, str]:
    """What docstrings say of the names: of a class first, then of those that it inherits from."""
    found: dict[str, str] = {}
    for base in inspect.getmro(cls):
        for name, meaning in _entries(base.__doc__ or "", names):
            found.setdefault(name, meaning)
    return found


def _entries(docstring: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, meaning) of the entries under "Attributes:"; "a, b: text" is one for a and one for b."""
    for section in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        heading = re.match(r"Attributes:\s", section)
        if not heading:
            continue
        text = " ".join(section[heading.end() :].split())
        known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        starts = list(re.finditer(rf"(?:^|(?<=[.;)] ))((?:{known}|, )+): ", text)) if names else []
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            meaning = text[start.end() : following.start() if following else None].strip(" ;")
            for name in start[1].split(", "):
                yield name, meaning


def _summary(cls: type) -> list[str]:
    """The docstring before its sections, as a paragraph, if there is any."""
    before = re.split(r"(?m)^\s*(?:Attributes|Raises):", inspect.cleandoc(cls.__doc__ or ""))[0]
    text = " ".join(before.split())
    return [_escaped(text), ""] if text else []


def _escaped(text: str) -> str:
    """Plain text for a cell of a table; what stands in backquotes stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"(\*|\[|\]|_(?=_)|(?<=_)_)", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts).replace("|", r"\|")


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def _table(found: list[Key], kind: str = "") -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    if kind:
        yield f"| `kind` | `str` | | `{kind!r}` |"
    for key in found:
        default = key.default if key.default == REQUIRED else _code(key.default)
        yield f"| `{key.name}` | {_code(key.type)} | {default} | {_escaped(key.meaning)} |"
    yield ""


def markdown(found: Mapping[str, Section]) -> str:
    """The page."""
    lines = [
        "# All keys of a config",
        "",
        "Made from the code by `docs/config_reference.py`. How to write and override a config: [Configs](config.md).",
        "Where a section has kinds, its `kind` chooses which of the tables its other keys are of.",
        "",
    ]
    for path, section in found.items():
        lines += [f"## {path}", ""]
        if isinstance(section, Mapping):
            for kind, cls in section.items():
                lines += [f"### {path.split(',')[0]}: {kind}", ""] + _summary(cls)
                lines += _table(keys(cls), kind)
        else:
            lines += _summary(section)
            lines += _table(keys(section))
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(markdown(sections()), encoding="utf-8")
