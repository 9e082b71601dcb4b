"""A saved model: the workdir of a run or an import, or the directory of an export."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mf_jax.checkpoint.layouts import RECORD, named_layout
from mf_jax.checkpoint.manager import Checkpoints
from mf_jax.config import loading as configs
from mf_jax.joint_model import JointModel, build_model
from mf_jax.models.weight_table import flatten, read
from mf_jax.storage.safetensors_files import TensorFiles
from mf_jax.training import partition, train_state


class SavedModel:
    """A model that is read from disk: config, modules, and parameters on demand.

    Attributes:
      config: resolved. model: built from it. step: number of training steps.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        step: int | None = None,
        overrides: Sequence[str] = (),
        trust_code: bool | Mapping[str, str] = False,
    ):
        """Opens a directory; arrays are read by `params`.

        Args:
          directory: see the top of the file. step: of a run's checkpoint; None: the latest.
          overrides: of the config, "sample.steps=20".
          trust_code: whether its config may name modules to import (dotted kinds of modalities): any, none, or those
            that the user's own config names (loading.dotted_kinds).

        Raises:
          ValueError: neither checkpoints nor an export in it, a damaged checkpoint, or modules that are not trusted.
        """
        self.directory = pathlib.Path(directory)
        self._checkpoints: Checkpoints | None = None
        if (self.directory / "checkpoints").is_dir():
            self._checkpoints = Checkpoints(self.directory / "checkpoints")
            self.step = self._checkpoints.intact(step)
            raw = self._checkpoints.config(self.step)
        elif (self.directory / RECORD).is_file():
            self.step, raw, self._layout = _record(self.directory / RECORD)
            if step is not None and step != self.step:
                raise ValueError(f"{directory} is an export of step {self.step}; it has no step {step}")
        else:
            raise ValueError(
                f"no checkpoints in {directory}; give the --workdir of a training run, or an exported directory"
            )
        if isinstance(trust_code, Mapping):
            trust_code = set(configs.dotted_kinds(raw).values()) <= set(trust_code.values())
        self.config = configs.resolve_saved(raw, overrides, trusted=trust_code)
        self.model: JointModel = build_model(self.config)

    def abstract(self, mesh: jax.sharding.Mesh | None = None, as_read: bool = False) -> Any:
        """Shapes, dtypes and shardings of what `params` returns; no weights are read."""
        whole = train_state.abstract_params(self.model, self.config, mesh)
        return self.model.as_read(whole) if as_read else whole

    def params(self, weights: str = "ema", mesh: jax.sharding.Mesh | None = None, as_read: bool = False) -> Any:
        """All parameters, trained and untrained, on the mesh or on one device.

        Args:
          weights: "ema" or "params"; ignored where only one of them is saved.
          as_read: in the dtypes of `JointModel.as_read`, converted while they are read; otherwise in float32.

        Raises:
          ValueError: another name, arrays that do not fit the config, or values that are not finite.
        """
        if weights not in ("ema", "params"):
            raise ValueError(f"weights is {weights!r}; it must be 'ema' or 'params'")
        whole = self.abstract(mesh, as_read)
        if self._checkpoints is None:
            files = TensorFiles(self.directory)
            result = read(files, whole, named_layout(self._layout).table(self.model, whole))
            files.close()
            _check_finite(result, f"the export {self.directory}", "export another step of the run")
            return result
        kind = weights if weights in self._checkpoints.items(self.step) else "params"
        trained, untrained = partition.partition(whole, self.config.train.freeze)
        items = self._checkpoints.restore({kind: trained, "untrained": untrained}, self.step)
        result = partition.combine(items[kind], items["untrained"])
        _check_finite(result, f"{kind} of {self.directory}, step {self.step},", self._checkpoints.instead_of(self.step))
        return result

    def close(self) -> None:
        """Closes the checkpoints of a run."""
        if self._checkpoints is not None:
            self._checkpoints.close()


def _record(path: pathlib.Path) -> tuple[int, dict[str, Any], str]:
    """(step, config, name of the layout) of an export."""
    try:
        record = json.loads(path.read_bytes())
        return int(record["step"]), dict(record["config"]), str(record["layout"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not the record of an export ({error!r}); export the checkpoint again") from None


def _check_finite(params: Any, what: str, remedy: str) -> None:
    """Raises ValueError that names an array with a NaN or an infinity; checks on the devices, in one program."""
    flat = flatten(params)
    finite = jax.device_get(jax.jit(lambda leaves: [jnp.isfinite(leaf).all() for leaf in leaves])(list(flat.values())))
    bad = [path for path, good in zip(flat, finite, strict=True) if not good]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"{what} has values that are not finite, in {bad[0]}{more}; {remedy}")
