"""A step's time, predicted from the compiled program by two figures of every instruction, which bracket it.

    roofline  the larger of the instruction's FLOPs at the chip's peak and its bytes at the bandwidth of its memory:
              too short, as nothing reaches both, and the time between instructions is left out
    cycles    the compiler's own estimate, at its clock: too long for what is bound by memory; products are close to the
              peak. Where there is none (kernels, asynchronous copies, all of a GPU's instructions), the roofline again

The instructions run one after the other, in the order of the program; loops as often as they run, all branches of a
condition. Attention kernels run at a stated share of the peak. A collective takes the bytes that a device receives over
all links of a chip (roofline) or over those of one axis (cycles). Collectives have the links one after the other; only
the time counts in which the program waits for one: all of it, or what is left of it when it reaches the end of an
asynchronous one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from mf_jax.aot import hlo
from mf_jax.aot.collectives import Collective, Finder
from mf_jax.aot.hlo import Computation, Instruction, Module
from mf_jax.aot.kernels import attention_flops, is_backward, is_kernel
from mf_jax.aot.places import path_of
from mf_jax.aot.products import product_flops
from mf_jax.aot.traffic import instruction_bytes
from mf_jax.monitoring.chips import Chip

PRODUCTS, ATTENTION, OTHER, COLLECTIVES = "matrix products", "attention", "everything else", "exposed collectives"
KINDS = (PRODUCTS, ATTENTION, OTHER, COLLECTIVES)
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

    def __sub__(self, other: Times) -> Times:
        return Times(self.roofline - other.roofline, self.cycles - other.cycles)

    def __mul__(self, factor: float) -> Times:
        return Times(self.roofline * factor, self.cycles * factor)

    def later(self, other: Times) -> Times:
        """The later of two points in time."""
        return Times(max(self.roofline, other.roofline), max(self.cycles, other.cycles))


@dataclasses.dataclass(frozen=True)
class Entry:
    """An instruction of the program, over a whole step.

    Attributes:
      kind: of KINDS. path: of names, see places.py. name: of the instruction; of a collective, what it does.
      count: times per step. flops, bytes, seconds: of all of them together, per device.
      estimated: `seconds.cycles` is the compiler's figure.
    """

    kind: str
    path: str
    name: str
    count: int
    flops: int
    bytes: int
    seconds: Times
    estimated: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a step executes.

    Attributes:
      links: seconds that collectives occupy the links, waited for or not.
      sentinels: instructions whose estimate stands for "unknown": the roofline counts in its place.
      unknown: names of kernels whose FLOPs are not known: their bytes alone count.
      crossing: collectives between slices or nodes, whose network is not the chip's: they count no time.
      unknown_loops: loops whose rounds are not known: counted as one round.
    """

    entries: tuple[Entry, ...]
    links: Times
    sentinels: int
    unknown: tuple[str, ...]
    crossing: int
    unknown_loops: int

    def total(self, kinds: Iterable[str] = KINDS) -> Times:
        """Seconds per step of the entries of these kinds."""
        return sum((entry.seconds for entry in self.entries if entry.kind in kinds), Times())

    @property
    def without_estimate(self) -> float:
        """Seconds, of those by cycles, that are not the compiler's figure."""
        return sum(entry.seconds.cycles for entry in self.entries if not entry.estimated)


def schedule(module: Module, chip: Chip, peak: float, slices: Sequence[int] = ()) -> Schedule:
    """The schedule of a compiled program.

    Args:
      peak: FLOP/s of a device. slices: as for `collectives`.
    """
    run = _Run(module, chip, peak, slices)
    run.computation(module.entry, 1)
    unknown = tuple(sorted(run.unknown))
    return Schedule(tuple(run.entries), run.links, run.sentinels, unknown, run.crossing, run.unknown_loops)


class _Run:
    def __init__(self, module: Module, chip: Chip, peak: float, slices: Sequence[int]):
        self.module, self.chip, self.peak = module, chip, peak
        self.finder = Finder(module, slices)
        self.entries: list[Entry] = []
        self.links = Times()
        self.unknown: set[str] = set()
        self.sentinels = self.crossing = self.unknown_loops = 0

    def computation(self, name: str, times: int) -> Times:
        """Seconds of one run of a computation; adds its entries, for `times` runs."""
        computation = self.module.computations[name]
        now, links_free = Times(), Times()
        under_way: dict[str, tuple[Times, list[Collective]]] = {}  # when they end, by the key of their end
        for instruction in computation.instructions.values():
            if waited := under_way.pop(self._ends(computation, instruction), None):
                now = self._wait(*waited, now, times)
            if started := self._started(instruction, computation):
                on_links = self._on_links(started)
                self.links += on_links * times
                links_free = links_free.later(now) + on_links
                if started[0].asynchronous:
                    under_way[self._key(instruction)] = links_free, started
                else:
                    now = self._wait(links_free, started, now, times)
            elif instruction.opcode == "while":
                now += self._loop(computation, instruction, times)
            elif instruction.opcode in hlo.CALLS:
                for called in self._called(instruction):
                    now += self.computation(called, times)
            else:
                now += self._work(computation, instruction, times)
        for end, found in under_way.values():  # that another computation ends
            now = self._wait(end, found, now, times)
        return now

    def _loop(self, computation: Computation, loop: Instruction, times: int) -> Times:
        rounds = hlo.rounds(self.module, computation, loop)
        self.unknown_loops += rounds is None
        rounds = 1 if rounds is None else rounds
        return self.computation(hlo.called(loop, "body"), times * rounds) * rounds

    def _called(self, instruction: Instruction) -> Iterator[str]:
        return (name for name in instruction.called if name in self.module.computations)

    def _started(self, instruction: Instruction, computation: Computation) -> list[Collective]:
        """The collectives that an instruction does or starts."""
        if instruction.opcode in ("async-start", "call-start"):
            walks = (self.finder.walk(name, 1, False, wrapped=True) for name in self._called(instruction))
            found = [one for walk in walks for one in walk]
        else:
            found = list(self.finder.of(computation, instruction))
        self.crossing += sum(one.crosses for one in found)
        return found

    def _key(self, start: Instruction) -> str:
        """By what the end of a collective is recognised: its chain of fusions, else the name of its start."""
        return self._chain(start, "Start") or start.name

    def _ends(self, computation: Computation, instruction: Instruction) -> str:
        """The key of the collective that an instruction ends; "" for none."""
        if not instruction.opcode.endswith("-done"):
            return self._chain(instruction, "Done")
        start = computation.instructions[instruction.operands[0]]
        while start.opcode.endswith("-update"):
            start = computation.instructions[start.operands[0]]
        return start.name

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

    def _wait(self, end: Times, found: Sequence[Collective], now: Times, times: int) -> Times:
        """When collectives have ended that end at `end`; adds an entry of what is waited for them from now on."""
        path = next((one.source for one in found if one.source), "")
        moved = sum(one.received for one in found) * times
        after = now.later(end)
        self.entries.append(Entry(COLLECTIVES, path, found[0].kind, times, 0, moved, (after - now) * times, False))
        return after

    def _work(self, computation: Computation, instruction: Instruction, times: int) -> Times:
        """Seconds of an instruction that is no collective; adds its entry."""
        moved = instruction_bytes(self.module, computation, instruction)
        flops: int | None = product_flops(self.module, computation, instruction)
        kind, peak = (PRODUCTS if flops else OTHER), self.peak
        if is_kernel(instruction):
            forward, backward = self.chip.attention or (1.0, 1.0)
            kind, peak = ATTENTION, self.peak * (backward if is_backward(instruction) else forward)
            flops = attention_flops(computation, instruction)
            if flops is None:
                self.unknown.add(instruction.name)
        flops = flops or 0
        least = max(flops / peak, moved / self.chip.hbm_bandwidth)
        cycles = self._cycles(instruction)
        seconds = Times(least, least if cycles is None else cycles)
        if seconds != Times():
            path = path_of(computation, instruction)
            counted = flops * times, moved * times, seconds * times
            self.entries.append(Entry(kind, path, instruction.name, times, *counted, cycles is not None))
        return seconds

    def _cycles(self, instruction: Instruction) -> float | None:
        """Seconds by the compiler's estimate, where it has one."""
        found = _CYCLES.search(instruction.text)
        if not found or self.chip.clock is None:
            return None
        if int(found[1]) > SENTINEL:
            self.sentinels += 1
            return None
        return int(found[1]) / self.chip.clock
