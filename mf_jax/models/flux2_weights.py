"""The weight tables of FLUX.2, and of FLUX.2 with depth as in the Modality Forcing release.

The release puts "dit." before every name and adds the tensors of the depth stream; the names of image and text are
those of Black Forest Labs' files. Projections that are fused there are separate kernels here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from mf_jax.models.flux2 import Flux2
from mf_jax.models.weight_table import Entry

OFFICIAL_PREFIX = "dit."
# Sizes of the released variants; v2 adds the mixing of noise levels across streams.
RELEASED = {
    "width": 4096,
    "heads": 32,
    "double_blocks": 8,
    "single_blocks": 24,
    "axes": (32, 32, 32, 32),
    "mlp_ratio": 3.0,
    "theta": 2000.0,
    "guidance_embedding": False,
}
VARIANTS = {"flux_rgbd_9b_v1": {"cross_mixing": False}, "flux_rgbd_9b_v2": {"cross_mixing": True}}


def variant_of(model: Flux2) -> str | None:
    """The released variant that a model is; None for other sizes or streams."""
    streams = [(s.name, s.channels, s.position, s.decoder_blocks) for s in model.streams]
    if streams != [("image", 128, 0, 0), ("depth", 256, 1, 4)]:
        return None
    for name, own in VARIANTS.items():
        if all(getattr(model, key) == value for key, value in (RELEASED | own).items()):
            return name
    return None


def table(model: Flux2, prefix: str = OFFICIAL_PREFIX) -> list[Entry]:
    """The weight table of all arrays of a model.

    Args:
      prefix: "dit." in the release, "" in Black Forest Labs' files, which have the first stream alone.

    Raises:
      ValueError: a stream other than the first that is not called depth: the published files know no other.
    """
    theirs = {model.streams[0].name: "img", "text": "txt"}
    for stream in model.streams[1:]:
        if stream.name != "depth":
            raise ValueError(f"the published layout has no stream {stream.name!r}, only the image and 'depth'")
        theirs[stream.name] = "depth"
    width, mlp, head = model.width, int(model.width * model.mlp_ratio), "norm.{}_norm.scale"
    names = [stream.name for stream in model.streams]
    entries = [Entry("text_in/kernel", "txt_in.weight", "linear")]

    for ours, there in theirs.items():
        block, path = "double_blocks.{i}.", f"double/{ours}"
        layers = model.double_blocks
        for i, part in enumerate("qkv"):
            rows = (i * width, (i + 1) * width)
            entries.append(Entry(f"{path}/{part}/kernel", f"{block}{there}_attn.qkv.weight", "linear", layers, rows))
        for part, whole in (("q", "query"), ("k", "key")):
            entries.append(
                Entry(f"{path}/{part}_norm/scale", f"{block}{there}_attn.{head.format(whole)}", layers=layers)
            )
        for i, part in enumerate(("mlp_gate", "mlp_up")):
            rows = (i * mlp, (i + 1) * mlp)
            entries.append(Entry(f"{path}/{part}/kernel", f"{block}{there}_mlp.0.weight", "linear", layers, rows))
        entries.append(Entry(f"{path}/attention_out/kernel", f"{block}{there}_attn.proj.weight", "linear", layers))
        entries.append(Entry(f"{path}/mlp_down/kernel", f"{block}{there}_mlp.2.weight", "linear", layers))
        entries.append(
            Entry(f"{ours}_double_modulation/kernel", f"double_stream_modulation_{there}.lin.weight", "linear")
        )
    entries += _single("single", "single_blocks", model.single_blocks, width, mlp)

    for stream in model.streams:
        name, first = stream.name, stream is model.streams[0]
        suffix, before = ("", "") if first else ("_depth", "depth_")
        entries.append(Entry(f"{name}_in/kernel", f"{theirs[name]}_in.weight", "linear"))
        entries += _embedder(f"time_{name}", f"time_in{suffix}")
        single = f"single_stream_modulation{suffix}.lin.weight"
        entries.append(Entry(f"{name}_single_modulation/kernel", single, "linear"))
        if stream.decoder_blocks:
            entries += _single(f"{name}_decoder", "depth_decoder_blocks", stream.decoder_blocks, width, mlp)
            entries.append(Entry(f"{name}_decoder_modulation/kernel", "depth_decoder_modulation.lin.weight", "linear"))
        last = f"{before}final_layer"
        entries.append(Entry(f"{name}_out/kernel", f"{last}.linear.weight", "linear"))
        entries.append(Entry(f"{name}_out_modulation/kernel", f"{last}.adaLN_modulation.1.weight", "linear"))
    if model.guidance_embedding:
        entries += _embedder("guidance", "guidance_in")
    if model.cross_mixing and len(names) > 1:
        image, depth = names
        entries += _embedder(f"time_{depth}_to_{image}", "time_in_depth_to_img")
        entries += _embedder(f"time_{image}_to_{depth}", "time_in_rgb_to_depth")
        entries.append(Entry(f"gate_{depth}_to_{image}", "cross_alpha_img"))
        entries.append(Entry(f"gate_{image}_to_{depth}", "cross_alpha_depth"))
    return [dataclasses.replace(entry, theirs=prefix + entry.theirs) for entry in entries]


def published_part(model: Flux2, tensors: Container[str]) -> list[Entry]:
    """The weight table of the arrays that a published file has for a model.

    Black Forest Labs' file has text and the first stream; the release has all, or all but the mixing of noise levels.

    Raises:
      ValueError: a file of neither kind.
    """
    if f"{OFFICIAL_PREFIX}img_in.weight" in tensors:
        mixing = model.cross_mixing and f"{OFFICIAL_PREFIX}cross_alpha_img" in tensors
        return table(model.clone(cross_mixing=mixing))
    if "img_in.weight" in tensors:
        return table(model.clone(streams=model.streams[:1]), prefix="")
    raise ValueError(
        f"neither {OFFICIAL_PREFIX}img_in.weight (Modality Forcing release) nor img_in.weight (FLUX.2) is in the file"
    )


def _single(ours: str, theirs: str, layers: int, width: int, mlp: int) -> list[Entry]:
    """A stack of single-stream blocks: linear1 is q, k, v and the two halves of the MLP; linear2 takes both results."""
    entries, start = [], 0
    for part, size in (("q", width), ("k", width), ("v", width), ("mlp_gate", mlp), ("mlp_up", mlp)):
        rows = (start, start + size)
        entries.append(Entry(f"{ours}/{part}/kernel", theirs + ".{i}.linear1.weight", "linear", layers, rows))
        start += size
    for part, columns in (("attention_out", (0, width)), ("mlp_down", (width, width + mlp))):
        name = theirs + ".{i}.linear2.weight"
        entries.append(Entry(f"{ours}/{part}/kernel", name, "linear", layers, columns=columns))
    for part, whole in (("q", "query"), ("k", "key")):
        entries.append(Entry(f"{ours}/{part}_norm/scale", f"{theirs}.{{i}}.norm.{whole}_norm.scale", layers=layers))
    return entries


def _embedder(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}/{part}/kernel", f"{theirs}.{part}.weight", "linear") for part in ("in_layer", "out_layer")]
