"""Depth files that users bring."""

import numpy as np
import pytest
from PIL import Image

from mf_jax.inference.inputs import read_relative_depth

RNG = np.random.default_rng(0)
DEPTH_HW = np.add.outer(np.linspace(1, 1.2, 24), np.linspace(0, 0.1, 32)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_depth(tmp_path, suffix):
    raw_HW = RNG.integers(0, 65536, (12, 16), dtype=np.uint16)
    raw_HW[2, 3], raw_HW[4, 5] = 0, 65535
    Image.fromarray(raw_HW).save(tmp_path / f"depth.{suffix}")
    depth_HW, valid_HW = read_relative_depth(tmp_path / f"depth.{suffix}")
    assert (depth_HW.dtype, valid_HW.dtype) == (np.float32, bool)
    np.testing.assert_array_equal(depth_HW, raw_HW)
    np.testing.assert_array_equal(valid_HW, raw_HW > 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_depth_with_missing_values(tmp_path, dtype):
    raw_HW = np.array([[1.5, 0.0, np.nan], [np.inf, -2.0, 3.0]], dtype)
    np.save(tmp_path / "depth.npy", raw_HW)
    depth_HW, valid_HW = read_relative_depth(tmp_path / "depth.npy")
    np.testing.assert_array_equal(depth_HW, np.array([[1.5, 0, 0], [0, 0, 3.0]], np.float32))
    np.testing.assert_array_equal(valid_HW, [[True, False, False], [False, False, True]])


def test_a_value_beyond_float32_is_missing(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([[1.0, 1e300]]))
    np.testing.assert_array_equal(read_relative_depth(tmp_path / "depth.npy")[1], [[True, False]])


def test_the_first_channel_is_used(tmp_path):
    np.save(tmp_path / "depth.npy", np.stack([DEPTH_HW, 9 * DEPTH_HW], axis=-1))
    np.testing.assert_array_equal(read_relative_depth(tmp_path / "depth.npy")[0], DEPTH_HW)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((4, 4), np.uint8), "dtype uint8"),
        (np.ones(4), r"float64 \(4,\)"),
        (np.ones((2, 3, 40)), r"float64 \(2, 3, 40\)"),
        (np.ones((0, 4)), r"float64 \(0, 4\)"),
        (np.zeros((4, 4)), "none of its 16 pixels"),
        (np.array([[{"a": 1}]]), "cannot be read"),
    ],
)
def test_a_bad_array_is_named_with_its_value(tmp_path, array, words):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"bad\.npy.*{words}"):
        read_relative_depth(tmp_path / "bad.npy")


@pytest.mark.parametrize("shape", [(25, 32), (10**6, 10**7), (10**30, 8)])
def test_a_header_that_claims_more_than_the_file_holds_is_named(tmp_path, shape):
    with (tmp_path / "bad.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(DEPTH_HW.tobytes())
    with pytest.raises(ValueError, match=rf"bad\.npy cannot be read.*claims float32 \({shape[0]}, {shape[1]}\)"):
        read_relative_depth(tmp_path / "bad.npy")


def test_a_picture_is_named_that_is_no_depth_or_over_pillows_limit(tmp_path, monkeypatch):
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(tmp_path / "eight.png")
    with pytest.raises(ValueError, match=r"eight\.png is a picture of mode 'L'"):
        read_relative_depth(tmp_path / "eight.png")
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "large.png")
    for limit in (10, 5):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"large\.png cannot be read.*pixels"):
            read_relative_depth(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"absent\.npy does not exist"):
        read_relative_depth(tmp_path / "absent.npy")
