"""FLOPs of the Pallas kernels of attention, whose insides the compiler's text does not show."""

from __future__ import annotations

import math

from mf_jax.aot.hlo import Computation, Instruction, dimensions, shapes

# Matrix products between all queries and all keys that each kernel does, by the beginning of its name.
PRODUCTS = {
    "splash_mha_fwd": 2,  # scores, values
    "splash_mha_dkv": 4,  # scores again, their gradient, the gradients of keys and values
    "splash_mha_dq": 3,  # scores again, their gradient, the gradient of queries
}
BACKWARD = "splash_mha_dkv", "splash_mha_dq"
FUSED_BACKWARD = 5  # dkv, which makes the gradient of the queries as well


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel for TPUs."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.text


def is_backward(kernel: Instruction) -> bool:
    """Whether an attention kernel makes gradients."""
    return kernel.name.startswith(BACKWARD)


def attention_flops(computation: Computation, kernel: Instruction) -> int | None:
    """FLOPs of an attention kernel, 2 per multiply-add, nothing masked; None for a kernel that is not known."""
    products = next((n for name, n in PRODUCTS.items() if kernel.name.startswith(name)), None)
    operands = [dimensions(computation.instructions[name].shape) for name in kernel.operands]
    heads = [shape for shape in operands if len(shape) == 4]  # (B, H, N, E), (B, K, M, E), ...
    if products is None or len(heads) < 2:
        return None
    q, k = heads[:2]
    gradients = sum(len(shape) >= 4 for shape in shapes(kernel.shape))
    if products == PRODUCTS["splash_mha_dkv"] and gradients > 2:  # besides those of keys and values
        products = FUSED_BACKWARD
    return 2 * products * math.prod(q) * k[2]
