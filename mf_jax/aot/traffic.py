"""Bytes that a program moves between a chip and its main memory, estimated from the text of its optimised HLO.

Every instruction (a fusion is one) reads its operands and writes its result once, as often as the loops around it run.
Of an operand that is only sliced, the slices count; of a result that is an operand updated in place, the update; what
is passed on unchanged does not count, nor what lies in another memory than the main one (VMEM, the host's). What a
kernel (Pallas, cuDNN) reads more than once counts once.
"""

from __future__ import annotations

from mf_jax.aot import hlo
from mf_jax.aot.collectives import KINDS
from mf_jax.aot.hlo import Computation, Instruction, Module

_NOTHING = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
            "opt-barrier", "add-dependency", "domain", "iota", "while")  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_NO_KERNEL = ("AllocateBuffer", "Sharding", "AsyncCollective", "AssumeGatherIndicesInBound", "annotate_device")


def traffic(module: Module) -> int:
    """Bytes per step."""
    return _of(module, module.entry)


def _of(module: Module, name: str) -> int:
    computation = module.computations[name]
    total = 0
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            rounds = hlo.rounds(module, computation, instruction) or 1
            total += rounds * _of(module, hlo.called(instruction, "body"))
        elif instruction.opcode in hlo.CALLS:
            total += sum(_of(module, called) for called in instruction.called if called in module.computations)
        else:
            total += instruction_bytes(module, computation, instruction)
    return total


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one instruction moves, each time; those of the computations that a loop or a call runs are not its."""
    opcode = instruction.opcode
    if opcode in _NOTHING or opcode in hlo.CALLS or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "fusion":
        return _fusion(module, computation, instruction)
    if opcode == "custom-call" and any(f'"{target}' in instruction.text for target in _NO_KERNEL):
        return 0
    return _single(computation, instruction)


def _main(shape: str) -> int:
    """Bytes of a shape that are in the main memory."""
    return sum(size for size, is_main in hlo.leaves(shape) if is_main)


def _single(computation: Computation, instruction: Instruction) -> int:
    result = _main(instruction.shape)
    if '"__cublas$' in instruction.text or '"__cudnn$' in instruction.text:  # beside its result, memory to work in
        result = hlo.leaves(instruction.shape)[0][0]
    operands = [_main(computation.instructions[name].shape) for name in instruction.operands]
    if instruction.opcode in _SLICES:
        return 2 * result + sum(operands[1:])
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(operands[1:])
    if instruction.opcode == "copy-start":  # its shape is (result, operand, ...)
        return sum(size for size, is_main in hlo.leaves(instruction.shape)[:2] if is_main)
    if instruction.opcode.endswith("slice-start"):  # ((operands), result, ...), moved from one memory to another
        size, is_main = hlo.leaves(instruction.shape)[len(operands)]
        return size * (bool(operands[0]) + is_main)
    if instruction.opcode.removesuffix("-start") in KINDS and instruction.opcode.endswith("-start"):
        results = hlo.leaves(instruction.shape)[len(operands) : 2 * len(operands)]
        result = sum(size for size, is_main in results if is_main)
    return sum(operands) + result


def _fusion(module: Module, around: Computation, fusion: Instruction) -> int:
    inside = module.computations[fusion.called[0]]
    if any('"AsyncCollectiveStart"' in i.text for i in inside.instructions.values()):
        gathers = [i for i in inside.instructions.values() if i.opcode in KINDS]
        return sum(hlo.shape_bytes(_shape(inside, name)) for i in gathers for name in (i.name, *i.operands))
    total = 0
    for parameter, operand in _parameters(inside, fusion):
        if _main(around.instructions[operand].shape):
            total += _read(module, inside, parameter)
    root = inside.root
    roots = [inside.instructions[o] for o in root.operands] if root.opcode == "tuple" else [root]
    for one, (_, is_main) in zip(roots, hlo.leaves(fusion.shape), strict=False):
        total += _written(module, inside, one) if is_main else 0
    return total


def _parameters(inside: Computation, fusion: Instruction) -> list[tuple[Instruction, str]]:
    """The parameters of a fusion's computation, each with the name of the operand that it stands for."""
    found = [i for i in inside.instructions.values() if i.opcode == "parameter"]
    return [(i, fusion.operands[int(i.text.split("parameter(")[1].split(")")[0])]) for i in found]


def _shape(computation: Computation, name: str) -> str:
    return computation.instructions[name].shape


def _read(module: Module, inside: Computation, value: Instruction) -> int:
    """Bytes that a fusion reads of a parameter, or of a bitcast of it."""
    total = 0
    for user in inside.instructions.values():
        if value.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read(module, inside, user)
        elif user.opcode == "fusion":  # a fusion inside a fusion
            inner = module.computations[user.called[0]]
            for parameter, operand in _parameters(inner, user):
                if operand == value.name:
                    total += _read(module, inner, parameter)
                    total += _read(module, inside, user) if _unchanged(inner) is parameter else 0
        elif user.opcode in _SLICES and user.operands[0] == value.name:
            total += hlo.shape_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode == "tuple" or user.opcode in KINDS:
            continue  # passed on, or part of an asynchronous collective, which counts where it starts
        elif '"AsyncCollective' not in user.text:
            return hlo.shape_bytes(value.shape)
    return min(total, hlo.shape_bytes(value.shape))


def _unchanged(computation: Computation) -> Instruction:
    """What the result of a computation is a bitcast of."""
    value = computation.root
    while value.opcode == "bitcast":
        value = computation.instructions[value.operands[0]]
    return value


def _written(module: Module, inside: Computation, value: Instruction) -> int:
    while value.opcode == "bitcast":
        value = inside.instructions[value.operands[0]]
    if value.opcode == "fusion" and len(hlo.leaves(value.shape)) == 1:
        inner = module.computations[value.called[0]]
        return _written(module, inner, inner.root)
    if value.opcode == "parameter" or value.opcode in KINDS or '"AsyncCollective' in value.text:
        return 0
    if value.opcode == "dynamic-update-slice":
        return hlo.shape_bytes(_shape(inside, value.operands[1]))
    return hlo.shape_bytes(value.shape)
