"""A model on disk, in either form: the workdir of a run (or an import), or the directory of an export."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from mf_jax.checkpoint.layouts import RECORD, layout_of
from mf_jax.checkpoint.manager import Checkpoints
from mf_jax.config import loading as configs
from mf_jax.joint_model import JointModel, build_model
from mf_jax.models.weight_table import read
from mf_jax.storage.safetensors_files import TensorFiles
from mf_jax.training import partition, train_state


class SavedModel:
    """Attributes:
    config: resolved. model: built from it. step: of the training.
    """

    def __init__(self, directory: str | pathlib.Path, step: int | None = None, overrides: Sequence[str] = ()):
        """Opens a directory; arrays are read by `params`.

        Args:
          step: which checkpoint of a run, the latest unless said. overrides: of the config, "sample.steps=20".

        Raises:
          ValueError: neither checkpoints nor an export there.
        """
        self.directory = pathlib.Path(directory)
        self._checkpoints: Checkpoints | None = None
        if (self.directory / "checkpoints").is_dir():
            self._checkpoints = Checkpoints(self.directory / "checkpoints")
            self.step = self._checkpoints.step(step)
            raw = self._checkpoints.config(self.step)
        elif (self.directory / RECORD).is_file():
            record = json.loads((self.directory / RECORD).read_text())
            if step is not None and step != record["step"]:
                raise ValueError(f"{directory} is an export of step {record['step']}; it has no step {step}")
            self.step, raw = record["step"], record["config"]
            self._layout = record["layout"]
        else:
            raise ValueError(
                f"no checkpoints in {directory}; give the --workdir of a training run, or an exported directory"
            )
        self.config = configs.resolve_saved(raw, overrides)
        self.model: JointModel = build_model(self.config)

    def params(self, weights: str = "ema", mesh: jax.sharding.Mesh | None = None) -> Any:
        """All parameters in float32, trained and untrained, on the mesh or on one device.

        Args:
          weights: "ema" or "params"; where there is only one kind, that.

        Raises:
          ValueError: another name, or arrays that do not fit the config.
        """
        if weights not in ("ema", "params"):
            raise ValueError(f"weights is {weights!r}; it must be 'ema' or 'params'")
        whole = train_state.layout_of_params(self.model, self.config, mesh)
        if self._checkpoints is None:
            files = TensorFiles(self.directory)
            result = read(files, whole, layout_of(self._layout).table(self.model, whole))
            files.close()
            return result
        kind = weights if weights in self._checkpoints.items(self.step) else "params"
        trained, untrained = partition.partition(whole, self.config.train.freeze)
        items = self._checkpoints.restore({kind: trained, "untrained": untrained}, self.step)
        return partition.combine(items[kind], items["untrained"])

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()
