"""Unprojection, edges, axes and the files, against closed forms and a reader."""

import math

import numpy as np
import pytest
import trimesh

from mf_jax.inference import pointcloud
from mf_jax.inference.pointcloud import pinhole_from_fov, point_cloud, unproject, usable_pixels, write_point_cloud


def test_horizontal_field_of_view():
    fx, fy, cx, cy = pinhole_from_fov((100, 300), 90.0)
    assert (fx, fy, cx, cy) == pytest.approx((150, 150, 150, 50))
    x_W = unproject(np.ones((1, 300)), pinhole_from_fov((1, 300), 65.0))[0, :, 0]
    half_pixel = 0.5 / pinhole_from_fov((1, 300), 65.0)[0]
    assert x_W[-1] + half_pixel == pytest.approx(math.tan(math.radians(65) / 2))
    assert x_W[0] == pytest.approx(-x_W[-1])


def test_points_project_back_to_the_pixel_centres():
    rng = np.random.default_rng(0)
    depth_HW = rng.uniform(0.5, 5, (6, 9))
    fx, fy, cx, cy = intrinsics = np.array([50.0, 60.0, 4.2, 2.9])
    points_HW3 = unproject(depth_HW, intrinsics)
    row_HW, col_HW = np.indices((6, 9)) + 0.5
    np.testing.assert_allclose(fx * points_HW3[..., 0] / points_HW3[..., 2] + cx, col_HW)
    np.testing.assert_allclose(fy * points_HW3[..., 1] / points_HW3[..., 2] + cy, row_HW)
    np.testing.assert_array_equal(points_HW3[..., 2], depth_HW)


def usable_by_loops(depth_HW, rtol):
    out = np.zeros(depth_HW.shape, bool)
    for row, col in np.ndindex(depth_HW.shape):
        near = depth_HW[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        near = near[np.isfinite(near) & (near > 0)]
        z = depth_HW[row, col]
        out[row, col] = bool(np.isfinite(z) and z > 0 and near.max() - near.min() <= rtol * z)
    return out


def test_edges_against_a_loop():
    rng = np.random.default_rng(1)
    depth_HW = 2 + 0.06 * rng.random((20, 30))
    depth_HW[:, 15:] += 1.0
    depth_HW[3, 4], depth_HW[8, 9], depth_HW[10, 2], depth_HW[12, 20] = 0, np.nan, np.inf, -1
    use_HW = usable_pixels(depth_HW, 0.025)
    np.testing.assert_array_equal(use_HW, usable_by_loops(depth_HW, 0.025))
    assert not use_HW[:, 14:16].any() and use_HW[:, :13].mean() > 0.5


def test_missing_neighbours_are_no_edge():
    depth_HW = np.full((3, 3), 2.0)
    depth_HW[1, 1] = 0.0
    assert usable_pixels(depth_HW).sum() == 8


def test_cloud_has_gltf_axes_median_centre_and_colours():
    rng = np.random.default_rng(2)
    depth_HW = np.add.outer(np.zeros(8), np.linspace(3, 3.2, 10))
    depth_HW[0, 0] = 0
    image_HW3 = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    points_N3, colors_N3 = point_cloud(image_HW3, depth_HW)
    camera_N3 = unproject(depth_HW, pinhole_from_fov((8, 10), 65.0))[depth_HW > 0]
    expected_N3 = np.stack([camera_N3[:, 0], -camera_N3[:, 1], -camera_N3[:, 2]], axis=1)
    np.testing.assert_allclose(points_N3, expected_N3 - np.median(expected_N3, axis=0), atol=1e-6)
    np.testing.assert_array_equal(colors_N3, image_HW3[depth_HW > 0])
    assert points_N3.dtype == np.float32
    np.testing.assert_allclose(np.median(points_N3, axis=0), 0, atol=1e-6)


def test_given_intrinsics_replace_the_field_of_view():
    depth_HW, image_HW3 = np.full((4, 4), 2.0), np.zeros((4, 4, 3), np.uint8)
    points_N3, _ = point_cloud(image_HW3, depth_HW, intrinsics=np.array([8.0, 4.0, 2.0, 2.0]))
    assert np.ptp(points_N3, axis=0) == pytest.approx([3 / 8 * 2, 3 / 4 * 2, 0])


def test_number_of_points_is_limited_the_same_way_every_time(monkeypatch):
    monkeypatch.setattr(pointcloud, "MAX_POINTS", 50)
    depth_HW, image_HW3 = np.full((20, 20), 1.0), np.arange(1200).reshape(20, 20, 3).astype(np.uint8)
    first, second = point_cloud(image_HW3, depth_HW), point_cloud(image_HW3, depth_HW)
    assert len(first[0]) == 50 == len(np.unique(first[0], axis=0))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_files_read_back(tmp_path):
    rng = np.random.default_rng(3)
    points_N3 = rng.normal(size=(40, 3)).astype(np.float32)
    colors_N3 = rng.integers(0, 256, (40, 3), dtype=np.uint8)
    for path in write_point_cloud(tmp_path / "cloud", points_N3, colors_N3):
        loaded = trimesh.load(path)
        cloud = next(iter(loaded.geometry.values())) if isinstance(loaded, trimesh.Scene) else loaded
        np.testing.assert_allclose(cloud.vertices, points_N3, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], colors_N3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud.glb", "cloud.ply"]


def test_bad_input_is_refused(tmp_path):
    image_HW3 = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in size"):
        point_cloud(image_HW3, np.ones((4, 5)))
    with pytest.raises(ValueError, match="field of view"):
        point_cloud(image_HW3, np.ones((4, 4)), fov_deg=180)
    with pytest.raises(ValueError, match="intrinsics must be finite"):
        point_cloud(image_HW3, np.ones((4, 4)), intrinsics=np.full(4, np.nan))
    points_N3, colors_N3 = point_cloud(image_HW3, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="point cloud is empty"):
        write_point_cloud(tmp_path / "cloud", points_N3, colors_N3)
