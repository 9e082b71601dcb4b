"""Checkpoints: the parts of a train state, the data iterator's position and the resolved config, saved asynchronously.

The only file that imports orbax. A checkpoint appears under its final name only when it is complete.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mf_jax.config.sections import CheckpointConfig

RENAMED = {"frozen": "untrained"}  # items of checkpoints from before they had their present names


class Checkpoints:
    """The checkpoints of one run, in `directory`."""

    def __init__(self, directory: pathlib.Path, config: CheckpointConfig | None = None):
        """Opens `directory` for writing with a config, for reading without one."""
        self.directory = pathlib.Path(directory).absolute()
        if config is None:
            options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, keep_period=config.keep_every or None, enable_async_checkpointing=True
            )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, items: Mapping[str, Any], iterator: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts a save and returns when the arrays have left the device; a step that exists is not saved again.

        Args:
          items: trees of arrays by name, each of which can be restored alone. Empty ones are left out.
        """
        if step == self._manager.latest_step():
            return
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        self._manager.save(
            step,
            args=ocp.args.Composite(iterator=ocp.args.JsonSave(iterator), config=ocp.args.JsonSave(config), **trees),
        )

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The resolved config of a checkpoint, the latest unless said.

        Raises:
          ValueError: there is no such checkpoint.
        """
        return self._json("config", step)

    def iterator(self, step: int | None = None) -> dict[str, Any]:
        """The data iterator's position."""
        return self._json("iterator", step)

    def items(self, step: int | None = None) -> set[str]:
        """Names of the trees of arrays that a checkpoint holds."""
        names = {entry.name for entry in (self.directory / str(self.step(step))).iterdir() if entry.is_dir()}
        return {RENAMED.get(name, name) for name in names} - {"config", "iterator"}

    def _on_disk(self, name: str, step: int) -> str:
        old = next((old for old, new in RENAMED.items() if new == name), name)
        return old if (self.directory / str(step) / old).is_dir() else name

    def restore(self, abstract: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """The items that are asked for, and nothing else is read.

        Args:
          abstract: by item, a tree of jax.ShapeDtypeStruct with the shardings to restore to; empty trees stay empty.

        Raises:
          ValueError: there is no such checkpoint, or its arrays are not those of `abstract`.
        """
        step = self.step(step)
        wanted = {name: tree for name, tree in abstract.items() if jax.tree.leaves(tree)}
        held = self.items(step)
        for name in wanted:
            if name not in held:
                raise ValueError(
                    f"checkpoint {self.directory}/{step} holds no {name}; it has {', '.join(sorted(held))}"
                )
        files = {name: self._on_disk(name, step) for name in wanted}
        trees = {files[name]: ocp.args.StandardRestore(tree, fallback_sharding=None) for name, tree in wanted.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**trees))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.directory}/{step} does not hold the arrays of this config: {error}"
            ) from None
        return {name: restored[files[name]] if name in wanted else tree for name, tree in abstract.items()}

    def _json(self, name: str, step: int | None) -> dict[str, Any]:
        return self._manager.restore(self.step(step), args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]

    def step(self, step: int | None = None) -> int:
        """A step that there is a checkpoint of: the one given, else the latest.

        Raises:
          ValueError: there is none.
        """
        found = sorted(self._manager.all_steps())
        if not found:
            raise ValueError(f"no checkpoint in {self.directory}")
        if step is None:
            return found[-1]
        if step not in found:
            raise ValueError(f"no checkpoint of step {step} in {self.directory}; there are {found}")
        return step

    def wait(self) -> None:
        """Until the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def digest(tree: Any) -> str:
    """SHA-256 over the paths, shapes, dtypes and bytes of all leaves, to compare two runs exactly."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
