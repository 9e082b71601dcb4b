"""Which steps are traced; the trace itself is made once, in test_train.py."""

import jax
import pytest

from mf_jax.monitoring.profiling import ProfileWindow


@pytest.fixture
def calls(monkeypatch):
    """What would be asked of the profiler, and where the host would wait."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr(jax, "block_until_ready", lambda state: calls.append(f"wait {state}"))
    return calls


def run(calls, window, start, stop, folder):
    profile = ProfileWindow(window, folder)
    for step in range(start, stop):
        profile.at(step, f"state {step}")
        calls.append(step)
    profile.close()
    return calls


@pytest.mark.parametrize(
    "window, start, stop, expected",
    [
        ((2, 4), 0, 6, [0, 1, "wait state 2", "start", 2, 3, "wait state 4", "stop", 4, 5]),
        ((0, 1), 0, 2, ["wait state 0", "start", 0, "wait state 1", "stop", 1]),
        ((2, 9), 5, 7, ["wait state 5", "start", 5, 6, "stop"]),  # goes on from step 5; stopped by a signal at 7
        ((1, 3), 3, 5, [3, 4]),  # over when the run goes on
        ((), 0, 2, [0, 1]),
    ],
)
def test_the_window_is_traced_and_only_its_edges_wait(calls, tmp_path, window, start, stop, expected):
    assert run(calls, window, start, stop, tmp_path) == expected
