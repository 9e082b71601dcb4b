"""Collectives of a compiled program, counted in the text of its optimised HLO.

An instruction in the body of a loop counts as often as the loop runs it; XLA's own cost analysis counts it once. A
collective that is asynchronous (it can overlap with the computation between its start and its end) takes several
instructions; it counts once. Three forms of that are known: `all-gather-start` and its like, `async-start` around a
computation, and the fusions of the TPU compiler, whose first ends in a custom call "AsyncCollectiveStart". Between
slices of TPUs the hosts do it: the program sends them its part and receives the result.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from mf_jax.aot import hlo
from mf_jax.aot.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip
_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, as often as it runs in a step.

    Attributes:
      kind: of KINDS. source: what it was made for, by the names in the model's code; "" where XLA does not say.
      payload: bytes of the whole array: what is gathered, reduced or exchanged, each time.
      group: devices that take part together. count: times per step.
      in_loop: it is in the body of a loop. asynchronous: computation can go on beside it.
      crosses: it goes between slices (or nodes).
    """

    kind: str
    source: str
    payload: int
    group: int
    count: int
    in_loop: bool
    asynchronous: bool
    crosses: bool = False

    @property
    def received(self) -> int:
        """Bytes that each device must receive each time, by whichever algorithm: a lower bound that rings attain."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
        return round(self.payload * factor.get(self.kind, share))


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of a step.

    Attributes: unknown_loops: loops with collectives inside whose number of rounds is not known; taken as one.
    """

    found: tuple[Collective, ...]
    unknown_loops: int = 0


def collectives(module: Module, slices: Sequence[int] = ()) -> Collectives:
    """The collectives of one step.

    Args:
      slices: by position in the program's device assignment, the slice (or node) that the device belongs to.
    """
    finder = Finder(module, slices)
    return Collectives(tuple(finder.walk(module.entry, 1, False)), finder.unknown_loops)


class Finder:
    """Finds the collectives in a module; arguments as of `collectives`."""

    def __init__(self, module: Module, slices: Sequence[int] = ()):
        self.module = module
        self.computations = module.computations
        self.slices = slices
        self.unknown_loops = 0

    def walk(self, name: str, times: int, in_loop: bool, wrapped: bool = False) -> Iterator[Collective]:
        """The collectives of a computation that runs `times` per step; wrapped: it is inside an async-start."""
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                rounds = hlo.rounds(self.module, computation, instruction)
                inner = list(self.walk(hlo.called(instruction, "body"), times * (rounds or 1), True))
                self.unknown_loops += bool(inner) and rounds is None
                yield from inner
            elif instruction.opcode in hlo.CALLS:
                for called in instruction.called:
                    yield from self.walk(called, times, in_loop, wrapped or instruction.opcode.endswith("-start"))
            else:
                for one in self.of(computation, instruction, wrapped):
                    yield dataclasses.replace(one, count=times, in_loop=in_loop)

    def of(self, computation: Computation, instruction: Instruction, wrapped: bool = False) -> Iterator[Collective]:
        """The collectives that one instruction does or starts, once; not those of computations that it calls."""
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            is_async = wrapped or (kind != instruction.opcode and '"is_sync":true' not in instruction.text)
            yield self._one(computation, instruction, kind, is_async)
        elif instruction.opcode == "send" and (found := _SLICES.search(instruction.text)):
            yield self._between_slices(computation, instruction, found[1])
        elif instruction.opcode == "fusion":
            yield from self._fusion(instruction)

    def _fusion(self, instruction: Instruction) -> Iterator[Collective]:
        for called in instruction.called:
            computation = self.computations[called]
            starts = any('"AsyncCollectiveStart"' in i.text for i in computation.instructions.values())
            for inner in computation.instructions.values():
                if inner.opcode not in KINDS or ("chain_id=" in inner.text and not starts):
                    continue  # no collective, or the middle or end of one that another fusion started
                scatters = inner.opcode == "all-reduce" and called.startswith("all-reduce-scatter")
                one = self._one(computation, inner, "reduce-scatter" if scatters else inner.opcode, starts)
                yield dataclasses.replace(one, source=one.source or source(instruction.text))

    def _between_slices(self, computation: Computation, found: Instruction, kind: str) -> Collective:
        payload = hlo.shape_bytes(computation.instructions[found.operands[0]].shape)
        kind = kind.lower().replace("_", "-")
        return Collective(kind, source(found.text), payload, len(set(self.slices)), 1, False, True, True)

    def _one(self, computation: Computation, found: Instruction, kind: str, is_async: bool) -> Collective:
        groups = replica_groups(found.text, len(self.slices))
        group = len(groups[0]) if groups else max(len(self.slices), 1)
        payload = sum(hlo.shape_bytes(computation.instructions[name].shape) for name in found.operands)
        if kind == "all-gather":
            payload *= group
        crosses = any(len({self.slices[i] for i in devices}) > 1 for devices in groups) if self.slices else False
        return Collective(kind, source(found.text), payload, group, 1, False, is_async, crosses)


def source(text: str) -> str:
    """The names of modules in an instruction's metadata: "jit(f)/jvp(FlatDiT)/while/body/trunk/q/dot_general"."""
    name = re.search(r'op_name="([^"]*)"', text)
    return name[1] if name else ""


def replica_groups(text: str, devices: int = 0) -> list[list[int]]:
    """The groups of devices of a collective, as positions in the device assignment; [] is all devices together.

    Understood are the three ways in which XLA writes them: {{0,1},{2,3}}, [2,2]<=[2,2]T(1,0), and by axes of a mesh,
    mesh['x'=2,'y'=2] {'y'}. Pairs of a permutation come back as groups of their own.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[^=]*?\})\}", text):
        return [[int(d) for d in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [[int(d) for d in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        sizes = [int(s) for s in iota[3].split(",")]
        order = [int(a) for a in iota[4].split(",")] if iota[4] else list(range(len(sizes)))
        flat = _transposed(sizes, order)
        size = int(iota[2])
        return [flat[i : i + size] for i in range(0, len(flat), size)]
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", text):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        names, inside = list(axes), re.findall(r"'([^']+)'", mesh[2])
        order = [names.index(name) for name in names if name not in inside] + [names.index(name) for name in inside]
        flat = _transposed(list(axes.values()), order)
        size = math.prod(axes[name] for name in inside)
        return [flat[i : i + size] for i in range(0, len(flat), size)]
    return [list(range(devices))] if devices else []


def _transposed(sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """arange(prod(sizes)).reshape(sizes).transpose(order), flat."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    result = [0]
    for axis in order:
        result = [start + i * strides[axis] for start in result for i in range(sizes[axis])]
    return result
