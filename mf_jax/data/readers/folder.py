"""RGB-D frames in a folder: images and depth maps paired by their names.

Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mf_jax.configurable import check_at_least, nearest
from mf_jax.data import precomputed
from mf_jax.data.images import UnreadableFile, read_depth, read_image, read_mask


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """A folder of RGB-D frames.

    A pattern is a path below `root` with one `*`, which matches within one name, as a shell's does; an image and a
    depth map whose `*` stand for the same text make a frame. Frames are sorted by that text, numbers as numbers.

    Images are turned upright by their EXIF tag only where neither depth nor masks nor intrinsics are given: these
    belong to the pixels as stored.

    Attributes:
      root: the folder.
      image: pattern of the images (8 bit), such as "frame-*.color.jpg" or "rgb/*.png".
      splits: frames of each split as a Python slice over the sorted frames: {"train": "0:200", "test": "200:"}.
        Splits may overlap.
      depth: pattern of the depth maps: pictures (16 bit, one channel), .npy or .npz. None: images alone, whose depth
        is missing everywhere.
      depth_scale: metres per unit of the depth files: 0.001 for millimetres, 1/256 for KITTI.
      invalid: values of the depth files that mean missing. Anything not finite or not above 0 always does.
      mask: pattern of mask files (pictures, .npy or .npz) that are nonzero where depth may be used.
      max_depth: metres beyond which depth counts as missing.
      npz_key: the array's name in .npz files; not needed where a file holds one array.
      intrinsics: (fx, fy, cx, cy) in pixels, or the path of a text file below `root` that holds these four
        numbers or a 3x3 camera matrix.
      captions: a pattern of text files, a .json file below `root` ({key or image path: caption}), or one
        caption for all. A frame without a caption has "".
      image_latent, text_features: patterns of files for data.precomputed, see mf_jax/data/precomputed.py. With
        latents the images are not read: `image` only names the frames, and may be the pattern of the latents itself.
      max_unreadable: how many broken files to pass over (see FolderSource) before giving up.
    """

    root: str
    image: str
    splits: Mapping[str, str]
    depth: str | None = None
    depth_scale: float | None = None
    invalid: tuple[float, ...] = (0, 65535)
    mask: str | None = None
    max_depth: float | None = None
    npz_key: str | None = None
    intrinsics: str | tuple[float, ...] | None = None
    captions: str = ""
    image_latent: str | None = None
    text_features: str | None = None
    max_unreadable: int = 10

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth_scale is None:
            raise ValueError(
                f"data.source.depth is {self.depth!r} without data.source.depth_scale, the metres per unit of its files"
            )
        if self.depth_scale is not None and self.depth_scale <= 0:
            raise ValueError(f"data.source.depth_scale is {self.depth_scale}; metres per unit must be positive")
        check_at_least("data.source", self, max_unreadable=0)

    def open(self, split: str, resolution: tuple[int, int] | None = None) -> FolderSource:
        """The frames of a split, at their own size."""
        return FolderSource(self, split)

    def open_precomputed(self, split: str, resolution: tuple[int, int], fields: tuple[str, ...]) -> FolderSource:
        """The frames of a split with precomputed fields; depth that is not given is missing at `resolution`."""
        for name in fields:
            if getattr(self, name) is None:
                raise ValueError(f"data.precomputed names {name!r}; set data.source.{name}, the pattern of its files")
        return FolderSource(self, split, fields, resolution)


class FolderSource:
    """Records of one split of a folder of RGB-D frames.

    Args:
      fields: precomputed ones that records have; image_latent takes the place of image.
      resolution: (H, W) of the missing depth of records that have neither image nor depth.

    Raises:
      ValueError: at construction for a folder that does not exist, a pattern without exactly one `*` or without
        a match, an image without depth or mask, a split that is unknown or empty, intrinsics that cannot be
        read. On reading a record for depth of another size than the image, for a depth file that is not 16 bit.
    """

    def __init__(
        self,
        config: FolderConfig,
        split: str,
        fields: tuple[str, ...] = (),
        resolution: tuple[int, int] | None = None,
    ):
        self._root = Path(config.root)
        root = str(config.root)
        if not self._root.is_dir():
            raise ValueError(f"data folder {root!r} does not exist")
        images = _match(self._root, "image", config.image)
        self._images = images
        self._depths = self._beside_images("depth", config.depth)
        self._masks = self._beside_images("mask", config.mask)
        self._precomputed = {name: self._beside_images(name, getattr(config, name)) for name in fields}
        self._missing_size = resolution
        frames = sorted(images, key=_natural)
        self._frames = frames[_split_slice(split, config.splits)]
        if not self._frames:
            raise ValueError(f"split {split!r} = {config.splits[split]!r} is empty: {root!r} has {len(frames)} frames")
        self._prefix = Path(config.image).name.split("*")[0] if "*" in Path(config.image).name else ""
        self._config = config
        self._intrinsics = _intrinsics(self._root, config.intrinsics)
        self._upright = config.depth is None and config.mask is None and config.intrinsics is None
        self._captions = _captions(self._root, config.captions, images, self._prefix)
        self.max_unreadable = config.max_unreadable
        with suppress(UnreadableFile):
            self._read(0)  # a wrong format shows here, not in a worker

    def _beside_images(self, name: str, pattern: str | None) -> dict[str, Path]:
        return _paired(self._images, _match(self._root, name, pattern), name, pattern) if pattern else {}

    def __len__(self) -> int:
        return len(self._frames)

    def path(self, index: int) -> str:
        """The image file of record `index`, for messages."""
        return str(self._images[self._frames[index]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`, with the fields of `sources.Source`.

        A record whose files cannot be read (truncated, corrupt) is replaced by the next one that can;
        `skipped` says how many were passed over. Which record comes depends only on index and files.

        Raises:
          ValueError: more than max_unreadable files in a row cannot be read, or a file is not what was declared.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        problems: list[UnreadableFile] = []
        while len(problems) <= min(self.max_unreadable, len(self) - 1):
            try:
                record = self._read((index + len(problems)) % len(self))
            except UnreadableFile as error:
                problems.append(error)
                continue
            return record | {"skipped": len(problems)}
        raise ValueError(f"{len(problems)} unreadable files in a row; the first is {problems[0]}")

    def _read(self, index: int) -> dict[str, Any]:
        frame = self._frames[index]
        fields = {name: precomputed.read(files[frame], name) for name, files in self._precomputed.items()}
        size, sized = self._missing_size, "data.resolution"
        if precomputed.IMAGE_LATENT not in fields:
            fields["image"] = read_image(self._images[frame], upright=self._upright)
            size, sized = fields["image"].shape[:2], f"its image {self._images[frame]}"
        if self._depths:
            values_HW = read_depth(self._depths[frame], self._config.npz_key)
            if "image" not in fields:
                size, sized = values_HW.shape, f"its depth {self._depths[frame]}"
        else:
            values_HW = np.zeros(size or (), np.float32)
        mask_HW = read_mask(self._masks[frame]) if self._masks else np.ones(values_HW.shape, bool)
        for path, array in ((self._depths.get(frame), values_HW), (self._masks.get(frame), mask_HW)):
            if size is not None and array.shape != size:
                raise ValueError(
                    f"{path} is {array.shape[1]}x{array.shape[0]}, {sized} is {size[1]}x{size[0]}: they must be "
                    "registered, pixel on pixel"
                )
        depth_HW = values_HW.astype(np.float32) * np.float32(self._config.depth_scale or 1.0)
        valid_HW = mask_HW & np.isfinite(depth_HW) & (depth_HW > 0) & ~np.isin(values_HW, self._config.invalid)
        if self._config.max_depth is not None:
            valid_HW &= depth_HW <= self._config.max_depth
        return {
            **fields,
            "depth": np.where(valid_HW, depth_HW, np.float32(0)),
            "depth_valid": valid_HW,
            "caption": self._captions.get(frame, ""),
            "key": self._prefix + frame,
            "intrinsics": self._intrinsics.copy(),
            "skipped": 0,
        }


def _natural(text: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _match(root: Path, name: str, pattern: str) -> dict[str, Path]:
    """Files below root that match the pattern, by what their `*` stands for."""
    if pattern.count("*") != 1:
        raise ValueError(f"{name}={pattern!r} must have exactly one *, the part that pairs images and depth")
    expression = re.compile("([^/]+)".join(re.escape(part) for part in pattern.split("*")))
    glob_pattern = "*".join(glob.escape(part) for part in pattern.split("*"))
    found = {}
    for path in root.glob(glob_pattern):
        matched = expression.fullmatch(path.relative_to(root).as_posix())
        if matched and not path.name.startswith("."):
            found[matched[1]] = path
    if not found:
        raise ValueError(f"no file in {str(root)!r} matches {name}={pattern!r}")
    return found


def _paired(images: dict[str, Path], others: dict[str, Path], name: str, pattern: str) -> dict[str, Path]:
    lonely = sorted((frame for frame in images if frame not in others), key=_natural)
    if lonely:
        shown = ", ".join(str(images[frame]) for frame in lonely[:3])
        raise ValueError(f"{len(lonely)} of {len(images)} images have no {name} ({name}={pattern!r}): {shown}")
    return others


def _split_slice(split: str, splits: Mapping[str, str]) -> slice:
    if split not in splits:
        raise ValueError(f"splits has no {split!r}; {nearest(split, splits)}. Add splits.{split} = 'start:stop'")
    parts = re.fullmatch(r"(-?\d+)?:(-?\d+)?(?::(-?[1-9]\d*)?)?", str(splits[split]).replace(" ", ""))
    if not parts:
        raise ValueError(f"splits.{split}={splits[split]!r} is not a slice such as '0:200', ':-50' or '::10'")
    return slice(*(int(part) if part else None for part in parts.groups()))


def _intrinsics(root: Path, given: str | Sequence[float] | None) -> np.ndarray:
    """(4,) float32 fx, fy, cx, cy in pixels, NaN if unknown."""
    if given is None:
        return np.full(4, np.nan, np.float32)
    values: Sequence[str] | Sequence[float]
    if isinstance(given, str):
        file = root / given
        if not file.is_file():
            raise ValueError(f"intrinsics file {str(file)!r} does not exist")
        source, values = str(file), file.read_text().replace(",", " ").split()
    else:
        source, values = str(given), given
    try:
        numbers = np.array(values, np.float32).ravel()
    except (ValueError, TypeError) as error:
        raise ValueError(f"intrinsics {source}: {error}") from error
    if numbers.size == 9:
        numbers = numbers[[0, 4, 2, 5]]
    if numbers.size != 4 or not np.isfinite(numbers).all() or (numbers[:2] <= 0).any():
        raise ValueError(f"intrinsics {source} must be fx fy cx cy or a 3x3 matrix in pixels, got {numbers}")
    return numbers


def _captions(root: Path, given: str, images: dict[str, Path], prefix: str) -> dict[str, str]:
    if "*" in given:
        files = _match(root, "captions", given)
        found = {frame: files[frame].read_text(encoding="utf-8").strip() for frame in images if frame in files}
    elif given.endswith(".json"):
        try:
            texts = json.loads((root / given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"captions file {str(root / given)!r} cannot be read: {error}") from error
        if not isinstance(texts, dict):
            raise ValueError(f"captions file {str(root / given)!r} must hold an object of key: caption")
        found = {}
        for frame, path in images.items():
            for name in (prefix + frame, frame, path.relative_to(root).as_posix()):
                if name in texts:
                    found[frame] = str(texts[name])
    else:
        return dict.fromkeys(images, given)
    if not found:
        raise ValueError(f"captions={given!r} in {str(root)!r} names none of the {len(images)} images")
    return found
