"""Pictures and arrays as files: what is read, and what is said of a file that is not what it should be."""

import numpy as np
import pytest
from PIL import Image

from mf_jax.data.images import UnreadableFile, read_depth, read_image, read_mask

RNG = np.random.default_rng(0)
IMAGE_HW3 = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def read_upright(path):
    return read_image(path, upright=True)


def test_read_image(tmp_path):
    Image.fromarray(IMAGE_HW3).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_upright(tmp_path / "a.png"), IMAGE_HW3)
    Image.fromarray(IMAGE_HW3[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_upright(tmp_path / "grey.png"), IMAGE_HW3[..., :1].repeat(3, axis=2))
    alpha = np.concatenate([IMAGE_HW3, IMAGE_HW3[..., :1]], axis=-1)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_upright(tmp_path / "alpha.png"), IMAGE_HW3)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_exif_rotation(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to show
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(IMAGE_HW3).save(path, exif=turned, **({"lossless": True} if suffix == "webp" else {}))
    if suffix == "tiff":
        with pytest.raises(ValueError, match=r"turned\.tiff has an orientation tag"):
            read_image(path, upright=False)
        np.testing.assert_array_equal(read_upright(path), np.rot90(IMAGE_HW3, -1))
    else:
        stored_HW3 = read_image(path, upright=False)
        np.testing.assert_array_equal(read_upright(path), np.rot90(stored_HW3, -1))
        assert suffix == "jpg" or (stored_HW3 == IMAGE_HW3).all()


def test_unreadable_pictures_are_named(tmp_path):
    Image.fromarray(IMAGE_HW3).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    for name, words in [
        ("absent.png", "does not exist"),
        ("folder.png", "is not a file"),
        ("cut.png", "truncated"),
        ("text.png", "cannot be read"),
    ]:
        for read in (read_upright, read_depth, read_mask):
            with pytest.raises(UnreadableFile, match=f"{name}.*{words}"):
                read(tmp_path / name)


def test_a_picture_of_more_than_8_bits_is_no_image_but_can_be_read(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "depth.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "depth.tiff")
    for name in ("depth.png", "depth.tiff"):
        with pytest.raises(ValueError, match=rf"{name}.*Is it a depth map") as caught:
            read_upright(tmp_path / name)
        assert not isinstance(caught.value, UnreadableFile)


@pytest.mark.parametrize(("limit", "read"), [(None, True), (24 * 32, True), (24 * 32 - 1, False), (24 * 16 - 1, False)])
def test_the_limit_of_pixels_is_pillows(tmp_path, monkeypatch, limit, read):
    Image.fromarray(IMAGE_HW3).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if read:
        np.testing.assert_array_equal(read_upright(tmp_path / "a.png"), IMAGE_HW3)
    else:
        with pytest.raises(UnreadableFile, match=r"a\.png cannot be read.*pixels"):
            read_upright(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "tiff", "TIF"])
def test_16_bit_depth(tmp_path, suffix):
    raw_HW = RNG.integers(0, 65536, (12, 16), dtype=np.uint16)
    Image.fromarray(raw_HW).save(tmp_path / f"depth.{suffix}")
    np.testing.assert_array_equal(read_depth(tmp_path / f"depth.{suffix}"), raw_HW)


def test_32_bit_depth_does_not_wrap_around(tmp_path):
    raw_HW = np.array([[1, 65536], [70000, 2**31 - 1]], np.int32)
    Image.fromarray(raw_HW).save(tmp_path / "depth.tiff")
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.tiff"), raw_HW)


def test_depth_pictures_of_another_kind_are_named(tmp_path):
    Image.fromarray(IMAGE_HW3[..., 0]).save(tmp_path / "eight.png")
    Image.fromarray(IMAGE_HW3).save(tmp_path / "colour.png")
    for name, words in [("eight.png", "mode 'L'"), ("colour.png", "mode 'RGB'")]:
        with pytest.raises(ValueError, match=f"{name}.*{words}; depth must be 16 bit"):
            read_depth(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("name", ["a.npy", "a.NPY", "one.npz", "packed.npz"])
def test_arrays_come_as_stored(tmp_path, name, dtype):
    array = RNG.uniform(0, 200, (5, 7)).astype(dtype)
    with (tmp_path / name).open("wb") as file:
        if name.endswith(".npz"):
            {"one.npz": np.savez, "packed.npz": np.savez_compressed}[name](file, z=array)
        else:
            np.save(file, np.asfortranarray(array))
    got = read_depth(tmp_path / name)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(read_mask(tmp_path / name), array != 0)


def test_arrays_of_several_channels(tmp_path):
    array = RNG.uniform(size=(5, 7, 4))
    np.save(tmp_path / "four.npy", array)
    np.testing.assert_array_equal(read_depth(tmp_path / "four.npy", first_channel=True), array[..., 0])
    with pytest.raises(ValueError, match=r"four.npy holds float64 \(5, 7, 4\)"):
        read_depth(tmp_path / "four.npy")
    np.save(tmp_path / "one.npy", array[..., :1])
    np.testing.assert_array_equal(read_depth(tmp_path / "one.npy"), array[..., 0])


def test_arrays_of_an_npz_have_names(tmp_path):
    np.savez(tmp_path / "two.npz", z=np.ones((2, 3)), other=np.zeros((2, 3)))
    np.testing.assert_array_equal(read_depth(tmp_path / "two.npz", "z"), np.ones((2, 3)))
    for key in (None, "depth"):
        with pytest.raises(ValueError, match=r"two.npz holds the arrays \['z', 'other'\]; set npz_key") as caught:
            read_depth(tmp_path / "two.npz", key)
        assert not isinstance(caught.value, UnreadableFile)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_broken_arrays_are_unreadable(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UnreadableFile, match="does not exist"):
        read_depth(path)
    with path.open("wb") as file:
        np.savez(file, z=np.ones((9, 9))) if name == "a.npz" else np.save(file, np.ones((9, 9)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableFile, match=rf"{name} cannot be read; it may be truncated"):
            read_depth(path)


def test_a_suffix_that_lies_and_pickled_objects_are_unreadable(tmp_path):
    with open(tmp_path / "zip.npy", "wb") as file:
        np.savez(file, depth=np.ones((4, 4)))
    np.save(tmp_path / "objects.npy", np.array([[None] * 200]), allow_pickle=True)  # a byte each
    for name, words in [("zip.npy", "magic"), ("objects.npy", "Object arrays cannot be loaded")]:
        with pytest.raises(UnreadableFile, match=f"{name} cannot be read.*{words}"):
            read_depth(tmp_path / name)
