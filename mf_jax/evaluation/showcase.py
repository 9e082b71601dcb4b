"""A trained model in four modes on held-out records: python -m mf_jax.evaluation.showcase WORKDIR [--count=8]

The modes: joint, conditioned on the image, on depth, and on renoised depth. Writes WORKDIR/samples/MODE/..., a folder
per sample as the `sample` verb writes it, and one picture of all of them, WORKDIR/samples.png. It also measures whether
jointly sampled depth belongs to its image: the depth that the model estimates from the sampled image alone is the
reference, the same depth maps dealt to the wrong images are the baseline (WORKDIR/samples.json). Depth from an image
takes the steps that evaluation takes.

Legend: B samples, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
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


def showcase(workdir: str, count: int, steps: int | None) -> None:
    """Samples `count` records in the four modes, `6 * count` jointly for the measurement."""
    directory = pathlib.Path(workdir)
    model = pipeline.load(directory)
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
        "dealt_to_the_wrong_images": _mean_abs_rel(np.roll(joint["depth"], 1, axis=0), estimated),
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
    own, wrong = agreement["joint_depth_against_its_image"], agreement["dealt_to_the_wrong_images"]
    print(f"joint samples: AbsRel of their depth to that of their image {own:.3f} (dealt to wrong images: {wrong:.3f})")
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mf_jax.evaluation.showcase", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("workdir", help="of a training run")
    parser.add_argument("--count", type=int, default=8, help="records shown in every mode")
    parser.add_argument("--steps", type=int, help="Euler steps of joint, d2i, partial (default: sample.steps)")
    arguments = parser.parse_args(argv)
    try:
        showcase(arguments.workdir, arguments.count, arguments.steps)
    except (ValueError, OSError) as error:
        print(f"mf_jax.evaluation.showcase: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
