"""The log of a run while it trains: progress bar, metrics.jsonl, TensorBoard, warnings of slow steps, goodput.

The host never waits for the step that it has just started. A thread fetches the metrics of each step as soon as the
device has them and records the time; they are read after the next step has been started.

Of several processes one writes, and the times and waits in the files are its own. Every process checks the metrics,
and logs its slow steps with what it waited for to its own stderr: so the process that delays the others can be found,
without any communication.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from mf_jax.joint_model import JointModel
from mf_jax.monitoring import chips, flops, metrics
from mf_jax.monitoring.goodput import DATA, Goodput, Span
from mf_jax.monitoring.step_times import StepTimes
from mf_jax.training.config import Recipe


class Log:
    """The log of one start of a run, which begins after step `start`."""

    def __init__(
        self,
        workdir: pathlib.Path,
        model: JointModel,
        config: Recipe,
        start: int,
        goodput: Goodput,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Args:
        workdir: for the files. config: resolved. goodput: the accounts that waits and steps are added to.
        writes: whether this process writes files and prints; the others only check and warn.
        clock: monotonic, in seconds.
        """
        self._every = config.train.log_every
        self._steps = config.train.steps
        self._batch = config.train.batch
        self._peak = chips.peak_flops()
        self._cost = functools.cache(functools.partial(_cost, model, config, bool(self._peak)))
        self._spent = np.zeros(2)  # model and hardware FLOPs of the steps since the last entry
        self._text_tokens = model.text.tokens
        self._last = start
        self._goodput = goodput
        self._clock = clock
        self._times = StepTimes()
        self._spans: list[Span] = []
        self._fetcher = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self._pending: tuple[int, concurrent.futures.Future, list[Span], np.ndarray] | None = None
        self._interval = metrics.Interval(tuple(model.modes))
        self._writer = metrics.Writer(workdir, start) if writes else None
        self._bar = tqdm(
            total=config.train.steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stdout,
            mininterval=1.0 if sys.stdout.isatty() else 15.0, disable=not writes,
        )  # fmt: skip

    @contextlib.contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """Context in which the host waits before it starts the next step; kind: goodput's DATA, CHECKPOINT, COMPILE."""
        begin = self._clock()
        yield
        self._spans.append((kind, begin, self._clock()))

    def started(self, step: int, step_metrics: Any, text_tokens: int | None = None, text_rows: float = 1.0) -> None:
        """Takes the metrics of a step that was just started, and reads those of the step before.

        Args:
          text_tokens: of an example's text in the step; by default the model's own number. text_rows: rows of the
            frozen text encoder per example.

        Raises:
          NotFinite: as `read`.
        """
        cost = self._cost(self._text_tokens if text_tokens is None else text_tokens, text_rows)
        entry = (step, self._fetcher.submit(self._fetch, step_metrics), self._spans, cost)
        self._spans = []
        self.read()
        self._pending = entry

    def read(self) -> None:
        """Waits for the metrics of the last step that was started, if they are not read yet. Raises NotFinite."""
        if self._pending is None:
            return
        step, future, spans, cost = self._pending
        self._pending = None
        step_metrics, arrived = future.result()
        waits = {kind: end - begin for kind, begin, end in spans}
        self._goodput.step(step, arrived, spans)
        if warning := self._times.add(step, arrived, waits):
            logging.warning("%s", warning)
        self._spent += cost
        self._interval.add(step, step_metrics, data_wait_seconds=waits.get(DATA, 0.0))
        if step % self._every == 0 or step == self._steps:
            self._write(step)
        self._bar.update(1)

    def _fetch(self, step_metrics: Any) -> tuple[Any, float]:
        return jax.device_get(step_metrics), self._clock()

    def _write(self, step: int) -> None:
        values = self._interval.read() | self._times.read() | self._goodput.shares()
        if self._writer is None:
            return
        speed = (step - self._last) / values["seconds"]
        model_rate, hardware_rate = self._spent / values["seconds"]
        values |= {
            "images_per_second": speed * self._batch,
            "tflops_per_second": model_rate / 1e12,
            "tflops_per_second_per_device": model_rate / 1e12 / jax.device_count(),
        }
        if self._peak:
            values |= {"mfu": model_rate / self._peak, "hfu": hardware_rate / self._peak}
        self._last = step
        self._spent = np.zeros(2)
        self._writer.write(step, values)
        self._goodput.save()
        self._bar.set_postfix(
            {"loss": f"{values['loss']:.4f}", "images/s": f"{values['images_per_second']:.0f}"}, refresh=False
        )

    def close(self) -> None:
        """Counts the waits since the last step, closes the files and prints the goodput table."""
        for kind, _, end in self._spans:
            self._goodput.spend(kind, end)
        self._fetcher.shutdown()
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
            self._goodput.save()
            print(self._goodput.table())


def _cost(model: JointModel, config: Recipe, hardware: bool, text_tokens: int, text_rows: float) -> np.ndarray:
    """(2,) model FLOPs of a step, and hardware FLOPs or 0 where they are not asked for."""
    shorter = model.with_text_tokens(text_tokens)
    of_hardware = flops.hardware_flops(shorter, config, text_rows) if hardware else 0
    return np.array([flops.step_flops(shorter, config), of_hardware], float)
