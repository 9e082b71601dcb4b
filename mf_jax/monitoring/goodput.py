"""Goodput: the wall time of a run by what it was spent on, over all its starts.

Every second from the start of the program to the last step's metrics (and the checkpoint after it) is counted once,
so the shares sum to 1. The time between two arrivals of metrics is the step's, less the time that the host then waited
for data or a checkpoint while the device was idle. Waiting while the previous step was still being computed delays
nothing and is not counted. A step that the run had done before, and repeats after a restart from an older checkpoint,
is lost time as a whole.

Not included are the time between two starts, and the time of a killed process after its last log entry. Of several
processes, the times are those of the one that writes the log.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

from mf_jax.storage import atomic_file

STEP, DATA, CHECKPOINT, COMPILE, STARTUP, LOST = "step", "data_wait", "checkpoint", "compile", "startup", "lost"
MEANING = {
    STEP: "training steps",
    DATA: "waiting for data, the device idle",
    CHECKPOINT: "saving checkpoints, the device idle",
    COMPILE: "compiling the train step, or reading it from the cache",
    STARTUP: "the rest of starting, up to the first batch",
    LOST: "steps done again after a restart",
}
Span = tuple[str, float, float]  # a wait of the host: for what (DATA, CHECKPOINT or COMPILE), begin, end


class Goodput:
    """Accounting of the wall time of one run. Times are seconds of one monotonic clock, which the caller reads."""

    def __init__(self, path: pathlib.Path, began: float):
        """Continues the accounts of earlier starts of the run.

        Args:
          path: JSON file of the accounts; need not exist. began: when this start of the run began.

        Raises:
          ValueError: `path` is not what `save` writes.
        """
        self._path = path
        self._seconds = dict.fromkeys(MEANING, 0.0)
        self._starts = 1
        self._reached = 0
        if path.exists():
            try:
                saved = json.loads(path.read_text())
                self._seconds |= {kind: float(saved["seconds"][kind]) for kind in MEANING}
                self._starts += int(saved["starts"])
                self._reached = int(saved["reached"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} cannot be read ({error!r}); remove it to begin the accounts anew") from None
        self._before = self._reached
        self._mark = began

    def spend(self, kind: str, until: float) -> None:
        """Counts the time from the last call to `until` as spent on `kind`."""
        self._seconds[kind] += max(until - self._mark, 0.0)
        self._mark = max(until, self._mark)

    def step(self, step: int, arrived: float, spans: Iterable[Span]) -> None:
        """Counts the time to the arrival of the metrics of `step`.

        Args:
          arrived: time. spans: the host's waits since it started the previous step, in order.
        """
        if step <= self._before:
            self.spend(LOST, arrived)
            return
        for kind, begin, end in spans:
            self.spend(STEP, begin)
            self.spend(kind, end)
        self.spend(STEP, arrived)
        self._reached = max(step, self._reached)

    def shares(self) -> dict[str, float]:
        """{goodput/KIND: share of the counted time, wall_seconds: that time}; {} before any is counted."""
        total = sum(self._seconds.values())
        if not total:
            return {}
        return {f"goodput/{kind}": s / total for kind, s in self._seconds.items()} | {"wall_seconds": total}

    def save(self) -> None:
        """Writes the accounts to `path`, atomically."""
        accounts = {"starts": self._starts, "reached": self._reached, "seconds": self._seconds}
        atomic_file.write_bytes(self._path, (json.dumps(accounts, indent=1) + "\n").encode())

    def table(self) -> str:
        """The accounts as text, a line per kind."""
        total = sum(self._seconds.values())
        starts = f"{self._starts} starts" if self._starts > 1 else "1 start"
        lines = [f"where {total:.0f} s in {starts} went:"]
        for kind, seconds in self._seconds.items():
            lines.append(f"  {seconds / max(total, 1e-9):6.1%} {seconds:10.1f} s  {kind:10}  {MEANING[kind]}")
        return "\n".join(lines)
