"""Checkpoints: the train state, the data iterator's position and the resolved config, saved asynchronously.

The only file that imports orbax. A checkpoint appears under its final name only when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mf_jax.settings import check_at_least


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Attributes:
    every: steps between checkpoints. keep: how many of the latest stay. keep_every: so do its multiples (0: none).
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_at_least("checkpoint", self, every=1, keep=1, keep_every=0)


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

    def save(self, step: int, state: Any, iterator: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts a save and returns when the arrays have left the device; a step that exists is not saved again."""
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=ocp.args.JsonSave(iterator),
                config=ocp.args.JsonSave(config),
            ),
        )

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The resolved config of a checkpoint, the latest unless said.

        Raises:
          ValueError: there is no such checkpoint.
        """
        step = self._step(step)
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """State and iterator position.

        Args:
          abstract: the state's tree of jax.ShapeDtypeStruct with the shardings to restore to.

        Raises:
          ValueError: there is no such checkpoint, or its arrays are not those of `abstract`.
        """
        step = self._step(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract, fallback_sharding=None),
                    iterator=ocp.args.JsonRestore(),
                ),
            )
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.directory}/{step} does not hold the arrays of this config: {error}"
            ) from None
        return restored["state"], restored["iterator"]

    def _step(self, step: int | None) -> int:
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
