"""The loop on a mesh of eight devices."""

import json

import jax
import numpy as np
import pytest

from mf_jax import train
from mf_jax.checkpoint.manager import Checkpoints, digest
from mf_jax.config import loading as configs
from mf_jax.config.sections import CheckpointConfig
from mf_jax.joint_model import build_model
from mf_jax.parallel import sharding
from mf_jax.training import train_state


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_that_the_devices_do_not_divide(tiny_config, tmp_path):
    config = configs.resolve(tiny_config, ["train.batch=12"])
    with pytest.raises(
        ValueError, match=r"train\.batch 12 is not divisible by 1 \(train\.accumulate\) x 8 \(the devices"
    ):
        train.train(config, tmp_path)


MESHES = {
    "data": dict(data=8),
    "fsdp": dict(data=1, fsdp=8),
    "data-fsdp-tensor": dict(data=2, fsdp=2, tensor=2),
    "fsdp-context": dict(data=1, fsdp=4, context=2),
}
PARTS = ("params", "ema", "opt_state")


@pytest.fixture(scope="module")
def layouts(make_tiny_config):
    """By mesh, and by None for one device: the parts of a train state as shapes and shardings."""
    raw = make_tiny_config()
    raw["model"] |= dict(heads=4, kv_heads=2)
    raw["optimizer"]["kind"] = "muon"
    config = configs.resolve(raw)
    model = build_model(config)
    meshes = {name: sharding.make_mesh(sharding.MeshConfig(**sizes)) for name, sizes in MESHES.items()}
    states = {name: train_state.abstract(model, config, mesh) for name, mesh in (meshes | {None: None}).items()}
    return {name: {part: getattr(state, part) for part in PARTS} for name, state in states.items()}


@pytest.mark.parametrize("saved_on", MESHES)
def test_a_checkpoint_restores_on_any_mesh_and_on_one_device(saved_on, layouts, randomised, tmp_path):
    """Bitwise, in all its parts; and each device holds what the new mesh gives it, no more."""
    arrays = randomised(layouts[None], seed=3)
    placed = jax.tree.map(lambda x, a: jax.device_put(x.astype(a.dtype), a.sharding), arrays, layouts[saved_on])
    expected = {name: digest(tree) for name, tree in placed.items()}
    writer = Checkpoints(tmp_path, CheckpointConfig())
    writer.save(7, placed, {}, {})
    writer.close()
    reader = Checkpoints(tmp_path)
    for wanted in layouts.values():
        restored = reader.restore(wanted)
        assert {name: digest(tree) for name, tree in restored.items()} == expected
        for got, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
            assert got.sharding.is_equivalent_to(asked.sharding, got.ndim)
    reader.close()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_on_another_mesh(optimizer, make_tiny_config, tmp_path):
    """Saved with all parameters whole, restored split over eight devices: the losses are those of one mesh."""
    kind = f"optimizer.kind={optimizer}"
    whole, split = (configs.resolve(make_tiny_config(), [kind, f"mesh.fsdp={n}"]) for n in (1, 8))
    train.train(whole, tmp_path / "straight")
    train.train(configs.resolve(make_tiny_config(), [kind, "train.steps=3"]), tmp_path / "moved")
    train.train(split, tmp_path / "moved")
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "straight"), rtol=1e-4)
