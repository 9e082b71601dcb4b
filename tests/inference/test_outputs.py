"""The folder of a sample, and reading pictures and depth files that users bring."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mf_jax.inference.outputs import read_depth, read_image, write_sample
from mf_jax.inference.visualize import colorize_depth

RNG = np.random.default_rng(0)
IMAGE_HW3 = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEPTH_HW = np.add.outer(np.linspace(1, 1.2, 24), np.linspace(0, 0.1, 32)).astype(np.float32)
ALL_FILES = ["cloud.glb", "cloud.ply", "depth_magma.png", "depth_raw.npy", "metadata.json", "rgb.png"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_holds_what_the_official_scripts_write(tmp_path):
    metadata = {"prompt": "A red Chair, by the window!", "mode": "joint", "seed": 3, "num_steps": 50, "cfg_scale": 4.0}
    folder = write_sample(tmp_path / "outputs", IMAGE_HW3, DEPTH_HW, metadata)
    assert folder.parent == tmp_path / "outputs"
    assert re.fullmatch(r"\d{8}_\d{6}_a_red_chair_by_the_window", folder.name)
    assert names(folder) == ALL_FILES
    np.testing.assert_array_equal(read_image(folder / "rgb.png"), IMAGE_HW3)
    depth_HW = np.load(folder / "depth_raw.npy")
    assert depth_HW.dtype == np.float32
    np.testing.assert_array_equal(depth_HW, DEPTH_HW)
    np.testing.assert_array_equal(read_image(folder / "depth_magma.png"), colorize_depth(DEPTH_HW))
    written = json.loads((folder / "metadata.json").read_text())
    assert written == metadata | {"img_hw": [24, 32], "cloud_points": 24 * 32}


def test_samples_of_one_second_do_not_meet(tmp_path):
    folders = {write_sample(tmp_path, IMAGE_HW3, DEPTH_HW, {"prompt": "same"}, pointcloud=False) for _ in range(5)}
    assert len(folders) == 5
    assert all(len(names(folder)) == 4 for folder in folders)


@pytest.mark.parametrize(
    ("prompt", "slug"), [("", "no_prompt"), ("深度", "no_prompt"), ("ab " * 40, None), ("../x", "x")]
)
def test_folder_name_is_a_short_safe_slug(tmp_path, prompt, slug):
    folder = write_sample(tmp_path, IMAGE_HW3, DEPTH_HW, {"prompt": prompt}, pointcloud=False)
    found = folder.name[len("20260101_000000_") :]
    assert folder.parent == tmp_path and len(found) <= 48
    assert re.fullmatch(r"[a-z0-9_]+", found) and found == (slug or found)


def test_no_usable_depth_still_makes_a_complete_folder(tmp_path):
    folder = write_sample(tmp_path, IMAGE_HW3, np.full((24, 32), np.nan), {"prompt": "x"})
    assert names(folder) == [name for name in ALL_FILES if "cloud" not in name]
    assert json.loads((folder / "metadata.json").read_text())["cloud_points"] == 0


def test_a_sample_without_depth_and_with_another_modality(tmp_path):
    folder = write_sample(tmp_path, IMAGE_HW3, None, {"prompt": "x"}, others={"brightness": 2 * DEPTH_HW})
    assert names(folder) == ["brightness.npy", "metadata.json", "rgb.png"]
    np.testing.assert_array_equal(np.load(folder / "brightness.npy"), 2 * DEPTH_HW)
    assert json.loads((folder / "metadata.json").read_text()) == {"prompt": "x", "img_hw": [24, 32]}


def test_bad_samples_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="differ in size"):
        write_sample(tmp_path, IMAGE_HW3, DEPTH_HW[:5], {"prompt": "x"})
    with pytest.raises(ValueError, match="image must be uint8"):
        write_sample(tmp_path, IMAGE_HW3 / 255.0, DEPTH_HW, {"prompt": "x"})
    with pytest.raises(ValueError, match="metadata cannot be written"):
        write_sample(tmp_path, IMAGE_HW3, DEPTH_HW, {"prompt": "x", "array": IMAGE_HW3})
    assert names(tmp_path) == []


def test_read_image(tmp_path):
    Image.fromarray(IMAGE_HW3).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), IMAGE_HW3)
    Image.fromarray(IMAGE_HW3[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), IMAGE_HW3[..., :1].repeat(3, axis=2))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to show
    Image.fromarray(IMAGE_HW3).save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(IMAGE_HW3, -1))


def test_unreadable_pictures_are_named(tmp_path):
    Image.fromarray(IMAGE_HW3).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "depth.png")
    for name, words in [("absent.png", "does not exist"), ("cut.png", "truncated"), ("text.png", "cannot be read")]:
        for read in (read_image, read_depth):
            with pytest.raises(ValueError, match=f"{name}.*{words}"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r"depth\.png.*is it a depth map"):
        read_image(tmp_path / "depth.png")


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_read_16_bit_depth(tmp_path, suffix):
    raw_HW = RNG.integers(0, 65536, (12, 16), dtype=np.uint16)
    raw_HW[2, 3], raw_HW[4, 5] = 0, 65535
    Image.fromarray(raw_HW).save(tmp_path / f"depth.{suffix}")
    depth_HW, valid_HW = read_depth(tmp_path / f"depth.{suffix}")
    assert (depth_HW.dtype, valid_HW.dtype) == (np.float32, bool)
    np.testing.assert_array_equal(depth_HW, raw_HW)
    np.testing.assert_array_equal(valid_HW, raw_HW > 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_read_npy_depth_with_missing_values(tmp_path, dtype):
    raw_HW = np.array([[1.5, 0.0, np.nan], [np.inf, -2.0, 3.0]], dtype)
    np.save(tmp_path / "depth.npy", raw_HW)
    depth_HW, valid_HW = read_depth(tmp_path / "depth.npy")
    np.testing.assert_array_equal(depth_HW, np.array([[1.5, 0, 0], [0, 0, 3.0]], np.float32))
    np.testing.assert_array_equal(valid_HW, [[True, False, False], [False, False, True]])


def test_read_npy_uses_the_first_channel(tmp_path):
    np.save(tmp_path / "depth.npy", np.stack([DEPTH_HW, 9 * DEPTH_HW], axis=-1))
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.npy")[0], DEPTH_HW)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((4, 4), np.uint8), "dtype uint8"),
        (np.ones(4), r"shape \(4,\)"),
        (np.ones((2, 3, 40)), r"shape \(2, 3, 40\)"),
        (np.ones((0, 4)), r"shape \(0, 4\)"),
        (np.zeros((4, 4)), "none of its 16 pixels"),
        (np.array([[{"a": 1}]]), "cannot be read as .npy"),
    ],
)
def test_bad_npy_is_named_with_its_value(tmp_path, array, words):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"bad\.npy.*{words}"):
        read_depth(tmp_path / "bad.npy")


def test_bad_depth_pictures_are_named(tmp_path):
    Image.fromarray(IMAGE_HW3[..., 0]).save(tmp_path / "eight.png")
    Image.fromarray(IMAGE_HW3).save(tmp_path / "colour.png")
    np.save(tmp_path / "cut.npy", DEPTH_HW)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    for name, words in [("eight.png", "pixel type L"), ("colour.png", "pixel type RGB"), ("cut.npy", "truncated")]:
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_depth(tmp_path / name)
    with open(tmp_path / "zip.npy", "wb") as file:
        np.savez(file, depth=DEPTH_HW)
    with pytest.raises(ValueError, match=r"zip\.npy cannot be read"):
        read_depth(tmp_path / "zip.npy")
    with pytest.raises(ValueError, match=r"absent\.npy does not exist"):
        read_depth(tmp_path / "absent.npy")
