"""The attention kernels' share of the peak by libtpu's schedule: python benchmarks/attention_schedule.py [CHIP ...]

Compiles the forward and the backward kernel of mf_jax.models.attention for v5e, v5p, v6e and TPU7x, unless chips are
named; needs the extra `tpu`. The layer is that of configs/mofo_800m.py, 12 query heads and 3 key/value heads of 128
channels, with a mask of valid keys. libtpu writes the instructions of each kernel as it schedules them, one line per
cycle, empty ones included. The share is the cycles that the kernel's matrix products (two forward, five backward) would
take at the peak, as a share of the lines of all its steps. Lengths are of padded sequences.

No measurement: nothing is run. The schedule leaves out whatever is not known when a kernel is compiled: waiting for
copies from and to memory, conflicts, what happens before the first step and after the last. Code that the compiler
predicates instead of branching around is counted in full at every step, as is code behind a branch that issues copies;
only the branches in which results are initialised and written, once per several tiles, are counted once per these. What
XLA does around the kernels is left out, as the sum of the queries' gradients over tiles of keys. A chip of v5p has two
cores, whose peak is half of the chip's; the share is that of one. They have a sequence each here: jax marks no other
loop of the backward kernel as parallel, so with an odd number of sequences a core waits.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

from mf_jax.aot import topology
from mf_jax.models import attention

CHIPS = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:2x2x1"}
FLOPS = {
    "v5e": 2**17,
    "v5p": 2**17,
    "v6e": 2**19,
    "tpu7x": 2**19,
}  # of a core's matrix units in a cycle, see Chip.clock
BATCH, HEADS, KV_HEADS, CHANNELS = 2, 12, 3, 128
# Tiles besides those of the model, by length: queries, keys, of these at a time in the forward and the backward pass.
OTHERS = {
    256: [(128, 256, 256, 256)],
    512: [(512, 512, 256, 256), (256, 512, 512, 512)],
    768: [(768, 768, 768, 384), (384, 768, 768, 768), (256, 768, 768, 768), (768, 384, 384, 384)],
    2560: [
        (1280, 1280, 1280, 1280),
        (640, 1280, 256, 1280),
        (512, 1280, 1280, 1280),
        (256, 1280, 1280, 1280),
        (512, 512, 512, 512),
        (512, 2560, 512, 2560),
        (256, 2560, 512, 2560),
        (1280, 2560, 512, 512),
    ],
}


def compile_kernels(name: str, length: int, blocks: BlockSizes) -> None:
    """Compiles a layer's attention and its gradients for one device."""
    sharding = jax.sharding.SingleDeviceSharding(topology.devices(name)[0])
    shapes = [(BATCH, heads, length, CHANNELS) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    valid = jax.ShapeDtypeStruct((BATCH, length), jnp.bool_, sharding=sharding)

    def loss(q, k, v, valid_BM):
        return attention.heads_first(q, k, v, "splash", valid_BM).astype(jnp.float32).sum()

    with mock.patch.object(attention, "_blocks", lambda *_: blocks):
        jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, valid).compile()


def cycles(dump: Path, kernel: str, rounds: int) -> float:
    """Cycles of a step of a kernel's grid; of the branches that write results, 1 / rounds."""
    text = next(p for p in dump.glob(f"*{kernel}*packed-bundles-post-ra.txt") if "analysis" not in p.name).read_text()
    use = next(dump.glob(f"*{kernel}*pre-delay_hlo-static-per-bundle-utilization.txt")).read_text()
    header, table = use.split("== UTILIZATION:\n")
    names = header.splitlines()[1].split(", ")
    rows = [dict(zip(names, map(int, line.split()), strict=True)) for line in table.splitlines() if line.strip()]
    marks = {}  # where straight code begins: whether it is behind a branch
    loop = 0
    for line in text.splitlines():
        found = re.match(r"\s*(0x[0-9a-f]+|\d+)\s+((?:L[HBE]|P[BF]|CT|\s)*):", line)
        if found:
            at = int(found[1], 0)
            if "LB" in found[2]:
                loop = at
            branch = "sbr.rel (" in line
            if branch or found[2].strip():
                marks[at] = branch
    starts = [at for at in sorted(marks) if at >= loop]
    total = 0.0
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        part = rows[start:end]
        stores, products = (sum(row[unit] for row in part) for unit in ("VSTORE", "MXU"))
        rare = marks[start] and not products and stores > 30
        total += (end - start) / (rounds if rare else 1)
    return total


def shares(chip: str, length: int, tiles: tuple[int, ...]) -> tuple[float, float] | str:
    """Forward and backward; or what the compiler says."""
    q, kv = tiles[:2]
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        run = subprocess.run(
            [sys.executable, __file__, "compile", CHIPS[chip], str(length), *map(str, tiles)],
            env=os.environ | {"LIBTPU_INIT_ARGS": flags},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            found = re.search(r"Scoped allocation with size [^.]*\.\w+ and limit [^.]*\.\w+", run.stderr)
            return f"does not compile: {found[0] if found else run.stderr.strip().splitlines()[-1][:200]}"
        forward = cycles(Path(folder), "splash_mha_fwd", length // kv)
        backward = cycles(Path(folder), "splash_mha_dkv", length // q * HEADS // KV_HEADS)
    product = 2 * q * kv * CHANNELS / FLOPS[chip]
    return 2 * product / forward, 5 * product / backward


def main() -> None:
    print(f"jax {jax.__version__}; {BATCH} sequences, {HEADS} query heads, {KV_HEADS} key/value heads")
    for chip in sys.argv[1:] or CHIPS:
        print(f"\n{chip:<8}{'queries':>8}{'keys':>8}{'at a time':>16}{'forward':>10}{'backward':>10}{'both':>8}")
        for length, others in OTHERS.items():
            blocks = attention._blocks(length, length, CHANNELS, 2)
            used = blocks.block_q, blocks.block_kv, blocks.block_kv_compute, blocks.block_kv_dkv_compute
            for tiles in [used, *(tiles for tiles in others if tiles != used)]:
                found = shares(chip, length, tiles)
                print(f"{length:<8}" + "".join(f"{size:>8}" for size in tiles), end="")
                if isinstance(found, str):
                    print(f"   {found}", flush=True)
                else:
                    both = 7 / (2 / found[0] + 5 / found[1])
                    line = f"{found[0]:>10.3f}{found[1]:>10.3f}{both:>8.3f}" + "   the model's" * (tiles == used)
                    print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        length, q, kv, forward, backward = map(int, sys.argv[3:])
        sizes = dict(block_q=q, block_kv=kv, block_kv_compute=forward)
        sizes |= dict(block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=backward)
        compile_kernels(sys.argv[2], length, BlockSizes(**sizes, use_fused_bwd_kernel=True))
    else:
        main()
