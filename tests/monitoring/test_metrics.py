"""The metrics of an interval, and what becomes of a number that is not one."""

import json
import math

import numpy as np
import pytest

from mf_jax.monitoring.metrics import Interval, NotFinite, Writer, check_finite

MODES = ("d2i", "joint")


def step_metrics(loss=1.0, grad_norm=2.0, ema_norm=5.0, sums=((0.0, 0.0), (6.0, 2.0)), counts=((0.0, 0.0), (3.0, 1.0))):
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "param_norm": 5.0,
        "ema_norm": ema_norm,
        "sum": {"depth": np.array(sums)},
        "count": {"depth": np.array(counts)},
        "missing": {"depth": 2},
    }


def test_losses_are_sums_over_counts_of_the_interval_not_means_of_means():
    interval = Interval(MODES)
    interval.add(1, step_metrics(loss=1.0), wait=0.5)
    interval.add(2, step_metrics(loss=3.0, sums=((9.0, 0.0), (0.0, 10.0)), counts=((1.0, 0.0), (0.0, 15.0))), wait=1.5)
    values = interval.read()
    assert values["loss"] == 2.0 and values["wait"] == 1.0
    assert values["loss/depth"] == pytest.approx(27 / 20)
    assert values["missing/depth"] == 4
    assert values["loss/depth/d2i"] == 9.0
    assert values["loss/depth/joint"] == pytest.approx(18 / 19)
    assert values["loss/depth/t_0.0-0.5"] == pytest.approx(15 / 4)
    assert values["loss/depth/t_0.5-1.0"] == pytest.approx(12 / 16)


def test_what_was_not_seen_is_absent():
    interval = Interval(MODES)
    interval.add(1, step_metrics())
    assert "loss/depth/d2i" not in interval.read()


@pytest.mark.parametrize("name", ["loss", "grad_norm", "ema_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_names_step_and_quantity(name, value):
    with pytest.raises(NotFinite, match=f"{name} is {value} at step 7"):
        Interval(MODES).add(7, step_metrics(**{name: value}))
    with pytest.raises(NotFinite, match=f"{name} is {value} at step 7"):
        check_finite(7, step_metrics(**{name: value}))
    check_finite(7, step_metrics())


def test_entries_after_the_resumed_step_are_dropped_and_a_torn_line_too(tmp_path):
    writer = Writer(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    writer = Writer(tmp_path, 2)
    writer.write(3, {"loss": 30.0})
    writer.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 30.0}]
    assert list((tmp_path / "tensorboard").glob("events.*"))
