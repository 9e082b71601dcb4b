import pickle

import numpy as np
import pytest

from mf_jax.data.augment import AugmentConfig, random_window
from mf_jax.data.sparsify import KeepAll, RandomPixels
from mf_jax.data.tokenizer import ByteTokenizer
from mf_jax.data.transforms import Examples, View


class Scenes:
    """Records of 20 x 36 pixels, depth 1 to 2 metres in the left half, 8 to 9 in the right, a third missing."""

    def __init__(self, caption="a slope"):
        self.caption = caption

    def __len__(self):
        return 50

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        valid = rng.uniform(size=(20, 36)) < 0.67
        depth = rng.uniform(1, 2, (20, 36)) + 7 * (np.arange(36) >= 18)
        return {
            "image": rng.integers(0, 256, (20, 36, 3), dtype=np.uint8),
            "depth": np.where(valid, depth, 0).astype(np.float32),
            "depth_valid": valid,
            "caption": self.caption,
            "key": f"scene-{index}",
            "intrinsics": np.full(4, np.nan, np.float32),
            "skipped": 0,
        }


class Ramps:
    """One dense record of 40 x 60 pixels: depth 1 + 100 row + column, red 4 times the column, green 6 times the row."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        row, column = np.mgrid[:40, :60]
        return {
            "image": np.stack([4 * column, 6 * row, 0 * row], axis=-1).astype(np.uint8),
            "depth": (1 + 100 * row + column).astype(np.float32),
            "depth_valid": np.ones((40, 60), bool),
            "caption": "",
            "key": "ramps",
            "skipped": 0,
        }


def examples(source=None, resolution=(8, 8), crop=1.0, length=12, cache=False):
    return Examples(source or Scenes(), resolution=resolution, crop=crop, tokenizer=ByteTokenizer(length), cache=cache)


def view(resolution=(8, 8), sparsify=None, seed=0, **augment):
    return View(resolution, AugmentConfig(**augment), sparsify or KeepAll(), seed)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_the_contract():
    example = view()(examples()[7], generator())
    shapes = {name: (value.shape, value.dtype.name) for name, value in example.items()}
    assert shapes == {
        "image": ((8, 8, 3), "uint8"),
        "depth": ((8, 8), "float32"),
        "depth_valid": ((8, 8), "bool"),
        "text_ids": ((12,), "int32"),
        "index": ((), "int64"),
        "skipped": ((), "int32"),
    }
    assert example["index"] == 7
    assert ByteTokenizer(12).decode(example["text_ids"]) == "a slope"


@pytest.mark.parametrize("resolution", [(8, 8), (20, 36), (10, 18), (40, 40)])
def test_depth_is_never_mixed(resolution):
    record, example = Scenes()[3], examples(resolution=resolution)[3]
    depth, valid = example["depth"], example["depth_valid"]
    assert valid.any() and (depth[~valid] == 0).all()
    assert np.isin(depth[valid], record["depth"][record["depth_valid"]]).all()


def test_image_and_depth_show_the_same_window():
    """Halves of the crop stay halves: the step of the depth is in the middle, as in the record."""
    example = examples(resolution=(8, 8))[0]
    left, right = example["depth"][:, :4], example["depth"][:, 4:]
    assert left[left > 0].max() <= 2 and right[right > 0].min() >= 8
    full = examples(resolution=(20, 36))[0]
    np.testing.assert_array_equal(full["image"], Scenes()[0]["image"])
    np.testing.assert_array_equal(full["depth"], Scenes()[0]["depth"])


def test_sparse_pixels_are_a_fraction_of_what_the_model_sees_and_belong_to_the_record():
    dense, quarter = examples(), RandomPixels(0.25)
    sparse = [view(sparsify=quarter)(dense[index], generator()) for index in range(10)]
    for index in (0, 9):
        full, kept = dense[index]["depth_valid"], sparse[index]["depth_valid"]
        assert kept.sum() == round(0.25 * full.sum()) and not (kept & ~full).any()
        assert (sparse[index]["depth"][~kept] == 0).all() and (sparse[index]["depth"][kept] > 0).all()
        again = view(sparsify=quarter)(dense[index], generator(1))
        np.testing.assert_array_equal(kept, again["depth_valid"])
    assert len({example["depth_valid"].tobytes() for example in sparse}) == 10
    other_seed = view(sparsify=quarter, seed=1)(dense[0], generator())
    assert (other_seed["depth_valid"] != sparse[0]["depth_valid"]).any()


def test_a_long_caption_is_cut_between_characters():
    example = examples(source=Scenes("eine schräge Fläche"), length=10)[0]
    assert ByteTokenizer(10).decode(example["text_ids"]) == "eine schr"


def test_flip_mirrors_everything_or_nothing():
    example = examples(resolution=(8, 12))[0]
    flipped = 0
    for seed in range(200):
        got = view((8, 12), flip=True)(example, generator(seed))
        mirrored = (got["depth"] != example["depth"]).any()
        flipped += mirrored
        for name in ("image", "depth", "depth_valid"):
            expected = example[name][:, ::-1] if mirrored else example[name]
            np.testing.assert_array_equal(got[name], expected)
        np.testing.assert_array_equal(got["text_ids"], example["text_ids"])
    assert 70 < flipped < 130


def test_with_crops_the_whole_frame_is_kept_at_twice_the_pixels_of_the_closest_one():
    """And no frame is enlarged. 20 x 36 frames: the largest square has 20 pixels."""
    assert examples(resolution=(4, 4), crop=0.5)[0]["depth"].shape == (16, 29)
    assert examples(resolution=(8, 8), crop=0.5)[0]["depth"].shape == (20, 36)
    assert examples(resolution=(40, 40), crop=0.5)[0]["depth"].shape == (20, 36)


def test_a_window_of_ramps_shows_its_place_in_image_and_depth_mirrored_or_not():
    """(8, 12) at half the side needs 32 x 48 working pixels, of 1.25 pixels each."""
    example = examples(Ramps(), (8, 12), crop=0.5)[0]
    assert example["depth"].shape == (32, 48)
    errors, mirrored = [], 0
    for seed in range(60):
        got = view((8, 12), flip=True, crop=0.5)(example, generator(seed))
        assert got["image"].shape == (8, 12, 3) and got["depth_valid"].all()
        rng = generator(seed)
        flip = rng.random() >= 0.5
        rows, columns = random_window((32, 48), (8, 12), 0.5, rng)
        # Edges of the window and centres of its cells, in pixels of the frame.
        top, bottom, left, right = (1.25 * edge for edge in (rows.start, rows.stop, columns.start, columns.stop))
        row = top + (np.arange(8)[:, None] + 0.5) * (bottom - top) / 8 - 0.5
        column = left + (np.arange(12) + 0.5) * (right - left) / 12 - 0.5
        column = column[::-1] if flip else column
        mirrored += flip
        pixel_row, pixel_column = np.divmod(got["depth"] - 1, 100)
        image_row, image_column = got["image"][..., 1] / 6, got["image"][..., 0] / 4
        errors.append(np.stack([pixel_row - row, image_row - row, pixel_column - column, image_column - column]))
    errors = np.stack(errors)
    assert 15 < mirrored < 45
    assert np.abs(errors).max() < 1.5  # half a working pixel and half a frame's, and rounding
    assert np.abs(errors.mean(axis=(0, 2, 3))).max() < 0.3


@pytest.mark.parametrize("resolution", [(4, 4), (6, 10), (40, 40)])
def test_a_window_never_mixes_depth(resolution):
    record, example = Scenes()[3], examples(resolution=resolution, crop=0.3)[3]
    for seed in range(10):
        got = view(resolution, flip=True, crop=0.3, colour=0.5)(example, generator(seed))
        depth, valid = got["depth"], got["depth_valid"]
        assert depth.shape == resolution and valid.any() and (depth[~valid] == 0).all()
        assert np.isin(depth[valid], record["depth"][record["depth_valid"]]).all()


def test_the_fraction_of_a_window_is_of_what_the_model_sees_and_a_record_keeps_its_pattern():
    quarter = RandomPixels(0.25)
    example = examples(crop=0.5)[4]
    for seed in range(5):
        full = view(crop=0.5)(example, generator(seed))["depth_valid"]
        kept = view(crop=0.5, sparsify=quarter)(example, generator(seed))["depth_valid"]
        assert kept.sum() == round(0.25 * full.sum()) and not (kept & ~full).any()
    dense = examples(Ramps(), (8, 12), crop=0.5)[0]
    seen = [view((8, 12), crop=0.5, sparsify=quarter)(dense, generator(seed)) for seed in range(5)]
    assert len({got["depth_valid"].tobytes() for got in seen}) == 1
    assert len({got["depth"].tobytes() for got in seen}) == 5


def test_colours_leave_everything_else_alone_and_come_last():
    """The same draws of flip and window with and without them."""
    example = examples(crop=0.5)[0]
    before = {name: array.copy() for name, array in example.items()}
    plain = view(flip=True, crop=0.5)(example, generator(1))
    coloured = view(flip=True, crop=0.5, colour=0.5)(example, generator(1))
    for name in plain:
        assert np.array_equal(plain[name], coloured[name]) == (name != "image")
        np.testing.assert_array_equal(example[name], before[name])


class Counted(Scenes):
    def __init__(self):
        super().__init__()
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)


def test_a_cache_reads_once_and_is_not_sent_to_workers():
    source = Counted()
    cached, plain = examples(source, crop=0.5, cache=True), examples(crop=0.5)
    empty = len(pickle.dumps(cached))
    for index in (3, 5, 3, 3):
        for name, array in plain[index].items():
            np.testing.assert_array_equal(cached[index][name], array)
    assert source.reads == [3, 5]
    source.reads = []
    sent = pickle.dumps(cached)
    assert len(sent) <= empty
    worker = pickle.loads(sent)
    assert worker[3] is worker[3] and worker.source.reads == [3]
    assert cached[3] is cached[3] and source.reads == []
