"""Step times, measured without waiting for the device: percentiles over a log interval, and warnings of slow steps.

The time of a step is that from the arrival of the previous step's metrics on the host to the arrival of its own. So it
includes computation, waiting for data, and saving a checkpoint. The first step of a run has none.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping

import numpy as np

MEDIAN_STEPS = 100  # steps that the running median is over
MIN_STEPS = 10  # steps before the first warning
SLOW = 2.0  # times the running median
WARN_EVERY = 60.0  # seconds between warnings, at least


class StepTimes:
    """Collects the times of consecutive steps. Times are seconds of one monotonic clock."""

    def __init__(self):
        self._arrived: float | None = None
        self._interval: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=MEDIAN_STEPS)
        self._warned = -float("inf")
        self._unreported = 0

    def add(self, step: int, arrived: float, waits: Mapping[str, float]) -> str | None:
        """Adds one step.

        Args:
          arrived: time at which its metrics arrived on the host.
          waits: seconds that the host waited before it started the step, by goodput's kinds (data, a checkpoint).

        Returns:
          A warning if the step took more than SLOW times the median of the recent ones, at most one in WARN_EVERY
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
        if len(self._recent) < MIN_STEPS or seconds <= SLOW * (median := statistics.median(self._recent)):
            return None
        if arrived - self._warned < WARN_EVERY:
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
        """Percentiles over the interval, {} for an empty one; the next interval starts here."""
        times, self._interval = self._interval, []
        if not times:
            return {}
        p50, p90, p99 = np.percentile(times, (50, 90, 99))
        values = {"p50": p50, "p90": p90, "p99": p99, "max": max(times)}
        return {f"step_seconds/{name}": float(value) for name, value in values.items()}
