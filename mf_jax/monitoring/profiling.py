"""A trace of a few steps by jax's profiler, for TensorBoard's profile plugin, Perfetto or XProf."""

from __future__ import annotations

import pathlib
from typing import Any

import jax


class ProfileWindow:
    """Traces while the run goes from one step to another; at these two, and nowhere else, it waits for the device."""

    def __init__(self, steps: tuple[int, ...], directory: pathlib.Path):
        """steps: (first, last) as in train.profile_steps, or () for no trace."""
        self._first, self._last = steps or (0, 0)
        self._directory = directory
        self._tracing = False

    def at(self, step: int, state: Any) -> None:
        """The run is at `step`, or soon will be: its state is `state`, and the next step has not been started."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(state)
            self.close()
        if not self._tracing and self._first <= step < self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def close(self) -> None:
        """Writes the trace where one has been begun."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
