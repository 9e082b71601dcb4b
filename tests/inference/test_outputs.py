"""The folder of a sample."""

import json
import re

import numpy as np
import pytest

from mf_jax.data.images import read_image
from mf_jax.inference.outputs import write_sample
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
    np.testing.assert_array_equal(read_image(folder / "rgb.png", upright=True), IMAGE_HW3)
    depth_HW = np.load(folder / "depth_raw.npy")
    assert depth_HW.dtype == np.float32
    np.testing.assert_array_equal(depth_HW, DEPTH_HW)
    np.testing.assert_array_equal(read_image(folder / "depth_magma.png", upright=True), colorize_depth(DEPTH_HW))
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
