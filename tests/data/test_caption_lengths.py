"""The lengths of a source's captions, counted from its own files."""

import numpy as np
import pytest
from PIL import Image

from mf_jax.configurable import Section
from mf_jax.data.caption_lengths import caption_lengths
from mf_jax.data.config import DataConfig
from mf_jax.data.tokenizer import ByteTokenizer


@pytest.fixture
def data(tmp_path):
    """A function (**of data) -> DataConfig of nine frames whose captions have 0 to 8 letters."""
    for i in range(9):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a" * i)
        np.save(tmp_path / f"{i}.text.npy", np.zeros((i + 2, 3), np.float32))

    def make(**changes):
        source = dict(kind="folder", root=str(tmp_path), image="*.png", captions="*.txt", splits={"train": ":"})
        source["text_features"] = "*.text.npy"
        return Section(DataConfig).build(dict(source=source, resolution=(4, 4)) | changes, "data")

    return make


def test_all_captions_or_some_evenly_spaced(data):
    assert caption_lengths(data(), ByteTokenizer(96)).tolist() == list(range(9))
    assert caption_lengths(data(), ByteTokenizer(96), count=3).tolist() == [0, 4, 8]
    assert caption_lengths(data(), ByteTokenizer(5)).tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5]


def test_rows_of_precomputed_features(data):
    assert caption_lengths(data(precomputed=("text_features",)), None).tolist() == list(range(2, 11))
