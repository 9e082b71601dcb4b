"""FLOPs of the Pallas kernels of attention, whose insides the compiler's text does not show."""

from __future__ import annotations

import math

from mf_jax.aot.hlo import Computation, Instruction, dimensions

# Matrix products between all queries and all keys that each kernel does, by the beginning of its name.
PRODUCTS = {
    "splash_mha_fwd": 2,  # scores, values
    "splash_mha_dkv": 4,  # scores again, their gradient, the gradients of keys and values
    "splash_mha_dq": 3,  # scores again, their gradient, the gradient of queries
}
FUSED_BACKWARD = 5  # dkv, which makes the gradient of the queries as well


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel for TPUs."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.text


def attention_flops(computation: Computation, kernel: Instruction) -> int | None:
    """FLOPs of an attention kernel, 2 per multiply-add, nothing masked; None for a kernel that is not known."""
    products = next((n for name, n in PRODUCTS.items() if kernel.name.startswith(name)), None)
    if products is None:
        return None
    shapes = [dimensions(computation.instructions[name].shape) for name in kernel.operands]
    q, k = [shape for shape in shapes if len(shape) == 4][:2]  # (B, H, N, E), (B, K, M, E)
    if products == PRODUCTS["splash_mha_dkv"] and _makes_query_gradient(kernel, q):
        products = FUSED_BACKWARD
    return 2 * products * math.prod(q) * k[2]


def _makes_query_gradient(kernel: Instruction, q: tuple[int, ...]) -> bool:
    """Whether a dkv kernel's results have one of the size of the queries besides keys and values: (.., B, H, N, E)."""
    size = "[" + ",".join(map(str, q)) + "]"
    return size in kernel.shape.replace("[1,", "[")
