"""libtpu's estimates of single operations against the data sheet: python benchmarks/cost_calibration.py [TOPOLOGY ...]

Compiles operations of known size for one device of v5e, v5p, v6e and TPU7x, unless topologies are named; needs the
extra `tpu`. For each it prints the time of the compiler's `estimated_cycles` at the chip's clock, the time at the
chip's peak and the time at its memory bandwidth, for operands and results as they are written in the program, and the
compiler's time as a multiple of the larger of the two. Where an operation becomes several instructions their cycles are
added. The last column counts operands that are copied to the chip's fast memory ahead of the program, whose estimate
then leaves their reading out. Nothing is run: this compares two estimates.
"""

import re
import sys

import jax
import jax.numpy as jnp

from mf_jax.aot import topology
from mf_jax.monitoring.chips import DEVICES

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
BF16, F32 = jnp.bfloat16, jnp.float32
SENTINEL = 2**62  # estimates near 2**63 stand for "not known"
# Matrix products, tokens x K x N: squares; the widths of the models' blocks, feed-forwards and 96 channels of latents.
PRODUCTS = [
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 1024, 1024),
    (8192, 1024, 4096),
    (8192, 4096, 1024),
    (8192, 1536, 1536),
    (8192, 3072, 3072),
    (8192, 3072, 12288),
    (8192, 12288, 3072),
    (8192, 4096, 12288),
    (8192, 12288, 4096),
    (65536, 3072, 12288),
    (8192, 96, 3072),
    (8192, 3072, 96),
    (65536, 96, 1024),
]


def rms(x):
    return (x * jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(F32)), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def heads_first(x):
    return x.transpose(0, 2, 1, 3)


# Operations that memory bounds: label, function, shape, dtypes of the operands.
MOVING = [
    ("add", jnp.add, (8192, 3072), (BF16, BF16)),
    ("add", jnp.add, (65536, 3072), (BF16, BF16)),
    ("add", jnp.add, (65536, 3072), (F32, F32)),
    ("silu", jax.nn.silu, (65536, 3072), (BF16,)),
    ("bf16 to f32", lambda x: x.astype(F32), (65536, 3072), (BF16,)),
    ("f32 to bf16", lambda x: x.astype(BF16), (65536, 3072), (F32,)),
    ("copy", jnp.copy, (65536, 3072), (BF16,)),
    ("copy", jnp.copy, (65536, 3072), (F32,)),
    ("sum of rows", lambda x: jnp.sum(x, axis=-1, dtype=F32), (65536, 3072), (BF16,)),
    ("sum of columns", lambda x: jnp.sum(x, axis=0, dtype=F32), (65536, 3072), (BF16,)),
    ("RMS norm", rms, (65536, 3072), (BF16,)),
    ("x.T", jnp.transpose, (8192, 3072), (BF16,)),
    ("x.T", jnp.transpose, (65536, 3072), (BF16,)),
    ("BTHE to BHTE", heads_first, (32, 2048, 24, 128), (BF16,)),
    ("BTHE to BHTE", heads_first, (32, 512, 16, 64), (BF16,)),
]


def compiled(function, shapes, dtypes, device) -> tuple[int, int, int]:
    """Cycles by the compiler, copies to fast memory before the program starts, bytes of operands and results."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    cycles = [int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    prefetched = len(re.findall(r" copy-start\(", text))
    arrays = [*arguments, *jax.tree.leaves(jax.eval_shape(function, *arguments))]
    moved = sum(array.size * array.dtype.itemsize for array in arrays)
    return sum(count for count in cycles if count < SENTINEL), prefetched, moved


def line(label, function, shapes, dtypes, flops, device) -> None:
    known = DEVICES[device.device_kind]
    cycles, prefetched, moved = compiled(function, shapes, dtypes, device)
    own, compute, memory = cycles / known.chip.clock, flops / known.peak, moved / known.chip.hbm_bandwidth
    ratio = own / max(compute, memory)
    bound = "peak" if compute > memory else "memory"
    print(
        f"{label:<34}{cycles:>12}{1e6 * own:>11.1f}{1e6 * compute:>11.1f}{1e6 * memory:>11.1f}"
        f"{ratio:>8.2f} of {bound:<7}{prefetched or '':>3}",
        flush=True,
    )


def main() -> None:
    print(f"jax {jax.__version__}")
    for name in sys.argv[1:] or TOPOLOGIES:
        device = topology.devices(name)[0]
        known = DEVICES[device.device_kind]
        print(
            f"\n{name}: {known.peak / 1e12:.1f} TFLOP/s, {known.chip.hbm_bandwidth / 1e9:.0f} GB/s, "
            f"{known.chip.clock / 1e9:.2f} GHz; times in us"
        )
        print(
            f"{'':<34}{'cycles':>12}{'compiler':>11}{'at peak':>11}{'memory':>11}{'compiler / larger':>20}  prefetched"
        )
        for M, K, N in PRODUCTS:
            line(f"bf16 {M}x{K} @ {K}x{N}", jnp.matmul, [(M, K), (K, N)], [BF16, BF16], 2 * M * K * N, device)
        for label, function, shape, dtypes in MOVING:
            types = ", ".join(jnp.dtype(dtype).name.replace("float", "f") for dtype in dtypes)
            sizes = "x".join(map(str, shape))
            line(f"{label} {sizes} {types}", function, [shape] * len(dtypes), dtypes, 0, device)


if __name__ == "__main__":
    main()
