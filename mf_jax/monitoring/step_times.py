"""How long steps take, without waiting for any: percentiles over a log interval, and the steps that stand out.

The time of a step is that between the arrival of its metrics on the host and the arrival of the previous step's. So it
holds all that came between: computation, waiting for data, saving a checkpoint. The first step of a run has none.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping

import numpy as np

RECENT = 100  # steps that the running median is over
FEWEST = 10  # steps before which none is called slow
SLOW = 2.0  # times the running median
QUIET = 60.0  # seconds from one warning to the next


class StepTimes:
    """Gathers the times of consecutive steps. Times are seconds of one monotonic clock."""

    def __init__(self):
        self._arrived: float | None = None
        self._interval: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._warned = -float("inf")
        self._unreported = 0

    def add(self, step: int, arrived: float, waits: Mapping[str, float]) -> str | None:
        """One step.

        Args:
          arrived: when its metrics were on the host.
          waits: seconds that the host spent before it started the step, by what on: data, a checkpoint.

        Returns:
          A warning where the step took more than SLOW times the median of the recent ones, at most one in QUIET
          seconds; None otherwise.
        """
        before, self._arrived = self._arrived, arrived
        if before is None:
            return None
        seconds = arrived - before
        warning = self._judge(step, arrived, seconds, waits)
        self._interval.append(seconds)
        self._recent.append(seconds)
        return warning

    def _judge(self, step: int, arrived: float, seconds: float, waits: Mapping[str, float]) -> str | None:
        if len(self._recent) < FEWEST or seconds <= SLOW * (median := statistics.median(self._recent)):
            return None
        if arrived - self._warned < QUIET:
            self._unreported += 1
            return None
        spent = ", ".join(f"{name.replace('_', ' ')} {value:.3g} s" for name, value in waits.items()) or "no waiting"
        more = f"; {self._unreported} more slow steps since the last such message" if self._unreported else ""
        self._warned, self._unreported = arrived, 0
        return (
            f"step {step} took {seconds:.3g} s, {seconds / median:.1f} times the median of the last "
            f"{len(self._recent)} steps, {median:.3g} s; host: {spent}{more}"
        )

    def read(self) -> dict[str, float]:
        """Percentiles over the interval, which then starts anew; nothing where it holds no time."""
        times, self._interval = self._interval, []
        if not times:
            return {}
        p50, p90, p99 = np.percentile(times, (50, 90, 99))
        values = {"p50": p50, "p90": p90, "p99": p99, "max": max(times)}
        return {f"step_seconds/{name}": float(value) for name, value in values.items()}
