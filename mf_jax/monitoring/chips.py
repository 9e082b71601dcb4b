"""Data sheets of accelerators by jax's device_kind: peak FLOP/s, and for ahead-of-time compilation memory, bandwidths.

A device is one of jax.devices(): a chip of v4 or v5p is one, a chip of TPU7x is two. Peaks are dense bf16, from
docs.cloud.google.com/tpu/docs and from NVIDIA's data sheets of A100, H100, H200, HGX B200 and GB200 NVL72, whose
figures with sparsity are halved. `hbm` is not the data sheet's: for a TPU it is the memory that the compiler of libtpu
0.0.42 lets a program use, for a GPU the memory that the driver reports.
"""

from __future__ import annotations

import dataclasses
import os

import jax

GIB = 2**30
GPU_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that programs can be compiled for ahead of time.

    Attributes:
      name: in the name of a topology, "v5p:4x4x4". platform: "tpu" or "cuda".
      axes: number of axes of a topology's shape.
      hbm: bytes of a device's memory that programs can use, if jax takes all of it (see `usable`).
      hbm_bandwidth: bytes/s of a device's memory.
      link_bandwidth: bytes/s that a device can receive over all its links together: half of the two-way figure that
        vendors give. ICI within a slice of TPUs, NVLink within a node of GPUs.
      clock: cycles/s at which libtpu counts in `estimated_cycles`; None for GPUs. It is the peak divided by the bf16
        FLOPs of a cycle: 131072 with the four MXUs of 128x128 of v5e (at 1.5 GHz: jax-ml.github.io/scaling-book/tpus),
        262144 with the eight of the two cores of v5p, 524288 on v6e and on a device of TPU7x, the power of two that
        libtpu's counts of large matrix products approach (benchmarks/cost_calibration.py).
      attention: shares of the peak at which the FLOPs of attention kernels are taken, forward and backward; None for
        GPUs. An assumption, as nobody has published them for sequences as short as ours: by libtpu's static schedule,
        which leaves out stalls on memory, the lower of 512 and 768 tokens with 128 channels, two digits rounded down
        (benchmarks/attention_schedule.py). On v5p for an even number of sequences on a chip: the two cores share them.
    """

    name: str
    platform: str
    axes: int
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float | None = None
    attention: tuple[float, float] | None = None

    @property
    def usable(self) -> float:
        """Bytes that the program of a training run can use.

        On GPUs jax takes three quarters of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
        """
        return self.hbm * (float(os.environ.get(GPU_SHARE, "0.75")) if self.platform == "cuda" else 1.0)


@dataclasses.dataclass(frozen=True)
class Device:
    """Peak of a device, and what ahead-of-time compilation needs to know of it.

    Attributes:
      peak: FLOP/s of dense bf16 matrix products.
      chip: None where ahead-of-time compilation is not supported.
    """

    peak: float
    chip: Chip | None = None


DEVICES = {
    "TPU v4": Device(275e12),
    "TPU v5 lite": Device(197e12, Chip("v5e", "tpu", 2, 15.75 * GIB, 819e9, 200e9, 1.5e9, (0.47, 0.82))),
    "TPU v5e": Device(197e12),
    "TPU v5": Device(459e12, Chip("v5p", "tpu", 3, 95.74 * GIB, 2765e9, 600e9, 1.75e9, (0.48, 0.78))),
    "TPU v5p": Device(459e12),
    "TPU v6 lite": Device(918e12, Chip("v6e", "tpu", 2, 31.25 * GIB, 1638e9, 400e9, 1.75e9, (0.17, 0.32))),
    "TPU v6e": Device(918e12),
    "TPU7x": Device(2307e12 / 2, Chip("tpu7x", "tpu", 3, 94.75 * GIB, 7380e9 / 2, 600e9 / 2, 2.2e9, (0.17, 0.33))),
    "NVIDIA A100-SXM4-40GB": Device(312e12),
    "NVIDIA A100-SXM4-80GB": Device(312e12, Chip("a100", "cuda", 3, 79.15 * GIB, 2039e9, 300e9)),
    "NVIDIA A100-PCIE-40GB": Device(312e12),
    "NVIDIA A100 80GB PCIe": Device(312e12),
    "NVIDIA H100 80GB HBM3": Device(989e12, Chip("h100", "cuda", 3, 79.11 * GIB, 3352e9, 450e9)),
    "NVIDIA H100 PCIe": Device(756e12),
    "NVIDIA H100 NVL": Device(835e12),
    "NVIDIA H200": Device(989e12, Chip("h200", "cuda", 3, 139.8 * GIB, 4800e9, 450e9)),
    "NVIDIA H200 NVL": Device(835e12),
    "NVIDIA GH200 480GB": Device(989e12),
    "NVIDIA B200": Device(2250e12),
    "NVIDIA GB200": Device(2500e12),
}

CHIPS = {kind: device.chip for kind, device in DEVICES.items() if device.chip is not None}


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices of the run together; None for CPUs and devices that are not listed."""
    device = DEVICES.get(jax.devices()[0].device_kind)
    return device.peak * jax.device_count() if device else None
