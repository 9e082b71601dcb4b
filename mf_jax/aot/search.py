"""Search for the fastest variant of a config that fits into the memory of the devices, by a few full compilations.

A variant is one alternative on each axis: the remat preset, the layout of the mesh, the batch and its parts. What
counts are examples per second, by the geometric mean of the two figures of the prediction (schedule.py): a variant that
is ahead by one figure and behind by the other wins if it wins by more than it loses.

A try is a compilation of minutes, so that not all are made. From the config's own variant, the search goes along one
axis after the other, from alternative to alternative, as long as that is faster (the first time to all remat presets,
which are few), and begins anew until a whole round brings nothing. If the config's own does not fit, it first goes down
every axis until something fits. Not compiled are

    what cannot fit   every axis is ordered by the memory that it takes. A variant that is nowhere lower than one that
                      did not fit does not fit either; nor does a part that is too large by the slope of two others
    what cannot win   the FLOPs of a variant at the peak give more examples per second than either figure. If that is
                      not more than the best so far has, the variant has no chance
    smaller parts     once something fits: they do the same work with weights that are gathered more often

The result is the best along the axes, which need not be the best of all combinations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

TOO_LARGE = 1.1  # of the available memory: what is expected to need more is not compiled
FITS, DOES_NOT_FIT = "fits", "does not fit"
CANNOT_FIT, CANNOT_WIN = "cannot fit, not compiled", "cannot be faster, not compiled"
_PARTS = ("train.batch", "train.accumulate")
Overrides = Mapping[str, Any]
Position = tuple[int, ...]  # the alternative on each axis


@dataclasses.dataclass(frozen=True)
class Axis:
    """Alternatives of a config, by the memory that they take, the least first.

    Attributes:
      alternatives: overrides, {"mesh.data": 2, "mesh.fsdp": 8}.
      start: the config's own.
      directions: in which the search goes once something fits. all: in its first round, it does not stop where it gets
        slower.
    """

    alternatives: tuple[Overrides, ...]
    start: int
    directions: tuple[int, ...] = (1, -1)
    all: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What the compilation of a variant says.

    Attributes:
      needed: bytes per device; where the compiler gives up, what it had placed until then.
      roofline, cycles: predicted seconds by the two figures; 0 where the compiler gave up.
      ideal: seconds of the model's FLOPs at the peak.
    """

    needed: float
    roofline: float = 0.0
    cycles: float = 0.0
    ideal: float = 0.0


@dataclasses.dataclass(frozen=True)
class Try:
    """One variant.

    Attributes:
      result: None where nothing was compiled. verdict: FITS, or why not.
      rate: examples per second, by the geometric mean of both figures; 0 where it does not fit.
    """

    overrides: dict[str, Any]
    result: Result | None
    verdict: str
    rate: float = 0.0

    @property
    def fits(self) -> bool:
        return self.verdict == FITS


class Search:
    """A search over axes.

    Args:
      available: bytes per device.
      measure: overrides -> result of their compilation.
      most: overrides -> examples per second that they cannot exceed. ValueError: there is no such variant.
      seen: called with every try.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        available: float,
        measure: Callable[[Overrides], Result],
        most: Callable[[Overrides], float],
        seen: Callable[[Try], None],
    ):
        self.axes, self.available = axes, available
        self.measure, self.most, self.seen = measure, most, seen
        self.tries: dict[Position, Try] = {}

    def run(self) -> Try | None:
        """The fastest variant found that fits; None if none does."""
        best = self._fitting(tuple(axis.start for axis in self.axes))
        is_first = True
        while best is not None:
            found = best
            for i, axis in enumerate(self.axes):
                found = self._along(found, i, axis.all and is_first)
            if found == best:
                return self.tries[best]
            best, is_first = found, False
        return None

    def _fitting(self, at: Position) -> Position | None:
        """The first variant that fits on the way down the axes."""
        if self._try(at).fits:
            return at
        for i in range(len(self.axes)):
            while at[i] > 0:
                at = _moved(at, i, -1)
                if self._try(at).fits:
                    return at
        return None

    def _along(self, best: Position, i: int, all: bool) -> Position:
        """The best of the variants that differ from the best so far on one axis, as far as the search goes there."""
        start, axis = best, self.axes[i]
        for direction in axis.directions:
            at = _moved(start, i, direction)
            while 0 <= at[i] < len(axis.alternatives):
                found = self._try(at, self.tries[best].rate)
                if found.fits and found.rate > self.tries[best].rate:
                    best = at
                elif direction > 0 and found.verdict in (DOES_NOT_FIT, CANNOT_FIT):
                    break  # nor does what takes more
                elif found.result is not None and not all:
                    break  # slower
                at = _moved(at, i, direction)
            if best != start and not all:
                break  # the other direction is slower
        return best

    def _try(self, at: Position, to_beat: float = 0.0) -> Try:
        if at not in self.tries:
            self.tries[at] = self._judged(at, to_beat)
            self.seen(self.tries[at])
        return self.tries[at]

    def _judged(self, at: Position, to_beat: float) -> Try:
        overrides = self._overrides(at)
        try:
            most = self.most(overrides)
        except ValueError as error:
            if not self.tries:  # the config's own
                raise
            return Try(overrides, None, f"not possible: {error}")
        if self._cannot_fit(at):
            return Try(overrides, None, CANNOT_FIT)
        if most <= to_beat:
            return Try(overrides, None, CANNOT_WIN)
        result = self.measure(overrides)
        if not result.roofline or result.needed > self.available:
            return Try(overrides, result, DOES_NOT_FIT)
        rate = overrides["train.batch"] / math.sqrt(result.roofline * result.cycles)
        return Try(overrides, result, FITS, rate)

    def _overrides(self, at: Position) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for axis, i in zip(self.axes, at, strict=True):
            found |= axis.alternatives[i]
        return found

    def _cannot_fit(self, at: Position) -> bool:
        too_large = (other for other, found in self.tries.items() if found.verdict in (DOES_NOT_FIT, CANNOT_FIT))
        if any(all(a >= b for a, b in zip(at, other, strict=True)) for other in too_large):
            return True
        smaller = sorted(self._smaller_parts(at))[-2:]
        if len(smaller) < 2:
            return False
        (first, needed), (second, needed_more) = smaller
        slope = (needed_more - needed) / (second - first)
        return needed_more + slope * (_part(self._overrides(at)) - second) > TOO_LARGE * self.available

    def _smaller_parts(self, at: Position) -> Iterator[tuple[float, float]]:
        """(part, needed bytes) of variants that fit and differ only by a smaller part."""
        overrides = self._overrides(at)
        for found in self.tries.values():
            same = all(overrides[name] == value for name, value in found.overrides.items() if name not in _PARTS)
            if found.fits and found.result is not None and same and _part(found.overrides) < _part(overrides):
                yield _part(found.overrides), found.result.needed


def _part(overrides: Overrides) -> float:
    """Examples that are computed at a time."""
    return overrides["train.batch"] / overrides["train.accumulate"]


def _moved(at: Position, i: int, direction: int) -> Position:
    return (*at[:i], at[i] + direction, *at[i + 1 :])
