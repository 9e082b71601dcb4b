"""Checkpoints: the parts of a train state, the data iterator's position and the resolved config, saved asynchronously.

The only file that imports orbax. A checkpoint appears under its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging as standard_logging
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mf_jax.checkpoint import integrity
from mf_jax.config.sections import CheckpointConfig

RENAMED = {"frozen": "untrained"}  # former names of items, in older checkpoints: present names
REMOVE_WITHIN = 10.0  # seconds to remove the files of a failed save
# In a path, orbax takes the first three for wildcards, and finds nothing, or another run's files.
UNWRITABLE, UNREADABLE = "*?[]\\", "*?\\"


def _no_traceback(record: standard_logging.LogRecord) -> bool:
    """A log filter: orbax logs, with a traceback and from its threads, the errors that it raises here as well."""
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


class Damaged(ValueError):
    """A checkpoint with missing or unreadable files.

    Attributes:
      step: of the checkpoint.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class SaveFailed(OSError):
    """A checkpoint could not be written; a restart may help."""


def check_path(directory: pathlib.Path, characters: str = UNWRITABLE) -> None:
    """Raises ValueError if a path has one of the characters that orbax cannot handle."""
    if found := [character for character in characters if character in str(directory)]:
        raise ValueError(
            f"{directory} has {' and '.join(found)} in its path, which checkpoints cannot be under; rename it, or give "
            f"a directory without any of {' '.join(characters)}"
        )


class Checkpoints:
    """The checkpoints of one run, in `directory`."""

    def __init__(self, directory: pathlib.Path, config: CheckpointConfig | None = None):
        """Opens `directory`: with a config for writing, without one for reading only."""
        self.directory = pathlib.Path(directory).absolute()
        check_path(self.directory, UNREADABLE if config is None else UNWRITABLE)
        self._size: int = 0  # bytes of the arrays of the last save
        if config is None:
            options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, keep_period=config.keep_every or None, enable_async_checkpointing=True
            )
        logging.get_absl_logger().addFilter(_no_traceback)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """The last step that has a checkpoint; None without any."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Mapping[str, Any], iterator: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts an asynchronous save; returns once the arrays are copied off the device. No-op for the latest step.

        Args:
          items: trees of arrays by name, each of which can be restored alone. Empty ones are left out.
          iterator: state of the data iterator. config: resolved. Both of JSON types.

        Raises:
          SaveFailed: this save, or the one before.
        """
        if step == self._manager.latest_step():
            return
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        json_items = {"iterator": ocp.args.JsonSave(iterator), "config": ocp.args.JsonSave(config)}
        with self._writing():
            self._manager.wait_until_finished()
            self._size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
            self._manager.save(step, args=ocp.args.Composite(**json_items, **trees))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Context that turns write errors into SaveFailed; process 0 removes the unfinished files to free the disk."""
        try:
            yield
        except (ValueError, OSError) as error:  # tensorstore raises ValueError for everything
            if jax.process_index() == 0:
                self._remove_unfinished()
            free = shutil.disk_usage(self.directory).free
            raise SaveFailed(
                f"a checkpoint in {self.directory} could not be written and was removed; it needs up to "
                f"{self._size:,} bytes, {free:,} are free: {_shortened(error)}"
            ) from None

    def _remove_unfinished(self) -> None:
        """Removes unfinished saves until none is left: orbax's threads may recreate directories for a while."""
        deadline = time.monotonic() + REMOVE_WITHIN
        while integrity.remove_unfinished(self.directory) and time.monotonic() < deadline:
            time.sleep(0.5)

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The resolved config of a checkpoint; step None: of the latest.

        Raises:
          ValueError: there is no such checkpoint.
        """
        return self._json("config", step)

    def iterator(self, step: int | None = None) -> dict[str, Any]:
        """The state of the data iterator in a checkpoint."""
        return self._json("iterator", step)

    def items(self, step: int | None = None) -> set[str]:
        """Names of the trees of arrays that a checkpoint holds."""
        names = {entry.name for entry in (self.directory / str(self.step(step))).iterdir() if entry.is_dir()}
        return {RENAMED.get(name, name) for name in names} - {"config", "iterator"}

    def _on_disk(self, name: str, step: int) -> str:
        old = next((old for old, new in RENAMED.items() if new == name), name)
        return old if (self.directory / str(step) / old).is_dir() else name

    def restore(self, abstract: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """Reads items of a checkpoint, and nothing else of it.

        Args:
          abstract: by item, a tree of jax.ShapeDtypeStruct with the shardings to restore to; empty trees stay empty.

        Raises:
          Damaged: names and shapes are those of `abstract`, but the arrays cannot be read.
          ValueError: there is no such checkpoint, or it has other names or shapes.
        """
        step = self.step(step)
        checkpoint = self.directory / str(step)
        wanted = {name: tree for name, tree in abstract.items() if jax.tree.leaves(tree)}
        held = self.items(step)
        for name in wanted:
            if name not in held:
                raise ValueError(f"checkpoint {checkpoint} holds no {name}; it has {', '.join(sorted(held))}")
        files = {name: self._on_disk(name, step) for name in wanted}
        trees = {files[name]: ocp.args.StandardRestore(tree, fallback_sharding=None) for name, tree in wanted.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**trees))
        except Exception as error:  # orbax raises bare ones
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if not isinstance(cause, ValueError | KeyError | FileNotFoundError):
                raise
            integrity.raise_system_error(cause)
            if reason := integrity.damage(checkpoint):
                raise self._damaged(step, reason) from None
            for name, tree in wanted.items():
                if difference := _difference(tree, integrity.shapes(checkpoint / files[name])):
                    raise ValueError(
                        f"checkpoint {checkpoint} does not hold the arrays of this config: {name} {difference}"
                    ) from None
            raise self._damaged(step, _shortened(cause)) from None
        return {name: restored[files[name]] if name in wanted else tree for name, tree in abstract.items()}

    def _json(self, name: str, step: int | None) -> dict[str, Any]:
        return integrity.read_json(self.directory / str(self.step(step)), name)

    def intact(self, step: int | None = None) -> int:
        """The step of a complete checkpoint: the one given, else the latest.

        Raises:
          Damaged: files are missing or truncated. ValueError: there is no such checkpoint.
        """
        step = self.step(step)
        if reason := integrity.damage(self.directory / str(step)):
            raise self._damaged(step, reason)
        return step

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(step, f"checkpoint {self.directory / str(step)} is damaged: {reason}; {self.instead_of(step)}")

    def instead_of(self, step: int) -> str:
        """Advice for an error message about an unusable checkpoint: which other one to use."""
        others = [other for other in self.steps() if other != step]
        if not others:
            return "there is no other"
        return f"take another one, --step={others[-1]} (there are {others}); for init.checkpoint, export that one"

    def step(self, step: int | None = None) -> int:
        """The step given, else the latest.

        Raises:
          ValueError: there is no such checkpoint.
        """
        found = self.steps()
        if not found:
            raise ValueError(f"no checkpoint in {self.directory}")
        if step is None:
            return found[-1]
        if step not in found:
            raise ValueError(f"no checkpoint of step {step} in {self.directory}; there are {found}")
        return step

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises SaveFailed."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes orbax's manager. Raises SaveFailed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


def _shortened(error: Exception) -> str:
    """The start and the end of a long message of tensorstore: what failed, and why."""
    text = str(error)
    return text if len(text) < 400 else f"{text[:150]} ... {text[-240:]}"


def _difference(wanted: Any, saved: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first difference between a tree of arrays and those of a checkpoint, in words; None if there is none."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]:
        named[jax.tree_util.keystr(path, simple=True, separator=".")] = tuple(leaf.shape)
    for name in sorted({*named, *saved}):
        if name not in saved:
            return f"has no {name}"
        if name not in named:
            return f"has {name}, which is not of this config"
        if named[name] != saved[name]:
            return f"has {name} of shape {saved[name]}, not {named[name]}"
    return None


def digest(tree: Any) -> str:
    """SHA-256 over the paths, shapes, dtypes and bytes of all leaves, to compare two runs exactly."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
