"""FLOPs of the matrix products in an optimised HLO module, 2 per multiply-add.

The TPU compiler writes a matrix product as a convolution, batched ones with the batch as a dilated spatial dimension,
so only the places of a window that meet an element of the input count. The GPU compiler calls cuBLAS and cuDNN.
"""

from __future__ import annotations

import math
import re

import numpy as np

from mf_jax.aot.hlo import Computation, Instruction, Module, dimensions

_CUDNN = re.compile(r'"__cudnn\$conv\w*Forward"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s|ensions)"?[=:][{\[]([^}\]]*)')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")


def product_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """FLOPs of the products in an instruction, those that a fusion calls included; loops inside it are not followed."""
    if instruction.opcode == "dot" or '"__cublas$' in instruction.text:
        return _dot(computation, instruction)
    if instruction.opcode == "convolution" or _CUDNN.search(instruction.text):
        return _convolution(computation, instruction)
    if instruction.opcode != "fusion":
        return 0
    inside = module.computations[instruction.called[0]]
    return sum(product_flops(module, inside, inner) for inner in inside.instructions.values())


def _dot(computation: Computation, dot: Instruction) -> int:
    found = _CONTRACTED.search(dot.text)
    contracted = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
    left = dimensions(computation.instructions[dot.operands[0]].shape)
    return 2 * math.prod(dimensions(dot.shape)) * math.prod(left[axis] for axis in contracted)


def _convolution(computation: Computation, convolution: Instruction) -> int:
    found = _LABELS.search(convolution.text)
    assert found, convolution.text
    left, right, out = found.groups()
    base, kernel = (dimensions(computation.instructions[name].shape) for name in convolution.operands[:2])
    result = dimensions(convolution.shape)
    total = 2 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for axis, options in enumerate(_window(convolution.text, sum(label.isdigit() for label in out))):
        sizes = base[left.index(str(axis))], kernel[right.index(str(axis))], result[out.index(str(axis))]
        total *= _meetings(*sizes, *options)
    return total


def _window(text: str, axes: int) -> list[tuple[int, int, int, int]]:
    """stride, padding before, dilation of the input and of the window, of each spatial axis."""
    found = _WINDOW.search(text)
    given = dict(entry.split("=", 1) for entry in found[1].split()) if found else {}

    def by_axis(name: str, default: str) -> list[int]:
        return [int(value.split("_")[0]) for value in given.get(name, "x".join([default] * axes)).split("x")]

    names = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    return list(zip(*(by_axis(*item) for item in names.items()), strict=True)) if axes else []


def _meetings(
    base: int, kernel: int, result: int, stride: int, pad: int, base_dilation: int, window_dilation: int
) -> int:
    """Pairs of a result's position and a window's element that fall on an element of the input, along one axis."""
    at = np.arange(result)[:, None] * stride - pad + np.arange(kernel) * window_dilation
    return int(np.sum((at >= 0) & (at % base_dilation == 0) & (at // base_dilation < base)))
