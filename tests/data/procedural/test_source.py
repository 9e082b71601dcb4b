"""The procedural source: exact depth, true captions, random access. H, W pixels; N points."""

import pickle
import re

import numpy as np
import pytest

from mf_jax.data.procedural import raycast
from mf_jax.data.procedural.scene import PALETTE, Camera, Light, Outdoors, Room, Scene, Solid, Texture
from mf_jax.data.procedural.scene_caption import MAX_BYTES, MIN_SHARE, caption
from mf_jax.data.procedural.shading import render
from mf_jax.data.procedural.source import SPLITS, ProceduralConfig, ProceduralSource
from mf_jax.data.procedural.textures import pulse

PLAIN = Texture("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "field")
CHECKER = Texture("checker", (0.9, 0.9, 0.9), (0.1, 0.1, 0.1), 1.0, "field")
NOON = Light((0.0, 0.0, 1.0), False, 1.0, (0.6, 0.6, 0.6), (0.4, 0.4, 0.4), 1.0)
FIELD = Outdoors(PLAIN, 100.0, 0.0, (0.8, 0.8, 0.8), (0.2, 0.4, 0.8), 0.0, "clear")


def look(pitch=0.0, height=1.5, yaw=0.0, roll=0.0, tan_half_width=0.7):
    return Camera((0.0, 0.0, height), yaw, pitch, roll, tan_half_width)


def outdoors(camera, *solids, place=FIELD, scale=1.0):
    return Scene(camera, place, solids, NOON, scale, 0)


def solid(kind, center, half, yaw=0.0, color_name="red"):
    return Solid(kind, center, half, yaw, PLAIN, color_name, kind)


def unproject(depth_HW, intrinsics):
    """(H, W, 3) camera coordinates: x right, y down, z forward."""
    fx, fy, cx, cy = intrinsics.astype(np.float64)
    row_H1, column_1W = np.ogrid[: depth_HW.shape[0], : depth_HW.shape[1]]
    return np.stack([(column_1W - cx) / fx * depth_HW, (row_H1 - cy) / fy * depth_HW, depth_HW], axis=-1)


def world_points(scene, picture):
    """(H, W, 3) world coordinates, of a scene with scale 1."""
    points_HW3 = unproject(picture.depth.astype(np.float64), picture.intrinsics)
    return points_HW3 @ scene.camera.rotation().T + np.array(scene.camera.position)


def test_frontal_wall_has_constant_depth():
    room = Room((4.0, 6.0, 3.0), PLAIN, PLAIN, PLAIN, ())
    camera = Camera((2.0, 1.25, 1.5), 0.0, 0.0, 0.0, 1.0)
    lamp = Light((2.0, 3.0, 2.8), True, 4.0, (0.6, 0.6, 0.6), (0.4, 0.4, 0.4), 1.0)
    picture = render(Scene(camera, room, (), lamp, 2.0, 0), (48, 64))
    assert picture.intrinsics.tolist() == [32.0, 32.0, 31.5, 23.5]
    middle_HW = picture.depth[20:28, 28:36]
    np.testing.assert_allclose(middle_HW, 2.0 * (6.0 - 1.25), rtol=1e-6)
    assert (picture.label[20:28, 28:36] == raycast.WALL).all()
    assert {raycast.FLOOR, raycast.WALL, raycast.CEILING} == set(np.unique(picture.label))


@pytest.mark.parametrize("pitch", [-0.5, -0.2, 0.05])
def test_ground_depth_by_closed_form(pitch):
    picture = render(outdoors(look(pitch, height=1.5), scale=3.0), (40, 56))
    _, fy, _, cy = picture.intrinsics.astype(np.float64)
    fall_H = (np.arange(40) - cy) / fy * np.cos(pitch) - np.sin(pitch)
    expected_H = np.where((fall_H > 0) & (100.0 * fall_H > 1.5), 3.0 * 1.5 / np.where(fall_H > 0, fall_H, 1), 0.0)
    np.testing.assert_allclose(picture.depth, np.repeat(expected_H[:, None], 56, 1), rtol=1e-5)
    assert ((picture.label == raycast.SKY) == (fall_H <= 0)[:, None]).all()


def test_sphere_depth_by_closed_form():
    scene = outdoors(look(height=2.0), solid("sphere", (0.0, 5.0, 2.0), (1.0, 1.0, 1.0)))
    picture = render(scene, (65, 65))
    fx, _, cx, cy = picture.intrinsics.astype(np.float64)
    assert picture.depth[32, 32] == pytest.approx(4.0, rel=1e-6)
    # t (x, y, 1) on the sphere around (0, 0, 5): t^2 (x^2 + y^2 + 1) - 10 t + 24 = 0.
    x_1W, y_H1 = (np.arange(65)[None] - cx) / fx, (np.arange(65)[:, None] - cy) / fx
    a_HW = x_1W**2 + y_H1**2 + 1
    root_HW = 100 - 96 * a_HW
    inside_HW = root_HW > 0
    np.testing.assert_array_equal(picture.label == raycast.FIRST_SOLID, inside_HW)
    expected_HW = (10 - np.sqrt(np.maximum(root_HW, 0))) / (2 * a_HW)
    np.testing.assert_allclose(picture.depth[inside_HW], expected_HW[inside_HW], rtol=1e-5)


@pytest.mark.parametrize("kind", ["box", "cylinder"])
def test_solids_lie_where_the_scene_says(kind):
    half = (0.8, 0.8, 1.1) if kind == "cylinder" else (0.8, 0.4, 1.1)
    item = solid(kind, (0.4, 6.0, 1.1), half, yaw=0.6)
    scene = outdoors(look(-0.3, height=3.5, yaw=0.1, roll=0.05, tan_half_width=0.5), item)
    picture = render(scene, (96, 96))
    point_N3 = world_points(scene, picture)[picture.label == raycast.FIRST_SOLID] - np.array(item.center)
    assert len(point_N3) > 500
    cos, sin = np.cos(0.6), np.sin(0.6)
    local_N3 = np.stack(
        [
            cos * point_N3[:, 0] + sin * point_N3[:, 1],
            cos * point_N3[:, 1] - sin * point_N3[:, 0],
            point_N3[:, 2],
        ],
        1,
    )
    parts_N2 = np.abs(local_N3) / half
    if kind == "cylinder":
        parts_N2 = np.stack([np.hypot(local_N3[:, 0], local_N3[:, 1]) / half[0], parts_N2[:, 2]], 1)
    np.testing.assert_allclose(parts_N2.max(1), 1.0, atol=1e-5)
    assert (parts_N2[:, -1] > 1 - 1e-4).sum() > 50, "the top is in view"


@pytest.mark.parametrize("kind", ["box", "cylinder"])
def test_rays_along_an_axis_of_a_solid(kind):
    item = solid(kind, (0.0, 5.0, 1.5), (0.5, 0.5, 0.75))
    forward, down = np.array([[0, 1, 0]], np.float32).T, np.array([[0, 0, -1]], np.float32).T
    for origin, direction, expected in (
        ((0.0, 0.0, 1.5), forward, (4.5, 5.5)),
        ((0.0, 5.0, 9.0), down, (6.75, 8.25)),
        ((0.5001, 5.0, 9.0), down, None),
        ((0.0, 0.0, 2.26), forward, None),
    ):
        enter_N, exit_N = raycast.solid_interval(item, np.array([origin], np.float32).T, direction)
        if expected is None:
            assert enter_N[0] >= exit_N[0]
        else:
            np.testing.assert_allclose((enter_N[0], exit_N[0]), expected, rtol=1e-5)


def test_near_solid_hides_far_solid():
    near, far = solid("box", (0.0, 4.0, 1.5), (0.3, 0.3, 1.5)), solid("sphere", (0.0, 9.0, 1.5), (1.5,) * 3)
    for order in ((near, far), (far, near)):
        picture = render(outdoors(look(), *order), (33, 33))
        assert order[picture.label[16, 16] - raycast.FIRST_SOLID] is near
        assert picture.depth[16, 16] == pytest.approx(3.7, rel=1e-6)


@pytest.mark.parametrize("resolution", [(64, 64), (36, 80)])
def test_intrinsics_make_planes_flat(resolution):
    source = ProceduralSource("validation", 40, resolution=resolution)
    planes = 0
    for index in range(len(source)):
        record = source[index]
        label_HW = render(source.scene(index), resolution).label
        points_HW3 = unproject(record["depth"].astype(np.float64), record["intrinsics"])
        for label in (raycast.FLOOR, raycast.CEILING):
            point_N3 = points_HW3[label_HW == label]
            if len(point_N3) < 50:
                continue
            planes += 1
            point_N3 = point_N3 - point_N3.mean(0)
            normal = np.linalg.svd(point_N3, full_matrices=False)[2][-1]
            assert np.abs(point_N3 @ normal).max() < 1e-4 * record["depth"].max()
    assert planes > 30


def test_record_follows_the_contract():
    source = ProceduralSource("train", 30, seed=3, resolution=(24, 40))
    for index in range(30):
        record = source[index]
        assert set(record) == {"image", "depth", "depth_valid", "caption", "key", "intrinsics", "skipped"}
        assert record["image"].shape == (24, 40, 3) and record["image"].dtype == np.uint8
        assert record["depth"].shape == (24, 40) and record["depth"].dtype == np.float32
        assert record["depth_valid"].shape == (24, 40) and record["depth_valid"].dtype == bool
        assert record["intrinsics"].shape == (4,) and record["intrinsics"].dtype == np.float32
        assert record["key"] == f"procedural/train/{index}" and record["skipped"] == 0
        assert np.isfinite(record["depth"]).all()
        np.testing.assert_array_equal(record["depth_valid"], record["depth"] > 0)
        assert record["depth_valid"].mean() > 0.2


def test_a_scene_depends_on_seed_split_and_index_only():
    source = ProceduralSource("train", 100, seed=7)
    for other in (ProceduralSource("train", 10, seed=7), pickle.loads(pickle.dumps(source))):
        for index in (9, 0, 4):
            one, two = source[np.int64(index)], other[index]
            np.testing.assert_array_equal(one["image"], two["image"])
            np.testing.assert_array_equal(one["depth"], two["depth"])
            assert one["caption"] == two["caption"] and one["key"] == two["key"]


def test_no_scene_appears_twice():
    scenes = [
        ProceduralSource(split, 60, seed).scene(i) for split in SPLITS for seed in (0, 1, 2**32) for i in range(60)
    ]
    assert len(set(scenes)) == len(scenes)
    assert len({scene.scale for scene in scenes}) == len(scenes)


def test_resolution_changes_the_view_only():
    for index in range(8):
        small, large = (ProceduralSource("test", 8, resolution=(n, n))[index] for n in (48, 96))
        block_HWK = large["depth"].reshape(48, 2, 48, 2).transpose(0, 2, 1, 3).reshape(48, 48, 4)
        smooth_HW = block_HWK.max(-1) < 1.05 * block_HWK.min(-1)
        assert smooth_HW.mean() > 0.2
        error_N = np.abs(block_HWK.mean(-1)[smooth_HW] / small["depth"][smooth_HW] - 1)
        assert np.median(error_N) < 5e-4 and error_N.max() < 0.05
        assert small["image"].mean() == pytest.approx(large["image"].mean(), abs=3)


def test_a_config_opens_what_it_says():
    config = ProceduralConfig(seed=3, train=5, test=2)
    for split, size in (("train", 5), ("test", 2)):
        assert config.open(split, (8, 12)) == ProceduralSource(split, size, seed=3, resolution=(8, 12))
    with pytest.raises(ValueError, match=r"split 'validation' is empty: data\.source\.validation is 0"):
        config.open("validation", (8, 12))
    with pytest.raises(ValueError, match="procedural scenes have no split 'seed'; there are: test, train, validation"):
        config.open("seed", (8, 12))
    for name in ("seed", "train", "validation", "test"):
        with pytest.raises(ValueError, match=rf"data\.source\.{name} is -1; it must be a number and at least 0"):
            ProceduralConfig(**{name: -1})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="split is 'val'"):
        ProceduralSource("val", 10)
    with pytest.raises(ValueError, match="size is -1"):
        ProceduralSource("train", -1)
    with pytest.raises(ValueError, match=r"seed is 0\.5"):
        ProceduralSource("train", 10, seed=0.5)
    for resolution in ((64,), (64, 0), (64, 64, 3)):
        with pytest.raises(ValueError, match="resolution is"):
            ProceduralSource("train", 10, resolution=resolution)
    source = ProceduralSource("train", 10)
    assert len(source) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"scene {index} "):
            source[index]
    with pytest.raises(TypeError):
        source[1.5]


@pytest.fixture(scope="module")
def views():
    """(scene, rendering, caption) of 250 records."""
    source = ProceduralSource("train", 250, seed=1)
    scenes = [source.scene(i) for i in range(len(source))]
    pictures = [render(scene, (64, 64)) for scene in scenes]
    return [(scene, p, caption(scene, p.label)) for scene, p in zip(scenes, pictures, strict=True)]


def test_captions_tell_the_truth(views):
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
    thing = re.compile(rf"(\w+) ({'|'.join(PALETTE)}) (box|sphere|cylinder|wall)(e?s)?\b")
    named = 0
    for scene, picture, text in views:
        assert text.isascii() and 0 < len(text) <= MAX_BYTES
        share = {label: (picture.label == label).mean() for label in np.unique(picture.label)}
        visible = [
            (s.color_name, s.noun)
            for i, s in enumerate(scene.solids)
            if share.get(raycast.FIRST_SOLID + i, 0) >= MIN_SHARE
        ]
        for number, color, noun, plural in thing.findall(text):
            if (noun, plural) == ("wall", "s") and number in ("with", "and"):
                assert isinstance(scene.place, Room) and share[raycast.WALL] >= MIN_SHARE
                continue
            assert visible.count((color, noun)) == numbers[number], text
            assert (numbers[number] > 1) == bool(plural), text
            named += 1
        if isinstance(scene.place, Room):
            assert text.startswith("a room")
            assert (scene.place.floor.name in text) == (share.get(raycast.FLOOR, 0) >= MIN_SHARE)
        else:
            assert text.split(" ", 1)[1].startswith(scene.place.ground.name)
            assert text.endswith(" sky") == (share.get(raycast.SKY, 0) >= MIN_SHARE)
    assert named > 1.5 * len(views)
    assert len({text for *_, text in views}) > 0.9 * len(views)


def test_caption_drops_the_smallest_things_when_long():
    colors = ("orange", "yellow", "purple", "green", "white")
    solids = [
        solid("cylinder", (1.2 * i - 2.4, 5.0 + i, 0.5), (0.5, 0.5, 0.5), color_name=c) for i, c in enumerate(colors)
    ]
    scene = outdoors(look(-0.2, height=2.0), *solids)
    text = caption(scene, render(scene, (64, 64)).label)
    assert len(text) <= MAX_BYTES and text.endswith("under a clear sky")
    assert "an orange cylinder, a yellow cylinder" in text and "white" not in text
    twins = outdoors(look(-0.2), *(solid("box", (x, 5.0, 0.5), (0.4, 0.4, 0.5)) for x in (-1.0, 1.0)))
    assert caption(twins, render(twins, (64, 64)).label) == "a field with two red boxes under a clear sky"


@pytest.mark.parametrize("color_name, high, low", [("red", 0, (1, 2)), ("green", 1, (0, 2)), ("blue", 2, (0, 1))])
def test_colours_look_like_their_names(views, color_name, high, low):
    seen = 0
    for scene, picture, _ in views:
        for i, item in enumerate(scene.solids):
            pixels_N3 = picture.image[picture.label == raycast.FIRST_SOLID + i].astype(float)
            if item.color_name == color_name and len(pixels_N3) >= 40:
                seen += 1
                mean = pixels_N3.mean(0)
                assert all(mean[high] > mean[channel] for channel in low)
    assert seen >= 8


def test_rooms_are_dense_and_the_sky_is_missing(views):
    for scene, picture, _ in views:
        if isinstance(scene.place, Room):
            assert (picture.depth > 0).all()
        else:
            np.testing.assert_array_equal(picture.depth == 0, picture.label < 0)
            far = scene.place.far * scene.scale * 1.001
            assert picture.depth[picture.label == raycast.FLOOR].max() < far


def test_scenes_vary(views):
    """Scales are log-uniform, half the places are rooms, and no constant explains the depth of a view."""
    depths = [picture.depth[picture.depth > 0].astype(float) for _, picture, _ in views]
    mean = np.array([d.mean() for d in depths])
    assert 0.85 < mean.min() < 1.3 and 40 < mean.max() < 60
    thirds = np.histogram(np.log(mean), np.log([0.8, 50 ** (1 / 3), 50 ** (2 / 3), 60]))[0] / len(views)
    assert (thirds > 0.22).all()
    assert 0.4 < np.mean([isinstance(scene.place, Room) for scene, *_ in views]) < 0.6

    def best_constant_error(depth_N):
        # The minimiser of mean |c - d| / d is the median of d with weights 1 / d.
        depth_N = np.sort(depth_N)
        weight_N = np.cumsum(1 / depth_N)
        return np.abs(depth_N[np.searchsorted(weight_N, weight_N[-1] / 2)] / depth_N - 1).mean()

    assert 0.25 < np.mean([best_constant_error(d) for d in depths]) < 0.45
    ratio = np.array([d.max() / d.min() for d in depths])
    assert np.percentile(ratio, 95) < 35 and ratio.max() < 80
    assert np.std([scene.camera.pitch for scene, *_ in views]) > np.radians(5)
    half_views = np.degrees(np.arctan([scene.camera.tan_half_width for scene, *_ in views]))
    assert 25 <= half_views.min() < 28 and 42 < half_views.max() <= 45
    brightness = [picture.image.mean() for _, picture, _ in views]
    assert min(brightness) > 40 and max(brightness) < 240


def test_shadow_falls_away_from_the_light():
    item = solid("sphere", (0.0, 6.0, 3.0), (0.8, 0.8, 0.8))
    camera = look(-0.5, height=4.0)
    sun = Light((-0.6, 0.0, 0.8), False, 1.0, (0.6, 0.6, 0.6), (0.4, 0.4, 0.4), 1.0)
    scene = Scene(camera, FIELD, (item,), sun, 1.0, 0)
    picture = render(scene, (96, 96))
    ground_HW = picture.label == raycast.FLOOR
    dark_HW = ground_HW & (picture.image[..., 0] < 0.75 * np.median(picture.image[..., 0][ground_HW]))
    # The sphere's centre is 3 above the ground; its shadow is 3 * 0.6 / 0.8 to the right.
    np.testing.assert_allclose(world_points(scene, picture)[dark_HW].mean(0), (2.25, 6.0, 0.0), atol=0.1)


def test_pattern_fades_towards_the_horizon():
    place = Outdoors(CHECKER, 1000.0, 0.0, (0.8, 0.8, 0.8), (0.2, 0.4, 0.8), 0.0, "clear")
    picture = render(outdoors(look(-0.1), place=place), (64, 64))
    depth_H = picture.depth[:, 0]
    near, far = (
        picture.image[depth_H.nonzero()[0][-1], :, 0],
        picture.image[(depth_H > 80).nonzero()[0][-1], :, 0],
    )
    assert np.ptp(near) > 150 and np.ptp(far) < 20
    assert far.mean() == pytest.approx(127, abs=15)


def test_pulse_is_the_mean_of_a_square_wave():
    x_N, width = np.linspace(-3, 3, 61), 0.73
    sample_MN = x_N + width * (np.arange(4000)[:, None] + 0.5) / 4000 - width / 2
    expected_N = (sample_MN % 1 < 0.3).mean(0)
    np.testing.assert_allclose(pulse(x_N, width, 0.3), expected_N, atol=2e-3)
