"""Colours of depth and error, missing pixels, and the layout of a contact sheet."""

import matplotlib
import numpy as np
import pytest

from mf_jax.inference.visualize import (
    COLUMNS,
    MISSING_RGB,
    colorize_depth,
    colorize_error,
    contact_sheet,
    disparity_limits,
)


def magma(level):
    return (np.array(matplotlib.colormaps["magma"](level)[:3]) * 255).round()


def brightness(color_HW3):
    return color_HW3.astype(float).sum(axis=-1)


def test_near_is_bright_and_the_ends_are_the_percentiles_of_disparity():
    disparity_HW = np.linspace(0.1, 1.1, 101).reshape(1, 101)
    low, high = disparity_limits(1 / disparity_HW)
    assert (low, high) == pytest.approx((0.15, 1.05))
    color_HW3 = colorize_depth(1 / disparity_HW)
    assert np.all(np.diff(brightness(color_HW3)[0, 6:95:8]) > 0)
    np.testing.assert_allclose(color_HW3[0, 0], magma(0.0), atol=1)
    np.testing.assert_allclose(color_HW3[0, 50], magma(0.5), atol=3)
    np.testing.assert_allclose(color_HW3[0, 100], magma(1.0), atol=1)


def test_missing_pixels_have_their_own_colour_and_stay_out_of_the_percentiles():
    rng = np.random.default_rng(0)
    depth_HW = rng.uniform(1, 5, (20, 20))
    valid_HW = rng.random((20, 20)) < 0.5
    clean = disparity_limits(depth_HW[valid_HW][None])
    for junk in (0.0, np.nan, np.inf, -3.0, 1e-9):
        dirty_HW = np.where(valid_HW, depth_HW, junk)
        assert disparity_limits(dirty_HW, valid_HW) == pytest.approx(clean)
        color_HW3 = colorize_depth(dirty_HW, valid_HW)
        assert (color_HW3[~valid_HW] == MISSING_RGB).all()
        assert not (color_HW3[valid_HW] == MISSING_RGB).all(axis=-1).any()
    assert (colorize_depth(np.zeros((3, 3))) == MISSING_RGB).all()
    assert (
        colorize_depth(np.array([[np.nan, 0.0]]), np.ones((1, 2), bool)) == MISSING_RGB
    ).all()  # whatever the mask says


@pytest.mark.parametrize("name", ["magma", "inferno"])
def test_the_colour_of_missing_pixels_is_in_no_map_used(name):
    colors = np.array([matplotlib.colormaps[name](i, bytes=True)[:3] for i in range(256)]).astype(float)
    assert np.abs(colors - MISSING_RGB).max(axis=1).min() > 20


def test_shared_limits_colour_equal_depth_alike():
    depth_HW = np.random.default_rng(1).uniform(1, 5, (10, 10))
    limits = disparity_limits(depth_HW)
    part_HW3 = colorize_depth(depth_HW[:, :3], limits=limits)
    np.testing.assert_array_equal(part_HW3, colorize_depth(depth_HW)[:, :3])
    assert (part_HW3 != colorize_depth(depth_HW[:, :3])).any()


def test_error_map():
    gt_HW = np.array([[2.0, 2.0, 2.0, 2.0, 0.0]])
    pred_HW = np.array([[2.0, 2.5, 9.0, np.nan, 1.0]])
    color_HW3 = colorize_error(pred_HW, gt_HW, gt_HW > 0)
    inferno = [np.array(matplotlib.colormaps["inferno"](level, bytes=True)[:3]) for level in (0.0, 0.5, 1.0)]
    np.testing.assert_array_equal(color_HW3[0], [*inferno, inferno[2], MISSING_RGB])


def row(size=(64, 64), **changes):
    rng = np.random.default_rng(2)
    depth_HW = rng.uniform(1, 5, size)
    valid_HW = rng.random(size) < 0.5
    image_HW3 = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return {"image": image_HW3, "depth": depth_HW, "depth_valid": valid_HW, "prediction": depth_HW} | changes


def find(sheet_HW3, tile_HW3):
    """Top left corners at which the tile occurs in the sheet, pixel for pixel."""
    height, width = tile_HW3.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet_HW3[..., 0], (height, width))
    candidates = np.argwhere((windows[..., ::16, ::16] == tile_HW3[::16, ::16, 0]).all(axis=(2, 3)))
    return [
        (int(y), int(x)) for y, x in candidates if np.array_equal(sheet_HW3[y : y + height, x : x + width], tile_HW3)
    ]


def enlarged(tile_HW3, factor):
    return np.kron(tile_HW3, np.ones((factor, factor, 1), np.uint8))


def test_contact_sheet_shows_every_tile_enlarged_in_its_column():
    example = row(caption="a caption")
    sheet_HW3 = contact_sheet([example, example])
    assert sheet_HW3.dtype == np.uint8
    tiles = [
        example["image"],
        colorize_depth(example["depth"], example["depth_valid"]),
        colorize_depth(example["prediction"], limits=disparity_limits(example["depth"], example["depth_valid"])),
        colorize_error(example["prediction"], example["depth"], example["depth_valid"]),
    ]
    places = [find(sheet_HW3, enlarged(tile, 3)) for tile in tiles]  # 64 * 3 >= 160
    assert len(places) == len(COLUMNS) and all(len(place) == 2 for place in places)
    assert [place[0][1] for place in places] == sorted(place[0][1] for place in places)
    assert len({place[0][0] for place in places}) == 1  # one row, one height
    assert (sheet_HW3 == MISSING_RGB).all(axis=-1).sum() > 4000  # missing ground truth can be seen


def test_contact_sheet_draws_the_caption():
    plain, captioned = contact_sheet([row()]), contact_sheet([row(caption="x" * 500 + "\nend é 深")])
    changed = np.argwhere((plain != captioned).any(axis=-1))
    assert plain.shape == captioned.shape and len(changed) > 100
    assert changed[:, 0].min() >= 26 + 192  # below the tiles, which stay untouched


def test_contact_sheet_without_ground_truth_or_prediction():
    example = row()
    sheet_HW3 = contact_sheet(
        [{"image": example["image"], "prediction": example["depth"]}, {"image": example["image"]}]
    )
    assert len(find(sheet_HW3, enlarged(example["image"], 3))) == 2
    assert len(find(sheet_HW3, enlarged(colorize_depth(example["depth"]), 3))) == 1


def test_rows_of_different_sizes():
    sheet_HW3 = contact_sheet([row((64, 64)), row((170, 300))])
    assert sheet_HW3.shape[1] > 4 * 300
    assert sheet_HW3.shape[0] < 192 + 170 + 100  # every row has its own height


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
    with pytest.raises(ValueError, match="prediction is \\(8, 8\\)"):
        contact_sheet([row(prediction=np.ones((8, 8)))])
    with pytest.raises(ValueError, match="image must be uint8"):
        contact_sheet([row(image=np.zeros((64, 64, 3)))])
    with pytest.raises(ValueError, match="differ in size"):
        colorize_depth(np.ones((4, 4)), np.ones((4, 5), bool))
