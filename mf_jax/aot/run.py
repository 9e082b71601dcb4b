"""The verb `compile`: a report on the training step of a config, compiled for chips that need not be there.

Every figure is of one device, and of the program that the compiler of those devices made of the real training step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax

from mf_jax.aot import step, topology
from mf_jax.aot.collectives import Collectives, collectives
from mf_jax.aot.hlo import Module, parse
from mf_jax.aot.roofline import roofline
from mf_jax.aot.traffic import traffic
from mf_jax.config import loading as configs
from mf_jax.config.config import Config
from mf_jax.monitoring import flops
from mf_jax.monitoring.chips import CHIPS, DEVICES, GIB, GPU_SHARE, Chip

ADVICE = (
    "smaller train.batch, larger train.accumulate, a model.remat that keeps less (full keeps least), more devices in "
    "mesh.fsdp, or more chips"
)


def compile_config(spec: str, overrides: Sequence[str], name: str | None, slices: int, search: bool) -> int:
    """Compiles the training step of a config and prints the report.

    Args:
      spec, overrides: as in config.load. name: of a topology; the devices at hand without one.
      search: try batches and remat presets.

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
        from mf_jax.aot.search import search_config

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
    except step.OutOfMemory as error:
        print(f"does not fit: {error}")
        for line in error.largest:
            print(f"  among the largest: {line}")
        for line in _memory_lines(step.argument_bytes(job)):
            print(line)
        print(f"what helps: {ADVICE}")
        return None
    print(f"lowered in {program.lowering:.0f} s, compiled in {program.compiling:.0f} s")
    for line in report(job, program, chip):
        print(line)
    if chip is not None and program.memory.total > chip.usable:
        print(f"what helps: {ADVICE}")
        return None
    return program


def report(job: step.Job, program: step.Program, chip: Chip | None) -> Iterator[str]:
    """The lines of the report on a compiled program: memory, collectives, roofline."""
    yield from memory_report(program.memory, chip)
    devices = job.mesh.devices.flat
    slices = [getattr(d, "slice_index", 0) if d.platform == "tpu" else d.process_index for d in devices]
    module = parse(program.text)
    found = collectives(module, slices)
    yield from collectives_report(found)
    yield from roofline_report(job, module, found, chip)


def memory_report(memory: step.Memory, chip: Chip | None) -> Iterator[str]:
    rows = dict(memory.arguments) | {"padding of those": memory.padding, "temporaries": memory.temporaries}
    rows |= {"results beside the state": memory.results, "program": memory.code}
    yield from _memory_lines(rows)
    if memory.host:
        yield f"  in the host's memory {memory.host / GIB:.2f} GiB"
    if chip is None:
        yield f"in all {memory.total / GIB:.2f} GiB; the memory of these devices is not known"
        return
    spare = chip.usable - memory.total
    fits = f"fits, {spare / GIB:.2f} GiB" if spare >= 0 else f"does not fit, {-spare / GIB:.2f} GiB"
    yield (
        f"in all {memory.total / GIB:.2f} GiB of {chip.usable / GIB:.2f}: {fits} ({abs(spare) / chip.usable:.0%}) "
        + ("to spare" if spare >= 0 else "too much")
    )
    if chip.platform == "cuda":
        yield f"(the device has {chip.hbm / GIB:.1f} GiB, of which jax takes the share {GPU_SHARE}, 0.75 by default)"


def _memory_lines(rows: Mapping[str, int]) -> Iterator[str]:
    yield "memory per device, GiB"
    for name, size in rows.items():
        if size:
            yield f"  {name:<28}{size / GIB:9.3f}"


def collectives_report(found: Collectives) -> Iterator[str]:
    """The lines on collectives: number and bytes of each kind, and the biggest one inside a loop."""
    yield "collectives per step: times, bytes that each device receives"
    rows: dict[tuple[str, str, str], list[int]] = {}
    for c in found.found:
        key = (c.kind, "in loops" if c.in_loop else "outside", "asynchronous" if c.asynchronous else "synchronous")
        row = rows.setdefault(key, [0, 0])
        row[0] += c.count
        row[1] += c.count * c.received
    for (kind, where, how), (count, size) in sorted(rows.items(), key=lambda item: -item[1][1]):
        yield f"  {kind:<20}{where:<10}{how:<14}{count:7d}{_bytes(size):>12}"
    total = sum(size for _, size in rows.values())
    hidden = sum(size for (_, _, how), (_, size) in rows.items() if how == "asynchronous")
    if not total:
        yield "  none"
        return
    yield f"  in all {_bytes(total)}, of which {hidden / total:.0%} asynchronous: computation can go on beside it"
    if crossing := sum(c.count * c.received for c in found.found if c.crosses):
        yield f"  of these {_bytes(crossing)} between slices or nodes"
    if found.unknown_loops:
        yield f"  {found.unknown_loops} loops whose rounds are not known are counted as one round"
    if inside := [c for c in found.found if c.in_loop]:
        big = max(inside, key=lambda c: (c.payload, c.count))
        how = "asynchronous" if big.asynchronous else "synchronous"
        yield f"biggest in a layer: {big.kind} of {_bytes(big.payload)}, {big.count} times, {how}: {_short(big.source)}"


def roofline_report(job: step.Job, module: Module, found: Collectives, chip: Chip | None) -> Iterator[str]:
    devices = job.mesh.size
    model_flops = flops.step_flops(job.model, job.config) / devices
    all_flops = flops.hardware_flops(job.model, job.config, job.text_rows) / devices
    yield f"model FLOPs per step: {model_flops * devices:.4g}, per device {model_flops:.4g}"
    yield f"with what is computed again and the frozen networks, per device {all_flops:.4g}"
    if chip is None:
        yield "no roofline: the peak of these devices is not known"
        return
    peak = DEVICES[job.mesh.devices.flat[0].device_kind].peak
    moved = traffic(module)
    line = roofline(chip, peak, model_flops, all_flops, moved, found.found)
    links = round(line.links * chip.link_bandwidth)
    rows = {
        "compute": (line.compute, f"{all_flops:.4g} FLOPs at {peak / 1e12:.0f} TFLOP/s"),
        "memory": (line.memory, f"{_bytes(moved)} at {chip.hbm_bandwidth / 1e9:.0f} GB/s, as the program is written"),
        "links": (line.links, f"{_bytes(links)} at {chip.link_bandwidth / 1e9:.0f} GB/s, all links of a chip busy"),
    }
    yield "a step takes at least, by"
    for name, (seconds, why) in rows.items():
        yield f"  {name:<8}{seconds * 1e3:10.1f} ms  {why}"
    yield f"bound by {line.bound}: at least {line.seconds * 1e3:.1f} ms per step, MFU at most {line.mfu:.1%}"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _short(source: str) -> str:
    """Where in the model an operation comes from, by its path of names without jax's own: trunk/mlp_gate (backward)."""
    names = [n for n in source.split("/") if "(" not in n and n not in ("while", "body", "closed_call", "checkpoint")]
    where = "/".join(names[:-1] or names) or "no name"
    return f"{where} ({'backward' if 'transpose' in source else 'forward'})"
