import json
import pathlib

import numpy as np
import pytest

from mf_jax.data.resize import center_crop_to_aspect, masked_nearest, masked_nearest_index, resize_image

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CASES = [case["name"] for case in json.loads((GOLDENS / "evaluation_index.json").read_text()) if "lr_cells" in case]


@pytest.mark.parametrize("name", CASES)
def test_index_is_the_one_of_moge(name):
    golden = np.load(GOLDENS / "evaluation.npz")
    mask, row, col = masked_nearest_index(golden[f"{name}__mask"], (64, 64))
    expected = golden[f"{name}__lr_mask"]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(row[expected], golden[f"{name}__lr_row"][expected])
    np.testing.assert_array_equal(col[expected], golden[f"{name}__lr_col"][expected])


def slow_masked_nearest(depth, valid, size):
    """The definition, pixel by pixel, for shrinking."""
    (height, width), (h, w) = depth.shape, size
    out, mask = np.zeros(size, depth.dtype), np.zeros(size, bool)
    for i, j in np.ndindex(size):
        centre = np.array([(i + 0.5) * height / h, (j + 0.5) * width / w])
        best = np.inf
        for y, x in np.argwhere(valid):
            offset = np.array([y + 0.5, x + 0.5]) - centre
            half = np.array([height / h, width / w]) / 2
            if (offset > -half).all() and (offset <= half).all() and offset @ offset < best - 1e-9:
                best, out[i, j], mask[i, j] = offset @ offset, depth[y, x], True
    return out, mask


@pytest.mark.parametrize(("source", "target"), [((17, 23), (5, 7)), ((12, 16), (4, 4)), ((9, 9), (9, 4))])
def test_masked_nearest_is_its_definition(source, target):
    rng = np.random.default_rng(0)
    valid = rng.uniform(size=source) < 0.3
    depth = rng.uniform(1, 9, source).astype(np.float32)
    got, mask = masked_nearest(depth, valid, target)
    expected, expected_mask = slow_masked_nearest(depth, valid, target)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32


@pytest.mark.parametrize("target", [(8, 8), (64, 64), (13, 100), (40, 3)])
def test_depth_is_never_mixed(target):
    """Values are of the valid pixels alone, even where the missing ones hold NaN; an empty map stays empty."""
    rng = np.random.default_rng(1)
    valid = rng.uniform(size=(40, 50)) < 0.2
    depth = np.where(valid, rng.integers(1, 1000, (40, 50)), np.nan).astype(np.float32)
    got, mask = masked_nearest(depth, valid, target)
    assert mask.any()
    assert np.isin(got[mask], depth[valid]).all()
    assert (got[~mask] == 0).all()
    assert not masked_nearest(depth, np.zeros_like(valid), target)[1].any()


def test_growing_takes_the_pixel_under_the_centre():
    depth = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    valid = depth != 5
    got, mask = masked_nearest(depth, valid, (4, 6))
    np.testing.assert_array_equal(got, np.where(mask, depth.repeat(2, 0).repeat(2, 1), 0))
    np.testing.assert_array_equal(mask, valid.repeat(2, 0).repeat(2, 1))
    assert masked_nearest_index(valid, (4, 6))[0].sum() < mask.sum()  # without grow, as in MoGe, cells stay empty


def test_same_size_changes_nothing():
    rng = np.random.default_rng(2)
    valid = rng.uniform(size=(6, 7)) < 0.5
    depth = np.where(valid, rng.uniform(1, 2, (6, 7)), 0).astype(np.float32)
    got, mask = masked_nearest(depth, valid, (6, 7))
    np.testing.assert_array_equal(got, depth)
    np.testing.assert_array_equal(mask, valid)


def test_image_is_averaged_over_its_area():
    image = np.random.default_rng(3).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    expected = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
    assert np.abs(resize_image(image, (4, 6)) - expected).max() < 1  # rows and columns are rounded in turn
    assert resize_image(image, (24, 30)).shape == (24, 30, 3)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [((480, 640), (64, 64), (480, 480)), ((375, 1242), (128, 256), (375, 750)), ((10, 4), (1, 1), (4, 4))],
)
def test_crop_is_the_largest_of_the_aspect(source, target, expected):
    index = np.arange(source[0] * source[1]).reshape(source)
    crop = center_crop_to_aspect(index, target)
    assert crop.shape == expected
    top, left = divmod(crop[0, 0], source[1])
    bottom, right = divmod(crop[-1, -1], source[1])
    assert abs(top - (source[0] - 1 - bottom)) <= 1 and abs(left - (source[1] - 1 - right)) <= 1


def test_errors_name_the_sizes():
    with pytest.raises(ValueError, match=r"\(3, 4\) and valid \(3, 5\)"):
        masked_nearest(np.zeros((3, 4), np.float32), np.zeros((3, 5), bool), (2, 2))
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        masked_nearest_index(np.zeros((3, 4), bool), (0, 2))
