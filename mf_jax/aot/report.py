"""The report on a compiled step: memory, collectives, and its time, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mf_jax.aot import step
from mf_jax.aot.collectives import Collectives, collectives
from mf_jax.aot.hlo import Module, parse
from mf_jax.aot.memory import Memory
from mf_jax.aot.places import place
from mf_jax.aot.prediction import Prediction, places_table, prediction_report
from mf_jax.aot.roofline import roofline
from mf_jax.aot.schedule import schedule
from mf_jax.aot.traffic import traffic
from mf_jax.monitoring import flops
from mf_jax.monitoring.chips import DEVICES, GIB, GPU_SHARE, Chip


def report(job: step.Job, program: step.Program, chip: Chip | None) -> Iterator[str]:
    """The lines of the report on a compiled program: memory, collectives, time."""
    yield from memory_report(program.memory, chip)
    module = parse(program.text)
    found = collectives(module, job.slices)
    yield from collectives_report(found)
    yield from time_report(job, module, found, chip)


def predict(job: step.Job, module: Module, chip: Chip) -> Prediction:
    """The prediction of the time of a compiled step."""
    peak = DEVICES[job.device_kind].peak
    ideal = flops.step_flops(job.model, job.config) / job.mesh.size / peak
    trained = frozenset(type(net).__name__ for net in (job.model.backbone, job.model.text_encoder))
    return Prediction(schedule(module, chip, peak, job.slices), ideal, trained)


def memory_report(memory: Memory, chip: Chip | None) -> Iterator[str]:
    """The lines on memory, and whether it is enough."""
    rows = dict(memory.arguments) | {"padding of those": memory.padding, "temporaries": memory.temporaries}
    rows |= {"results beside the state": memory.results, "program": memory.code}
    yield from memory_lines(rows)
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


def memory_lines(rows: Mapping[str, int]) -> Iterator[str]:
    """The rows of a table of bytes by what they are."""
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


def time_report(job: step.Job, module: Module, found: Collectives, chip: Chip | None) -> Iterator[str]:
    """The lines on FLOPs, the roofline of the whole step, and its time by the program's instructions."""
    devices = job.mesh.size
    model_flops = flops.step_flops(job.model, job.config) / devices
    all_flops = flops.hardware_flops(job.model, job.config, job.text_rows) / devices
    yield f"model FLOPs per step: {model_flops * devices:.4g}, per device {model_flops:.4g}"
    yield f"with what is computed again and the frozen networks, per device {all_flops:.4g}"
    if chip is None:
        yield "no prediction of its time: the peak of these devices is not known"
        return
    peak = DEVICES[job.device_kind].peak
    line = roofline(chip, peak, model_flops, all_flops, traffic(module), found.found)
    parts = ", ".join(f"{name} {getattr(line, name) * 1e3:.1f}" for name in ("compute", "memory", "links"))
    yield f"a step takes at least {line.seconds * 1e3:.1f} ms (by {parts}): MFU at most {line.mfu:.1%}"
    predicted = predict(job, module, chip)
    if chip.clock is not None:
        yield from prediction_report(predicted, chip, peak)
        return
    yield from places_table(predicted.schedule.entries, predicted.trained, None)
    yield "no times of these: the compiler for GPUs estimates none"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _short(source: str) -> str:
    where = place(source)
    return f"{where.part or where.network or 'no name'} ({where.part_of_step})"
