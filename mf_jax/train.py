"""The training loop, top to bottom: workdir, mesh, model, data, resume, steps. All processes of a run run it.

The host does not wait for the step that it has just started, unless a checkpoint is due: metrics are read one step
late, and nothing is saved before it is known to be finite. State that leaves the
process is a checkpoint (train state, data position, config); everything random is folded from (seed, step).
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mf_jax import flops, frozen, initial, metrics, train_state
from mf_jax.checkpoint import CheckpointConfig, Checkpoints
from mf_jax.config import difference, resolve, to_dict
from mf_jax.data.loader import build_train_loader
from mf_jax.joint_model import build_model
from mf_jax.parallel import sharding
from mf_jax.parallel.crew import Crew
from mf_jax.settings import build
from mf_jax.stored import Stored
from mf_jax.train_step import TEACHER, ObjectiveConfig, make_train_step
from mf_jax.workdir import held

# Keys that may change between the runs that make up one training: they do not change what is learned. So may the number
# of steps where the learning rate does not depend on it, and the paths of published weights (KEY.checkpoint).
MAY_CHANGE = (
    "train.log_every",
    "checkpoint.",
    "data.workers",
    "data.cache",
    "data.source.root",
    "data.source.max_unreadable",
    "data.source.test",
    "data.source.validation",
    "data.source.splits.test",
    "data.source.splits.validation",
    "mesh.",
    "sample.",
    "evaluate.",
)


def train(config: Mapping[str, Any], workdir: str | pathlib.Path, crew: Crew | None = None) -> int:
    """Trains to `train.steps`, from the latest checkpoint in `workdir` where there is one.

    SIGTERM and SIGINT, to any process, save a checkpoint after the step in progress and return.

    Args:
      config: resolved (config.load). workdir: of this run alone; made where it does not exist.
      crew: the processes of the run (distributed.joined), all of which call this; this one alone without it.

    Returns:
      The step reached: less than `train.steps` if a signal stopped the run.

    Raises:
      ValueError: a config that does not fit together, the data, or the checkpoint in `workdir`; a workdir in use.
      metrics.NotFinite: a loss or gradient is NaN or inf. The last checkpoint stays.
    """
    crew = crew or Crew()
    if "://" in str(workdir):
        raise ValueError(f"--workdir is {workdir}; it must be a local path")
    workdir = pathlib.Path(workdir)
    with held(workdir, crew), _stop_signals() as signals, contextlib.ExitStack() as stack:
        # Mesh, model, data
        mesh = sharding.make_mesh(build(sharding.MeshConfig, config["mesh"], "mesh"))
        steps, batch_size = config["train"]["steps"], config["train"]["batch"]
        _check_batch(batch_size, config["train"]["accumulate"], mesh)
        model = build_model(config)
        loader = build_train_loader(
            config["data"],
            batch_size=batch_size,
            tokenizer=model.text.tokenizer(),
            seed=config["seed"],
            rows=sharding.batch_rows(mesh, batch_size),
        )
        stack.callback(loader.close)

        # Frozen networks and, for self-distillation, the teacher
        objective = build(ObjectiveConfig, config["objective"], "objective")
        if objective.distills and (not config["init"]["checkpoint"] or len(model.modalities) < 2):
            raise ValueError(
                "self-distillation (objective.distill_high, distill_low) needs init.checkpoint, the model that teaches "
                "it, and a second modality; set both weights to 0 to train without"
            )
        networks = frozen.load(model.networks, mesh)

        # State: the latest checkpoint of this workdir, or step 0
        checkpoints = Checkpoints(workdir / "checkpoints", build(CheckpointConfig, config["checkpoint"], "checkpoint"))
        stack.callback(checkpoints.close)
        latest = crew.tell(checkpoints.latest())
        resumes = latest is not None
        weights = None
        if config["init"]["checkpoint"] and (objective.distills or not resumes):
            source = Stored(config["init"]["checkpoint"])
            weights = source.params(config["init"]["weights"], mesh)
            source.close()
        if objective.distills:
            networks[TEACHER] = initial.teacher(config, weights)
        if resumes:
            del weights  # what the teacher does not hold
            if "opt_state" not in checkpoints.items(latest):
                raise ValueError(f"{workdir} is an import; train in another --workdir with init.checkpoint={workdir}")
            _check_same(resolve(checkpoints.config(latest)), config, workdir)
            state = _restore(checkpoints, latest, train_state.abstract(model, config, mesh))
            loader.set_state(checkpoints.iterator(latest))
        elif weights is not None:
            params, origins = initial.params(model, config, mesh, weights)
            crew.say(f"starting from {config['init']['checkpoint']}: {origins}")
            state = train_state.new(model, config, mesh, params)
            del params, weights
        else:
            state = train_state.new(model, config, mesh)
        start = int(state.step)
        if start >= steps:
            crew.say(f"{workdir} is at step {start} of {steps}: nothing to train")
            return start
        loader.start()
        crew.say(
            f"training {workdir} from step {start} to {steps} on {jax.device_count()} x {jax.devices()[0].device_kind}"
            + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
        )

        step_fn = jax.jit(
            make_train_step(
                model,
                objective,
                train_state.optimizer_of(config),
                config["seed"],
                config["train"]["accumulate"],
                config["train"]["ema_decay"],
            ),
            donate_argnums=0,
            out_shardings=(train_state.layout_of(model, config, mesh), sharding.replicated(mesh)),
        )
        stack.enter_context(sharding.scope(mesh))
        log = _Log(workdir, model, config, start) if crew.leads else metrics.Check()
        stack.callback(log.close)

        # Steps
        pending: tuple[int, Any, dict[str, float]] | None = None
        for step in range(start, steps):
            waiting = time.perf_counter()
            batch = next(loader)
            host = {"data_wait_seconds": time.perf_counter() - waiting}
            state, step_metrics = step_fn(state, networks, sharding.put_batch(batch, mesh))
            if pending is not None:
                log.add(*pending)
            pending = (step + 1, step_metrics, host)

            last = crew.stops(signals) or step + 1 == steps
            if last or (step + 1) % config["checkpoint"]["every"] == 0:
                log.add(*pending)
                pending = None
                checkpoints.save(step + 1, _items(state), loader.get_state(), to_dict(config))
            if last:
                break
        checkpoints.wait()
    if step + 1 < steps:
        crew.say(
            f"stopped by {crew.stopped_by} at step {step + 1} of {steps}, checkpoint saved; the same command goes on "
            "from there"
        )
    return step + 1


def _items(state: train_state.TrainState) -> dict[str, Any]:
    """The arrays of a state by name; its step is the checkpoint's."""
    return {name: value for name, value in vars(state).items() if name != "step"}


def _restore(checkpoints: Checkpoints, step: int, abstract: train_state.TrainState) -> train_state.TrainState:
    placed = jax.device_put(np.int32(step), abstract.step.sharding)
    return train_state.TrainState(step=placed, **checkpoints.restore(_items(abstract), step))


class _Log:
    """The progress bar, the log interval and the files they go to."""

    def __init__(self, workdir: pathlib.Path, model: Any, config: Mapping[str, Any], start: int):
        self._every = config["train"]["log_every"]
        self._batch = config["train"]["batch"]
        self._flops = flops.step_flops(model, config)
        self._last = start
        self._interval = metrics.Interval(tuple(model.modes))
        self._writer = metrics.Writer(workdir, start)
        self._bar = tqdm(
            total=config["train"]["steps"], initial=start, unit="step", dynamic_ncols=True, file=sys.stdout,
            mininterval=1.0 if sys.stdout.isatty() else 15.0,
        )  # fmt: skip

    def add(self, step: int, step_metrics: Any, host: dict[str, float]) -> None:
        """Waits for a step's metrics; raises NotFinite."""
        self._interval.add(step, jax.device_get(step_metrics), **host)
        if step % self._every == 0 or step == self._bar.total:
            values = self._interval.read()
            speed = (step - self._last) / values["seconds"]
            values |= {"images_per_second": speed * self._batch, "tflops_per_second": speed * self._flops / 1e12}
            if peak := flops.peak_flops():
                values["mfu"] = speed * self._flops / peak
            self._last = step
            self._writer.write(step, values)
            self._bar.set_postfix(
                {"loss": f"{values['loss']:.4f}", "images/s": f"{values['images_per_second']:.0f}"}, refresh=False
            )
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT are written to instead of ending the process; a second one ends it."""
    received: list[int] = []
    before = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_batch(batch: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    if batch % (accumulate * mesh.size):
        raise ValueError(
            f"train.batch {batch} is not divisible by {accumulate} (train.accumulate) x {mesh.size} devices; "
            f"the next that is: {-(-batch // (accumulate * mesh.size)) * accumulate * mesh.size}"
        )


def _check_same(saved: Mapping[str, Any], config: Mapping[str, Any], workdir: pathlib.Path) -> None:
    may_change = MAY_CHANGE + (("train.steps",) if config["optimizer"]["schedule"] == "constant" else ())
    changed = [
        entry
        for entry in difference(saved, config)
        if not entry[0].startswith(may_change) and not entry[0].endswith(".checkpoint")
    ]
    if changed:
        lines = "\n".join(f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, old, new in changed)
        raise ValueError(
            f"the checkpoint in {workdir} is of another config:\n{lines}\n"
            "give the config that it was trained with, or another --workdir"
        )
