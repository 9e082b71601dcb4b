"""The sampling modes of a model."""

import types

import pytest

from mf_jax.config.loading import resolve
from mf_jax.inference.modes import SamplingMode, conditioned_on, sampling_modes

PARTS = {"joint": (), "both": ("image", "normals"), "d2i": ("depth",), "i2d": ("image",)}


def model(modalities=("image", "depth", "normals"), modes=PARTS):
    """What `sampling_modes` reads of a joint model."""
    held = {name: types.SimpleNamespace(clean=clean) for name, clean in modes.items()}
    return types.SimpleNamespace(modalities=dict.fromkeys(modalities), modes=held)


def test_what_each_takes():
    assert sampling_modes(model()) == {
        "joint": SamplingMode("joint", ()),
        "both": SamplingMode("both", ("image", "normals")),
        "d2i": SamplingMode("d2i", ("depth",)),
        "i2d": SamplingMode("i2d", ("image",)),
        "partial": SamplingMode("partial", ("depth", "normals"), renoised=True),
    }


def test_joint_is_there_whatever_the_training_cases_are():
    assert list(sampling_modes(model(modes={"i2d": ("image",)}))) == ["joint", "i2d", "partial"]


def test_one_modality_has_nothing_to_be_conditioned_on():
    assert list(sampling_modes(model(("image",), {"t2i": ()}))) == ["joint", "t2i"]


def test_of_a_real_config(tiny_config):
    modes = sampling_modes(resolve(tiny_config))
    assert {name: (mode.clean, mode.renoised) for name, mode in modes.items()} == {
        "joint": ((), False),
        "i2d": (("image",), False),
        "d2i": (("depth",), False),
        "partial": ((), True),
    }


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("joint", {"image"}, "mode 'joint' takes no image"),
        ("i2d", {"image", "depth"}, "mode 'i2d' takes no depth"),
        ("i2d", {}, "mode 'i2d' needs image"),
        ("both", {"image"}, "mode 'both' needs normals"),
        ("both", {}, "mode 'both' needs image and normals"),
        ("partial", {}, "mode 'partial' needs depth or normals"),
        ("partial", {"image", "depth"}, "mode 'partial' takes no image"),
    ],
)
def test_conditions_that_do_not_fit(name, given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        sampling_modes(model())[name].check(given)


@pytest.mark.parametrize(
    ("name", "given"), [("joint", {}), ("both", {"normals", "image"}), ("partial", {"normals"}), ("d2i", {"depth"})]
)
def test_conditions_that_fit(name, given):
    sampling_modes(model())[name].check(given)


def test_by_what_is_held_clean():
    modes = sampling_modes(model())
    found = {given: conditioned_on(modes, given).name for given in ((), ("image",), ("depth",), ("normals", "image"))}
    assert found == {(): "joint", ("image",): "i2d", ("depth",): "d2i", ("normals", "image"): "both"}
    for given in (("normals",), ("image", "depth")):
        message = r"no mode conditioned on .* alone; its modes are joint \(nothing\), both \(image, normals\), d2i"
        with pytest.raises(ValueError, match=message):
            conditioned_on(modes, given)
