"""Safetensors files and weight tables: layouts, stacks, fused tensors, sharded reading, refused files."""

import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mf_jax.models import weight_table
from mf_jax.models.weight_table import Entry
from mf_jax.storage import safetensors_files

TABLE = [
    Entry("stack/q/kernel", "blocks.{i}.qkv.weight", "linear", layers=3, rows=(0, 4)),
    Entry("stack/kv/kernel", "blocks.{i}.qkv.weight", "linear", layers=3, rows=(4, 10)),
    Entry("stack/left/kernel", "blocks.{i}.out.weight", "linear", layers=3, columns=(0, 4)),
    Entry("stack/right/kernel", "blocks.{i}.out.weight", "linear", layers=3, columns=(4, 12)),
    Entry("stack/norm/scale", "blocks.{i}.norm", layers=3),
    Entry("conv/kernel", "conv.weight", "conv"),
    Entry("in/kernel", "in.weight", "linear"),
]


@pytest.fixture
def theirs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {"conv.weight": (8, 2, 3, 5), "in.weight": (4, 6)}
    for i in range(3):
        tensors |= {f"blocks.{i}.qkv.weight": (10, 4), f"blocks.{i}.out.weight": (4, 12), f"blocks.{i}.norm": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}


def _save(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def test_to_ours_places_every_part(theirs):
    ours = weight_table.to_ours(theirs, TABLE)
    assert ours["stack"]["kv"]["kernel"].shape == (3, 4, 6)
    np.testing.assert_array_equal(ours["stack"]["kv"]["kernel"][2], theirs["blocks.2.qkv.weight"][4:].T)
    np.testing.assert_array_equal(ours["stack"]["right"]["kernel"][1], theirs["blocks.1.out.weight"][:, 4:].T)
    np.testing.assert_array_equal(ours["conv"]["kernel"], np.einsum("oihw->hwio", theirs["conv.weight"]))
    np.testing.assert_array_equal(ours["in"]["kernel"], theirs["in.weight"].T)


def test_round_trip_is_bitwise(theirs):
    back = weight_table.to_theirs(weight_table.to_ours(theirs, TABLE), TABLE)
    assert set(back) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
        assert back[name].dtype == value.dtype


def _abstract(theirs, sharding_of, dtype=np.float32):
    flat = weight_table.flatten(weight_table.to_ours(theirs, TABLE))
    return weight_table.nest(
        {k: jax.ShapeDtypeStruct(v.shape, dtype, sharding=sharding_of(v)) for k, v in flat.items()}
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_read_equals_to_ours(theirs, tmp_path, dtype):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    opened = safetensors_files.TensorFiles(_save(tmp_path / "x.safetensors", theirs))
    read = weight_table.flatten(weight_table.read(opened, _abstract(theirs, lambda v: one, dtype), TABLE))
    for path, value in weight_table.flatten(weight_table.to_ours(theirs, TABLE)).items():
        assert read[path].dtype == dtype
        np.testing.assert_array_equal(np.asarray(read[path]), value.astype(dtype), err_msg=path)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.ours)
def test_a_part_is_read_as_the_whole_is_cut(theirs, tmp_path, entry):
    opened = safetensors_files.TensorFiles(_save(tmp_path / "x.safetensors", theirs))
    name = entry.names()[-1]
    whole = weight_table.flatten(weight_table.to_ours(theirs, TABLE))[entry.ours]
    whole = whole if entry.layers is None else whole[-1]
    for start in (0, 1):
        index = tuple(slice(start, max(size // 2, start + 1)) for size in whole.shape)
        part = weight_table._read_part(opened, entry, name, index)
        np.testing.assert_array_equal(part, whole[index])


def test_check_reports_what_is_left_over(theirs, tmp_path):
    opened = safetensors_files.TensorFiles(
        _save(tmp_path / "x.safetensors", theirs | {"extra": np.zeros(2, np.float32)})
    )
    shapes = {k: v.shape for k, v in weight_table.flatten(weight_table.to_ours(theirs, TABLE)).items()}
    report = weight_table.check(opened, shapes, TABLE)
    assert report.left_over == ("extra",) and set(report.mapped) == set(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("in.weight"), "tensor in.weight missing"),
        (lambda t: t.update({"in.weight": np.zeros((4, 5), np.float32)}), r"in.weight has shape \(4, 5\)"),
        (lambda t: t.update({"blocks.1.qkv.weight": np.zeros((12, 4), np.float32)}), r"qkv.weight has shape \(12, 4\)"),
        (lambda t: t.update({"in.weight": np.zeros((4, 6), np.int32)}), "in.weight is I32"),
    ],
)
def test_what_does_not_fit_is_named(theirs, tmp_path, change, message):
    shapes = {k: v.shape for k, v in weight_table.flatten(weight_table.to_ours(theirs, TABLE)).items()}
    change(theirs)
    opened = safetensors_files.TensorFiles(_save(tmp_path / "x.safetensors", theirs))
    with pytest.raises(ValueError, match=message):
        weight_table.check(opened, shapes, TABLE)


def test_parts_that_leave_a_gap_are_refused(theirs):
    table = [Entry("q/kernel", "qkv.weight", "linear", rows=(2, 4))]
    with pytest.raises(ValueError, match=r"qkv\.weight do not make up a whole"):
        weight_table.to_theirs({"q": {"kernel": np.zeros((3, 2), np.float32)}}, table)


def test_truncated_file_and_pickle_are_refused(theirs, tmp_path):
    whole = _save(tmp_path / "x.safetensors", theirs).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file"):
        safetensors_files.TensorFiles(tmp_path / "cut.safetensors")
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match=r"model\.bin is a pickle"):
        safetensors_files.TensorFiles(tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"no file or directory .*absent"):
        safetensors_files.TensorFiles(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.safetensors file in"):
        safetensors_files.TensorFiles(tmp_path / "empty")


def test_one_name_in_two_files_is_refused(theirs, tmp_path):
    _save(tmp_path / "a.safetensors", theirs)
    _save(tmp_path / "b.safetensors", {"in.weight": theirs["in.weight"]})
    with pytest.raises(ValueError, match=r"tensor in\.weight is in two"):
        safetensors_files.TensorFiles(tmp_path)


@pytest.mark.parametrize("shard_bytes", [10**9, 400])
def test_written_directory_reads_back(theirs, tmp_path, shard_bytes):
    sizes = {name: value.nbytes for name, value in theirs.items()}
    written = safetensors_files.write(tmp_path / "out", theirs.items(), sizes, {"config.json": b"{}"}, shard_bytes)
    assert all(path.is_file() for path in written)
    opened = safetensors_files.TensorFiles(tmp_path / "out")
    assert set(opened) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(opened[name], value)
    index = tmp_path / "out" / safetensors_files.INDEX
    assert index.exists() == (shard_bytes == 400)
    if shard_bytes == 400:
        shards = set(json.loads(index.read_text())["weight_map"].values())
        assert len(shards) > 3
        next(tmp_path.glob("out/model-00002*")).unlink()
        with pytest.raises(ValueError, match="names model-00002"):
            safetensors_files.TensorFiles(tmp_path / "out")


def test_nothing_is_left_of_a_write_that_fails(theirs, tmp_path):
    sizes = {name: value.nbytes for name, value in theirs.items()}
    with pytest.raises(ValueError, match="expected tensor"):
        safetensors_files.write(tmp_path / "out", list(theirs.items())[:-1], sizes, {}, 400)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(ValueError, match="not empty"):
        safetensors_files.write(tmp_path / "full", theirs.items(), sizes, {})
