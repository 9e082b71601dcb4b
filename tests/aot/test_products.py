"""FLOPs of products in hand-written programs, as the compilers of TPUs and GPUs write them."""

import pytest

from mf_jax.aot.hlo import parse
from mf_jax.aot.products import product_flops

DOT = "dot(a, b), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}"
CUBLAS = (
    'custom-call(a, b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,'
    '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
)


@pytest.mark.parametrize(
    ("left", "right", "result", "operation", "flops"),
    [
        # (4, 5, 6) by (4, 6, 7): 4 x 5 x 7 results of 6 products each.
        ("f32[4,5,6]", "f32[4,6,7]", "f32[4,5,7]", DOT, 2 * 4 * 5 * 7 * 6),
        ("bf16[5,6]", "bf16[6,7]", "(bf16[5,7], s8[4096])", CUBLAS, 2 * 5 * 7 * 6),
        # A product of (5, 6) by (6, 7), without a window.
        ("bf16[5,6]", "bf16[6,7]", "bf16[5,7]", "convolution(a, b), dim_labels=bf_io->bf", 2 * 5 * 7 * 6),
        # The same with two axes more in the rows, whose window is 1 x 1.
        (
            "bf16[5,6,2,3]",
            "bf16[6,7,1,1]",
            "bf16[2,3,5,7]",
            "convolution(a, b), window={size=1x1}, dim_labels=bf01_io01->01bf",
            2 * 5 * 7 * 6 * 2 * 3,
        ),
        # Contracted over a spatial axis as well: a window as large as the input, at one place.
        (
            "bf16[5,6,9]",
            "bf16[6,7,9]",
            "bf16[1,5,7]",
            "convolution(a, b), window={size=9}, dim_labels=bf0_io0->0bf",
            2 * 5 * 7 * 6 * 9,
        ),
        # A batch of 4 such products: the window takes steps of 3 over an input with 3 zeros after each element, and
        # meets one element at each of 4 places.
        (
            "bf16[4,5,6]",
            "bf16[4,6,7]",
            "bf16[4,5,7]",
            "convolution(a, b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            4 * 2 * 5 * 7 * 6,
        ),
        # Beyond both ends: each of 4 elements of the window meets each of 4 of the input, at one of 7 places.
        (
            "bf16[4,5,6]",
            "bf16[4,6,7]",
            "bf16[7,5,7]",
            "convolution(a, b), window={size=4 pad=3_3}, dim_labels=0bf_0io->0bf",
            16 * 2 * 5 * 7 * 6,
        ),
        # 3 x 3 with a border on 4 x 4 pixels: 3 + 3 + 2 + 2 places of an axis are inside.
        (
            "f32[8,4,4,6]",
            "f32[3,3,6,7]",
            "f32[8,4,4,7]",
            "convolution(a, b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 8 * 7 * 6 * 10 * 10,
        ),
        (
            "f32[8,4,4,6]",
            "f32[3,3,6,7]",
            "(f32[8,4,4,7], u8[0])",
            "custom-call(a, b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, "
            'custom_call_target="__cudnn$convForward"',
            2 * 8 * 7 * 6 * 10 * 10,
        ),
        # In steps of 2 with a border after the end alone: 3 + 2.
        (
            "f32[8,4,4,6]",
            "f32[3,3,6,7]",
            "f32[8,2,2,7]",
            "convolution(a, b), window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_01io->b01f",
            2 * 8 * 7 * 6 * 5 * 5,
        ),
        # A window of 3 with gaps of 1, on 5 elements with a border of 1: 2, 3 and 2 of it are inside.
        (
            "f32[8,5,6]",
            "f32[3,6,7]",
            "f32[8,3,7]",
            "convolution(a, b), window={size=3 pad=1_1 rhs_dilate=2}, dim_labels=b0f_0io->b0f",
            2 * 8 * 7 * 6 * 7,
        ),
        ("f32[5,6]", "f32[5,6]", "f32[5,6]", "add(a, b)", 0),
    ],
)
def test_by_hand(left, right, result, operation, flops):
    text = f"""HloModule m
inner (a: {left}, b: {right}) -> {result} {{
  a = {left} parameter(0)
  b = {right} parameter(1)
  ROOT c = {result} {operation}
}}
outer (a.1: {left}, b.1: {right}) -> {result} {{
  a.1 = {left} parameter(0)
  b.1 = {right} parameter(1)
  ROOT c.1 = {result} fusion(a.1, b.1), kind=kOutput, calls=inner
}}
ENTRY main (a.2: {left}, b.2: {right}) -> {result} {{
  a.2 = {left} parameter(0)
  b.2 = {right} parameter(1)
  ROOT c.2 = {result} fusion(a.2, b.2), kind=kOutput, calls=outer
}}
"""
    module = parse(text)
    for name in ("inner", "outer", "main"):
        computation = module.computations[name]
        assert product_flops(module, computation, computation.root) == flops
