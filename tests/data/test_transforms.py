import numpy as np
import pytest

from mf_jax.data.sparsify import make_sparsifier
from mf_jax.data.tokenizer import ByteTokenizer
from mf_jax.data.transforms import Examples, random_flip


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
            "valid": valid,
            "caption": self.caption,
            "key": f"scene-{index}",
            "intrinsics": np.full(4, np.nan, np.float32),
            "skipped": 0,
        }


def examples(source=None, resolution=(8, 8), sparsify=None, length=12, seed=0):
    return Examples(
        source or Scenes(),
        resolution=resolution,
        sparsifier=make_sparsifier(sparsify or {"kind": "none"}),
        tokenizer=ByteTokenizer(length),
        seed=seed,
    )


def test_the_contract():
    example = examples()[7]
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
    assert np.isin(depth[valid], record["depth"][record["valid"]]).all()


def test_image_and_depth_show_the_same_window():
    """Halves of the crop stay halves: the step of the depth is in the middle, as in the record."""
    example = examples(resolution=(8, 8))[0]
    left, right = example["depth"][:, :4], example["depth"][:, 4:]
    assert left[left > 0].max() <= 2 and right[right > 0].min() >= 8
    full = examples(resolution=(20, 36))[0]
    np.testing.assert_array_equal(full["image"], Scenes()[0]["image"])
    np.testing.assert_array_equal(full["depth"], Scenes()[0]["depth"])


def test_sparse_pixels_are_a_fraction_of_what_the_model_sees_and_belong_to_the_record():
    dense, sparse = examples(), examples(sparsify={"kind": "random", "fraction": 0.25})
    for index in (0, 11):
        full, kept = dense[index]["depth_valid"], sparse[index]["depth_valid"]
        assert kept.sum() == round(0.25 * full.sum()) and not (kept & ~full).any()
        np.testing.assert_array_equal(kept, sparse[index]["depth_valid"])
    patterns = {sparse[index]["depth_valid"].tobytes() for index in range(10)}
    assert len(patterns) == 10
    other_seed = examples(sparsify={"kind": "random", "fraction": 0.25}, seed=1)
    assert (other_seed[0]["depth_valid"] != sparse[0]["depth_valid"]).any()


def test_a_long_caption_is_cut_between_characters():
    example = examples(source=Scenes("eine schräge Fläche"), length=10)[0]
    assert ByteTokenizer(10).decode(example["text_ids"]) == "eine schr"


def test_flip_mirrors_everything_or_nothing():
    example = examples(resolution=(8, 12))[0]
    flipped = 0
    for seed in range(200):
        got = random_flip(example, np.random.default_rng(seed))
        mirrored = (got["depth"] != example["depth"]).any()
        flipped += mirrored
        for name in ("image", "depth", "depth_valid"):
            expected = example[name][:, ::-1] if mirrored else example[name]
            np.testing.assert_array_equal(got[name], expected)
        np.testing.assert_array_equal(got["text_ids"], example["text_ids"])
    assert 70 < flipped < 130
