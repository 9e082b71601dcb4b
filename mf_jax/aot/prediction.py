"""The prediction of a step's time in print: the figures, their parts, the costliest places, and what they leave out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator

from mf_jax.aot.places import Place, place
from mf_jax.aot.schedule import ATTENTION, COLLECTIVES, KINDS, OTHER, PRODUCTS, Entry, Schedule, Times
from mf_jax.monitoring.chips import Chip

ROWS = 20
_SHORT = {PRODUCTS: "product", ATTENTION: "attention", OTHER: "other", COLLECTIVES: "collective"}
LEFT_OUT = (
    "the time between instructions",
    "instructions that share the memory's bandwidth, copies that run beside them: each counts alone, one after another",
    "how far the network within a slice really reaches its bandwidth; between slices or nodes there is none here",
    "the real efficiency of kernels, and memory that they read more than once",
    "copies to and from the host's memory, at its speed; loading of data",
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step's time by the two figures.

    Attributes:
      ideal: seconds of the model's FLOPs, without any that are computed again, at the peak.
      trained: classes of the networks that are trained; all others are frozen.
    """

    schedule: Schedule
    ideal: float
    trained: frozenset[str]

    @property
    def seconds(self) -> Times:
        return self.schedule.total()

    @property
    def typical(self) -> float:
        """The geometric mean of both figures' seconds."""
        return math.sqrt(self.seconds.roofline * self.seconds.cycles)

    @property
    def mfu(self) -> Times:
        """Model FLOPs utilisation by each figure."""
        return Times(self.ideal / self.seconds.roofline, self.ideal / self.seconds.cycles)

    @property
    def frozen(self) -> Times:
        """Seconds of the networks that are not trained."""
        of_frozen = (e.seconds for e in self.schedule.entries if self.is_frozen(place(e.path)))
        return sum(of_frozen, Times())

    def is_frozen(self, where: Place) -> bool:
        return bool(where.network) and where.network not in self.trained


@dataclasses.dataclass(frozen=True)
class Row:
    """What a step does of one kind in one place, all instructions together."""

    kind: str
    where: Place
    flops: int
    bytes: int
    seconds: Times


def rows(entries: Iterable[Entry]) -> list[Row]:
    """One row per kind and place, the costliest first, by the sum of both figures."""
    found: dict[tuple[str, Place], Row] = {}
    for entry in entries:
        key = entry.kind, place(entry.path)
        one = found.get(key, Row(*key, 0, 0, Times()))
        found[key] = Row(*key, one.flops + entry.flops, one.bytes + entry.bytes, one.seconds + entry.seconds)
    return sorted(found.values(), key=lambda row: -row.seconds.roofline - row.seconds.cycles)


def prediction_report(predicted: Prediction, chip: Chip, peak: float) -> Iterator[str]:
    """The lines on the time of a step on TPUs.

    Args:
      peak: FLOP/s of a device.
    """
    seconds, mfu = predicted.seconds, predicted.mfu
    low, high = sorted((100 * mfu.roofline, 100 * mfu.cycles))
    yield f"predicted step: {milliseconds(seconds)} ms, MFU {low:.1f} to {high:.1f} %"
    yield f"  {'ms by':<28}{'roofline':>10}{'compiler':>10}"
    notes = {COLLECTIVES: f"  of {milliseconds(predicted.schedule.links)} on the links"}
    if chip.attention is not None:
        forward, backward = chip.attention
        notes[ATTENTION] = f"  kernels at an assumed {forward:.0%} of the peak forward, {backward:.0%} backward"
    for kind in KINDS:
        of_kind = predicted.schedule.total((kind,))
        yield f"  {kind:<28}{_columns(of_kind)}{notes.get(kind, '')}"
    if predicted.frozen != Times():
        yield f"  {'frozen networks, of these':<28}{_columns(predicted.frozen)}"
    yield from _caveats(predicted.schedule)
    yield from places_table(predicted.schedule.entries, predicted.trained, peak)
    yield "a prediction, until a chip says otherwise: the roofline is too short, the compiler's figure too long where"
    yield "memory is the limit. It knows nothing of"
    for line in LEFT_OUT:
        yield f"  - {line}"


def _caveats(schedule: Schedule) -> Iterator[str]:
    share = schedule.without_estimate / schedule.total().cycles
    yield f"  the compiler estimates no kernels, collectives and copies: {share:.0%} of its figure is by the roofline"
    if schedule.sentinels:
        yield f'  {schedule.sentinels} instructions whose estimate stands for "unknown" are counted by the roofline'
    if schedule.unknown:
        names = ", ".join(schedule.unknown)
        yield f"  kernels whose FLOPs are not known, counted by their bytes alone: {names}"
    if schedule.crossing:
        yield f"  {schedule.crossing} collectives between slices or nodes are counted as taking no time"
    if schedule.unknown_loops:
        yield f"  {schedule.unknown_loops} loops whose rounds are not known are counted as one round"


def places_table(entries: Iterable[Entry], trained: Collection[str], peak: float | None) -> Iterator[str]:
    """The costliest places: by time, with the share of the peak that products have by both figures.

    Args:
      trained: classes of networks that stand before their parts only where they are not among these.
      peak: FLOP/s of a device; None for a table of FLOPs and bytes without times.
    """
    found = rows(entries)
    columns = f"{'GFLOP':>12}{'GB':>9}"
    if peak is not None:
        columns = f"{'roofline':>10}{'compiler':>10}  share of peak"
    yield f"costliest places, {'GFLOPs and bytes' if peak is None else 'ms'} per step and device"
    yield f"  {'part':<46}{'':<10}{'':<11}{columns}".rstrip()
    for row in found[:ROWS]:
        where = row.where
        part = where.part or (f"{where.network} itself" if where.network else "outside of networks")
        if where.network and where.network not in trained and where.part:
            part = f"{where.network}: {part}"
        line = f"  {_fitted(part, 45):<46}{where.part_of_step:<10}{_SHORT[row.kind]:<11}"
        if peak is None:
            line += f"{row.flops / 1e9:12.2f}{row.bytes / 1e9:9.3f}"
        else:
            line += _columns(row.seconds) + (_shares(row, peak) if row.flops else "")
        yield line
    if rest := found[ROWS:]:
        flops, size = sum(row.flops for row in rest), sum(row.bytes for row in rest)
        seconds = sum((row.seconds for row in rest), Times())
        amounts = f"{flops / 1e9:12.2f}{size / 1e9:9.3f}" if peak is None else _columns(seconds)
        yield f"  {f'{len(rest)} more':<67}{amounts}"


def _fitted(text: str, length: int) -> str:
    """The end of a text that is too long, which says more than its beginning."""
    return text if len(text) <= length else "..." + text[3 - length :]


def _columns(seconds: Times) -> str:
    return f"{seconds.roofline * 1e3:10.1f}{seconds.cycles * 1e3:10.1f}"


def _shares(row: Row, peak: float) -> str:
    ideal = row.flops / peak
    return f"{ideal / row.seconds.roofline:7.0%}{ideal / row.seconds.cycles:6.0%}"


def milliseconds(seconds: Times) -> str:
    """Both figures, the shorter first: "375 to 582"."""
    low, high = sorted((seconds.roofline * 1e3, seconds.cycles * 1e3))
    digits = 0 if low >= 100 else 1 if low >= 1 or not high else 3
    return f"{low:.{digits}f} to {high:.{digits}f}"
