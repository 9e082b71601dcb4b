import json
import os
import pathlib
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mf_jax.configurable import Section
from mf_jax.data.config import DataConfig
from mf_jax.data.readers.folder import FolderConfig

H, W, FRAMES = 6, 8, 12


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **array)
    else:
        Image.fromarray(array).save(path)


def values_of(frame):
    """Depth in millimetres: 1000 + 10 frame + column, the first row missing."""
    values = np.full((H, W), 1000 + 10 * frame, np.uint16) + np.arange(W, dtype=np.uint16)
    values[0] = 0
    return values


@pytest.fixture
def root(tmp_path):
    for frame in range(FRAMES):
        save(tmp_path / f"frame-{frame}.color.png", np.full((H, W, 3), frame, np.uint8))
        save(tmp_path / f"frame-{frame}.depth.png", values_of(frame))
    return tmp_path


def source(folder, split="train", **changes):
    parameters = {
        "root": str(folder),
        "image": "frame-*.color.png",
        "depth": "frame-*.depth.png",
        "depth_scale": 0.001,
        "splits": {"train": "0:8", "test": "8:", "all": ":"},
    }
    return FolderConfig(**parameters | changes).open(split)


def test_record(root):
    records = source(root, captions="a wall")
    record = records[3]
    assert record["image"].shape == (H, W, 3) and record["image"].dtype == np.uint8 and (record["image"] == 3).all()
    assert record["depth"].dtype == np.float32
    np.testing.assert_allclose(record["depth"][1], 1.03 + 0.001 * np.arange(W), rtol=1e-6)
    np.testing.assert_array_equal(record["depth_valid"], np.arange(H)[:, None].repeat(W, 1) > 0)
    assert (record["depth"][0] == 0).all()
    assert record["caption"] == "a wall" and record["key"] == "frame-3" and record["skipped"] == 0
    assert record["intrinsics"].dtype == np.float32 and np.isnan(record["intrinsics"]).all()
    with pytest.raises(IndexError):
        records[8]


def test_splits_slice_the_frames_in_the_order_of_their_numbers(root):
    keys = [f"frame-{frame}" for frame in range(FRAMES)]
    assert [record["key"] for record in source(root, "train")] == keys[:8]
    assert [record["key"] for record in source(root, "test")] == keys[8:]
    every_third = source(root, "odd", splits={"odd": "-11::3"})
    assert [record["key"] for record in every_third] == keys[1::3]


def test_invalid_values(root):
    values = values_of(0)
    values[2, :4] = (65535, 7, 5000, 4999)
    save(root / "frame-0.depth.png", values)
    assert source(root)[0]["depth_valid"][2, :4].tolist() == [False, True, True, True]
    assert source(root, invalid=(7,))[0]["depth_valid"][2, :2].tolist() == [True, False]
    assert source(root, max_depth=4.9995)[0]["depth_valid"][2, :4].tolist() == [False, True, False, True]
    assert not source(root)[0]["depth_valid"][0].any()  # 0 is missing whatever invalid says
    assert not source(root, invalid=())[0]["depth_valid"][0].any()


def test_a_map_without_any_depth_is_legal(root):
    save(root / "frame-2.depth.png", np.zeros((H, W), np.uint16))
    record = source(root)[2]
    assert not record["depth_valid"].any() and (record["depth"] == 0).all() and record["key"] == "frame-2"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_float_depth(root, suffix):
    for frame in range(FRAMES):
        depth = np.full((H, W, 1), 2.5, np.float64)
        depth[1, :4, 0] = (np.nan, np.inf, -np.inf, -1.0)
        save(root / f"d/{frame}{suffix}", depth if suffix == ".npy" else {"z": depth, "other": depth})
    record = source(root, depth=f"d/*{suffix}", depth_scale=2.0, npz_key="z" if suffix == ".npz" else None)[0]
    assert record["depth_valid"][1].tolist() == [False] * 4 + [True] * 4
    assert (record["depth"][2] == 5.0).all() and record["depth"].dtype == np.float32
    if suffix == ".npz":
        with pytest.raises(ValueError, match=r"0.npz holds the arrays \['z', 'other'\]; set npz_key .* 'depth'"):
            source(root, depth=f"d/*{suffix}", npz_key="depth")


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_mask(root, suffix):
    for frame in range(FRAMES):
        mask = np.full((H, W), 255, np.uint8)
        mask[:, :3] = 0
        save(root / f"mask/{frame}{suffix}", mask)
    valid = source(root, mask=f"mask/*{suffix}")[0]["depth_valid"]
    assert not valid[:, :3].any() and valid[1:, 3:].all()


def test_intrinsics(root):
    expected = [585, 586, 320, 240]
    (root / "matrix.txt").write_text("5.85e2 0 320\n0 586 240\n0 0 1\n")
    (root / "four.txt").write_text("585, 586, 320, 240")
    for given in ("matrix.txt", "four.txt", (585, 586, 320, 240), str(root / "four.txt")):
        assert source(root, intrinsics=given)[0]["intrinsics"].tolist() == expected


def test_captions(root):
    (root / "3.txt").write_text("a door\n", encoding="utf-8")
    (root / "texts.json").write_text(json.dumps({"frame-3": "ein Tor", "frame-4.color.png": "ein Bild"}))
    texts = source(root, captions="*.txt")
    assert [texts[3]["caption"], texts[4]["caption"]] == ["a door", ""]
    texts = source(root, captions="texts.json")
    assert [texts[3]["caption"], texts[4]["caption"], texts[5]["caption"]] == ["ein Tor", "ein Bild", ""]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_unreadable_files_are_passed_over_and_counted(root):
    truncate(root / "frame-3.color.png")
    truncate(root / "frame-4.depth.png")
    (root / "frame-7.color.png").write_bytes(b"not an image")
    records = source(root)
    assert [(record["key"], record["skipped"]) for record in (records[2], records[3], records[4], records[7])] == [
        ("frame-2", 0),
        ("frame-5", 2),
        ("frame-5", 1),
        ("frame-0", 1),
    ]
    assert records.path(3).endswith("frame-3.color.png")
    with pytest.raises(ValueError, match=r"2 unreadable files in a row; the first is .*frame-3.color.png"):
        source(root, max_unreadable=1)[3]


def test_truncated_arrays_are_unreadable(root):
    for frame in range(FRAMES):
        save(root / f"d/{frame}.npz", {"z": np.ones((H, W))})
        save(root / f"d/{frame}.npy", np.ones((H, W)))
    truncate(root / "d/0.npz")
    truncate(root / "d/1.npy")
    assert source(root, depth="d/*.npz")[0]["skipped"] == 1
    assert source(root, depth="d/*.npy")[1]["skipped"] == 1


def bomb(path, side):
    """A valid PNG in all but its size: the header claims side x side pixels."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def claim(path, shape):
    """An .npy file whose header claims another shape."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(bytes(64))


CLAIMS = [(7, 8), (10**6, 10**7), (2**32, 2**32), (10**30, 8)]


@pytest.mark.parametrize("warnings_are", ["error", "ignore"])
@pytest.mark.parametrize("side", [12_000, 100_000])
@pytest.mark.parametrize("name", ["frame-3.color.png", "frame-3.depth.png"])
def test_a_picture_over_the_limit_of_pixels_is_unreadable(root, name, side, warnings_are):
    """Pillow warns about the first size and refuses the second."""
    bomb(root / name, side)
    with warnings.catch_warnings():
        warnings.simplefilter(warnings_are)
        record = source(root)[3]
        assert (record["key"], record["skipped"]) == ("frame-4", 1)
        message = rf"1 unreadable files in a row; the first is .*{name} cannot be read.*pixels"
        with pytest.raises(ValueError, match=message):
            source(root, max_unreadable=0)[3]


@pytest.mark.parametrize("shape", CLAIMS)
def test_an_array_whose_header_claims_more_than_the_file_holds_is_unreadable(root, shape):
    for frame in range(FRAMES):
        save(root / f"d/{frame}.npy", np.ones((H, W)))
    claim(root / "d/3.npy", shape)
    for frame in range(FRAMES):
        with zipfile.ZipFile(root / f"d/{frame}.npz", "w") as archive:
            archive.write(root / f"d/{frame}.npy", "z.npy")
    for suffix in (".npy", ".npz"):
        records = source(root, depth=f"d/*{suffix}")
        assert [records[index]["skipped"] for index in (2, 3, 4)] == [0, 1, 0]
    records = source(root, mask="d/*.npy")
    assert records[3]["skipped"] == 1


def test_images_are_turned_upright_only_where_nothing_belongs_to_their_stored_pixels(root):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to show
    stored = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    Image.fromarray(stored).save(root / "frame-3.color.png", exif=turned)
    upright = np.rot90(stored, -1)
    alone = {"depth": None, "depth_scale": None}
    record = source(root, **alone)[3]
    np.testing.assert_array_equal(record["image"], upright)
    assert record["depth"].shape == (W, H) and not record["depth_valid"].any()
    for frame in range(FRAMES):
        save(root / f"mask/{frame}.png", np.ones((H, W), np.uint8))
    for registered in ({}, alone | {"mask": "mask/*.png"}, alone | {"intrinsics": (585, 585, 320, 240)}):
        np.testing.assert_array_equal(source(root, **registered)[3]["image"], stored)


def test_a_folder_of_broken_files_is_an_error(root):
    for frame in range(FRAMES):
        truncate(root / f"frame-{frame}.color.png")
    with pytest.raises(ValueError, match="8 unreadable files in a row"):
        source(root)[0]


def grey_depth(root):
    save(root / "frame-0.depth.png", np.zeros((H, W), np.uint8))


def colour_depth(root):
    save(root / "frame-0.depth.png", np.zeros((H, W, 3), np.uint8))


def small_depth(root):
    save(root / "frame-0.depth.png", np.zeros((H, W - 1), np.uint16))


def deep_image(root):
    save(root / "frame-0.color.png", np.zeros((H, W), np.uint16))


def lonely_image(root):
    (root / "frame-2.depth.png").unlink()
    (root / "frame-10.depth.png").unlink()


def wide_array(root):
    for frame in range(FRAMES):
        save(root / f"d/{frame}.npy", np.zeros((H, W, 2)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (grey_depth, r"frame-0.depth.png is a picture of mode 'L'; depth must be 16 bit with one channel"),
        (colour_depth, r"frame-0.depth.png is a picture of mode 'RGB'"),
        (small_depth, r"frame-0.depth.png is 7x6, its image .*frame-0.color.png is 8x6"),
        (deep_image, r"frame-0.color.png has pixel type 'I;16'; it must have 8 bits per channel"),
        (lonely_image, r"2 of 12 images have no depth .*frame-2.color.png, .*frame-10.color.png"),
    ],
)
def test_bad_files(root, damage, message):
    damage(root)
    with pytest.raises(ValueError, match=message):
        source(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data folder '/no/such/folder' does not exist"),
        ({"image": "frame-*.jpg"}, r"no file in .* matches image='frame-\*.jpg'"),
        ({"depth": "depth.png"}, r"depth='depth.png' must have exactly one \*"),
        ({"depth": "*/*.png"}, r"depth='\*/\*.png' must have exactly one \*"),
        ({"split": "tets"}, "splits has no 'tets'; did you mean 'test'"),
        ({"split": "none", "splits": {"none": "20:"}}, "split 'none' = '20:' is empty: .* has 12 frames"),
        ({"splits": {"train": "80%"}}, "splits.train='80%' is not a slice such as"),
        ({"splits": {"train": "::0"}}, "splits.train='::0' is not a slice"),
        ({"depth_scale": 0}, "depth_scale is 0; metres per unit must be positive"),
        ({"depth_scale": -1}, "depth_scale is -1; metres per unit must be positive"),
        ({"depth_scale": None}, r"data.source.depth is '.*' without data.source.depth_scale, the metres per unit"),
        ({"max_unreadable": -1}, "data.source.max_unreadable is -1; it must be a number and at least 0"),
        ({"mask": "*.npy"}, r"no file in .* matches mask='\*.npy'"),
        ({"intrinsics": "cam.txt"}, "intrinsics file .*cam.txt' does not exist"),
        ({"intrinsics": (585, 585, 320)}, "must be fx fy cx cy or a 3x3 matrix"),
        ({"intrinsics": (0, 585, 320, 240)}, "must be fx fy cx cy or a 3x3 matrix"),
        ({"captions": "none.json"}, "captions file .*none.json' cannot be read"),
        ({"captions": "*.caption"}, r"no file in .* matches captions='\*.caption'"),
        ({"depth": "frame-*.color.png"}, "is a picture of mode 'RGB'"),
    ],
)
def test_bad_parameters(root, changes, message):
    with pytest.raises(ValueError, match=message):
        source(root, **changes)


def test_bad_arrays(root):
    wide_array(root)
    with pytest.raises(ValueError, match=r"0.npy holds float64 \(6, 8, 2\); it must be numbers of shape \(H, W\)"):
        source(root, depth="d/*.npy")
    (root / "texts.json").write_text('{"frame-99": "far"}')
    with pytest.raises(ValueError, match=r"captions='texts.json' .* names none of the 12 images"):
        source(root, captions="texts.json")
    (root / "cam.txt").write_text("focal 585")
    with pytest.raises(ValueError, match=r"intrinsics .*cam.txt.*focal"):
        source(root, intrinsics="cam.txt")


def data_config(root, **changes):
    section = {"kind": "folder", "root": str(root), "image": "frame-*.color.png", "depth": "frame-*.depth.png"}
    section |= {"depth_scale": 0.001, "splits": {"train": "0:8"}} | changes
    return Section(DataConfig).build({"source": section, "resolution": (4, 4)}, "data")


def test_open(root):
    assert len(data_config(root).open("train")) == 8
    scenes = {"source": {"kind": "procedural", "train": 5, "test": 0}, "resolution": (8, 12)}
    assert Section(DataConfig).build(scenes, "data").open("train")[4]["image"].shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "foldr"}, "data.source.kind is 'foldr'; did you mean 'folder'"),
        ({"kind": None}, "data.source.kind is None; there are: folder, procedural"),
        ({"kind": "folder", "root": "."}, "config key data.source.image is missing"),
        ({"kind": "procedural", "trian": 5}, "unknown config key data.source.trian; did you mean 'train'"),
        ({"kind": "procedural", "test": 5}, "split 'train' is empty: data.source.train is 0; set it to a number"),
        ({"kind": "procedural", "train": 0}, "split 'train' is empty: data.source.train is 0"),
    ],
)
def test_open_errors(section, message):
    with pytest.raises(ValueError, match=message):
        Section(DataConfig).build({"source": section, "resolution": (4, 4)}, "data").open("train")


def test_open_names_the_nearest_key(root):
    with pytest.raises(ValueError, match=r"unknown config key data.source.depth_scal; did you mean 'depth_scale'"):
        data_config(root, depth_scal=1.0)


REAL = {
    "7scenes": (
        {"image": "frame-*.color.jpg", "depth": "frame-*.depth.png", "depth_scale": 0.001},
        {"frames": 250, "size": (480, 640), "missing": 0.11, "deepest": (3.0, 5.0)},
    ),
    "kitti": (
        {"image": "rgb/*.png", "depth": "depth/*.png", "depth_scale": 1 / 256},
        {"frames": 3, "size": (375, 1242), "missing": 0.80, "deepest": (60.0, 90.0)},
    ),
    "nyu": (
        {"image": "rgb/rgb_*.jpg", "depth": "depth/sync_depth_*.png", "depth_scale": 0.001},
        {"frames": 3, "size": (480, 640), "missing": 0.27, "deepest": (3.0, 10.0)},
    ),
}


@pytest.mark.skipif("MF_JAX_REAL_DATA" not in os.environ, reason="MF_JAX_REAL_DATA is not set")
@pytest.mark.parametrize("name", REAL)
def test_real_data(name):
    parameters, expected = REAL[name]
    root = pathlib.Path(os.environ["MF_JAX_REAL_DATA"]) / name
    if name == "7scenes":
        parameters = parameters | {"intrinsics": "camera-intrinsics.txt"}
    records = FolderConfig(root=str(root), splits={"all": ":"}, **parameters).open("all")
    assert len(records) == expected["frames"]
    some = [records[index] for index in range(0, len(records), max(1, len(records) // 4))]
    assert all(record["image"].shape == (*expected["size"], 3) for record in some)
    assert abs(np.mean([1 - record["depth_valid"].mean() for record in some]) - expected["missing"]) < 0.05
    assert expected["deepest"][0] < np.median([record["depth"].max() for record in some]) < expected["deepest"][1]
    if name == "7scenes":
        assert some[0]["intrinsics"].tolist() == [585, 585, 320, 240] and some[0]["key"] == "frame-000000"
