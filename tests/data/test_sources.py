"""What every kind of source has in common."""

import numpy as np
import pytest
from PIL import Image

from mf_jax.configurable import Kinds
from mf_jax.data.sources import KINDS, Source


@pytest.fixture
def sections(tmp_path):
    """The `source` section of a data config for every kind."""
    for frame in range(3):
        Image.fromarray(np.full((6, 8, 3), frame, np.uint8)).save(tmp_path / f"{frame}.rgb.png")
        Image.fromarray(np.full((6, 8), 1000 * frame, np.uint16)).save(tmp_path / f"{frame}.z.png")
    files = {"root": str(tmp_path), "image": "*.rgb.png", "depth": "*.z.png", "depth_scale": 0.001}
    return {"procedural": {"train": 3}, "folder": files | {"splits": {"train": ":"}}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_all_that_a_source_declares(sections, kind):
    source = Kinds(KINDS).build({"kind": kind} | sections[kind], "data.source").open("train", (6, 8))
    assert isinstance(source, Source)
    assert len(source) == 3 and source.max_unreadable >= 0
    assert len({source.path(index) for index in range(3)}) == 3
    for index in range(3):
        record = source[index]
        described = {name: (value.shape, value.dtype.name) for name, value in record.items() if hasattr(value, "dtype")}
        assert described == {
            "image": ((6, 8, 3), "uint8"),
            "depth": ((6, 8), "float32"),
            "depth_valid": ((6, 8), "bool"),
            "intrinsics": ((4,), "float32"),
        }
        np.testing.assert_array_equal(record["depth_valid"], record["depth"] > 0)
        assert isinstance(record["caption"], str) and isinstance(record["key"], str) and record["skipped"] == 0
        assert record.keys() == described.keys() | {"caption", "key", "skipped"}
