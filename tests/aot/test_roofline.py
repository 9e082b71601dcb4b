"""Bounds by hand."""

import pytest

from mf_jax.aot.collectives import Collective
from mf_jax.aot.roofline import roofline
from mf_jax.monitoring.chips import CHIPS, GIB, Chip

CHIP = Chip("toy", "tpu", 2, hbm=8 * GIB, hbm_bandwidth=1e9, link_bandwidth=1e8)


def collective(kind="all-gather", payload=1000, group=4, count=1, crosses=False):
    return Collective(kind, "", payload, group, count, True, True, crosses)


def test_by_hand():
    """2e6 of 3e6 FLOPs at 1e9, 5e6 bytes at 1e9, 10 x 3/4 of 80 kB at 1e8: 3 ms, 5 ms, 6 ms."""
    found = roofline(CHIP, 1e9, 2e6, 3e6, 5e6, [collective(payload=80_000, count=10)])
    assert (found.compute, found.memory, found.links) == pytest.approx((3e-3, 5e-3, 6e-3))
    assert found.bound == "links" and found.seconds == pytest.approx(6e-3)
    assert found.mfu == pytest.approx(2 / 6)


def test_bound_by_compute_and_networks_between_slices():
    """What crosses between slices is not on the chip's links; MFU is lost to what is computed again."""
    found = roofline(CHIP, 1e9, 2e6, 3e6, 1e3, [collective(payload=10**9, crosses=True)])
    assert (found.links, found.bound, found.mfu) == (0.0, "compute", pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("kind", "received"),
    [
        ("all-gather", 750),
        ("reduce-scatter", 750),
        ("all-to-all", 750),
        ("all-reduce", 1500),
        ("collective-permute", 1000),
    ],
)
def test_bytes_received(kind, received):
    assert collective(kind).received == received


def test_share_of_a_gpu(monkeypatch):
    chip = CHIPS["NVIDIA H200"]
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert chip.usable == 0.75 * chip.hbm
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert chip.usable == 0.9 * chip.hbm
    assert CHIPS["TPU v5"].usable == CHIPS["TPU v5"].hbm
