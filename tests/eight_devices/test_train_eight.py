"""The loop on a mesh of eight devices."""

import json

import numpy as np
import pytest

from mf_jax import config as configs
from mf_jax import train


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_that_the_devices_do_not_divide(tiny_config, tmp_path):
    config = configs.resolve(tiny_config, ["train.batch=12"])
    with pytest.raises(ValueError, match=r"train\.batch 12 is not divisible by 1 \(train\.accumulate\) x 8 devices"):
        train.train(config, tmp_path)


def test_a_run_goes_on_on_another_mesh(make_tiny_config, tmp_path):
    """Saved with all parameters whole, restored split over eight devices: the losses are those of one mesh."""
    whole, split = (configs.resolve(make_tiny_config(), [f"mesh.fsdp={n}"]) for n in (1, 8))
    train.train(whole, tmp_path / "straight")
    train.train(configs.resolve(make_tiny_config(), ["train.steps=3"]), tmp_path / "moved")
    train.train(split, tmp_path / "moved")
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "straight"), rtol=1e-4)
