"""The reference of all config keys, made from the classes that they configure: python docs/config_reference.py

Writes docs/config_reference.md: per section a table of key, type, default and meaning. The meaning is what the class's
docstring says of the field under "Attributes:" (or "Args:"), so that it is written once, beside the code that it is of.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FILE = pathlib.Path(__file__).with_suffix(".md")
REQUIRED = "required"
# Fields of a class that are no keys of the config: the program fills them in.
FILLED_IN = {"Modality": ("name", "codec", "network")}

Component = Callable[..., Any]  # a dataclass, or a function or class whose keyword-only parameters are the keys
Section = Component | Mapping[str, Component]  # one class, or the classes by the section's `kind`


@dataclasses.dataclass(frozen=True)
class Key:
    name: str
    type: str
    default: str
    meaning: str


def sections() -> dict[str, Section]:
    """The sections of a config by path. NAME is a name of the user's choice."""
    from mf_jax.config.loading import KINDS, SECTIONS
    from mf_jax.data import sources, sparsify
    from mf_jax.data.augment import AugmentConfig
    from mf_jax.data.readers.folder import FolderSource
    from mf_jax.diffusion import noise_levels
    from mf_jax.modalities import base, depth, flux2_latent, image

    found: dict[str, Section] = {}
    for name, cls in SECTIONS.items():
        found[name] = cls
        if name == "data":
            found["data.source"] = {"procedural": sources._procedural, "folder": FolderSource}
            found["data.sparsify"] = sparsify.KINDS
            found["data.augment"] = AugmentConfig
    found["modalities.NAME"] = base.Modality
    found["modalities.NAME, by kind"] = {
        module.__name__.split(".")[-1]: module.Codec for module in (image, flux2_latent, depth)
    }
    found["modalities.NAME.noise"] = noise_levels.DISTRIBUTIONS
    found["modes.NAME"] = noise_levels.Mode
    return found | KINDS


def keys(component: Component) -> list[Key]:
    """The keys of a component in the order in which it declares them."""
    if dataclasses.is_dataclass(component):
        fields = [field for field in dataclasses.fields(component) if field.init]
        found = [(field.name, field.type, _field_default(field)) for field in fields]
    else:
        signature = inspect.signature(component).parameters.values()
        keyword_only = [p for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY]
        found = [(p.name, p.annotation, _shown(p.default, inspect.Parameter.empty)) for p in keyword_only]
    meanings = _meanings(component, [name for name, _, _ in found])
    filled_in = FILLED_IN.get(component.__name__, ())
    return [
        Key(name, _type(kind), default, meanings.get(name, ""))
        for name, kind, default in found
        if name not in filled_in
    ]


def _field_default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return _shown(field.default, dataclasses.MISSING)


def _shown(default: Any, missing: Any) -> str:
    return REQUIRED if default is missing else repr(default)


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("collections.abc.", "").replace("typing.", "").replace("noise_levels.", "")


def _meanings(component: Component, names: list[str]) -> dict[str, str]:
    """What docstrings say of the names: of a class first, then of those that it inherits from."""
    found: dict[str, str] = {}
    for cls in inspect.getmro(component) if inspect.isclass(component) else (component,):
        for name, meaning in _entries(cls.__doc__ or "", names):
            found.setdefault(name, meaning)
    return found


def _entries(docstring: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, meaning) of the entries under "Attributes:" and "Args:"; "a, b: text" is one for a and one for b."""
    for section in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        heading = re.match(r"(Attributes|Args):\s", section)
        if not heading:
            continue
        text = " ".join(section[heading.end() :].split())
        known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        starts = list(re.finditer(rf"(?:^|(?<=[.;)] ))((?:{known}|, )+): ", text)) if names else []
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            meaning = text[start.end() : following.start() if following else None].strip(" ;")
            for name in start[1].split(", "):
                yield name, meaning


def _summary(component: Component) -> list[str]:
    """The docstring before its sections, as a paragraph, if there is any."""
    before = re.split(r"(?m)^\s*(?:Attributes|Args|Returns|Raises):", inspect.cleandoc(component.__doc__ or ""))[0]
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
        "Where a section has kinds, its `kind` chooses which of the tables its other keys are of. Beside the sections,",
        "a config has the key `seed` (`int`, default `0`), of everything random.",
        "",
    ]
    for path, section in found.items():
        lines += [f"## {path}", ""]
        if isinstance(section, Mapping):
            for kind, component in section.items():
                lines += [f"### {path.split(',')[0]}: {kind}", ""] + _summary(component)
                lines += _table(keys(component), kind)
        else:
            lines += _summary(section)
            lines += _table(keys(section))
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(markdown(sections()), encoding="utf-8")
