"""Sampling from a trained model, in every mode, from Python."""

import jax
import numpy as np
import pytest

import mf_jax
from mf_jax import train
from mf_jax.config import loading as configs
from mf_jax.inference.pipeline import load
from mf_jax.interop import export
from mf_jax.training import optimizer


@pytest.fixture(scope="module")
def workdir(make_tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pipeline")
    raw = make_tiny_config()
    raw["optimizer"] = {"learning_rate": 3e-3, "warmup": 2}
    train.train(configs.resolve(raw, ["train.steps=20"]), workdir)
    return workdir


@pytest.fixture(scope="module")
def pipeline(workdir):
    return mf_jax.load(workdir)


def picture(seed=0, shape=(16, 16)):
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)


def ramp(shape=(16, 16)):
    return np.linspace(1.0, 4.0, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def test_joint(pipeline):
    result = pipeline.sample("joint", "a room", steps=3, batch=3)
    assert result["image"].shape == (3, 16, 16, 3) and result["image"].dtype == np.uint8
    assert result["depth"].shape == (3, 16, 16) and result["depth"].dtype == np.float32
    assert not np.array_equal(result["image"][0], result["image"][1])


def test_conditions_come_back_as_the_model_saw_them(pipeline):
    image = picture()
    assert np.array_equal(pipeline.sample("i2d", image=image, steps=2)["image"][0], image)
    depth = ramp()
    depth[3:6] = np.nan
    for mode in ("d2i", "partial"):
        back = pipeline.sample(mode, depth=depth, steps=2)["depth"][0]
        assert (back[3:6] == 0).all()
        expected = depth / np.nanmean(depth)
        np.testing.assert_allclose(back[:3], expected[:3], rtol=1e-5)


def test_seeds_decide_and_the_batch_does_not(pipeline):
    image = picture()
    one = pipeline.sample("i2d", image=image, steps=2, seed=np.array([7]))["depth"][0]
    many = pipeline.sample("i2d", image=np.stack([picture(1), image]), steps=2, seed=np.array([3, 7]))["depth"]
    np.testing.assert_allclose(many[1], one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(many[0], many[1])
    again = pipeline.sample("joint", "x", steps=2, seed=4)
    assert np.array_equal(again["image"], pipeline.sample("joint", "x", steps=2, seed=4)["image"])
    assert not np.array_equal(again["image"], pipeline.sample("joint", "x", steps=2, seed=5)["image"])


def test_values_of_missing_depth_do_not_matter(pipeline):
    depth = ramp()
    hidden = depth.copy()
    depth[2:9, 3:7], hidden[2:9, 3:7] = 0.0, np.inf
    a, b = (pipeline.sample("d2i", depth=d, steps=2, guidance=1.0)["image"] for d in (depth, hidden))
    assert np.array_equal(a, b)


def test_guidance_and_its_streams(pipeline):
    settings = {"mode": "joint", "prompt": "a red box", "steps": 2, "log2_alpha": 0.0}
    plain = pipeline.sample(**settings, guidance=1.0)
    every = pipeline.sample(**settings, guidance=8.0)
    image_only = pipeline.sample(**settings, guidance=8.0, guide="image")
    assert not np.array_equal(plain["depth"], every["depth"])
    assert not np.array_equal(image_only["depth"], every["depth"])
    depth_only = pipeline.sample(**settings, guidance=8.0, guide="depth")
    assert not np.array_equal(depth_only["image"], image_only["image"])
    assert pipeline.guidance_of("i2d") == 1.0 and pipeline.guidance_of("joint") == pipeline.config.sample.guidance


def test_refining_replaces_the_depth_by_that_of_the_image(pipeline):
    plain = pipeline.sample("joint", "a room", steps=2, seed=1)
    refined = pipeline.sample("joint", "a room", steps=2, seed=1, refine=True)
    assert np.array_equal(plain["image"], refined["image"])
    assert not np.array_equal(plain["depth"], refined["depth"])
    second = pipeline.sample("i2d", "a room", image=plain["image"], steps=2, seed=1)
    np.testing.assert_allclose(refined["depth"], second["depth"], rtol=0.05)  # up to the rounding to 8 bits
    assert not np.allclose(plain["depth"], second["depth"], rtol=0.05)


def test_inputs_of_another_size_are_resized(pipeline):
    assert pipeline.sample("i2d", image=picture(shape=(40, 60)), steps=1)["depth"].shape == (1, 16, 16)
    assert pipeline.sample("d2i", depth=ramp((40, 60)), steps=1)["image"].shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "depth"}, "mode is 'depth'; it must be one of joint, d2i, i2d, partial"),
        ({"mode": "i2d"}, "mode 'i2d' needs image"),
        ({"mode": "joint", "image": picture()}, "mode 'joint' takes no image"),
        ({"mode": "partial"}, "mode 'partial' needs depth"),
        ({"mode": "partial", "image": picture(), "depth": ramp()}, "mode 'partial' takes no image"),
        (
            {"mode": "i2d", "imgae": picture()},
            "'imgae' is no modality of this model and no setting; did you mean 'image'",
        ),
        ({"stepz": 3}, "'stepz' is no modality of this model and no setting; did you mean 'steps'"),
        ({"mode": "i2d", "image": picture().astype(float)}, "dtype float64; it must be uint8"),
        ({"mode": "d2i", "depth": np.ones((3,))}, r"depth has shape \(3,\)"),
        ({"mode": "d2i", "depth": np.zeros((16, 16))}, "depth has no valid pixel"),
        ({"prompt": "x" * 97}, "text of 97 UTF-8 bytes exceeds the limit of 96"),
        ({"prompt": ["a", "b"], "seed": np.array([1, 2, 3])}, "different numbers of examples"),
        ({"steps": 0}, "sampling steps is 0"),
        ({"guide": "normals"}, "guide is 'normals'; it must be 'all' or one of image, depth"),
        ({"mode": "i2d", "image": picture(), "refine": True}, "refine is for mode 'joint'"),
        ({"mode": "i2d", "image": picture(), "log2_alpha": 1.0}, "log2_alpha is for the modes"),
    ],
)
def test_bad_input(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.sample(**arguments)


def test_the_guide_of_the_config_is_a_modality_too(workdir):
    with pytest.raises(ValueError, match=r"sample\.guide is 'imgae'; it must be one of 'all', 'image', 'depth'"):
        load(workdir, overrides=["sample.guide=imgae"])


def test_loading_makes_no_optimizer(workdir, pipeline, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("an optimizer is made")

    export.export(workdir, tmp_path / "exported")
    monkeypatch.setattr(optimizer.AdamWConfig, "make", fail)
    for directory in (workdir, tmp_path / "exported"):
        params = mf_jax.load(directory).params
        jax.tree.map(np.testing.assert_array_equal, params, pipeline.params)


def test_there_must_be_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no checkpoints in"):
        mf_jax.load(tmp_path)


def test_a_text_to_image_model_trains_and_samples(make_tiny_config, tmp_path):
    raw = make_tiny_config()
    del raw["modalities"]["depth"]
    raw["modes"] = {"joint": {"probability": 1.0}}
    train.train(configs.resolve(raw, ["train.steps=2"]), tmp_path)
    model = mf_jax.load(tmp_path)
    result = model.sample("joint", "a room", steps=2)
    assert list(result) == ["image"] and result["image"].shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match=r"mode is 'i2d'; it must be one of joint$"):
        model.sample("i2d", image=picture())
    with pytest.raises(ValueError, match="'depth' is no modality of this model"):
        model.sample("joint", depth=ramp())
    with pytest.raises(ValueError, match=r"no mode conditioned on image alone; its modes are joint \(nothing\)"):
        model.sample("joint", refine=True)
