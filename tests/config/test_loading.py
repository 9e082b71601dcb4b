"""Configs: completion, overrides, and the errors that a user can make."""

import pathlib

import pytest
from ml_collections import ConfigDict

from mf_jax.config import loading as configs
from mf_jax.joint_model import build_model

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_builds_and_is_short(path):
    """With an override of a key that only has a default."""
    folder = configs.load(str(path)).data.source.kind == "folder"
    default = "data.source.max_depth=9.0" if folder else "data.source.seed=1"
    config = configs.load(str(path), [default, "data.sparsify={'kind': 'lidar', 'lines': 8}"])
    build_model(config)
    assert config.data.sparsify.to_dict() == {"kind": "lidar", "lines": 8}
    assert len(path.read_text().splitlines()) <= 100


def test_defaults_are_filled_in_and_overrides_win(make_tiny_config):
    config = configs.resolve(
        make_tiny_config(), ["train.steps=17", "optimizer.learning_rate=1", "optimizer.schedule=cosine"]
    )
    assert config.train.steps == 17
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.b1 == 0.9
    assert config.evaluate.split == "test"


def test_a_config_dict_is_as_good_as_a_dict(make_tiny_config):
    assert configs.resolve(ConfigDict(make_tiny_config())) == configs.resolve(make_tiny_config())


def test_resolving_is_idempotent(make_tiny_config):
    config = configs.resolve(make_tiny_config(), ["train.steps=17"])
    assert configs.resolve(configs.to_dict(config)) == config
    assert configs.difference(config, config) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown config key train\.step; did you mean 'steps'"),
        ("trian.steps=3", r"unknown config key trian; did you mean 'train'"),
        ("data.source.seeed=3", r"unknown key source\.seeed for kind 'procedural'; did you mean 'seed'"),
        ("data.sparsify.fractoin=0.1", r"fractoin"),
        ("sample.guide=3", r"sample\.guide is str.*cannot be '3'"),
        ("evaluate.depth_range=(2.0, 1.0)", r"evaluate\.depth_range is \(2\.0, 1\.0\)"),
        ("train.steps", r"--config\.train\.steps has no value"),
        ("train.steps=many", r"train\.steps is int.*cannot be 'many'"),
        ("train.steps=1.5", r"train\.steps is int"),
        ("train=3", r"train is a section"),
        ("train.steps=0", r"train\.steps is 0; it must be a number and at least 1"),
        ("train.accumulate=3", r"train\.batch 8 is not divisible by train\.accumulate 3"),
        ("train.ema_decay=1.0", r"ema_decay is 1\.0"),
        ("train.profile_steps=(3,3)", r"train\.profile_steps is \(3, 3\); it must be \(first, last\) with 0 <= first"),
        ("train.profile_steps=(-1,3)", r"train\.profile_steps is \(-1, 3\)"),
        ("train.profile_steps=(2,7)", r"train\.profile_steps is \(2, 7\).*last <= train\.steps \(6\)"),
        ("train.profile_steps=(1,2,3)", r"train\.profile_steps is \(1, 2, 3\)"),
        ("train.profile_steps=(1.0,2)", r"train\.profile_steps is \(1\.0, 2\)"),
        ("train.profile_steps=3", r"train\.profile_steps is tuple.*cannot be '3'"),
        ("train.dump_hlo=yes", r"train\.dump_hlo is bool.*cannot be 'yes'"),
        ("train.compilation_cache=True", r"train\.compilation_cache is str.*cannot be 'True'"),
    ],
)
def test_bad_overrides(make_tiny_config, override, message):
    raw = make_tiny_config()
    with pytest.raises(ValueError, match=message):
        configs.resolve(raw, [override])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("optimiser",), {}, "unknown config key optimiser; did you mean 'optimizer'"),
        (("train", "steps"), 2.5, r"train\.steps is 2\.5; it must be a whole number"),
        (("train", "stepz"), 3, r"unknown config key train\.stepz; did you mean 'steps'"),
        (("modalities", "depth", "pach"), 3, r"unknown config key modalities\.depth\.pach; did you mean 'patch'"),
        (("modalities", "depth", "kind"), "dept", r"modalities\.depth\.kind is 'dept'"),
        (("modalities", "depth", "prediction"), "eps", r"modalities\.depth\.prediction is 'eps'"),
        (("modalities", "depth", "noise"), {"kind": "uniform"}, r"modalities\.depth\.noise\.kind is 'uniform'"),
        (("modalities", "depth", "position"), 0, "share a position"),
        (("modes", "joint", "probability"), 0.5, "probabilities of modes sum to 0.9"),
        (("modes", "i2d", "clean"), ("normals",), r"modes\.i2d\.clean names 'normals'"),
        (("modes", "i2d", "clean"), ("image", "depth"), r"modes\.i2d holds every modality clean"),
        (("modes", "joint", "clean"), ("image",), r"modes\.joint holds \('image',\) clean; 'joint' is the name of"),
        (("modes", "partial"), {"probability": 0.0}, r"modes\.partial holds \(\) clean"),
        (("data", "resolution"), (20, 16), "resolution 20x16 is not divisible by the image patch size 8"),
        (("model", "heads"), 3, "heads must divide the width"),
        (("text", "max_bytes"), 97, r"text\.max_bytes is 97; it must be a multiple of text\.group"),
    ],
)
def test_bad_configs(make_tiny_config, path, value, message):
    raw = make_tiny_config()
    section = raw
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        build_model(configs.resolve(raw))


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="no config file"):
        configs.load(str(tmp_path / "absent.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no get_config"):
        configs.load(str(tmp_path / "empty.py"))
    (tmp_path / "plain.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(ValueError, match="takes no argument"):
        configs.load(str(tmp_path / "plain.py") + ":this")
    with pytest.raises(ValueError, match="config key data"):
        configs.load(str(tmp_path / "plain.py"))
