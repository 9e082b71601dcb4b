"""A step's time, predicted from the compiled program by two figures of every instruction, which bracket it.

    roofline  the larger of the instruction's FLOPs at the chip's peak and its bytes at the bandwidth of its memory:
              too short, as nothing reaches both, and the time between instructions is left out
    cycles    the compiler's own estimate, at its clock: too long for what is bound by memory; products are close to the
              peak. benchmarks/cost_calibration.py has single operations of known size by both

The instructions run one after the other, as scheduled; loops as often as they run. Where the compiler has no estimate
(asynchronous copies, kernels, collectives) both figures are made of FLOPs and bytes. Attention kernels run at a stated
share of the peak. A collective takes the bytes that a device receives over all links of a chip (roofline) or over those
of one axis (cycles); it occupies the links alone, and only the time is counted in which the schedule waits for it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from mf_jax.aot import hlo
from mf_jax.aot.collectives import Collective, Finder
from mf_jax.aot.hlo import Computation, Instruction, Module
from mf_jax.aot.kernels import attention_flops, is_kernel
from mf_jax.aot.places import path_of
from mf_jax.aot.products import product_flops
from mf_jax.aot.traffic import instruction_bytes
from mf_jax.monitoring.chips import Chip

PRODUCTS, ATTENTION, OTHER, COLLECTIVES = "matrix products", "attention", "everything else", "exposed collectives"
SENTINEL = 2**62  # estimates above it stand for "unknown"
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHAIN = re.compile(r'chain_id="?(\d+)')


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds by the two figures."""

    roofline: float = 0.0
    cycles: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.roofline + other.roofline, self.cycles + other.cycles)

    def __mul__(self, factor: float) -> Times:
        return Times(self.roofline * factor, self.cycles * factor)

    def after(self, other: Times) -> Times:
        """The later of two points in time."""
        return Times(max(self.roofline, other.roofline), max(self.cycles, other.cycles))


@dataclasses.dataclass(frozen=True)
class Entry:
    """An instruction of the program, over a whole step.

    Attributes:
      kind: PRODUCTS, ATTENTION, OTHER, COLLECTIVES. path: of names, see places.py.
      count: times per step. flops, bytes, seconds: of all of them together, per device.
    """

    kind: str
    path: str
    name: str
    count: int
    flops: int
    bytes: int
    seconds: Times


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a step executes.

    Attributes:
      sentinels: instructions whose estimate is a sentinel: left out of `cycles`, the roofline counts in its place.
      unknown: names of kernels whose FLOPs are not known: their bytes alone count.
      crossing: collectives between slices or nodes, whose network is not the chip's: left out.
      unknown_loops: loops whose rounds are not known: counted as one round.
    """

    entries: tuple[Entry, ...]
    sentinels: int
    unknown: tuple[str, ...]
    crossing: int
    unknown_loops: int

    def total(self, kinds: Iterable[str] = (PRODUCTS, ATTENTION, OTHER, COLLECTIVES)) -> Times:
        """Seconds per step of the entries of these kinds."""
        return sum((entry.seconds for entry in self.entries if entry.kind in kinds), Times())


def schedule(module: Module, chip: Chip, peak: float, slices: Sequence[int] = ()) -> Schedule:
    """The schedule of a program compiled for TPUs.

    Args:
      peak: FLOP/s of a device. slices: as for `collectives`.

    Raises:
      ValueError: a chip whose clock is not known.
    """
    if chip.clock is None or chip.attention is None:
        raise ValueError(f"the schedule of a program for {chip.name} has no times: its clock is not known")
    run = _Run(module, chip, peak, slices)
    run.computation(module.entry, 1)
    return Schedule(tuple(run.entries), run.sentinels, tuple(sorted(run.unknown)), run.crossing, run.unknown_loops)


class _Run:
    def __init__(self, module: Module, chip: Chip, peak: float, slices: Sequence[int]):
        self.module, self.chip, self.peak = module, chip, peak
        self.finder = Finder(module, slices)
        self.entries: list[Entry] = []
        self.unknown: set[str] = set()
        self.sentinels = self.crossing = self.unknown_loops = 0

    def computation(self, name: str, times: int) -> Times:
        """Seconds of one run of a computation; adds its entries, for `times` runs."""
        computation = self.module.computations[name]
        now, links_free = Times(), Times()
        pending: dict[str, tuple[Times, list[Collective]]] = {}
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                rounds = hlo.rounds(self.module, computation, instruction)
                self.unknown_loops += rounds is None
                now += self.computation(hlo.called(instruction, "body"), times * (rounds or 1)) * (rounds or 1)
                continue
            started = self._started(computation, instruction)
            if started:
                links_free = links_free.after(now) + self._on_links(started)
                pending[self._key(instruction)] = links_free, started
            elif opcode in hlo.CALLS:
                for called in instruction.called:
                    now += self.computation(called, times)
            if not started or not started[0].asynchronous:
                ends = self._ends(instruction)
                if ends in pending:
                    end, waited = pending.pop(ends)
                    exposed = end.after(now) + now * -1
                    self._collective(waited, instruction, times, exposed)
                    now = now.after(end)
                elif not started and opcode not in hlo.CALLS:
                    now += self._work(computation, instruction, times)
        return now

    def _started(self, computation: Computation, instruction: Instruction) -> list[Collective]:
        if instruction.opcode in ("async-start", "call-start"):
            names = [name for name in instruction.called if name in self.module.computations]
            found = [one for name in names for one in self.finder.walk(name, 1, False, wrapped=True)]
        else:
            found = list(self.finder.of(computation, instruction))
        self.crossing += sum(one.crosses for one in found)
        return found

    def _key(self, instruction: Instruction) -> str:
        """By what the end of a collective is recognised: its chain of fusions, else the name of its start."""
        return self._chain(instruction, "Start") or instruction.name

    def _ends(self, instruction: Instruction) -> str:
        """The key of the collective that ends with an instruction: itself, for a synchronous one."""
        if instruction.opcode.endswith("-done"):
            return instruction.operands[0]
        return self._chain(instruction, "Done") or instruction.name

    def _chain(self, instruction: Instruction, which: str) -> str:
        if instruction.opcode != "fusion":
            return ""
        inside = [i.text for i in self.module.computations[instruction.called[0]].instructions.values()]
        if not any(f'"AsyncCollective{which}"' in text for text in inside):
            return ""
        return next((f"chain {found[1]}" for text in inside if (found := _CHAIN.search(text))), "")

    def _on_links(self, started: Sequence[Collective]) -> Times:
        received = sum(one.received for one in started if not one.crosses) / self.chip.link_bandwidth
        return Times(received, received * self.chip.axes)

    def _collective(self, found: Sequence[Collective], instruction: Instruction, times: int, exposed: Times) -> None:
        path = next((one.source for one in found if one.source), "")
        moved = sum(one.received for one in found)
        self.entries.append(Entry(COLLECTIVES, path, found[0].kind, times, 0, moved * times, exposed * times))

    def _work(self, computation: Computation, instruction: Instruction, times: int) -> Times:
        """Seconds of an instruction that is no collective; adds its entry."""
        moved = instruction_bytes(self.module, computation, instruction)
        flops = product_flops(self.module, computation, instruction)
        kind, peak = (PRODUCTS if flops else OTHER), self.peak
        if is_kernel(instruction):
            kind = ATTENTION
            known = attention_flops(computation, instruction)
            if known is None:
                self.unknown.add(instruction.name)
            assert self.chip.attention is not None
            flops, peak = known or 0, self.peak * self.chip.attention
        least = max(flops / peak, moved / self.chip.hbm_bandwidth)
        seconds = Times(least, self._cycles(instruction, least))
        if seconds != Times():
            path = path_of(computation, instruction)
            self.entries.append(
                Entry(kind, path, instruction.name, times, flops * times, moved * times, seconds * times)
            )
        return seconds

    def _cycles(self, instruction: Instruction, otherwise: float) -> float:
        found = _CYCLES.search(instruction.text)
        if not found:
            return otherwise
        if int(found[1]) > SENTINEL:
            self.sentinels += 1
            return otherwise
        assert self.chip.clock is not None
        return int(found[1]) / self.chip.clock
