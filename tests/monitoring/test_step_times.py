"""Step times from arrivals alone: percentiles, and which steps are called slow."""

import numpy as np
import pytest

from mf_jax.monitoring import step_times
from mf_jax.monitoring.step_times import StepTimes


def run(times, seconds, first=1, waits=None):
    """Adds steps that take `seconds` each; returns the warnings by step."""
    warnings = {}
    for i, value in enumerate(seconds):
        times.now += value
        if warning := times.add(first + i, times.now, waits or {}):
            warnings[first + i] = warning
    return warnings


@pytest.fixture
def times():
    times = StepTimes()
    times.now = 1000.0
    times.add(0, times.now, {})
    return times


def test_the_first_step_of_a_run_has_no_time():
    times = StepTimes()
    assert times.add(7, 1234.5, {}) is None
    assert times.read() == {}


def test_percentiles_of_the_interval_alone(times):
    run(times, [100.0] * 3)
    times.read()
    seconds = np.random.default_rng(0).permutation(np.arange(1, 101) / 64)
    run(times, seconds)
    read = times.read()
    ordered = np.sort(seconds)
    assert read["step_seconds/p50"] == (ordered[49] + ordered[50]) / 2
    assert read["step_seconds/p90"] == pytest.approx(ordered[89] + 0.1 / 64)
    assert read["step_seconds/p99"] == pytest.approx(ordered[98] + 0.01 / 64)
    assert read["step_seconds/max"] == ordered[99]
    assert times.read() == {}


def test_a_slow_step_is_named_with_what_the_host_waited_for(times):
    assert run(times, [0.5] * 20) == {}
    assert run(times, [1.0], first=21) == {}  # twice the median is not more than twice
    warnings = run(times, [1.5], first=22, waits={"data_wait": 0.9, "checkpoint": 0.25})
    assert list(warnings) == [22]
    assert "step 22 took 1.5 s, 3.0 times the median of the last 21 steps, 0.5 s" in warnings[22]
    assert "data wait 0.9 s, checkpoint 0.25 s" in warnings[22]


def test_nothing_is_slow_before_there_is_a_median_to_compare_with(times):
    assert run(times, [0.1] * (step_times.MIN_STEPS - 1) + [50.0]) == {}
    assert list(run(times, [50.0], first=11)) == [11]


def test_warnings_are_rare_and_say_how_many_were_left_out(times):
    run(times, [1.0] * 50)
    warnings = run(times, [5.0, 1.0] * 20, first=51)  # 120 s
    assert list(warnings) == [51, 51 + 2 * (int(step_times.WARN_EVERY) // 6)]
    assert "more slow steps" not in warnings[51]
    assert "9 more slow steps since" in warnings[71]


def test_the_median_follows_a_lasting_change(times):
    run(times, [1.0] * 1000)
    warnings = run(times, [10.0] * step_times.MEDIAN_STEPS, first=1001)
    assert min(warnings) == 1001
    assert max(warnings) < 1001 + 0.6 * step_times.MEDIAN_STEPS
