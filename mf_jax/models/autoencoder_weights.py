"""The published weight files of the FLUX.2 autoencoder: their layouts, and their weight tables.

Two layouts hold the same tensors: ae_encoder.safetensors and ae_decoder.safetensors without a prefix, each with the
statistics of the latents (bn.*), and Black Forest Labs' one file with the prefixes "encoder." and "decoder." and the
statistics once. Everything that `AutoencoderConfig` says can be read from the tensors' shapes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mf_jax.configurable import nearest
from mf_jax.models.autoencoder import AutoencoderConfig, Decoder, Encoder
from mf_jax.models.weight_table import Entry, flatten, shapes_there, to_theirs

Shapes = Mapping[str, tuple[int, ...]]

ENCODER, DECODER = "encoder", "decoder"
BATCHES = "bn.num_batches_tracked"  # a counter of the training of the autoencoder that nothing reads
SPLIT_FILES = {ENCODER: "ae_encoder.safetensors", DECODER: "ae_decoder.safetensors"}
COMBINED_FILE = "ae.safetensors"


@dataclasses.dataclass(frozen=True)
class Published:
    """The contents of a published file.

    Attributes:
      config: sizes of the network.
      parts: "encoder", "decoder" or both.
      combined: whether the names have prefixes.
    """

    config: AutoencoderConfig
    parts: tuple[str, ...]
    combined: bool

    def table(self, part: str) -> list[Entry]:
        """The weight table of one of its parts; ValueError if the file does not hold it."""
        if part not in self.parts:
            raise ValueError(f"the file holds the autoencoder's {' and '.join(self.parts)}, not its {part}")
        return table(self.config, part, self.combined)


def table(config: AutoencoderConfig, part: str, combined: bool) -> list[Entry]:
    """The weight table of the encoder or the decoder.

    Args:
      part: "encoder" or "decoder".
      combined: names as in the combined file, with prefixes.
    """
    prefix = f"{part}." if combined else ""
    entries = {ENCODER: _encoder, DECODER: _decoder}[part](config)
    statistics = [Entry("bn/mean", "bn.running_mean"), Entry("bn/var", "bn.running_var")]
    return [dataclasses.replace(entry, theirs=prefix + entry.theirs) for entry in entries] + statistics


def _conv(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}/kernel", f"{theirs}.weight", "conv"), Entry(f"{ours}/bias", f"{theirs}.bias")]


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}/scale", f"{theirs}.weight"), Entry(f"{ours}/bias", f"{theirs}.bias")]


def _block(ours: str, theirs: str, shortcut: bool) -> list[Entry]:
    entries = []
    for i in (1, 2):
        entries += _norm(f"{ours}/norm{i}", f"{theirs}.norm{i}") + _conv(f"{ours}/conv{i}", f"{theirs}.conv{i}")
    return entries + (_conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut") if shortcut else [])


def _ends_and_middle() -> list[Entry]:
    entries = _conv("conv_in", "conv_in") + _norm("norm_out", "norm_out") + _conv("conv_out", "conv_out")
    for i in (1, 2):
        entries += _block(f"middle/block_{i}", f"mid.block_{i}", shortcut=False)
    entries += _norm("middle/attention/norm", "mid.attn_1.norm")
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "proj_out")):
        entries += _conv(f"middle/attention/{ours}", f"mid.attn_1.{theirs}")
    return entries


def _encoder(config: AutoencoderConfig) -> list[Entry]:
    entries = _ends_and_middle() + _conv("quant_conv", "quant_conv")
    channels = config.channels
    for level, width in enumerate(config.widths):
        for i in range(config.blocks):
            entries += _block(f"down_{level}_block_{i}", f"down.{level}.block.{i}", channels != width)
            channels = width
        if level + 1 < len(config.widths):
            entries += _conv(f"down_{level}_conv", f"down.{level}.downsample.conv")
    return entries


def _decoder(config: AutoencoderConfig) -> list[Entry]:
    entries = _ends_and_middle() + _conv("post_quant_conv", "post_quant_conv")
    channels = config.widths[-1]
    for level, width in reversed(list(enumerate(config.widths))):
        for i in range(config.blocks + 1):
            entries += _block(f"up_{level}_block_{i}", f"up.{level}.block.{i}", channels != width)
            channels = width
        if level:
            entries += _conv(f"up_{level}_conv", f"up.{level}.upsample.conv")
    return entries


def published_files(path: str | Path) -> list[Path]:
    """The files of an autoencoder: the file itself, or those in a directory.

    Raises:
      ValueError: the files do not exist.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    split, combined = [path / name for name in SPLIT_FILES.values()], path / COMBINED_FILE
    if all(file.is_file() for file in split):
        return split
    if combined.is_file():
        return [combined]
    raise ValueError(f"no {' and '.join(SPLIT_FILES.values())}, and no {COMBINED_FILE}, in {path}")


def inspect(shapes: Shapes) -> Published:
    """Which layout a file has, and the config of the network in it.

    Args:
      shapes: of all its tensors, by name.

    Raises:
      ValueError: tensors of another model, or one that is missing, mis-shaped or not part of this network, by name.
    """
    parts: tuple[str, ...]
    if any(name.startswith(("encoder.", "decoder.")) for name in shapes):
        parts, combined = (ENCODER, DECODER), True
    elif any(name.startswith("down.") for name in shapes):
        parts, combined = (ENCODER,), False
    elif any(name.startswith("up.") for name in shapes):
        parts, combined = (DECODER,), False
    else:
        raise ValueError(
            "no tensor of the FLUX.2 autoencoder (encoder.*, decoder.*, down.* or up.*) in the file; its first are: "
            f"{', '.join(sorted(shapes)[:3]) or 'none'}"
        )
    config = _config_of(shapes, parts[0], f"{parts[0]}." if combined else "")
    published = Published(config, parts, combined)
    expected: dict[str, tuple[int, ...]] = {}
    for part in parts:
        expected |= shapes_there(_our_shapes(config, part), published.table(part))
    for name, shape in expected.items():
        if _shape(shapes, name) != shape:
            raise ValueError(f"tensor {name} has shape {tuple(shapes[name])}; by the others it should be {shape}")
    for name in shapes:
        if name not in expected and name != BATCHES:
            raise ValueError(f"tensor {name} is not part of the FLUX.2 autoencoder; {nearest(name, expected)}")
    return published


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"tensor {name} of the FLUX.2 autoencoder is missing")
    return tuple(shapes[name])


def _config_of(shapes: Shapes, part: str, prefix: str) -> AutoencoderConfig:
    """The config that the shapes imply.

    The decoder's give only channels times multipliers; the channels are then their greatest common divisor.
    """
    level_name = prefix + {ENCODER: "down", DECODER: "up"}[part] + ".{}.block.{}.conv1.weight"

    def outputs(name: str) -> int:
        return _shape(shapes, name)[0]

    widths = [outputs(level_name.format(0, 0))]
    while (name := level_name.format(len(widths), 0)) in shapes:
        widths.append(outputs(name))
    blocks = 1
    while level_name.format(0, blocks) in shapes:
        blocks += 1
    if part == ENCODER:
        channels, latent = outputs(f"{prefix}conv_in.weight"), outputs(f"{prefix}quant_conv.weight") // 2
    else:
        channels, latent, blocks = math.gcd(*widths), outputs(f"{prefix}post_quant_conv.weight"), blocks - 1
    if any(width % channels for width in widths):
        raise ValueError(f"the levels have {widths} channels; they must be multiples of {prefix}conv_in's {channels}")
    try:
        return AutoencoderConfig(channels, tuple(width // channels for width in widths), blocks, latent)
    except ValueError as error:
        raise ValueError(f"the {part} in the file is not one of FLUX.2's kind: {error}") from None


def _our_shapes(config: AutoencoderConfig, part: str) -> dict[str, tuple[int, ...]]:
    """Shapes of our arrays by path."""
    side = config.reduction
    network: nn.Module
    if part == ENCODER:
        network, given = Encoder(config), jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    else:
        network, given = Decoder(config), jax.ShapeDtypeStruct((1, 1, 1, config.packed), np.float32)
    params = jax.eval_shape(lambda key, x: nn.unbox(network.init(key, x))["params"], jax.random.key(0), given)
    return {path: leaf.shape for path, leaf in flatten(params).items()}


def to_files(
    params: Mapping[str, Mapping[str, Any]], config: AutoencoderConfig, combined: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Contents of the published files by file name, tensors by name.

    Args:
      params: our trees by part, {"encoder": ..., "decoder": ...}; one part alone for one split file.
      combined: the one file, instead of one per part.

    Raises:
      ValueError: the combined file of one part alone, or of two whose latent statistics differ.
    """
    parts = {part: to_theirs(tree, table(config, part, combined)) for part, tree in params.items()}
    if combined:
        _check_combines(parts)
        contents = {COMBINED_FILE: parts[ENCODER] | parts[DECODER]}
    else:
        contents = {SPLIT_FILES[part]: tensors for part, tensors in parts.items()}
    return {file: tensors | {BATCHES: np.zeros((), np.int64)} for file, tensors in contents.items()}


def _check_combines(parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    if set(parts) != {ENCODER, DECODER}:
        raise ValueError(f"the combined file holds encoder and decoder; given: {', '.join(parts) or 'none'}")
    for name in ("bn.running_mean", "bn.running_var"):
        if not np.array_equal(parts[ENCODER][name], parts[DECODER][name]):
            raise ValueError(f"{name} of encoder and decoder differ; they cannot share one file")
