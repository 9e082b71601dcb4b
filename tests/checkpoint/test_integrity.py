"""Damage to the files of a checkpoint, found without reading its arrays."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from mf_jax.checkpoint import integrity
from mf_jax.checkpoint.manager import Checkpoints, Damaged
from mf_jax.config.sections import CheckpointConfig

TREE = {
    "big": np.random.default_rng(0).standard_normal((50, 200)).astype(np.float32),
    "scalar": np.float32(1.0),
    **{f"small{i}": np.full((2, 2), i, np.float32) for i in range(300)},
}


def abstract(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=device), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, CheckpointConfig())
    for step in (3, 6):
        checkpoints.save(step, {"params": jax.tree.map(jax.numpy.asarray, TREE)}, {"position": step}, {"seed": 0})
    checkpoints.close()
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "array file missing": (
        lambda c: largest(c / "params" / "ocdbt.process_0").unlink(),
        "ocdbt.process_0/d/.* is miss",
    ),
    "array file truncated": (lambda c: cut(largest(c / "params" / "ocdbt.process_0")), "is truncated: .* bytes of at"),
    "index missing": (lambda c: (c / "params" / "manifest.ocdbt").unlink(), "params/manifest.ocdbt is missing"),
    "index truncated": (lambda c: cut(c / "params" / "manifest.ocdbt"), "the index of params cannot be read"),
    "node missing": (lambda c: shutil.rmtree(c / "params" / "d"), "the index of params cannot be read"),
    "item missing": (lambda c: shutil.rmtree(c / "params"), "params is missing"),
    "position missing": (lambda c: shutil.rmtree(c / "iterator"), "iterator is missing"),
    "config file missing": (lambda c: (c / "config" / "metadata").unlink(), "config/metadata is missing"),
    "config truncated": (lambda c: cut(c / "config" / "metadata"), "config/metadata is not JSON"),
    "config a list": (lambda c: (c / "config" / "metadata").write_text("[]"), "config/metadata is no JSON object"),
    "config empty": (lambda c: (c / "config" / "metadata").write_text("{}"), "config/metadata is empty"),
    "config binary": (lambda c: (c / "config" / "metadata").write_bytes(b"\xff\xfe{}"), "config/metadata is not JSON"),
    "metadata missing": (lambda c: (c / "_CHECKPOINT_METADATA").unlink(), "_CHECKPOINT_METADATA is missing"),
    "metadata garbled": (lambda c: (c / "_CHECKPOINT_METADATA").write_text("{"), "_CHECKPOINT_METADATA is not JSON"),
    "tree garbled": (lambda c: cut(c / "params" / "_METADATA"), "params/_METADATA is not JSON"),
    "empty": (lambda c: [shutil.rmtree(c), c.mkdir()], "_CHECKPOINT_METADATA is missing"),
}


def test_an_intact_checkpoint_has_no_damage(saved):
    assert integrity.steps(saved) == [3, 6]
    assert integrity.damage(saved / "3") is None
    shapes = integrity.shapes(saved / "3" / "params")
    assert shapes == {name: value.shape for name, value in TREE.items()}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_so_is_the_way_out(copy, kind):
    do, reason = DAMAGES[kind]
    do(copy / "6")
    checkpoints = Checkpoints(copy)
    with pytest.raises(Damaged, match=rf"checkpoint .*/6 is damaged: .*{reason}.*--step=3 \(there are \[3\]\)"):
        checkpoints.intact()
    assert checkpoints.intact(3) == 3
    checkpoints.close()


def test_a_file_system_that_fails_is_no_damage(copy, monkeypatch):
    def failing(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "read_bytes", failing)
    with pytest.raises(PermissionError):
        integrity.damage(copy / "6")
    with pytest.raises(OSError, match="EIO"):
        integrity.raise_system_error(ValueError("UNAVAILABLE: Error reading: EIO [os_error_code='5']"))
    integrity.raise_system_error(ValueError("NOT_FOUND: no file [os_error_code='2']"))


def test_chunks_that_cannot_be_decoded_are_damage_and_other_shapes_are_not(tmp_path):
    """One array: orbax leaves the reading of others unfinished, which Python complains of."""
    tree = {"big": jax.numpy.asarray(TREE["big"])}
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, {"params": tree}, {"position": 3}, {"seed": 0})
    checkpoints.save(6, {"params": tree}, {"position": 6}, {"seed": 0})
    checkpoints.close()
    path = largest(tmp_path / "6" / "params" / "ocdbt.process_0")
    content = bytearray(path.read_bytes())
    content[:16] = bytes(16)
    path.write_bytes(content)
    assert integrity.damage(tmp_path / "6") is None
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Damaged, match=r"checkpoint .*/6 is damaged: .*--step=3"):
        checkpoints.restore({"params": abstract(tree)})
    for other, message in (
        ({"big": np.zeros((7, 200))}, r"params has big of shape \(50, 200\), not \(7, 200\)"),
        (tree | {"new": np.zeros(1)}, "params has no new"),
        ({"new": np.zeros(1)}, "params has big, which is not of this config"),
    ):
        for step in (3, 6):
            with pytest.raises(ValueError, match=f"does not hold the arrays of this config: {message}") as error:
                checkpoints.restore({"params": abstract(other)}, step)
            assert not isinstance(error.value, Damaged)
    checkpoints.close()
