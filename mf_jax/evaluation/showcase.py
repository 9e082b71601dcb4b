"""The verb `showcase`: a trained model's samples in four modes on held-out records, and how well its joint depth fits.

The modes: joint, conditioned on the image, on depth, and on renoised depth. Writes samples/MODE/..., a folder per
sample as the `sample` verb writes it, and one picture of all of them, samples.png. It also measures whether jointly
sampled depth belongs to its image (samples.json): AbsRel to the depth that the model estimates from the sampled image
alone. The shuffled-pair baseline is the same figure with every depth map compared to the image of another sample. Depth
from an image takes the steps that evaluation takes.

Legend: B samples, H W pixels.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mf_jax.data.resize import masked_nearest, resize_image
from mf_jax.evaluation.evaluate import crop_record
from mf_jax.evaluation.protocols import score
from mf_jax.inference import pipeline
from mf_jax.inference.modes import JOINT, PARTIAL
from mf_jax.inference.outputs import png_bytes, write_sample
from mf_jax.inference.visualize import colorize_depth
from mf_jax.storage.atomic_file import write_bytes

TILE = 128
GAP = 4


def showcase(
    checkpoint: str,
    output: str | None = None,
    count: int = 8,
    steps: int | None = None,
    step: int | None = None,
    trust_code: bool = False,
) -> None:
    """Samples `count` records in the four modes, and `6 * count` jointly for the measurement.

    Args:
      checkpoint: the workdir of a run, or an export. output: where to write, the checkpoint's directory by default.
      steps: Euler steps of joint, d2i and partial, by default the config's sample.steps.
      step: which checkpoint, the latest unless said. trust_code: whether its config may name modules to import.

    Raises:
      ValueError: a model without image and depth, or fewer records with depth than `count`.
    """
    if count < 1:
        raise ValueError(f"--count is {count}; it must be at least 1")
    directory = pathlib.Path(output or checkpoint)
    model = pipeline.load(checkpoint, step, trust_code=trust_code)
    from_image, from_depth = model.mode_of(("image",)), model.mode_of(("depth",))
    steps = steps or model.config.sample.steps
    settings = model.config.evaluate
    records = model.config.data.open(settings.split)
    first = (records[i] for i in range(min(len(records), 4 * count)))
    shown = [record for record in first if record["depth_valid"].any()]
    if len(shown) < count:
        raise ValueError(
            f"the split {settings.split!r} has {len(shown)} records with depth among its first; --count={count}"
        )
    shown = [fit_record(record, model.model.resolution) for record in shown[:count]]
    prompts = [model.tokenizer.fit(record["caption"]) for record in shown]
    images = np.stack([record["image"] for record in shown])
    depths = np.stack([record["depth"] for record in shown])

    many = [model.tokenizer.fit(records[i % len(records)]["caption"]) for i in range(6 * count)]
    joint = model.sample(JOINT, many, steps=steps)
    estimated = model.sample(from_image, image=joint["image"], steps=settings.steps)["depth"]
    agreement = {
        "joint_depth_against_its_image": _mean_abs_rel(joint["depth"], estimated),
        "shuffled_pair_baseline": _mean_abs_rel(np.roll(joint["depth"], 1, axis=0), estimated),
        "samples": len(many),
        "protocol": f"moge_affine AbsRel; reference: {from_image} depth of the sampled image",
    }

    results = {
        JOINT: {name: value[:count] for name, value in joint.items()},
        from_image: model.sample(from_image, image=images, steps=settings.steps),
        from_depth: model.sample(from_depth, prompts, depth=depths, steps=steps),
        PARTIAL: model.sample(PARTIAL, prompts, depth=depths, steps=steps),
    }
    columns = [("held-out", images, depths)]
    for mode, result in results.items():
        columns.append((mode, result["image"], result["depth"]))
        for i, prompt in enumerate(prompts):
            metadata = {
                "prompt": "" if mode == from_image else prompt,
                "mode": mode,
                "seed": 0,
                "sample": i,
                "num_steps": settings.steps if mode == from_image else steps,
                "cfg_scale": model.guidance_of(mode),
                "checkpoint_step": model.step,
            }
            folder = directory / "samples" / mode
            cloud = mode in (JOINT, from_image)
            write_sample(folder, result["image"][i], result["depth"][i], metadata, pointcloud=cloud)
    write_bytes(directory / "samples.png", png_bytes(_sheet([(image, depth) for _, image, depth in columns])))
    write_bytes(directory / "samples.json", (json.dumps(agreement, indent=2) + "\n").encode())
    print(f"columns of {directory / 'samples.png'}: " + ", ".join(name for name, _, _ in columns))
    own, shuffled = agreement["joint_depth_against_its_image"], agreement["shuffled_pair_baseline"]
    print(f"joint samples: AbsRel of their depth to that of their image {own:.3f} (shuffled pairs: {shuffled:.3f})")
    for name in ("samples", "samples.png", "samples.json"):
        print(directory / name)


def fit_record(record: Mapping[str, Any], resolution: tuple[int, int]) -> dict[str, Any]:
    """The record cropped and resized to (H, W), as the model sees it."""
    record = crop_record(record, resolution)
    depth_HW, valid_HW = masked_nearest(record["depth"], record["depth_valid"], resolution)
    return {**record, "image": resize_image(record["image"], resolution), "depth": depth_HW, "depth_valid": valid_HW}


def _mean_abs_rel(pred_BHW: np.ndarray, reference_BHW: np.ndarray) -> float:
    scores = []
    for pred_HW, reference_HW in zip(pred_BHW, reference_BHW, strict=True):
        valid_HW = np.isfinite(reference_HW) & (reference_HW > 0)
        scored = score(pred_HW, reference_HW, valid_HW, ("moge_affine",))
        if scored is not None:
            scores.append(scored["moge_affine"]["abs_rel"])
    return float(np.mean(scores))


def _sheet(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """One row per sample; per column the image beside its depth."""
    rows = []
    for i in range(len(columns[0][0])):
        tiles = []
        for images, depths in columns:
            for tile in (images[i], colorize_depth(depths[i])):
                repeat = max(1, TILE // tile.shape[0])
                tile = tile.repeat(repeat, axis=0).repeat(repeat, axis=1)
                tiles.append(np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)
