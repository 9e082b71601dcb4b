"""Names of topologies, without any compiler."""

import pytest

from mf_jax.aot import topology


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e:4x4", "TPU v5 lite", (4, 4)),
        ("v5e:1x1", "TPU v5 lite", (1, 1)),
        ("v6e:16x16", "TPU v6 lite", (16, 16)),
        ("v5p:4x4x8", "TPU v5", (4, 4, 8)),
        ("v5p:2x2x1", "TPU v5", (2, 2, 1)),
        ("tpu7x:2x2x2", "TPU7x", (2, 2, 2)),
        ("h200:1x2x8", "NVIDIA H200", (1, 2, 8)),
    ],
)
def test_valid(name, kind, shape):
    found, chip, sizes = topology.parse(name)
    assert (found, sizes) == (kind, shape)
    assert name.startswith(chip.name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5litepod-16", "valid are v5e:4x4"),
        ("v7x:2x2x2", "chips: v5e, v5p, v6e, tpu7x"),
        ("v5p", "valid are"),
        ("v5p:4x4", "v5p has 3 axes"),
        ("v5e:4x4x4", "v5e has 2 axes"),  # libtpu would end the process
        ("v5e:3x3", "powers of two up to 16x16"),
        ("v6e:16x32", "powers of two up to 16x16"),
        ("v5p:8x4x4", "increase, as 4x4x8"),
        ("v5p:0x4x4", "v5p has 3 axes"),
        ("h200:2x8", "h200 has 3 axes"),
    ],
)
def test_invalid(name, says):
    with pytest.raises(ValueError, match=says) as error:
        topology.parse(name)
    assert repr(name) in str(error.value)


def test_rings():
    """16 chips of v5e and v6e, whole cubes of v5p: what the compiler is told, and would not assume."""
    assert topology.wraps((4, 4)) == (False, False, False)
    assert topology.wraps((8, 16)) == (False, True, False)
    assert topology.wraps((16, 16)) == (True, True, False)
    assert topology.wraps((4, 4, 8)) == (True, True, True)
    assert topology.wraps((2, 2, 4)) == topology.wraps((2, 2, 1)) == (False, False, False)


def test_slices_of_gpus():
    with pytest.raises(ValueError, match="--slices is 2; it must be at least 1, and 1 for GPUs"):
        topology.devices("h200:1x2x8", 2)


@pytest.mark.parametrize(
    ("name", "says"),
    [("v5e:4x4", r"libtpu; install it with: pip install 'mf-jax\[tpu\]'"), ("h100:1x1x8", "cuda-compile")],
)
def test_a_compiler_that_is_not_installed(monkeypatch, name, says):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda package: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match=says):
        topology.devices(name)
