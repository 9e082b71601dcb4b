"""Resuming a run from the latest checkpoint in its workdir that is undamaged and of the same config.

A damaged checkpoint is moved to checkpoints/damaged-STEP and the one before it is used. So the run can save that step
again, checkpoint.keep does not count the damaged one, and its files are kept for inspection. If all checkpoints are
damaged nothing is moved and the run does not start. Process 0 decides for all.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mf_jax.checkpoint import integrity
from mf_jax.checkpoint.manager import Checkpoints, Damaged
from mf_jax.config.config import Config
from mf_jax.config.loading import difference, dotted_kinds, resolve_saved
from mf_jax.parallel.processes import ProcessGroup
from mf_jax.training.train_state import TrainState

# Keys whose values may change when a run is resumed: they do not change what is learned. The same holds for the number
# of steps if the learning rate does not depend on it, and for the paths of published weights (KEY.checkpoint).
MAY_CHANGE = (
    "train.log_every",
    "train.compilation_cache",
    "train.profile_steps",
    "train.dump_hlo",
    "checkpoint.",
    "data.workers",
    "data.cache",
    "data.precomputed",
    "data.source.root",
    "data.source.image_latent",
    "data.source.text_features",
    "data.source.max_unreadable",
    "data.source.test",
    "data.source.validation",
    "data.source.splits.test",
    "data.source.splits.validation",
    "mesh.",
    "model.attention",
    "model.remat",
    "sample.",
    "text.pack",
    "text.lengths",
    "text.expected_tokens",
    "text.empty_features",
    "evaluate.",
)


class FellBack(Exception):
    """A checkpoint turned out to be damaged while it was restored and was set aside; `find` returns the one before."""


def find(workdir: pathlib.Path, config: Config, group: ProcessGroup) -> int | None:
    """The step to resume from, the same on all processes; None for a new run. Removes the files of unfinished saves.

    Args:
      workdir: locked. config: resolved.

    Raises:
      ValueError: on process 0: all checkpoints are damaged, or the latest good one is an import or of another config.
    """
    directory = (workdir / "checkpoints").absolute()
    return group.broadcast(_find(workdir, directory, config) if group.is_main else None)


def _find(workdir: pathlib.Path, directory: pathlib.Path, config: Config) -> int | None:
    integrity.remove_unfinished(directory)
    damaged: dict[int, str] = {}
    for step in reversed(integrity.steps(directory)):
        reason = integrity.damage(directory / str(step))
        if reason is None:
            break
        damaged[step] = reason
    else:
        if damaged:
            lines = "\n".join(f"  {step}: {reason}" for step, reason in damaged.items())
            raise ValueError(
                f"no checkpoint in {directory} can be read:\n{lines}\n"
                "give another --workdir, or move that directory away to begin anew"
            )
        return None
    if not (directory / str(step) / "opt_state").is_dir():
        raise ValueError(f"{workdir} is an import; train in another --workdir with init.checkpoint={workdir}")
    _check_same(integrity.read_json(directory / str(step), "config"), config, workdir)
    for bad, reason in damaged.items():
        _set_aside(directory, bad, reason, step)
    return step


def restore(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """The state of a step, laid out as `abstract`.

    Raises:
      FellBack: the checkpoint turned out to be damaged and there is one before it; only in a run of one process.
      Damaged: it is damaged, and there is no other or there are several processes.
      ValueError: its arrays are not those of `abstract`.
    """
    placed = jax.device_put(np.int32(step), abstract.step.sharding)
    trees = {name: value for name, value in vars(abstract).items() if name != "step"}
    try:
        return TrainState(step=placed, **checkpoints.restore(trees, step))
    except Damaged as error:
        earlier = [other for other in integrity.steps(checkpoints.directory) if other < step]
        if not earlier or jax.process_count() > 1:  # another may have read its part and continued
            raise
        _set_aside(checkpoints.directory, step, str(error), max(earlier))
        raise FellBack from error


def _set_aside(directory: pathlib.Path, step: int, reason: str, instead: int) -> None:
    target = directory / f"damaged-{step}"
    number = 1
    while target.exists():
        number += 1
        target = directory / f"damaged-{step}-{number}"
    (directory / str(step)).rename(target)
    print(
        f"WARNING: checkpoint {step} in {directory} is damaged ({reason}); it is now {target.name}, and training goes "
        f"on from step {instead}",
        flush=True,
    )


def _check_same(raw: Mapping[str, Any], config: Config, workdir: pathlib.Path) -> None:
    """Raises ValueError if a checkpoint's config differs from the run's; imports only modules that the run's names."""
    known = {name: modality.kind for name, modality in config.modalities.items()}
    changed: list[tuple[str, Any, Any]] = [
        (f"modalities.{name}.kind", kind, known.get(name))
        for name, kind in dotted_kinds(raw).items()
        if known.get(name) != kind
    ]
    if not changed:
        may_change = MAY_CHANGE + (("train.steps",) if config.optimizer.schedule == "constant" else ())
        changed = [
            entry
            for entry in difference(resolve_saved(raw, trusted=True), config)
            if not entry[0].startswith(may_change) and not entry[0].endswith(".checkpoint")
        ]
    if changed:
        lines = "\n".join(f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, old, new in changed)
        raise ValueError(
            f"the checkpoint in {workdir} is of another config:\n{lines}\n"
            "give the config that it was trained with, or another --workdir"
        )
