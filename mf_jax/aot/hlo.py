"""Parser of the text of an optimised HLO module: instructions, shapes, and how often loops run."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

CALLS = ("call", "conditional", "call-start", "async-start")  # instructions that run other computations once
_BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_END = re.compile(r"^\}(?:, execution_thread=.*)?$")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z][a-z0-9]*)\[(?P<sizes>[0-9,]*)\](?P<layout>\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Attributes:
    name, shape, opcode, operands: as written. text: all of it, after the name.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    @functools.cached_property
    def called(self) -> list[str]:
        """Computations that it calls."""
        found = []
        for group in _CALLED.findall(self.text):
            found += [name.strip().lstrip("%") for name in group.strip("{}").split(",")]
        return found


@dataclasses.dataclass(frozen=True)
class Computation:
    """Attributes: instructions: by name, in order. roots: the one that is its result."""

    name: str
    instructions: dict[str, Instruction]
    roots: list[Instruction] = dataclasses.field(default_factory=list)

    @property
    def root(self) -> Instruction:
        return self.roots[0]


@dataclasses.dataclass(frozen=True)
class Module:
    """Attributes: computations: by name. entry: the name of the one that a step runs."""

    computations: dict[str, Computation]
    entry: str


def shape_bytes(shape: str) -> int:
    """Bytes of a shape or tuple of shapes as HLO writes it, "(bf16[8,128]{1,0}, s32[])"; tokens are nothing."""
    return sum(size for size, _ in leaves(shape))


def leaves(shape: str) -> list[tuple[int, bool]]:
    """(bytes, in the main memory) of every array of a shape; other memories are "S(1)" and so on in its layout."""
    found = []
    for array in _ARRAY.finditer(shape):
        if (bits := _bits(array["dtype"])) is not None:
            size = (math.prod(int(d) for d in array["sizes"].split(",") if d) * bits + 7) // 8
            found.append((size, not re.search(r"S\([1-9]", array["layout"] or "")))
    return found


def shapes(shape: str) -> list[tuple[int, ...]]:
    """The sizes of every array of a shape."""
    return [tuple(int(size) for size in found["sizes"].split(",") if size) for found in _ARRAY.finditer(shape)]


def dimensions(shape: str) -> tuple[int, ...]:
    """The sizes of the first array of a shape."""
    return shapes(shape)[0]


def _bits(dtype: str) -> int | None:
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.fullmatch(r"[fsu](\d+)\w*", dtype)
    return int(number[1]) if number else None


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`.

    Raises:
      ValueError: no entry computation in the text.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    lines: list[str] = []  # of one instruction: what kernels say of themselves has line breaks
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = Computation(header["name"], {})
                computations[current.name] = current
                entry = current.name if header["entry"] else entry
        elif (ends := _END.match(line)) or _INSTRUCTION.match(line):
            _add(current, lines)
            current, lines = (None, []) if ends else (current, [line])
        else:
            lines.append(line)
    if not entry:
        raise ValueError("the text is no optimised HLO module: it has no entry computation")
    return Module(computations, entry)


def _add(computation: Computation, lines: list[str]) -> None:
    if lines:
        found = _INSTRUCTION.match(lines[0])
        assert found, lines[0]
        instruction = _instruction(found["name"], " ".join([found["rest"], *lines[1:]]))
        computation.instructions[instruction.name] = instruction
        if found["root"]:
            computation.roots.append(instruction)


def _instruction(name: str, rest: str) -> Instruction:
    """`SHAPE OPCODE(OPERANDS), ATTRIBUTES`; a tuple's shape has brackets of its own."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    stop = _closing(rest, start)
    operands = re.findall(r"%([\w.\-]+)", rest[start:stop]) or re.findall(
        r"(?:^|[ ,(])([A-Za-z_][\w.\-]*)(?=[,)]|$)", rest[start : stop + 1]
    )
    return Instruction(name, rest[:end], opcode, tuple(operands), rest)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")


def rounds(module: Module, around: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs: as XLA says, else read off a condition `counter < constant`, start and step constant.

    None where neither is found.

    Args:
      around: the computation that the loop is in.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(known[1])
    condition, body = (module.computations[called(loop, which)] for which in ("condition", "body"))
    instructions = condition.instructions
    root = condition.root
    if root.opcode == "fusion":  # a condition of one comparison, fused
        root = module.computations[root.called[0]].root
    constants = [c for c in map(_constant, instructions.values()) if c is not None]
    if root.opcode != "compare" or "direction=LT" not in root.text or len(constants) != 1:
        return None
    counter = next((i for i in instructions.values() if i.opcode == "get-tuple-element"), None)
    if counter is None:
        return None
    index = int(_attribute(r"index=(\d+)", counter))
    start = _element(around, loop.operands[0], index)
    step = _step(body, index)
    if start is None or not step:
        return None
    return max(-(-(constants[0] - start) // step), 0)


def called(instruction: Instruction, attribute: str) -> str:
    """The computation in one attribute, "body"."""
    return _attribute(rf"\b{attribute}=%?([\w.\-]+)", instruction)


def _attribute(pattern: str, instruction: Instruction) -> str:
    found = re.search(pattern, instruction.text)
    assert found, f"{pattern} is not in {instruction.text}"
    return found[1]


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"[su]\d+\[\]\S* constant\((-?\d+)\)", instruction.text)
    return int(found[1]) if found else None


def _element(computation: Computation, name: str, index: int) -> int | None:
    """The value of a constant element of a tuple, through copies."""
    instruction = computation.instructions.get(name)
    if instruction is None or instruction.opcode != "tuple":
        return None
    value = computation.instructions.get(instruction.operands[index])
    while value is not None and value.opcode in ("copy", "bitcast", "convert"):
        value = computation.instructions.get(value.operands[0])
    return None if value is None else _constant(value)


def _step(body: Computation, index: int) -> int | None:
    """The constant that a loop's body adds to an element of its tuple."""
    root = body.root
    if root.opcode != "tuple":
        return None
    value = body.instructions[root.operands[index]]
    while value.opcode in ("copy", "bitcast", "convert"):
        value = body.instructions[value.operands[0]]
    if value.opcode != "add":
        return None
    steps = [c for c in (_constant(body.instructions[o]) for o in value.operands) if c is not None]
    return steps[0] if len(steps) == 1 else None
