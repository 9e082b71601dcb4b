"""The verb `compile`: a report on the training step of a config, compiled for chips that need not be there.

Every figure is of one device, and of the program that the compiler of those devices made of the real training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from mf_jax.aot import step, topology
from mf_jax.aot.memory import OutOfMemory
from mf_jax.aot.report import memory_lines, report
from mf_jax.config import loading as configs
from mf_jax.config.config import Config
from mf_jax.monitoring.chips import CHIPS

ADVICE = (
    "smaller train.batch, larger train.accumulate, a model.remat that keeps less (full keeps least), more devices in "
    "mesh.fsdp, or more chips"
)


def compile_config(spec: str, overrides: Sequence[str], name: str | None, slices: int, search: bool) -> int:
    """Compiles the training step of a config and prints the report.

    Args:
      spec, overrides: as in config.load. name: of a topology; the devices at hand without one.
      search: for the fastest variant of the config that fits.

    Returns:
      0 if it fits, 1 if not.

    Raises:
      ValueError: an invalid config or topology.
    """
    if name is None and slices != 1:
        raise ValueError("--slices needs --topology")
    devices = topology.devices(name, slices) if name else jax.devices()
    config = configs.load(spec, [*overrides, f"mesh.slices={slices}"] if slices > 1 else overrides)
    print(f"{spec} on {name or 'the devices at hand'}: {len(devices)} x {devices[0].device_kind}", flush=True)
    if search:
        from mf_jax.aot.search_run import search_config

        return search_config(config, devices)
    return 0 if try_config(config, devices) is not None else 1


def try_config(config: Config, devices: Sequence[jax.Device]) -> step.Program | None:
    """Compiles the step and prints the report; None if it does not fit into the memory of the devices."""
    job = step.make_job(config, devices)
    chip = CHIPS.get(devices[0].device_kind)
    axes = ", ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    print(f"mesh: {axes}; batch {config.train.batch}, accumulate {config.train.accumulate}", flush=True)
    for line in job.assumed:
        print(f"assumed: {line}")
    try:
        program = step.compile_step(job)
    except OutOfMemory as error:
        print(f"does not fit: {error}")
        for line in error.largest:
            print(f"  among the largest: {line}")
        for line in memory_lines(step.argument_bytes(job)):
            print(line)
        print(f"what helps: {ADVICE}")
        return None
    if program.options:
        print("compiler options: " + ", ".join(f"{name}={value}" for name, value in program.options.items()))
    print(f"lowered in {program.lowering:.0f} s, compiled in {program.compiling:.0f} s")
    for line in report(job, program, chip):
        print(line)
    if chip is not None and program.memory.total > chip.usable:
        print(f"what helps: {ADVICE}")
        return None
    return program
