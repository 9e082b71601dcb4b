"""Sampling schedules against the official inference code (65 cases) and in closed form."""

import json

import numpy as np
import pytest

from mf_jax.diffusion.schedule import schedules, shift, warp

PAIR = ("image", "depth")


def test_every_case_of_the_official_code(goldens):
    cases = json.loads((goldens / "schedule_index.json").read_text())
    arrays = np.load(goldens / "schedule.npz")
    assert len(cases) == 65 and {case["mode"] for case in cases} == {"joint", "i2d", "d2i"}
    for case in cases:
        pinned = {"joint": {}, "i2d": {"image": 0.0}, "d2i": {"depth": 0.0}}[case["mode"]]
        if case["d2i_full_noise_rgb"]:
            pinned["image"] = 1.0
        got = schedules(
            PAIR,
            case["num_steps"],
            pinned,
            mu={"image": case["rgb_shift_mu"], "depth": case["depth_shift_mu"]},
            sigma={"image": case["rgb_shift_sigma"], "depth": case["depth_shift_sigma"]},
            log2_alpha={} if case["log2_alpha"] is None else {"depth": case["log2_alpha"]},
        )
        for name, official in (("image", "t_rgb"), ("depth", "t_depth")):
            expected = arrays[f"{case['key']}__{official}"]
            assert got[name].dtype == np.float32 and got[name].shape == expected.shape
            np.testing.assert_allclose(got[name], expected, atol=1e-6, err_msg=f"{case['key']} {name}")
            np.testing.assert_array_equal(got[name][[0, -1]], expected[[0, -1]], err_msg=f"{case['key']} {name}")


def test_last_nodes_of_the_default_grid():
    t = schedules(PAIR, 50, {}, log2_alpha={"depth": 5.0})
    np.testing.assert_allclose(t["image"][-4:], [0.1609, 0.1112, 0.0578, 0.0], atol=1e-4)
    np.testing.assert_allclose(t["depth"][-4:], [0.860, 0.800, 0.662, 0.0], atol=1e-3)


@pytest.mark.parametrize("log2_alpha", [-14.0, -3.0, 5.0])
@pytest.mark.parametrize("steps", [1, 3, 80])
def test_every_schedule_falls_strictly_from_one_to_zero(log2_alpha, steps):
    for t in schedules(PAIR, steps, {}, log2_alpha={"depth": log2_alpha}).values():
        assert t[0] == 1.0 and t[-1] == 0.0 and np.all(np.diff(t) < 0)


def test_shift_and_warp_are_one_map_where_sigma_is_one():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shift(t, 3 * np.log(2)), warp(t, 3.0), rtol=1e-12)
    np.testing.assert_allclose(warp(warp(t, 4.0), -4.0), t, atol=1e-12)


def test_a_third_modality_needs_nothing_new():
    t = schedules(("image", "depth", "normals"), 4, {"image": 0.0}, mu=0.0)
    assert list(t) == ["image", "depth", "normals"]
    np.testing.assert_allclose(t["normals"], [1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("arguments", [dict(pinned={"dpeth": 0.0}), dict(pinned={}, log2_alpha={"dpeth": 1.0})])
def test_unknown_modality(arguments):
    with pytest.raises(ValueError, match=r"unknown modality 'dpeth'.*image, depth"):
        schedules(PAIR, 4, **arguments)


def test_no_steps():
    with pytest.raises(ValueError, match="sampling steps is 0"):
        schedules(PAIR, 0, {})
