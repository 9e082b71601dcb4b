"""The log by a clock that the tests turn: what is written, when, and from which seconds."""

import json
import threading

import numpy as np
import pytest

from mf_jax.config import loading as configs
from mf_jax.joint_model import build_model
from mf_jax.monitoring import chips, flops, train_log
from mf_jax.monitoring.goodput import CHECKPOINT, COMPILE, DATA, Goodput
from mf_jax.monitoring.metrics import NotFinite
from mf_jax.monitoring.train_log import Log


class Clock:
    now = 10.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_log(make_tiny_config, tmp_path, clock):
    """A function (log_every, writes, remat) -> a log in tmp_path, closed at the end."""
    logs = []

    def make(log_every=1, writes=True, remat="none"):
        settings = [f"train.log_every={log_every}", "train.steps=200", f"model.remat={remat}"]
        config = configs.resolve(make_tiny_config(), settings)
        goodput = Goodput(tmp_path / "goodput.json", clock.now - 8)
        goodput.spend(COMPILE, clock.now)
        logs.append(Log(tmp_path, build_model(config), config, 0, goodput, writes, clock))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def step_metrics(loss=1.0):
    cells = np.ones((3, 5), np.float32)
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(1),
        "param_norm": np.float32(1),
        "ema_norm": np.float32(1),
        "sum": {"image": cells},
        "count": {"image": cells},
        "missing": {"depth": np.int32(0)},
    }


def entries(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Slow:
    """A metric that its device has not computed yet."""

    def __init__(self):
        self.ready = threading.Event()

    def __array__(self, *args, **kwargs):
        assert self.ready.wait(60)
        return np.array(1.0, np.float32)


def test_the_host_does_not_wait_for_the_step_that_it_has_started(make_log, tmp_path):
    log = make_log()
    first, second = Slow(), Slow()
    log.started(1, step_metrics() | {"loss": first})  # returns, though there is no loss yet
    assert entries(tmp_path) == []
    first.ready.set()
    log.started(2, step_metrics() | {"loss": second})
    assert [entry["step"] for entry in entries(tmp_path)] == [1]
    second.ready.set()
    log.read()
    log.read()
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2]


def test_a_wait_belongs_to_the_step_that_it_delayed(make_log, tmp_path, clock):
    log = make_log()
    for step, waiting in enumerate([0, 1, 3, 2], 1):
        with log.waiting(DATA):
            clock.now += waiting
        log.started(step, step_metrics())
    log.read()
    assert [entry["data_wait_seconds"] for entry in entries(tmp_path)] == [0, 1, 3, 2]


def test_step_times_waits_and_goodput_of_an_entry(make_log, tmp_path, clock):
    log = make_log(log_every=3)
    for step, (waiting, seconds) in enumerate([(0, 4), (1, 2), (0.5, 5)], 1):
        with log.waiting(DATA):
            clock.now += waiting
        clock.now += seconds
        log.started(step, step_metrics())
        log.read()
    (entry,) = entries(tmp_path)
    assert entry["step"] == 3
    assert entry["data_wait_seconds"] == pytest.approx(0.5)
    assert entry["step_seconds/max"] == 5.5 and entry["step_seconds/p50"] == 4.25  # of 3 and 5.5
    assert entry["wall_seconds"] == 8 + 4 + 3 + 5.5
    assert entry["goodput/compile"] * 20.5 == pytest.approx(8)
    assert entry["goodput/data_wait"] * 20.5 == pytest.approx(1.5)
    assert entry["goodput/step"] * 20.5 == pytest.approx(11)
    assert sum(value for name, value in entry.items() if name.startswith("goodput/")) == pytest.approx(1)


def test_what_follows_the_last_step_is_in_the_accounts(make_log, tmp_path, clock, capsys):
    log = make_log()
    clock.now += 2
    log.started(1, step_metrics())
    log.read()
    with log.waiting(CHECKPOINT):
        clock.now += 3
    log.close()
    saved = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    assert saved["step"] == 2 and saved["checkpoint"] == 3
    assert "where 13 s in 1 start went:" in capsys.readouterr().out


def test_speed_and_mfu_are_of_the_same_seconds(make_log, tiny_config, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(chips, "peak_flops", lambda: 3e9)
    log = make_log(log_every=2, remat="full")
    for step in (1, 2):
        clock.now += 1
        log.started(step, step_metrics())
    log.read()
    (entry,) = entries(tmp_path)
    assert entry["images_per_second"] * entry["seconds"] == pytest.approx(2 * 8)
    config = configs.resolve(tiny_config, ["model.remat=full"])
    step_flops = flops.step_flops(build_model(config), config)
    assert entry["tflops_per_second"] * entry["seconds"] == pytest.approx(2 * step_flops / 1e12)
    assert entry["mfu"] == pytest.approx(entry["tflops_per_second"] * 1e12 / 3e9)
    recomputing = flops.hardware_flops(build_model(config), config) / step_flops
    assert recomputing > 1 and entry["hfu"] / entry["mfu"] == pytest.approx(recomputing)


def test_a_step_counts_the_text_that_it_had(make_frozen_config, tmp_path, clock, monkeypatch):
    """A step with half the text in the transformer and a quarter of the encoder's rows, then one with all of both."""
    monkeypatch.setattr(chips, "peak_flops", lambda: 3e9)
    config = configs.resolve(make_frozen_config(tmp_path), ["train.log_every=2"])
    model = build_model(config)
    log = Log(tmp_path, model, config, 0, Goodput(tmp_path / "goodput.json", clock.now), True, clock)
    for step, text in enumerate([(12, 0.25), (24, 1.0)], 1):
        clock.now += 1
        log.started(step, step_metrics(), *text)
    log.read()
    log.close()
    (entry,) = entries(tmp_path)
    short, whole = (flops.step_flops(one, config) for one in (model.with_text_tokens(12), model))
    assert short < whole
    assert entry["tflops_per_second"] * entry["seconds"] == pytest.approx((short + whole) / 1e12)
    image, row = (config.train.batch * model.networks[name].flops((16, 16)).encode for name in ("image", "text"))
    everything = short + whole + 2 * image + 1.25 * row
    assert entry["hfu"] * 3e9 * entry["seconds"] == pytest.approx(everything, rel=1e-9)


def test_compiling_another_shape_is_no_step(make_log, tmp_path, clock):
    """What the host compiles after the previous step has ended; what it does before that delays nothing."""
    log = make_log()
    clock.now += 2
    log.started(1, step_metrics())
    log.read()
    with log.waiting(COMPILE):
        clock.now += 5
    clock.now += 1
    log.started(2, step_metrics())
    log.read()
    log.close()
    saved = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    assert saved["compile"] == 8 + 5 and saved["step"] == 3


def test_a_slow_step_is_logged_once(make_log, clock, monkeypatch):
    logged = []
    monkeypatch.setattr(train_log.logging, "warning", lambda form, *values: logged.append(form % values))
    log = make_log(log_every=100)
    for step in range(1, 31):
        with log.waiting(DATA):
            clock.now += 7 if step in (20, 22) else 0
        clock.now += 1
        log.started(step, step_metrics())
        log.read()
    assert len(logged) == 1
    assert logged[0].startswith("step 20 took 8 s, 8.0 times the median") and "data wait 7 s" in logged[0]


def test_a_loss_that_is_not_finite_stops_at_the_next_step(make_log):
    log = make_log()
    log.started(1, step_metrics(np.nan))
    with pytest.raises(NotFinite, match="loss is nan at step 1"):
        log.started(2, step_metrics())


def test_a_process_that_does_not_write_still_checks_and_warns(make_log, tmp_path, clock, monkeypatch, capsys):
    logged = []
    monkeypatch.setattr(train_log.logging, "warning", lambda form, *values: logged.append(form % values))
    log = make_log(writes=False)
    for step in range(1, 15):
        clock.now += 9 if step == 12 else 1
        log.started(step, step_metrics())
        log.read()
    log.started(15, step_metrics(np.inf))
    with pytest.raises(NotFinite, match="loss is inf at step 15"):
        log.read()
    log.close()
    assert len(logged) == 1
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
