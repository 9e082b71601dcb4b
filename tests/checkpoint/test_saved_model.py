"""Whose code a model directory may run."""

import json
import pathlib
import sys

import pytest

from mf_jax.checkpoint.layouts import RECORD
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config import loading as configs

TESTS = pathlib.Path(__file__).parents[1]
TRAP, BRIGHTNESS = "toy.trap", "toy.brightness"
NOISE = dict(kind="logit_normal")


@pytest.fixture
def sprung(tmp_path, monkeypatch):
    """The file that importing toy.trap leaves."""
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    yield tmp_path / "sprung"
    sys.modules.pop("toy.trap", None)


@pytest.fixture
def export(make_tiny_config, tmp_path):
    """(modality=kind, ...) -> the directory of an export, of which only the record is there."""

    def write(**kinds):
        raw = make_tiny_config()
        for position, (name, kind) in enumerate(kinds.items(), start=5):
            raw["modalities"][name] = dict(kind=kind, position=position, patch=8, prediction="v", noise=NOISE)
        (tmp_path / RECORD).write_text(json.dumps({"step": 4, "config": raw, "layout": "mofo"}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("kinds", "trust"),
    [
        (dict(one=TRAP), False),
        (dict(image=TRAP), False),
        (dict(one=TRAP), {}),
        (dict(one=TRAP), {"one": BRIGHTNESS}),
        (dict(one=TRAP, other=BRIGHTNESS), {"one": BRIGHTNESS}),
        (dict(one=BRIGHTNESS, other=TRAP), {"one": BRIGHTNESS}),
    ],
)
def test_a_module_that_is_not_trusted_is_not_imported(sprung, export, kinds, trust):
    """Also where another one is, and where a built-in modality has it."""
    with pytest.raises(ValueError, match=r"modalities\.\w+\.kind is 'toy\.\w+' .*--trust-code"):
        SavedModel(export(**kinds), trust_code=trust)
    assert not sprung.exists()


def test_nor_is_one_inside_this_package(make_tiny_config):
    raw = make_tiny_config()
    raw["modalities"]["image"]["kind"] = "mf_jax.modalities.image"
    with pytest.raises(ValueError, match=r"modalities\.image\.kind is 'mf_jax\.modalities\.image' .*--trust-code"):
        configs.resolve_saved(raw)
    assert configs.resolve_saved(raw, trusted=True).modalities["image"].kind == "mf_jax.modalities.image"


@pytest.mark.parametrize("trust", [True, {"mine": TRAP}, {"mine": BRIGHTNESS, "other": TRAP}])
def test_trust_is_in_any_or_in_modules_by_name(sprung, export, trust):
    saved = SavedModel(export(one=TRAP), trust_code=trust)
    assert saved.model.modalities["one"].position == 5 and saved.step == 4
    assert sprung.exists()


def test_overrides_apply_to_a_saved_config(export):
    saved = SavedModel(export(), overrides=["sample.steps=7", "sample.guide=depth"])
    assert (saved.config.sample.steps, saved.config.sample.guide) == (7, "depth")
    with pytest.raises(ValueError, match=r"sample\.guide is 'dept'; it must be one of 'all', 'image', 'depth'"):
        SavedModel(export(), overrides=["sample.guide=dept"])
