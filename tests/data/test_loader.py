import ast
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import mf_jax.data
from mf_jax.configurable import Section
from mf_jax.data.config import DataConfig
from mf_jax.data.loader import build_train_loader
from mf_jax.data.readers.folder import FolderSource
from mf_jax.data.tokenizer import ByteTokenizer

SCENES = 10
DATA = {
    "source": {"kind": "procedural", "train": SCENES},
    "resolution": (8, 8),
    "sparsify": {"kind": "random", "fraction": 0.3},
    "augment": {"flip": True},
    "workers": 0,
}


def loader(data=None, **changes):
    arguments = {"batch_size": 4, "tokenizer": ByteTokenizer(96), "seed": 3}
    return build_train_loader(Section(DataConfig).build(DATA | (data or {}), "data"), **arguments | changes)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def take_with_index(batches, count):
    """What take gives, with the fields that the loader keeps to itself: which record each example is."""
    return [next(batches._running()) for _ in range(count)]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def indexed():
    """Twelve batches of four made without workers: nearly five epochs of ten scenes."""
    return take_with_index(loader(), 12)


@pytest.fixture(scope="module")
def reference(indexed):
    """The same as the model gets them."""
    return [{name: batch[name] for name in batch if name not in ("index", "skipped")} for batch in indexed]


def test_the_contract(reference):
    batches = take(loader(), 12)
    assert_same(batches, reference)
    got = {name: (value.shape, value.dtype.name) for name, value in batches[0].items()}
    assert got == {
        "image": ((4, 8, 8, 3), "uint8"),
        "depth": ((4, 8, 8), "float32"),
        "depth_valid": ((4, 8, 8), "bool"),
        "text_ids": ((4, 96), "int32"),
    }
    for batch in reference:
        assert (batch["depth"][~batch["depth_valid"]] == 0).all() and (batch["depth"][batch["depth_valid"]] > 0).all()


def test_every_record_once_an_epoch_in_another_order(indexed):
    index = np.concatenate([batch["index"] for batch in indexed])[: 4 * SCENES].reshape(4, SCENES)
    for epoch in index:
        assert sorted(epoch) == list(range(SCENES))
    assert len({tuple(epoch) for epoch in index}) == 4
    other = np.concatenate([batch["index"] for batch in take_with_index(loader(seed=4), 3)])
    assert (other[:SCENES] != index[0]).any()


def test_a_record_keeps_its_sparse_pixels_and_is_flipped_at_random(indexed):
    seen = {record: set() for record in range(SCENES)}
    for batch in indexed:
        for record, valid in zip(batch["index"], batch["depth_valid"], strict=True):
            seen[record].add(valid.tobytes())
            mirrored = np.ascontiguousarray(valid[:, ::-1]).tobytes()
            assert seen[record] <= {valid.tobytes(), mirrored}
    assert any(len(patterns) == 2 for patterns in seen.values())


def test_workers_change_nothing_and_a_state_goes_on_with_any_number_of_them(reference):
    """0, 2 and 1 workers in one run; the state passes through JSON as in a checkpoint."""
    two = loader({"workers": 2})
    assert two.get_state()["position"] == 0
    assert_same(take(two, 5), reference[:5])
    state = json.loads(json.dumps(two.get_state()))
    two.close()
    assert state["position"] == 20
    one = loader({"workers": 1})
    one.set_state(state)
    one.start()
    assert_same(take(one, 3), reference[5:8])
    state = one.get_state()
    del one
    assert not multiprocessing.active_children()
    none = loader()
    none.set_state(state)
    assert_same(take(none, 4), reference[8:])
    assert none.position == 48 and none.epoch == 4.8


def test_a_closed_loader_goes_on(reference):
    batches = loader()
    assert_same(take(batches, 2), reference[:2])
    batches.close()
    assert_same(take(batches, 2), reference[2:4])
    batches.set_state({"position": 4, "seed": 3, "records": SCENES})
    assert_same(take(batches, 1), reference[1:2])


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[2], [0, 1, 2, 3], [3, 1]]])
def test_processes_make_their_rows_of_each_global_batch(reference, shares):
    """Blocks, or whatever the mesh gives them: the same row in two processes, where both hold it."""
    shards = [loader(rows=rows) for rows in shares]
    for batch in reference[:6]:
        for shard, rows in zip(shards, shares, strict=True):
            assert_same([next(shard)], [{name: value[rows] for name, value in batch.items()}])
    assert len({json.dumps(shard.get_state()) for shard in shards}) == 1


def test_another_number_of_processes_goes_on_where_the_run_stopped(reference):
    one = loader()
    take(one, 3)
    for index in range(2):
        block = slice(2 * index, 2 * index + 2)
        shard = loader(rows=range(4)[block])
        shard.set_state(one.get_state())
        assert_same(take(shard, 2), [{name: batch[name][block] for name in batch} for batch in reference[3:5]])


def test_one_record():
    data = Section(DataConfig).build({"source": {"kind": "procedural", "train": 1}, "resolution": (8, 8)}, "data")
    batches = build_train_loader(data, batch_size=3, tokenizer=ByteTokenizer(96), seed=0)
    images = next(batches)["image"]
    assert len(images) == 3 and (images == images[0]).all()


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ({"sparsfy": {}}, {}, "unknown config key data.sparsfy; did you mean 'sparsify'"),
        ({"augment": {"crops": 0.5}}, {}, "unknown config key data.augment.crops; did you mean 'crop'"),
        ({"workers": -1}, {}, "data.workers is -1; it must be a number and at least 0"),
        ({"source": {"kind": "procedural", "train": 0}}, {}, "split 'train' is empty"),
        ({}, {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({}, {"batch_size": 3, "rows": [2, 3]}, r"rows \(2, 3\) are not rows of a batch of 3"),
    ],
)
def test_bad_configs(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        loader(data, **arguments)


@pytest.mark.parametrize("state", [{"seed": 4}, {"records": 11}])
def test_a_state_of_another_order_is_an_error(state):
    batches = loader()
    with pytest.raises(ValueError, match="the examples would not continue where they stopped"):
        batches.set_state(batches.get_state() | state)


@pytest.fixture
def folder(tmp_path):
    """Ten frames of 8 x 8; frames 2 and 5 are broken."""
    for frame in range(10):
        Image.fromarray(np.full((8, 8, 3), frame, np.uint8)).save(tmp_path / f"{frame}.rgb.png")
        Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / f"{frame}.z.png")
    for frame in (2, 5):
        (tmp_path / f"{frame}.rgb.png").write_bytes(b"\x89PNG")
    source = {"kind": "folder", "root": str(tmp_path), "image": "*.rgb.png", "depth": "*.z.png"}
    return source | {"depth_scale": 0.001, "splits": {"train": ":"}}


@pytest.mark.parametrize("cache", [False, True])
def test_broken_files_are_replaced_and_counted_once(folder, monkeypatch, cache):
    warned = []
    monkeypatch.setattr("mf_jax.data.loader.logging.warning", lambda message, path: warned.append(path))
    data = {"source": folder | {"max_unreadable": 2}, "augment": {}, "cache": cache, "sparsify": {"kind": "none"}}
    for batch in take_with_index(loader(data, batch_size=10), 3):
        seen = dict(zip(batch["index"].tolist(), batch["image"][:, 0, 0, 0].tolist(), strict=True))
        assert seen == {frame: {2: 3, 5: 6}.get(frame, frame) for frame in range(10)}
        assert batch["skipped"].sum() == 2
    take(loader(data, batch_size=10), 3)
    assert sorted(pathlib.Path(path).name for path in warned) == ["2.rgb.png", "5.rgb.png"]
    batches = loader({"source": folder | {"max_unreadable": 1}}, batch_size=10)
    with pytest.raises(ValueError, match=r"2 files cannot be read, more than source.max_unreadable=1; .*2.rgb.png"):
        next(batches)


def test_an_error_in_a_worker_reaches_the_caller(folder):
    root = pathlib.Path(folder["root"])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "7.z.png")
    batches = loader({"source": folder, "workers": 1}, batch_size=10)
    with pytest.raises(ValueError, match=r"7.z.png is a picture of mode 'L'; depth must be 16 bit"):
        next(batches)
    batches.close()


@pytest.fixture
def frames(tmp_path):
    """Six frames of 24 x 36 random pixels, the depth 1 + 36 row + column in millimetres, and every augmentation."""
    rng = np.random.default_rng(0)
    for frame in range(6):
        Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(tmp_path / f"{frame}.rgb.png")
        Image.fromarray(1 + np.arange(24 * 36, dtype=np.uint16).reshape(24, 36)).save(tmp_path / f"{frame}.z.png")
    source = {"kind": "folder", "root": str(tmp_path), "image": "*.rgb.png", "depth": "*.z.png"}
    source |= {"depth_scale": 0.001, "splits": {"train": ":"}}
    return {"source": source, "augment": {"flip": True, "crop": 0.5, "colour": 0.3}}


def test_what_is_augmented_depends_on_the_position_alone(frames, monkeypatch):
    """Not on workers, processes, the cache or a restart. Every epoch differs; with a cache, files are read once."""
    reference = take(loader(frames), 9)
    seen = {record: set() for record in range(6)}
    for batch in take_with_index(loader(frames), 9):
        for record, image in zip(batch["index"], batch["image"], strict=True):
            seen[record].add(image.tobytes())
    assert all(len(images) == 6 for images in seen.values())
    depth = np.stack([batch["depth"] for batch in reference])
    columns = np.round(1000 * depth[depth > 0] - 1) % 36
    assert columns.min() < 3 and columns.max() > 32  # windows come from the whole frame, not from its middle
    two = loader(frames | {"workers": 2, "cache": True})
    assert_same(take(two, 5), reference[:5])
    state = two.get_state()
    two.close()
    one = loader(frames | {"workers": 1, "cache": True})
    one.set_state(state)
    assert_same(take(one, 2), reference[5:7])
    one.close()
    shards = [loader(frames, rows=rows) for rows in ([0, 1], [2, 3])]
    for batch in reference[:2]:
        parts = [next(shard) for shard in shards]
        assert_same([{name: np.concatenate([part[name] for part in parts]) for name in batch}], [batch])
    for shard in shards:
        shard.close()

    read, reads = FolderSource._read, []
    monkeypatch.setattr(FolderSource, "_read", lambda self, index: reads.append(index) or read(self, index))
    none = loader(frames | {"cache": True})
    reads.clear()  # the first frame is looked at when the source is made
    assert_same(take(none, 9), reference)
    none.close()
    assert sorted(reads) == list(range(6))


SIGNALLED = """
import signal, sys
from mf_jax.data.config import DataConfig
from mf_jax.data.procedural.source import ProceduralConfig
from mf_jax.data.loader import build_train_loader
from mf_jax.data.tokenizer import ByteTokenizer

if __name__ == "__main__":
    got = []
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda number, frame: got.append(number))
    data = DataConfig(source=ProceduralConfig(train=100), resolution=(8, 8), workers=1)
    batches = build_train_loader(data, batch_size=2, tokenizer=ByteTokenizer(96), seed=0)
    next(batches)
    print("ready", flush=True)
    while len(got) < 3:
        next(batches)
    for _ in range(20):
        next(batches)
    print("went on", flush=True)
    while True:
        next(batches)
"""


def processes_of_group(group):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_ignore_the_signals_of_the_group_and_leave_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(mf_jax.data.__file__).parents[2])}
    log = tmp_path / "stderr.txt"
    with log.open("w") as stderr:
        parent = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
            start_new_session=True,
        )
    try:
        assert parent.stdout.readline() == "ready\n", log.read_text()
        assert len(processes_of_group(parent.pid)) >= 2
        os.killpg(parent.pid, signal.SIGTERM)
        os.killpg(parent.pid, signal.SIGINT)
        os.killpg(parent.pid, signal.SIGHUP)
        assert parent.stdout.readline() == "went on\n", log.read_text()
        assert "Traceback" not in log.read_text()
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while processes_of_group(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of_group(parent.pid)
    finally:
        if processes_of_group(parent.pid):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()


def test_data_never_imports_jax():
    """A worker process would claim a device."""
    for path in pathlib.Path(mf_jax.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                assert name.split(".")[0] not in ("jax", "jaxlib", "flax", "optax", "orbax"), f"{path.name}: {name}"
                if name.startswith("mf_jax"):
                    assert f"{name}.".startswith(("mf_jax.data.", "mf_jax.configurable.")), f"{path.name}: {name}"
