"""FLOPs of the matrix products in an optimised HLO module, 2 per multiply-add.

The TPU compiler writes a matrix product as a convolution, batched ones with the batch as a dilated spatial dimension, so
only the places of a window that meet an element of the input count.
"""

from __future__ import annotations

import math
import re

from mf_jax.aot.hlo import Computation, Instruction, Module, dimensions

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


def product_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """FLOPs of the products in an instruction, those that a fusion calls included; loops inside it are not followed."""
    if instruction.opcode == "dot":
        return _dot(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode != "fusion":
        return 0
    inside = module.computations[instruction.called[0]]
    return sum(product_flops(module, inside, inner) for inner in inside.instructions.values())


def _dot(computation: Computation, dot: Instruction) -> int:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)
    contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
    left = dimensions(computation.instructions[dot.operands[0]].shape)
    return 2 * math.prod(dimensions(dot.shape)) * math.prod(left[axis] for axis in contracted)


def _convolution(computation: Computation, convolution: Instruction) -> int:
    found = _LABELS.search(convolution.text)
    assert found, convolution.text
    left, right, out = found.groups()
    base, kernel = (dimensions(computation.instructions[name].shape) for name in convolution.operands[:2])
    result = dimensions(convolution.shape)
    window = _window(convolution.text, sum(label.isdigit() for label in out))
    total = 2 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for axis, options in enumerate(window):
        places = base[left.index(str(axis))], kernel[right.index(str(axis))], result[out.index(str(axis))]
        total *= _meetings(*places, **options)
    return total


def _window(text: str, axes: int) -> list[dict[str, int]]:
    """stride, pad, base_dilation and window_dilation of each spatial axis."""
    found = _WINDOW.search(text)
    given = dict(entry.split("=", 1) for entry in found[1].split()) if found else {}
    result = []
    for axis in range(axes):

        def value(name: str, default: str = "1", axis: int = axis) -> str:
            return given[name].split("x")[axis] if name in given else default

        result.append(
            {
                "stride": int(value("stride")),
                "pad": int(value("pad", "0_0").split("_")[0]),
                "base_dilation": int(value("lhs_dilate")),
                "window_dilation": int(value("rhs_dilate")),
            }
        )
    return result


def _meetings(
    base: int, kernel: int, result: int, stride: int, pad: int, base_dilation: int, window_dilation: int
) -> int:
    """Pairs of a result's position and a window's element that fall on an element of the input, along one axis."""
    count = 0
    for k in range(kernel):
        for out in range(result):
            at = out * stride - pad + k * window_dilation
            count += at >= 0 and at % base_dilation == 0 and at // base_dilation < base
    return count
