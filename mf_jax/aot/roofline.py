"""Roofline of a training step: lower bounds of its time by arithmetic, memory and links.

Each bound takes its resource at the vendor's peak and everything else for free, so that a real step is slower. The step
takes at least the largest of them; model FLOPs over that time and the peak is the most that MFU can be. Arithmetic and
links bound any program, memory the one that the compiler made: its traffic is an estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mf_jax.aot.collectives import Collective
from mf_jax.monitoring.chips import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds in seconds per step by resource, and the upper bound of MFU that follows."""

    compute: float
    memory: float
    links: float
    mfu: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """The resource with the largest bound."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(
    chip: Chip,
    peak: float,
    model_flops: float,
    all_flops: float,
    memory_bytes: float,
    collectives: Sequence[Collective],
) -> Roofline:
    """The roofline of one step.

    Args:
      peak: FLOP/s of a device. model_flops, all_flops: per device; the second with what is computed again and what
        frozen networks cost.
      memory_bytes: that a device's memory delivers and takes, see traffic.py.
      collectives: those between slices or nodes are left out: that network is not the chip's.
    """
    received = sum(c.count * c.received for c in collectives if not c.crosses)
    compute = all_flops / peak
    memory = memory_bytes / chip.hbm_bandwidth
    links = received / chip.link_bandwidth
    return Roofline(compute, memory, links, model_flops / peak / max(compute, memory, links))
