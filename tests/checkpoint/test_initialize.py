"""Initial parameters of a new run."""

import jax
import numpy as np
import pytest

from mf_jax import train
from mf_jax.checkpoint.initialize import origins
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.loading import resolve
from mf_jax.models.weight_table import flatten

THERE = {"m/image/k": (2, 3), "m/text/k": (4,), "m/old": (1,)}
HERE = {"m/image/k": (2, 3), "m/text/k": (4,), "m/depth/k": (2, 3), "m/new": (7,)}


def test_taken_cloned_fresh_and_left_over():
    found = origins(HERE, THERE, {"m/depth": "m/image"})
    assert found.taken == {"m/image/k": "m/image/k", "m/text/k": "m/text/k"}
    assert found.cloned == {"m/depth/k": "m/image/k"}
    assert found.fresh == ("m/new",) and found.left_over == ("m/old",)
    assert "cloned: m/depth/k from m/image/k" in str(found) and "from scratch: m/new" in str(found)


def test_what_the_checkpoint_has_is_not_cloned():
    found = origins(HERE, THERE | {"m/depth/k": (2, 3)}, {"m/depth": "m/image"})
    assert found.taken["m/depth/k"] == "m/depth/k" and not found.cloned


@pytest.mark.parametrize(
    ("here", "clone", "message"),
    [
        ({"m/image/k": (2, 4)}, {}, r"has m/image/k of shape \(2, 3\); this model's has \(2, 4\)"),
        (HERE, {"m/depht": "m/image"}, r"init\.clone names 'm/depht'; did you mean 'm/depth/k'"),
        (HERE | {"m/depth/k": (3, 3)}, {"m/depth": "m/image"}, r"copies m/image/k to m/depth/k of shape \(3, 3\)"),
        ({"n": (1,)}, {}, "no array in common"),
    ],
)
def test_what_does_not_fit(here, clone, message):
    with pytest.raises(ValueError, match=message):
        origins(here, THERE, clone)


def test_post_training_starts_from_pre_training(tiny_config, tmp_path):
    """Text-to-image first; then the joint model from its averaged weights: same image output, until depth joins in."""
    both = tiny_config["modalities"], tiny_config["modes"]
    tiny_config["modalities"] = {"image": both[0]["image"]}
    tiny_config["modes"] = dict(t2i=dict(probability=1.0))
    tiny_config["train"]["steps"] = 2
    train.train(resolve(tiny_config), tmp_path / "t2i")

    tiny_config["modalities"], tiny_config["modes"] = both
    tiny_config["init"] = dict(
        checkpoint=str(tmp_path / "t2i"), clone={"backbone/depth_modulation": "backbone/image_modulation"}
    )
    tiny_config["train"]["steps"] = 1
    tiny_config["optimizer"]["learning_rate"] = 0.0
    train.train(resolve(tiny_config), tmp_path / "mofo")

    before, after = SavedModel(tmp_path / "t2i"), SavedModel(tmp_path / "mofo")
    old, new = before.params(), after.params()
    flat = flatten(old), flatten(new)
    for path, value in flat[0].items():
        np.testing.assert_array_equal(value, flat[1][path], err_msg=path)
    np.testing.assert_array_equal(
        flat[1]["backbone/depth_modulation/kernel"], flat[0]["backbone/image_modulation/kernel"]
    )

    keys = jax.random.split(jax.random.key(0), 2)
    x = {
        name: jax.random.normal(key, (3, 4, modality.codec.channels))
        for key, (name, modality) in zip(keys, after.model.modalities.items(), strict=True)
    }
    t = {"image": np.array([0.2, 0.6, 1.0]), "depth": np.ones(3)}
    fields = {"text_ids": np.ones((3, 96), np.int32)}
    alone = before.model.predict(old, {"image": x["image"]}, {"image": t["image"]}, fields)["image"]
    same = after.model.predict(new, {"image": x["image"]}, {"image": t["image"]}, fields)["image"]
    joint = after.model.predict(new, x, t, fields)["image"]
    np.testing.assert_array_equal(alone, same)
    assert np.abs(alone).max() > 0
    assert np.abs(joint - alone).max() > 0
