"""The `evaluate` verb: predicts depth from the images of held-out records, aligns, scores, reports.

Records are cropped around the centre to the model's aspect ratio, as in training. Images are resized to the model's
resolution, predictions back to the crop, and scored at the resolution of the ground truth over all its valid pixels.
The prompt is empty and guidance off, as in the official image->depth script.

The predictions of a batch, those of an image's ensemble among them, are split over the devices of all processes. A
process reads the records whose predictions its devices make, and scores those whose last one they make; process 0 joins
the scores and writes them.

Legend: B batch, E ensemble members, H W pixels of a record, h w pixels of the model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mf_jax.config import loading as configs
from mf_jax.config.config import Config
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
from mf_jax.parallel.processes import ProcessGroup
from mf_jax.storage.atomic_file import write_bytes

SHEET_ROWS = 8


def evaluate(
    checkpoint: str,
    config: Config | None,
    overrides: Sequence[str],
    output: str | None,
    step: int | None = None,
    trust_code: bool = False,
    group: ProcessGroup | None = None,
) -> dict[str, Any] | None:
    """The `evaluate` verb: writes results.json, per_image.csv and contact_sheet.png, prints the table.

    Args:
      checkpoint: the directory of a run or an export. config: whose sections data and evaluate replace the
        checkpoint's.
      overrides: of the checkpoint's config where no other is given, "evaluate.images=64". output: directory to write
        to; None: `checkpoint`.
      step: of a checkpoint; None: the latest. trust_code: whether its config may name modules to import.
      group: the processes, all of which call this; None for one process.

    Returns:
      The content of results.json on process 0, which writes; None on the others.
    """
    group = group or ProcessGroup()
    pipeline = load(checkpoint, step, trust_code=trust_code, group=group)
    source = config or configs.resolve(configs.to_dict(pipeline.config), overrides)
    settings = source.evaluate
    directory = pathlib.Path(output or checkpoint)
    rows, sheet, unreadable = score_source(pipeline, source.data, settings, group)
    if not group.is_main:
        return None
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
    pipeline: Pipeline, data: DataConfig, settings: EvaluateConfig, group: ProcessGroup
) -> tuple[list[tuple[str, Any]], list[dict[str, Any]], int]:
    """Predicts and scores the records of a split.

    The noise of member e of record i depends only on (settings.seed, i, e): neither the batch size, the number of
    images nor that of devices and processes changes a record's score.

    Returns:
      On process 0: (key, scores) per record, scores None where it has no valid depth; rows for `contact_sheet`; and the
      number of records that cannot be read. On the others nothing of the first two.

    Raises:
      ValueError: more than the source's max_unreadable records cannot be read; on process 0.
    """
    records = data.open(settings.split)
    members, mode = settings.ensemble, pipeline.mode_of(("image",))
    predictions = min(settings.images or len(records), len(records)) * members
    size = pipeline.compiled.padded(settings.batch)
    held, scorers = set(pipeline.compiled.rows(size).tolist()), pipeline.compiled.processes(size).tolist()
    unreadable: set[int] = set()
    rows: list[tuple[str, Any]] = []
    sheet: list[dict[str, Any]] = []
    begun: list[np.ndarray] = []  # predictions of the image whose ensemble is not complete yet
    batches = range(0, predictions, size)
    for start in tqdm(batches, desc="evaluate", unit="batch", mininterval=5.0, disable=not group.is_main):
        pairs = [divmod(k, members) for k in range(start, min(start + size, predictions))]
        mine = {i: _read(records, i, pipeline) for i in {i for row, (i, _) in enumerate(pairs) if row in held}}
        depth_Bhw = _predict(pipeline, mode, mine, pairs, size, settings)
        complete: dict[int, np.ndarray] = {}
        scored: list[tuple[int, str, Any]] = []
        for row, (i, e) in enumerate(pairs):
            begun.append(depth_Bhw[row])
            if e < members - 1:
                continue
            complete[i], begun = np.stack(begun), []
            if scorers[row] == group.process and (record := mine[i]) is not None:
                depth_hw = _joined(complete[i], settings)
                scores = score(depth_hw, record["depth"], record["depth_valid"], depth_range=settings.depth_range)
                scored.append((i, record["key"], scores))
        told = group.gather({"scored": scored, "lost": [i for i, record in mine.items() if record is None]})
        unreadable.update(i for of_one in told for i in of_one["lost"])
        _check_readable(records, unreadable)
        for i, key, scores in sorted(
            (entry for of_one in told for entry in of_one["scored"]), key=lambda entry: entry[0]
        ):
            rows.append((key, scores))
            if scores is not None and len(sheet) < SHEET_ROWS:
                record = mine.get(i) or _read(records, i, pipeline)
                sheet.append(_shown(record, _joined(complete[i], settings), scores["moge_affine"]))
    return rows, sheet, len(unreadable)


def _read(records: Source, index: int, pipeline: Pipeline) -> dict[str, Any] | None:
    """The cropped record; None if its files cannot be read.

    A source returns the next readable record in its place, which is right for training; here that one is scored anyway.
    """
    record = records[index]
    return None if record["skipped"] else crop_record(record, pipeline.model.resolution)


def _joined(depth_Ehw: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    return ensemble(depth_Ehw, settings.ensemble_mode)[0] if len(depth_Ehw) > 1 else depth_Ehw[0]


def _check_readable(records: Source, unreadable: Collection[int]) -> None:
    """Raises ValueError if more records than the source's max_unreadable cannot be read."""
    if len(unreadable) > records.max_unreadable:
        raise ValueError(
            f"{len(unreadable)} records cannot be read, the first is {records.path(min(unreadable))}; mend or remove "
            f"the files, or raise data.source.max_unreadable, {records.max_unreadable}"
        )


def _shown(record: dict[str, Any] | None, depth_hw: np.ndarray, fit: Mapping[str, float]) -> dict[str, Any]:
    """The row of `contact_sheet` for a scored record."""
    assert record is not None  # another process has just read it
    return {
        "image": record["image"],
        "depth": record["depth"],
        "depth_valid": record["depth_valid"],
        "prediction": fit["scale"] * resize_bilinear(depth_hw, record["depth"].shape) + fit["shift"],
        "caption": f"{record['key']}  AbsRel {100 * fit['abs_rel']:.1f}",
    }


def crop_record(record: Mapping[str, Any], resolution: tuple[int, int]) -> dict[str, Any]:
    """The record with image, depth and depth_valid cropped around the centre to the aspect ratio of `resolution`."""
    cropped = {name: center_crop_to_aspect(record[name], resolution) for name in ("image", "depth", "depth_valid")}
    return {**record, **cropped}


def _seed(seed: int, index: int, member: int) -> int:
    return int(np.random.SeedSequence((seed, index, member)).generate_state(1)[0])


def _predict(
    pipeline: Pipeline,
    mode: str,
    records: Mapping[int, Mapping[str, Any] | None],
    pairs: Sequence[tuple[int, int]],
    size: int,
    settings: EvaluateConfig,
) -> np.ndarray:
    """Relative depth (B, h, w) of every pair of record and member; meaningless where no process can read the record.

    Args:
      records: those of this process. size: of the batch: a smaller last one is filled up, to compile nothing for it.
    """
    image_BhwC = np.zeros((size, *pipeline.model.resolution, 3), np.uint8)
    resized = {i: resize_image(r["image"], pipeline.model.resolution) for i, r in records.items() if r is not None}
    for row, (i, _) in enumerate(pairs):
        if i in resized:
            image_BhwC[row] = resized[i]
    seed_B = np.array([_seed(settings.seed, i, e) for i, e in pairs] + [0] * (size - len(pairs)))
    result = pipeline.sample(mode, image=image_BhwC, steps=settings.steps, seed=seed_B, batch=size)
    return result["depth"][: len(pairs)]
