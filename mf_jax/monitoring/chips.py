"""Chips that programs can be compiled for, by jax's device_kind: memory and bandwidths. Their peaks are in flops.PEAKS.

A device is what jax calls one: half a chip on TPU7x, which has two. Sources: docs.cloud.google.com/tpu/docs for v5e,
v5p, v6e and tpu7x, NVIDIA's data sheets for A100, H100 and H200. `hbm` is not the data sheet's: of a TPU it is what the
compiler of libtpu 0.0.42 says that a program can use, of a GPU what the driver reports.
"""

from __future__ import annotations

import dataclasses
import os

GIB = 2**30
GPU_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Attributes:
    name: in the name of a topology, "v5p:4x4x4". platform: "tpu" or "cuda".
    axes: of a topology's shape.
    hbm: bytes of a device's memory that programs can use, if jax takes all of it (see `usable`).
    hbm_bandwidth: bytes/s of a device's memory.
    link_bandwidth: bytes/s that a device can receive over all its links together: half of the two-way figure that
      vendors give. ICI within a slice of TPUs, NVLink within a node of GPUs.
    """

    name: str
    platform: str
    axes: int
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float

    @property
    def usable(self) -> float:
        """Bytes that the program of a training run can use. On GPUs jax takes three quarters of the memory unless the
        environment variable XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
        """
        return self.hbm * (float(os.environ.get(GPU_SHARE, "0.75")) if self.platform == "cuda" else 1.0)


CHIPS = {
    "TPU v5 lite": Chip("v5e", "tpu", 2, 15.75 * GIB, 819e9, 200e9),
    "TPU v5": Chip("v5p", "tpu", 3, 95.74 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", "tpu", 2, 31.25 * GIB, 1638e9, 400e9),
    "TPU7x": Chip("tpu7x", "tpu", 3, 94.75 * GIB, 7380e9 / 2, 600e9 / 2),
    "NVIDIA A100-SXM4-80GB": Chip("a100", "cuda", 3, 79.15 * GIB, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("h100", "cuda", 3, 79.11 * GIB, 3352e9, 450e9),
    "NVIDIA H200": Chip("h200", "cuda", 3, 139.8 * GIB, 4800e9, 450e9),
}
