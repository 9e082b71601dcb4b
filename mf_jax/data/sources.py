"""From the `source` section of a data config to records."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from mf_jax.configurable import nearest
from mf_jax.data.procedural.source import ProceduralSource
from mf_jax.data.readers.folder import FolderSource


class Source(Protocol):
    """Random access to records: dicts of image, depth, valid, caption, key, intrinsics, skipped.

    image (H,W,3) uint8; depth (H,W) float32 z in metres, 0 where missing; valid (H,W) bool; caption str ("" if
    none); key str, unique; intrinsics (4,) float32 fx, fy, cx, cy in pixels of the image, NaN if unknown; skipped
    int, unreadable files passed over to get this record.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def _procedural(split: str, resolution: tuple[int, int], *, seed: int = 0, **sizes: int) -> Source:
    """Rendered rooms and open grounds. `train`, `validation` and `test` are the numbers of scenes of these splits.

    Args:
      seed: not negative; another seed is another data set.
    """
    if split not in sizes:
        raise ValueError(f"source has no {split!r}; {nearest(split, sizes)}. Add source.{split} = number of scenes")
    if sizes[split] < 1:
        raise ValueError(f"split {split!r} is empty: source.{split} is {sizes[split]}")
    return ProceduralSource(split, sizes[split], seed=seed, resolution=resolution)


def _folder(split: str, resolution: tuple[int, int], **parameters: Any) -> Source:
    return FolderSource(split, **parameters)


_FOLDER_KEYS = {
    name: parameter.default is inspect.Parameter.empty
    for name, parameter in inspect.signature(FolderSource).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}
# Kind: its factory and its config keys, each with whether it must be given.
KINDS = {
    "procedural": (_procedural, {"seed": False, "train": False, "validation": False, "test": False}),
    "folder": (_folder, _FOLDER_KEYS),
}


def check_source(section: Mapping[str, Any]) -> None:
    """Checks the kind and the keys of a `source` section, without touching any data.

    Raises:
      ValueError: no kind, an unknown kind or key (names the nearest), or a missing key.
    """
    kind = section.get("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown source.kind {kind!r}; {nearest(str(kind), KINDS)}")
    keys = KINDS[kind][1] | {"kind": True}
    for name in section:
        if name not in keys:
            raise ValueError(f"unknown key source.{name} for kind {kind!r}; {nearest(name, keys)}")
    for name, required in keys.items():
        if required and name not in section:
            raise ValueError(f"source.{name} is missing for kind {kind!r}")


def build_source(data: Mapping[str, Any], split: str) -> Source:
    """The records of one split.

    Args:
      data: the data config: `source` is dict(kind="procedural", seed=0, train=200_000, validation=256, test=256)
        (numbers of scenes) or dict(kind="folder", ...) with the parameters of FolderSource; `resolution` is the
        size at which procedural scenes are drawn.
      split: "train", "validation" or "test", or any other that the source defines.

    Raises:
      ValueError: no kind, an unknown kind or key (names the nearest), a missing key, a split that is not
        configured or empty, and what the source itself raises.
    """
    check_source(data["source"])
    parameters = dict(data["source"])
    factory, _ = KINDS[parameters.pop("kind")]
    return factory(split, tuple(data["resolution"]), **parameters)
