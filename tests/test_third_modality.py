"""A third modality costs one file and a config entry: it trains, is sampled and is a condition."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import mf_jax
from mf_jax import train
from mf_jax.__main__ import main
from mf_jax.config import loading as configs


@pytest.fixture(scope="module")
def workdir(make_tiny_config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pathlib.Path(__file__).parent))
        workdir = tmp_path_factory.mktemp("third") / "run"
        assert train.train(configs.resolve(_config(make_tiny_config())), workdir) == 60
        yield workdir


@pytest.fixture(scope="module")
def pipeline(workdir):
    return mf_jax.load(workdir, trust_code=True)


def _config(raw):
    raw["modalities"]["brightness"] = {
        "kind": "toy.brightness",
        "position": 2,
        "patch": 8,
        "prediction": "v",
        "noise": {"kind": "logit_normal", "mu": 0.0},
    }
    raw["modes"] = {
        "joint": {"probability": 0.4},
        "image_to_rest": {"probability": 0.3, "clean": ("image",)},
        "brightness_to_rest": {"probability": 0.2, "clean": ("brightness",)},
        "both_to_depth": {"probability": 0.1, "clean": ("image", "brightness")},
    }
    raw["optimizer"] = {"learning_rate": 3e-3, "warmup": 2}
    raw["train"] |= {"steps": 60, "log_every": 10}
    return raw


def ramp(shape=(16, 16)):
    return np.linspace(-0.8, 0.8, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def test_it_trains(workdir):
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss/brightness", "loss/brightness/joint", "loss/brightness/image_to_rest"):
        assert all(np.isfinite(entry[key]) for entry in entries)
    assert entries[-1]["loss/brightness"] < 0.9 * entries[0]["loss/brightness"]


def test_the_modes_are_those_of_the_config(pipeline):
    assert list(pipeline.modes) == ["joint", "both_to_depth", "brightness_to_rest", "image_to_rest", "partial"]
    assert pipeline.mode_of(["brightness"]) == "brightness_to_rest"
    assert pipeline.mode_of(["brightness", "image"]) == "both_to_depth"
    assert pipeline.guidance_of("both_to_depth") == 1.0
    assert pipeline.guidance_of("brightness_to_rest") == pipeline.config.sample.guidance != 1.0


def test_it_is_sampled_with_the_others(pipeline):
    result = pipeline.sample("joint", "a room", steps=2)
    assert set(result) == {"image", "depth", "brightness"}
    assert result["brightness"].shape == (1, 16, 16) and np.isfinite(result["brightness"]).all()
    refined = pipeline.sample("joint", "a room", steps=2, refine=True)
    assert np.array_equal(refined["image"], result["image"])
    for name in ("depth", "brightness"):
        assert not np.array_equal(refined[name], result[name])


def test_it_is_a_condition(pipeline):
    """Held clean it comes back as it was given; what is made follows it; missing pixels do not matter."""
    given = ramp()
    given[2:5] = np.nan
    result = pipeline.sample("brightness_to_rest", "a room", brightness=given, steps=2)
    assert result["image"].shape == (1, 16, 16, 3) and result["depth"].shape == (1, 16, 16)
    np.testing.assert_array_equal(result["brightness"][0], np.nan_to_num(given))
    other = pipeline.sample("brightness_to_rest", "a room", brightness=-given, steps=2)
    assert not np.array_equal(other["image"], result["image"]) and not np.array_equal(other["depth"], result["depth"])
    assert pipeline.sample("brightness_to_rest", brightness=ramp((40, 60)), steps=1)["depth"].shape == (1, 16, 16)


def test_it_is_a_condition_beside_another(pipeline):
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    result = pipeline.sample("both_to_depth", image=image, brightness=ramp(), steps=2)
    np.testing.assert_array_equal(result["image"][0], image)
    np.testing.assert_array_equal(result["brightness"][0], ramp())
    other = pipeline.sample("both_to_depth", image=image, brightness=-ramp(), steps=2)
    assert not np.array_equal(other["depth"], result["depth"])


def test_it_is_renoised_alone_and_with_depth(pipeline):
    depth = 1 + np.arange(256, dtype=np.float32).reshape(16, 16) / 100
    alone = pipeline.sample("partial", "a room", brightness=ramp(), steps=4)
    both = pipeline.sample("partial", "a room", brightness=ramp(), depth=depth, steps=4)
    np.testing.assert_array_equal(alone["brightness"][0], ramp())
    np.testing.assert_allclose(both["depth"][0], depth / depth.mean(), rtol=1e-5)
    assert not np.allclose(alone["depth"], both["depth"], rtol=1e-3)
    weaker = pipeline.sample("partial", "a room", brightness=ramp(), depth=depth, steps=4, log2_alpha=4.0)
    clean = pipeline.sample("brightness_to_rest", "a room", brightness=ramp(), steps=4)
    assert not np.array_equal(weaker["image"], both["image"]) and not np.array_equal(clean["image"], alone["image"])


def test_its_schedule_is_warped(pipeline):
    """As far up as it goes it is noise to the end, and what was given cannot matter; by default it does."""
    for log2_alpha, follows in ((40.0, False), (None, True)):
        settings = {"mode": "partial", "prompt": "a room", "steps": 3, "log2_alpha": log2_alpha}
        images = [pipeline.sample(**settings, brightness=sign * ramp())["image"] for sign in (1, -1)]
        assert np.array_equal(*images) != follows


def test_guidance_acts_on_it_alone(pipeline):
    settings = {"prompt": "a room", "steps": 1, "guidance": 8.0}
    plain = pipeline.sample(**settings | {"guidance": 1.0})
    guided = pipeline.sample(**settings, guide="brightness")
    assert not np.allclose(guided["brightness"], plain["brightness"], rtol=1e-3)
    np.testing.assert_allclose(guided["depth"], plain["depth"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "i2d"}, "mode is 'i2d'; it must be one of joint, both_to_depth, brightness_to_rest, image_to_rest"),
        ({"mode": "both_to_depth"}, "mode 'both_to_depth' needs image and brightness"),
        ({"mode": "image_to_rest", "brightness": ramp()}, "mode 'image_to_rest' takes no brightness"),
        ({"mode": "partial"}, "mode 'partial' needs depth or brightness"),
        ({"mode": "partial", "brightness": ramp()[0]}, r"brightness has shape \(16,\); it must be \(H, W\)"),
        ({"mode": "brightness_to_rest", "brightness": ramp(), "log2_alpha": 1.0}, "log2_alpha is for the modes"),
    ],
)
def test_bad_input(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.sample(**arguments)


def test_the_command_line_writes_it(workdir, tmp_path):
    assert (
        main(["sample", f"--checkpoint={workdir}", "--trust-code", "--steps=1", f"--output-dir={tmp_path / 'joint'}"])
        == 0
    )
    (folder,) = (tmp_path / "joint").iterdir()
    assert np.load(folder / "brightness.npy").shape == (16, 16) and (folder / "depth_raw.npy").exists()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "in.png")
    arguments = [f"--image={tmp_path / 'in.png'}", "--steps=1", f"--output-dir={tmp_path / 'from_image'}"]
    assert main(["sample", f"--checkpoint={workdir}", "--trust-code", *arguments]) == 0
    (folder,) = (tmp_path / "from_image").iterdir()
    assert json.loads((folder / "metadata.json").read_text())["mode"] == "image_to_rest"


def test_its_module_is_imported_only_where_the_user_names_it(workdir):
    with pytest.raises(ValueError, match=r"modalities\.brightness\.kind is 'toy\.brightness'.*--trust-code"):
        mf_jax.load(workdir)
