"""Configs: completion, overrides, and the errors that a user can make."""

import dataclasses
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from mf_jax.config import loading as configs
from mf_jax.data.readers.folder import FolderConfig
from mf_jax.data.sparsify import LidarLines, RandomPixels
from mf_jax.diffusion.noise_levels import PlateauLogitNormal
from mf_jax.joint_model import build_model
from mf_jax.modalities import depth, flux2_latent
from mf_jax.training.optimizer import AdamWConfig, MuonConfig

IMAGE = dict(kind="image", position=2, prediction="x", noise=dict(kind="logit_normal"))
SIXTEEN = dict(source=dict(kind="procedural", train=4), resolution=(16, 16))
SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_builds_and_is_short(path):
    """With an override of a key that only has a default."""
    folder = isinstance(configs.load(str(path)).data.source, FolderConfig)
    default = "data.source.max_depth=9.0" if folder else "data.source.seed=1"
    config = configs.load(str(path), [default, "data.sparsify={'kind': 'lidar', 'lines': 8}"])
    build_model(config)
    assert config.data.sparsify == LidarLines(lines=8)
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


def test_it_is_typed_and_frozen(make_tiny_config):
    config = configs.resolve(make_tiny_config())
    assert isinstance(config.optimizer, AdamWConfig) and isinstance(config.data.sparsify, RandomPixels)
    assert config.modalities["depth"].codec == depth.Codec(patch=8) and config.modalities["depth"].name == "depth"
    for section, name in ((config, "seed"), (config.train, "steps"), (config.modalities["image"], "weight")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, name, 3)


def test_the_saved_form_goes_through_json(make_tiny_config):
    """As checkpoints and exports hold it, complete: all that is not given is there too."""
    config = configs.resolve(make_tiny_config(), ["mesh.rules.mlp=()", "optimizer.kind=muon"])
    saved = json.loads(json.dumps(configs.to_dict(config)))
    assert configs.resolve_saved(saved) == config
    assert saved["modalities"]["depth"].items() >= {"kind": "depth", "patch": 8, "weight": 1.0, "position": 1}.items()
    assert saved["modalities"]["depth"]["noise"]["mu"] == 1.1 and saved["modes"]["joint"]["clean"] == []
    assert saved["optimizer"]["kind"] == "muon" and saved["text"]["kind"] == "byte"


def test_configs_that_were_saved_before_optimizers_had_keys_of_their_own(make_tiny_config):
    raw = make_tiny_config()
    raw["optimizer"] = {"kind": "adamw", "learning_rate": 0.5, "muon_learning_rate": 1e-3}
    assert configs.resolve_saved(raw).optimizer == AdamWConfig(learning_rate=0.5)
    with pytest.raises(ValueError, match="config key optimizer is None"):
        configs.resolve_saved(raw | {"optimizer": None})
    with pytest.raises(ValueError, match=r"unknown config key optimizer\.muon_learning_rate"):
        configs.resolve(raw)
    raw["optimizer"] |= {"kind": "muon", "muon_learning_rate": 2e-3}
    assert configs.resolve_saved(raw).optimizer == MuonConfig(learning_rate=0.5, muon_learning_rate=2e-3)


def test_another_kind_by_an_override(make_tiny_config):
    """It keeps the values of the keys that it knows, and takes its own; what is required may follow."""
    changes = ["optimizer.kind=muon", "optimizer.muon_learning_rate=0.5"]
    assert configs.resolve(make_tiny_config(), changes).optimizer == MuonConfig(
        learning_rate=1e-3, warmup=2, muon_learning_rate=0.5
    )
    folder = ["data.source.kind=folder", "data.source.root=x", "data.source.image=*.png"]
    splits = ["data.source.splits={'train': ':'}", "data.source.splits.test=4:"]
    config = configs.resolve(make_tiny_config(), [*folder, *splits])
    assert config.data.source == FolderConfig("x", "*.png", {"train": ":", "test": "4:"})
    with pytest.raises(ValueError, match=r"config key data\.source\.image is missing"):
        configs.resolve(make_tiny_config(), folder[:2])


def test_overrides_come_before_the_checks(make_tiny_config):
    """A config file may leave to the command line what is required, or what it cannot know."""
    raw = make_tiny_config()
    raw["data"]["source"] = {"kind": "folder", "image": "*.png", "splits": {"train": ":"}}
    raw["seed"] = -1
    config = configs.resolve(raw, ["data.source.root=x", "seed=3"])
    assert (config.data.source.root, config.seed) == ("x", 3)


def test_overrides_leave_the_config_file_and_the_defaults_alone(make_tiny_config):
    raw = make_tiny_config() | {"mesh": {"rules": {"mlp": "tensor"}}}
    config = configs.resolve(raw, ["mesh.rules.mlp=fsdp", "init.clone.a=b", "train.steps=17"])
    assert config.mesh.rules == {"mlp": "fsdp"} and config.init.clone == {"a": "b"}
    assert raw == make_tiny_config() | {"mesh": {"rules": {"mlp": "tensor"}}}
    again = configs.resolve(configs.to_dict(config), ["init.clone.c=d"])
    assert again.init.clone == {"a": "b", "c": "d"} and config.init.clone == {"a": "b"}
    assert configs.resolve(raw).init.clone == {}


def test_a_part_of_a_modality_by_an_override(make_tiny_config):
    """It is complete before the next override, which so takes the type of a default."""
    changes = ["modalities.image.noise={'kind': 'plateau_logit_normal'}", "modalities.image.noise.mu=0"]
    noise = configs.resolve(make_tiny_config(), changes).modalities["image"].noise
    assert noise == PlateauLogitNormal(mu=0.0) and isinstance(noise.mu, float)


def test_how_the_value_of_an_override_is_read(make_tiny_config):
    overrides = ["evaluate.depth_range=[1.0, 2.0]", "init.checkpoint=runs/lr=1e-3", "data.sparsify={'kind': 'lidar'}"]
    config = configs.resolve(make_tiny_config(), [*overrides, "data.sparsify.keep=1", "modalities.depth.noise.mu=0"])
    assert config.evaluate.depth_range == (1.0, 2.0) and config.init.checkpoint == "runs/lr=1e-3"
    for value in (config.data.sparsify.keep, config.modalities["depth"].noise.mu):
        assert isinstance(value, float)


def test_what_an_earlier_override_got_wrong_is_not_forgotten(make_tiny_config):
    with pytest.raises(ValueError, match=r"unknown config key optimizer\.learning_rat; did you mean 'learning_rate'"):
        configs.resolve(make_tiny_config(), ["optimizer.learning_rat=3", "optimizer.kind=muon"])


def test_the_profile_may_end_with_the_run(make_tiny_config):
    assert configs.resolve(make_tiny_config(), ["train.profile_steps=(0,6)"]).train.profile_steps == (0, 6)


def test_the_kind_of_noise_by_an_override(make_tiny_config):
    config = configs.resolve(make_tiny_config(), ["modalities.image.noise.kind=plateau_logit_normal"])
    assert config.modalities["image"].noise == PlateauLogitNormal()


def test_probabilities_may_be_off_by_rounding(make_tiny_config):
    """0.7 + 0.2 + 0.1 is not 1."""
    raw = make_tiny_config()
    for name, probability in (("joint", 0.7), ("i2d", 0.2), ("d2i", 0.1)):
        raw["modes"][name]["probability"] = probability
    total = sum(mode.probability for mode in configs.resolve(raw).modes.values())
    assert total != 1.0 and total == pytest.approx(1.0)


def test_another_codec_by_an_override(make_tiny_config):
    changes = ["modalities.image.weight=3.0", "modalities.image.kind=flux2_latent", "modalities.image.channels=64"]
    image = configs.resolve(make_tiny_config() | {"data": SIXTEEN}, changes).modalities["image"]
    assert image.codec == flux2_latent.Codec(channels=64) and image.weight == 3.0


def test_a_whole_section_by_an_override(make_tiny_config):
    new = "modalities.normals={'kind': 'image', 'position': 2, 'prediction': 'v', 'noise': {'kind': 'logit_normal'}}"
    changes = [new, "modalities.normals.scale=0.5", "modes.joint={'probability': 0.6}"]
    config = configs.resolve(make_tiny_config(), changes)
    assert config.modalities["normals"].codec.scale == 0.5 and config.modalities["normals"].noise.mu == 1.1
    assert config.modes["joint"].clean == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown config key train\.step; did you mean 'steps'"),
        ("trian.steps=3", r"unknown config key trian; did you mean 'train'"),
        ("data.source.seeed=3", r"unknown config key data\.source\.seeed; did you mean 'seed'"),
        ("data.sparsify.fractoin=0.1", r"fractoin"),
        ("data.source.kind=foldr", r"data\.source\.kind is 'foldr'; did you mean 'folder'"),
        ("data.source.seed.deeper=3", r"data\.source\.seed is a value; it has no key deeper"),
        ("modalities.depth.pach=3", r"unknown config key modalities\.depth\.pach; did you mean 'patch'"),
        ("modalities.depht.patch=3", r"unknown config key modalities\.depht; did you mean 'depth'"),
        ("modes.joint.probability=high", r"modes\.joint\.probability is float.*cannot be 'high'"),
        ("optimizer.kind=sgd", r"optimizer\.kind is 'sgd'; there are: adamw, muon"),
        ("model.kind=flux", r"model\.kind is 'flux'; did you mean 'flux2'"),
        ("seed=-1", r"seed is -1; it must be a whole number and at least 0"),
        ("data={'resolution': 3}", r"data"),
        ("data.resolution=(8,)", r"data\.resolution is \(8,\); it must be of the type tuple\[int, int\]"),
        ("data.workers=-1", r"data\.workers is -1"),
        ("sample.guide=imgae", r"sample\.guide is 'imgae'"),
        ("sample.guide=3", r"sample\.guide is str.*cannot be '3'"),
        ("evaluate.depth_range=(2.0, 1.0)", r"evaluate\.depth_range is \(2\.0, 1\.0\)"),
        ("evaluate.depth_range=(0.0, 1.0)", r"evaluate\.depth_range is \(0\.0, 1\.0\)"),
        ("evaluate.depth_range=(1.0, 1e999)", r"evaluate\.depth_range is \(1\.0, inf\)"),
        ("evaluate.ensemble=0", r"evaluate\.ensemble is 0; it must be a number and at least 1"),
        ("evaluate.steps=0", r"evaluate\.steps is 0; it must be a number and at least 1"),
        ("evaluate.batch=0", r"evaluate\.batch is 0; it must be a number and at least 1"),
        ("evaluate.images=-1", r"evaluate\.images is -1; it must be a number and at least 0"),
        ("evaluate.seed=-1", r"evaluate\.seed is -1; it must be a number and at least 0"),
        ("evaluate.ensemble_mode=mean", r"evaluate\.ensemble_mode is 'mean'; it must be 'scale_only', 'median'"),
        ("checkpoint.every=0", r"checkpoint\.every is 0; it must be a number and at least 1"),
        ("checkpoint.keep=0", r"checkpoint\.keep is 0; it must be a number and at least 1"),
        ("checkpoint.keep_every=-1", r"checkpoint\.keep_every is -1; it must be a number and at least 0"),
        ("init.weights=average", r"init\.weights is 'average'; it must be 'ema' or 'params'"),
        ("sample.steps=0", r"sample\.steps is 0; it must be a number and at least 1"),
        ("sample.guidance=-1.0", r"sample\.guidance is -1\.0; it must be a number and at least 0"),
        ("modalities.depth.weigth=3", r"unknown config key modalities\.depth\.weigth; did you mean 'weight'"),
        ("modalities.depth.weight=-1.0", r"modalities\.depth\.weight is -1\.0; it must be a number and at least 0"),
        ("modalities.depth.weight=heavy", r"modalities\.depth\.weight is float.*cannot be 'heavy'"),
        ("modalities.image.scale=big", r"modalities\.image\.scale is float.*cannot be 'big'"),
        ("modalities.depth.patch=big", r"modalities\.depth\.patch is int.*cannot be 'big'"),
        ("modalities.depth.decoder_blocks=-1", r"modalities\.depth\.decoder_blocks is -1; it must be a number"),
        ("modalities.depth.noise.sgima=3", r"unknown config key modalities\.depth\.noise\.sgima; did you mean 'sigma'"),
        ("data.source={'train': 3}", r"config key data\.source\.kind is missing; there are: procedural, folder"),
        ("data.sparsify={'fraction': 0.5}", r"config key data\.sparsify\.kind is missing; there are: none"),
        ("data.resolution=(0, 16)", r"data\.resolution is \(0, 16\); it must be two positive integers"),
        ("data.resolution=(16.0, 16)", r"data\.resolution is \(16\.0, 16\); it must be of the type tuple\[int, int\]"),
        ("data.resolution=(True, 16)", r"data\.resolution is \(True, 16\); it must be of the type tuple\[int, int\]"),
        ("train={'stepz': 3}", r"unknown config key train\.stepz; did you mean 'steps'"),
        ("train.log_every=0", r"train\.log_every is 0; it must be a number and at least 1"),
        ("train.batch=0", r"train\.batch is 0; it must be a number and at least 1"),
        ("train.accumulate=0", r"train\.accumulate is 0; it must be a number and at least 1"),
        ("train.ema_decay=-0.1", r"train\.ema_decay is -0\.1; it must be in \[0, 1\)"),
        ("objective.caption_dropout=1.5", r"objective\.caption_dropout is 1\.5, it must be in \[0, 1\]"),
        ("objective.t_floor=0.0", r"objective\.t_floor is 0\.0, it must be above 0"),
        ("objective.distill_high=-1.0", r"objective\.distill_high is -1\.0; it must be a number and at least 0"),
        ("objective.distill_low=-1.0", r"objective\.distill_low is -1\.0; it must be a number and at least 0"),
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
        (("modalities", "depth", "kind"), "dept", r"modalities\.depth\.kind is 'dept'; did you mean 'depth'"),
        (("modalities", "depth", "kind"), "patches", r"modalities\.depth\.kind is 'patches'; there are: depth, flux2"),
        (("modalities", "depth", "kind"), "mf_jax.modalities.patches", "has no dataclass Codec"),
        (
            ("modalities", "depth", "kind"),
            "no.such.module",
            r"depth\.kind is 'no\.such\.module': No module",
        ),
        (("modalities", "depth"), {"position": 1}, r"config key modalities\.depth\.kind is missing; there are"),
        (("modalities", "depth", "position"), -1, r"modalities\.depth\.position is -1"),
        (("modalities", "depth", "noise"), {}, r"config key modalities\.depth\.noise\.kind is missing"),
        (("modalities", "text"), IMAGE, "a modality cannot be called 'text'"),
        (("modalities", "depth", "kind"), ".image", r"modalities\.depth\.kind is '\.image'; did you mean 'image'"),
        (("modalities", "depth", "kind"), {"a": 1}, r"modalities\.depth\.kind is \{'a': 1\}; there are: depth"),
        (("optimizer",), {"kind": {"a": 1}}, r"optimizer\.kind is \{'a': 1\}; there are: adamw, muon"),
        (("modalities", "depth", "kind"), ".a.b", r"modalities\.depth\.kind is '\.a\.b'"),
        (("modalities", "depth", "position"), 1.5, r"modalities\.depth\.position is 1\.5; it must be a whole number"),
        (
            ("modalities", "depth", "noise"),
            {"kind": "logit_normal", "mu": "a"},
            r"depth\.noise\.mu is 'a'; it must be a",
        ),
        (("modes", "joint", "probability"), "0.6", r"modes\.joint\.probability is '0\.6'; it must be a number"),
        (("evaluate",), {"depth_range": (1.0,)}, r"evaluate\.depth_range is \(1\.0,\); it must be of the type tuple"),
        (("evaluate",), {"split": 3}, r"evaluate\.split is 3; it must be a string"),
        (("sample",), {"mu": "a"}, r"sample\.mu is 'a'; it must be a number"),
        (("sample",), {"log2_alpha": None}, r"sample\.log2_alpha is None; it must be a number"),
        (("train", "freeze"), "text", r"train\.freeze is 'text'; it must be of the type tuple\[str, \.\.\.\]"),
        (("mesh",), {"rules": 3}, r"mesh\.rules is 3; it must be of the type Mapping"),
        (("init",), {"clone": {"a": 3}}, r"init\.clone is \{'a': 3\}; it must be of the type Mapping\[str, str\]"),
        (("data", "cache"), 1, r"data\.cache is 1; it must be True or False"),
        (("optimizer",), None, "config key optimizer is None; it must be a section"),
        (("modalities",), {}, "config section modalities is empty"),
        (("modes",), {}, "config section modes is empty"),
        (("modalities", "depth", "prediction"), "eps", r"modalities\.depth\.prediction is 'eps'"),
        (("modalities", "depth", "noise"), {"kind": "uniform"}, r"modalities\.depth\.noise\.kind is 'uniform'"),
        (("modalities", "depth", "position"), 0, "share a position"),
        (("modalities", "depth", "weigth"), 3, r"unknown config key modalities\.depth\.weigth; did you mean 'weight'"),
        (("modes", "joint", "probability"), 0.5, "probabilities of modes sum to 0.9"),
        (("modes", "joint", "probability"), 0.7, r"probabilities of modes sum to 1\.1"),
        (("data", "cache"), 1, r"data\.cache is 1; it must be True or False"),
        (("train", "dump_hlo"), 1, r"train\.dump_hlo is 1; it must be True or False"),
        (("train", "compilation_cache"), 3, r"train\.compilation_cache is 3; it must be a string"),
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
    """All but what depends on the model's tokens is found when the config is resolved."""
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
    (tmp_path / "config.txt").write_text("def get_config():\n    return {}\n")
    with pytest.raises(ValueError, match=r"config\.txt is not Python; its name must end in \.py"):
        configs.load(str(tmp_path / "config.txt"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no get_config"):
        configs.load(str(tmp_path / "empty.py"))
    (tmp_path / "plain.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(ValueError, match="takes no argument"):
        configs.load(str(tmp_path / "plain.py") + ":this")
    with pytest.raises(ValueError, match="config key data"):
        configs.load(str(tmp_path / "plain.py"))


def test_a_file_may_take_an_argument(tmp_path, make_tiny_config):
    text = f"def get_config(argument='3'):\n    return {make_tiny_config()!r} | dict(seed=int(argument))\n"
    (tmp_path / "file.py").write_text(text)
    assert configs.load(str(tmp_path / "file.py")).seed == 3
    assert configs.load(str(tmp_path / "file.py") + ":7").seed == 7
    assert configs.load(str(tmp_path / "file.py") + ":7", ["seed=8"]).seed == 8


def test_the_codec_of_a_module_is_a_dataclass(tmp_path, monkeypatch, make_tiny_config):
    (tmp_path / "modules_of_a_test").mkdir()
    (tmp_path / "modules_of_a_test" / "plain.py").write_text("class Codec:\n    channels = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    raw = make_tiny_config()
    raw["modalities"]["depth"]["kind"] = "modules_of_a_test.plain"
    with pytest.raises(ValueError, match=r"the module modules_of_a_test\.plain has no dataclass Codec"):
        configs.resolve(raw)
