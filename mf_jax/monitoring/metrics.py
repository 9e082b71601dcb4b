"""Training metrics: gathered on the host one step late, averaged over a log interval, written to files.

Losses are averaged as they are trained: sums of squared errors divided by counts of supervised entries, over the
interval. Two files in the run's directory, neither of which needs TensorFlow: TensorBoard events, and metrics.jsonl
with one line per log entry in full precision.

Legend: R modes, S noise bins.
"""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

SCALARS = ("loss", "grad_norm", "param_norm", "ema_norm")  # of a step


class NotFinite(FloatingPointError):
    """A loss, or the norm of the gradient, the parameters or their average, is NaN or infinite."""


def check_finite(step: int, metrics: dict[str, Any]) -> None:
    """Raises NotFinite, naming the step and the quantity."""
    for name in SCALARS:
        value = float(metrics[name])
        if not math.isfinite(value):
            sums = {k: float(np.sum(v)) for k, v in metrics["sum"].items()}
            raise NotFinite(f"{name} is {value} at step {step} (sum of squared errors by modality: {sums})")


class Interval:
    """Accumulates the metrics of consecutive steps until they are read out."""

    def __init__(self, modes: tuple[str, ...]):
        self._modes = modes
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._scalars: dict[str, list[float]] = {}
        self._missing: dict[str, int] = {}
        self._start = time.perf_counter()

    def add(self, step: int, metrics: dict[str, Any], **host: float) -> None:
        """Adds one step.

        Args:
          metrics: of the step, NumPy, see train_step.make_train_step. host: numbers measured on the host, by name.

        Raises:
          NotFinite: naming the step and the quantity.
        """
        check_finite(step, metrics)
        for name in SCALARS:
            self._scalars.setdefault(name, []).append(float(metrics[name]))
        for name, value in host.items():
            self._scalars.setdefault(name, []).append(value)
        for target, kind in ((self._sums, "sum"), (self._counts, "count")):
            for modality, cells in metrics[kind].items():
                target[modality] = target.get(modality, 0.0) + np.asarray(cells, np.float64)
        for modality, examples in metrics["missing"].items():
            self._missing[modality] = self._missing.get(modality, 0) + int(examples)

    def read(self) -> dict[str, float]:
        """The means over the interval, by name in the log; the next interval starts here.

        They are the scalars and the loss per modality, per mode and per noise bin. A mode or bin without supervised
        entries is absent, never zero. `missing/NAME` is the number of examples in which nothing of a modality was
        measured. `seconds` is the interval's wall time.
        """
        result = {name: float(np.mean(values)) for name, values in self._scalars.items()}
        result["seconds"] = time.perf_counter() - self._start
        result |= {f"missing/{modality}": float(count) for modality, count in self._missing.items()}
        for modality, sums_RS in self._sums.items():
            counts_RS = self._counts[modality]

            def put(name: str, total: float, count: float) -> None:
                if count > 0:
                    result[name] = float(total / count)

            put(f"loss/{modality}", sums_RS.sum(), counts_RS.sum())
            for r, mode in enumerate(self._modes):
                put(f"loss/{modality}/{mode}", sums_RS[r].sum(), counts_RS[r].sum())
            bins = sums_RS.shape[1]
            for s in range(bins):
                name = f"loss/{modality}/t_{s / bins:.1f}-{(s + 1) / bins:.1f}"
                put(name, sums_RS[:, s].sum(), counts_RS[:, s].sum())
        self._reset()
        return result


class Writer:
    """Writer of TensorBoard events and metrics.jsonl; drops entries after the step `start` that a run resumes from."""

    def __init__(self, directory: pathlib.Path, start: int):
        self._path = directory / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= start]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.rename(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    """The step of an entry; infinite for an incomplete line, as a killed process leaves it."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
