"""A third modality costs one file and a config entry: it trains and is sampled without a change to the program."""

import json
import pathlib

import numpy as np
import pytest

import mf_jax
from mf_jax import train
from mf_jax.config import loading as configs


@pytest.fixture
def toy_config(make_tiny_config, monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    raw = make_tiny_config()
    raw["modalities"]["brightness"] = {
        "kind": "toy.brightness",
        "position": 2,
        "patch": 8,
        "prediction": "v",
        "noise": {"kind": "logit_normal", "mu": 0.0},
    }
    raw["modes"] = {
        "joint": {"probability": 0.5},
        "image_to_rest": {"probability": 0.5, "clean": ("image",)},
    }
    raw["optimizer"] = {"learning_rate": 3e-3, "warmup": 2}
    raw["train"] |= {"steps": 60, "log_every": 10}
    return configs.resolve(raw)


def test_it_trains_and_samples(toy_config, tmp_path):
    assert train.train(configs.resolve(configs.to_dict(toy_config), ["train.steps=30"]), tmp_path) == 30
    assert train.train(toy_config, tmp_path) == 60  # the module is named by the config that the run is given
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss/brightness", "loss/brightness/joint", "loss/brightness/image_to_rest"):
        assert all(np.isfinite(entry[key]) for entry in entries)
    assert entries[-1]["loss/brightness"] < 0.9 * entries[0]["loss/brightness"]

    with pytest.raises(ValueError, match=r"modalities\.brightness\.kind is 'toy\.brightness'.*--trust-code"):
        mf_jax.load(tmp_path)
    result = mf_jax.load(tmp_path, trust_code=True).sample("joint", "a room", steps=2)
    assert result["brightness"].shape == (1, 16, 16)
    assert np.isfinite(result["brightness"]).all()
