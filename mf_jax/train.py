"""The training loop, top to bottom: workdir, mesh, model, data, resume, steps. Every process of a run executes it.

The host does not wait for the step that it has just started, unless a checkpoint is due: metrics are read one step
late, and nothing is saved before it is known to be finite. The only state that outlives a process is a checkpoint
(train state, data position, config); everything random is derived from (seed, step).
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from typing import Any

import jax

from mf_jax.checkpoint import initialize, resume
from mf_jax.checkpoint.manager import Checkpoints, check_path
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.config import Config
from mf_jax.config.loading import dotted_kinds, to_dict
from mf_jax.data.loader import build_train_loader
from mf_jax.data.packing import TextLayout
from mf_jax.joint_model import build_model
from mf_jax.models import frozen
from mf_jax.monitoring.goodput import CHECKPOINT, COMPILE, DATA, STARTUP, Goodput
from mf_jax.monitoring.profiling import ProfileWindow
from mf_jax.monitoring.train_log import Log
from mf_jax.parallel import sharding
from mf_jax.parallel.processes import ProcessGroup
from mf_jax.parallel.stopping import stop_requests
from mf_jax.training import compilation, train_state
from mf_jax.training.compiler_options import compiler_options
from mf_jax.training.train_step import jit_train_step
from mf_jax.training.workdir import locked


def train(
    config: Config,
    workdir: str | pathlib.Path,
    group: ProcessGroup | None = None,
    began: float | None = None,
) -> int:
    """Trains to `train.steps`, from the latest checkpoint in `workdir` where there is one.

    SIGTERM, SIGINT, SIGHUP and a closed stdout or stderr, of any process, save a checkpoint after the step in progress
    and return.

    Args:
      config: resolved (config.load). workdir: directory of this run alone; created if it does not exist.
      group: the processes of the run (distributed.joined), all of which call this; None for a run of one process.
      began: start of the program by time.monotonic(), for goodput's accounting of the run's time; None: now.

    Returns:
      The step reached: less than `train.steps` if a request stopped the run.

    Raises:
      ValueError: a config that does not fit together, the data, or the checkpoint in `workdir`; a workdir in use.
      metrics.NotFinite: a loss, a gradient, the parameters or their average are NaN or inf. The last checkpoint stays.
      manager.SaveFailed: a checkpoint could not be written, to a full disk for one.
    """
    if "://" in str(workdir):
        raise ValueError(f"--workdir is {workdir}; it must be a local path")
    workdir = pathlib.Path(workdir)
    check_path(workdir.absolute())
    group = group or ProcessGroup()
    began = time.monotonic() if began is None else began
    with locked(workdir, group), stop_requests() as requests:
        reached = None
        while reached is None:
            with contextlib.suppress(resume.FellBack):  # a damaged checkpoint: again, from the one before
                reached = _run(config, workdir, group, began, requests)
        if reached < config.train.steps:
            group.print(
                f"stopped by {group.stopped_by} at step {reached} of {config.train.steps}, checkpoint saved; the "
                "same command goes on from there"
            )
    return reached


def _run(config: Config, workdir: pathlib.Path, group: ProcessGroup, began: float, requests: list[str]) -> int:
    """`train` in a locked workdir, from one checkpoint on.

    Args:
      requests: stop requests (stopping.stop_requests); the list grows while this runs.

    Raises:
      resume.FellBack: a checkpoint that was being restored is damaged and set aside.
    """
    with contextlib.ExitStack() as stack:
        goodput = Goodput(workdir / "goodput.json", began)
        stack.enter_context(compilation.persistent_cache(config.train.compilation_cache, workdir / "compilation_cache"))

        # Mesh, model, data
        mesh = sharding.make_mesh(config.mesh)
        stack.enter_context(sharding.rules(config.mesh.rules))
        steps, batch_size = config.train.steps, config.train.batch
        model = build_model(config).with_precomputed(config.data.precomputed)
        sharding.check_batch(batch_size, config.train.accumulate, mesh)
        sharding.check_divisible(model.sizes, mesh)
        loader = build_train_loader(
            config.data,
            batch_size=batch_size,
            tokenizer=None if "text_features" in model.precomputed else model.text.tokenizer(),
            seed=config.seed,
            rows=sharding.batch_rows(mesh, batch_size).tolist(),
            precomputed=model.precomputed,
        )
        stack.callback(loader.close)

        # Where the run is: the latest checkpoint of this workdir that can be read, or step 0
        latest = resume.find(workdir, config, group)
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        stack.callback(checkpoints.close)
        if latest is not None:
            loader.set_state(checkpoints.iterator(latest))
        start = latest or 0
        if start >= steps:
            group.print(f"{workdir} is at step {start} of {steps}: nothing to train")
            return start
        loader.start()  # the workers take seconds to start; meanwhile the state is made

        # Frozen networks and, for self-distillation, the teacher
        objective = config.objective
        if objective.distills and (not config.init.checkpoint or len(model.modalities) < 2):
            raise ValueError(
                "self-distillation (objective.distill_high, distill_low) needs init.checkpoint, the model that teaches "
                "it, and a second modality; set both weights to 0 to train without"
            )
        frozen_params = frozen.load(model.networks, mesh)
        if (empty := model.empty_prompt) is not None and objective.caption_dropout:
            frozen_params[frozen.EMPTY_PROMPT] = empty.features(frozen_params.get("text"), mesh)
        weights = None
        if config.init.checkpoint and (objective.distills or latest is None):
            source = SavedModel(config.init.checkpoint, trust_code=dotted_kinds(to_dict(config)))
            weights = source.params(config.init.weights, mesh)
            source.close()
        teacher = None
        if objective.distills:
            assert weights is not None  # read above: init.checkpoint is given
            teacher = initialize.teacher(config, weights)

        # State
        if latest is not None:
            del weights  # frees those that the teacher does not use
            state = resume.restore(checkpoints, latest, train_state.abstract(model, config, mesh))
        elif weights is not None:
            params, origins = initialize.params(model, config, mesh, weights)
            group.print(f"starting from {config.init.checkpoint}: {origins}")
            state = train_state.new(model, config, mesh, params)
            del params, weights
        else:
            state = train_state.new(model, config, mesh)
        group.print(
            f"training {workdir} from step {start} to {steps} on {jax.device_count()} x {jax.devices()[0].device_kind}"
            + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
        )

        parts = config.train.accumulate
        group_size = batch_size // (parts * sharding.batch_parts(mesh))
        layout = TextLayout(model.text_lengths, model.packs_text, group_size, parts)
        dump = workdir / "hlo" if config.train.dump_hlo and group.is_main else None
        options = compiler_options(jax.devices()[0].device_kind, config.train.compiler_options)
        programs = compilation.Programs(jit_train_step(model, config, mesh), mesh, dump, options)
        shape, batch = layout.arrange(next(loader), group.maximum)
        goodput.spend(STARTUP, time.monotonic())
        programs.compile(shape, (state, frozen_params, sharding.put_batch(batch, mesh), teacher))
        group.barrier()  # some read the step from the cache and are early; collectives have shorter timeouts
        goodput.spend(COMPILE, time.monotonic())
        log = Log(workdir, model, config, start, goodput, writes=group.is_main)
        stack.callback(log.close)
        profile = ProfileWindow(config.train.profile_steps if group.is_main else (), workdir / "profile")
        stack.callback(profile.close)

        # Steps
        for step in range(start, steps):
            profile.at(step, state)
            if step > start:
                with log.waiting(DATA):
                    shape, batch = layout.arrange(next(loader), group.maximum)
            arguments = (state, frozen_params, sharding.put_batch(batch, mesh), teacher)
            if shape not in programs:
                with log.waiting(COMPILE):
                    programs.compile(shape, arguments)
                    group.barrier()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, step_metrics = programs[shape](*arguments)
            del arguments  # the batch, which the device would keep beside the next one
            log.started(step + 1, step_metrics, shape.length, layout.encoded(shape))

            last = group.should_stop(requests) or step + 1 == steps
            if last or (step + 1) % config.checkpoint.every == 0:
                log.read()
                with log.waiting(CHECKPOINT):
                    checkpoints.save(step + 1, _items(state), loader.get_state(), to_dict(config))
            if last:
                break
        with log.waiting(CHECKPOINT):
            checkpoints.wait()
    return step + 1


def _items(state: train_state.TrainState) -> dict[str, Any]:
    """The arrays of a state by name; its step is the checkpoint's."""
    return {name: value for name, value in vars(state).items() if name != "step"}
