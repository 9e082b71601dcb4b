"""The `evaluate` verb: predicts depth from the images of held-out records, aligns, scores, reports.

Records are cropped around the centre to the model's aspect ratio, as in training. Images are resized to the model's
resolution, predictions back to the crop, and scored at the resolution of the ground truth over all its valid pixels.
The prompt is empty and guidance off, as in the official image->depth script.

Legend: B batch, E ensemble members, H W pixels of a record, h w pixels of the model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mf_jax.config import loading as configs
from mf_jax.config.sections import EvaluateConfig
from mf_jax.data.config import DataConfig
from mf_jax.data.resize import center_crop_to_aspect, resize_image
from mf_jax.data.sources import Source
from mf_jax.evaluation.ensemble import ensemble
from mf_jax.evaluation.protocols import resize_bilinear, score
from mf_jax.evaluation.report import table, write_report
from mf_jax.inference.outputs import png_bytes
from mf_jax.inference.pipeline import Pipeline, load
from mf_jax.inference.visualize import contact_sheet
from mf_jax.storage.atomic_file import write_bytes

SHEET_ROWS = 8


def evaluate(
    checkpoint: str,
    config: str | None,
    overrides: Sequence[str],
    output: str | None,
    step: int | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """The `evaluate` verb: writes results.json, per_image.csv and contact_sheet.png, prints the table.

    Args:
      checkpoint: the directory of a run or an export. config: a config file whose sections data and evaluate replace
        the checkpoint's.
      overrides: of the config, "evaluate.images=64". output: directory to write to; None: `checkpoint`.
      step: of a checkpoint; None: the latest. trust_code: whether its config may name modules to import.

    Returns:
      The content of results.json.
    """
    pipeline = load(checkpoint, step, trust_code=trust_code)
    source = configs.load(config, overrides) if config else configs.resolve(configs.to_dict(pipeline.config), overrides)
    settings = source.evaluate
    directory = pathlib.Path(output or checkpoint)
    rows, sheet, unreadable = score_source(pipeline, source.data, settings)
    described = {
        "task": "image->depth",
        "data": {"source": configs.to_dict(source)["data"]["source"], "split": settings.split},
        "crop": "centre, to the aspect ratio of the resolution",
        "resolution": pipeline.model.resolution,
        "sampling": {"steps": settings.steps, "mu": pipeline.config.sample.mu, "guidance": 1.0, "prompt": ""},
        "ensemble": settings.ensemble,
        "ensemble_mode": settings.ensemble_mode,
        "seed": settings.seed,
        "lstsq_depth_range": settings.depth_range,
        "unreadable_files": unreadable,
    }
    results = write_report(directory, rows, pipeline.step, described)
    written = ["results.json", "per_image.csv"]
    if sheet:
        write_bytes(directory / "contact_sheet.png", png_bytes(contact_sheet(sheet)))
        written.append("contact_sheet.png")
    print(table(results))
    for name in written:
        print(directory / name)
    return results


def score_source(
    pipeline: Pipeline, data: DataConfig, settings: EvaluateConfig
) -> tuple[list[tuple[str, Any]], list[dict[str, Any]], int]:
    """Predicts and scores the records of a split.

    The noise of member e of record i depends only on (settings.seed, i, e): neither the batch size nor the number of
    images changes a record's score.

    Returns:
      (key, scores) per record, scores None where it has no valid depth; rows for `contact_sheet`; and the number of
      records that cannot be read.
    """
    records = data.open(settings.split)
    count = min(settings.images or len(records), len(records))
    unreadable: list[int] = []
    rows: list[tuple[str, Any]] = []
    sheet: list[dict[str, Any]] = []
    for start in tqdm(range(0, count, settings.batch), desc="evaluate", unit="batch", mininterval=5.0):
        indices = range(start, min(start + settings.batch, count))
        batch = {i: record for i in indices if (record := _read_or_skip(records, i, unreadable)) is not None}
        if not batch:
            continue
        batch = {i: crop_record(record, pipeline.model.resolution) for i, record in batch.items()}
        image_BhwC = np.stack([resize_image(record["image"], pipeline.model.resolution) for record in batch.values()])
        members = []
        for e in range(settings.ensemble):
            seeds = [_seed(settings.seed, i, e) for i in batch]
            members.append(_predict(pipeline, image_BhwC, seeds, settings))
        for record, depth_Ehw in zip(batch.values(), np.stack(members, axis=1), strict=True):
            depth_hw = ensemble(depth_Ehw, settings.ensemble_mode)[0] if settings.ensemble > 1 else depth_Ehw[0]
            scores = score(depth_hw, record["depth"], record["depth_valid"], depth_range=settings.depth_range)
            rows.append((record["key"], scores))
            if scores is not None and len(sheet) < SHEET_ROWS:
                fit = scores["moge_affine"]
                aligned_HW = fit["scale"] * resize_bilinear(depth_hw, record["depth"].shape) + fit["shift"]
                sheet.append(
                    {
                        "image": record["image"],
                        "depth": record["depth"],
                        "depth_valid": record["depth_valid"],
                        "prediction": aligned_HW,
                        "caption": f"{record['key']}  AbsRel {100 * fit['abs_rel']:.1f}",
                    }
                )
    return rows, sheet, len(unreadable)


def _read_or_skip(records: Source, index: int, unreadable: list[int]) -> dict[str, Any] | None:
    """The record; None if its files cannot be read, and its index is appended to `unreadable`.

    A source returns the next readable record in its place, which is right for training; here that one is scored anyway.

    Raises:
      ValueError: more than the source's max_unreadable records cannot be read.
    """
    record = records[index]
    if not record["skipped"]:
        return record
    unreadable.append(index)
    if len(unreadable) > records.max_unreadable:
        raise ValueError(
            f"{len(unreadable)} records cannot be read, the first is {records.path(unreadable[0])}; mend or remove the "
            f"files, or raise data.source.max_unreadable, {records.max_unreadable}"
        )
    return None


def crop_record(record: Mapping[str, Any], resolution: tuple[int, int]) -> dict[str, Any]:
    """The record with image, depth and depth_valid cropped around the centre to the aspect ratio of `resolution`."""
    cropped = {name: center_crop_to_aspect(record[name], resolution) for name in ("image", "depth", "depth_valid")}
    return {**record, **cropped}


def _seed(seed: int, index: int, member: int) -> int:
    return int(np.random.SeedSequence((seed, index, member)).generate_state(1)[0])


def _predict(pipeline: Pipeline, image_BhwC: np.ndarray, seeds: list[int], settings: EvaluateConfig) -> np.ndarray:
    """Relative depth (B, h, w). A smaller last batch is padded to the full size, to avoid a second compilation."""
    missing = settings.batch - len(seeds)
    image_BhwC = np.concatenate([image_BhwC, np.repeat(image_BhwC[-1:], missing, axis=0)])
    seed_B = np.array(seeds + [0] * missing)
    mode = pipeline.mode_of(("image",))
    result = pipeline.sample(mode, image=image_BhwC, steps=settings.steps, seed=seed_B, batch=settings.batch)
    return result["depth"][: len(seeds)]
