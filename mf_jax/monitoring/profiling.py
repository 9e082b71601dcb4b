"""A trace of a few steps by jax's profiler, for TensorBoard's profile plugin, Perfetto or XProf."""

from __future__ import annotations

import pathlib
from typing import Any

import jax


class ProfileWindow:
    """A trace from one step of a run to another; only at these two does the host wait for the device."""

    def __init__(self, steps: tuple[int, ...], directory: pathlib.Path):
        """Args:
        steps: (first, last) as in train.profile_steps, or () for no trace. directory: for the trace.
        """
        self._first, self._last = steps or (0, 0)
        self._directory = directory
        self._tracing = False

    def at(self, step: int, state: Any) -> None:
        """Starts or ends the trace if `step` is one of the two; call it before each step is started.

        Args:
          state: of the run after `step` steps, possibly still being computed.
        """
        if self._tracing and step >= self._last:
            jax.block_until_ready(state)
            self.close()
        if not self._tracing and self._first <= step < self._last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def close(self) -> None:
        """Ends the trace, if it is running, and writes it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
