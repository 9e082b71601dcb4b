import pickle

import numpy as np
import pytest

from mf_jax.configurable import Kinds
from mf_jax.data.sparsify import KINDS

CONFIGS = [
    {"kind": "none"},
    {"kind": "random", "fraction": 0.1},
    {"kind": "lidar", "lines": 8, "keep": 0.7},
    {"kind": "holes", "far": 6.0},
]
ids = [config["kind"] for config in CONFIGS]


def sparsifier(config):
    return Kinds(KINDS, required=True).build(config, "data.sparsify")


def scene():
    """A sloping floor with a box in front of it and a missing corner."""
    depth = np.linspace(9, 2, 48)[:, None].repeat(64, 1).astype(np.float32)
    depth[20:30, 20:40] = 1.5
    valid = np.ones_like(depth, bool)
    valid[:10, :10] = False
    return np.where(valid, depth, 0), valid


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_only_removes_and_depends_on_the_generator_alone(config):
    depth, valid = scene()
    sparsify = sparsifier(config)
    kept = sparsify(depth, valid, np.random.default_rng(5))
    assert kept.dtype == bool and kept.any()
    assert not (kept & ~valid).any()
    again = pickle.loads(pickle.dumps(sparsify))(depth, valid, np.random.default_rng(5))
    np.testing.assert_array_equal(kept, again)
    other = sparsify(depth, valid, np.random.default_rng(6))
    assert (kept == other).all() == (config["kind"] == "none")


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_inputs_stay_and_an_empty_map_stays_empty(config):
    depth, valid = scene()
    before = depth.copy(), valid.copy()
    sparsifier(config)(depth, valid, np.random.default_rng(0))
    np.testing.assert_array_equal(depth, before[0])
    np.testing.assert_array_equal(valid, before[1])
    empty = np.zeros_like(valid)
    assert not sparsifier(config)(np.zeros_like(depth), empty, np.random.default_rng(0)).any()


def test_random_keeps_the_fraction_of_the_valid_pixels():
    depth, valid = scene()
    for fraction in (0.001, 0.2, 1.0):
        kept = sparsifier({"kind": "random", "fraction": fraction})(depth, valid, np.random.default_rng(0))
        assert kept.sum() == round(fraction * valid.sum())


def test_random_is_uniform():
    valid = np.ones((4, 5), bool)
    sparsify = sparsifier({"kind": "random", "fraction": 0.25})
    counts = sum(sparsify(valid, valid, np.random.default_rng(seed)).astype(int) for seed in range(2000))
    assert np.abs(counts / 2000 - 0.25).max() < 0.05


def test_lidar_lines():
    """Without jitter, 8 lines give 8 pixels in every column where all are in view, on curves that bend outwards."""
    valid = np.ones((64, 64), bool)
    lidar = sparsifier({"kind": "lidar", "lines": 8, "keep": 1.0, "jitter": 0.0})
    kept = lidar(valid, valid, np.random.default_rng(0))
    assert (kept[:, 28:36].sum(0) == 8).all()
    rows_centre, rows_side = np.flatnonzero(kept[:, 32]), np.flatnonzero(kept[:, 2])
    assert np.all(np.diff(rows_centre) >= 6)
    assert rows_side[rows_side > 32].min() >= rows_centre[rows_centre > 32].min()
    half = sparsifier({"kind": "lidar", "lines": 8, "keep": 0.5, "jitter": 0.0})
    assert 0.4 < half(valid, valid, np.random.default_rng(0)).sum() / kept.sum() < 0.6


def test_holes_are_at_edges_and_far_away():
    depth, valid = scene()
    kept = sparsifier({"kind": "holes", "far": 6.0, "edge": 0.1, "blobs": 0})(depth, valid, np.random.default_rng(0))
    assert not kept[depth > 6].any()
    for inside, outside in (((24, 20), (24, 19)), ((24, 39), (24, 40)), ((29, 30), (30, 30))):
        assert not kept[inside] and not kept[outside]
    assert kept[22:28, 22:38].all()  # the inside of the box
    blind = sparsifier({"kind": "holes", "far": 6.0, "edge": 0.1, "blobs": 5})(depth, valid, np.random.default_rng(0))
    assert blind.sum() < kept.sum() and not (blind & ~kept).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "data.sparsify.kind is missing; there are: none, random, lidar, holes"),
        ({"kind": "lidr"}, "data.sparsify.kind is 'lidr'; did you mean 'lidar'"),
        ({"kind": "random", "fractoin": 0.1}, "unknown config key data.sparsify.fractoin; did you mean 'fraction'"),
        ({"kind": "none", "fraction": 0.1}, "unknown config key data.sparsify.fraction; it takes no keys"),
        ({"kind": "random"}, "data.sparsify.fraction is missing"),
        ({"kind": "random", "fraction": 0.0}, "data.sparsify.fraction is 0.0; it must be above 0 and at most 1"),
        ({"kind": "random", "fraction": 20}, "data.sparsify.fraction is 20; it must be above 0 and at most 1"),
        ({"kind": "random", "fraction": "0.2"}, "data.sparsify.fraction is '0.2'; it must be a number"),
        ({"kind": "lidar", "lines": 0}, "data.sparsify.lines is 0; it must be a number and at least 1"),
        ({"kind": "lidar", "jitter": -1}, "data.sparsify.jitter is -1; it must be a number and at least 0"),
        ({"kind": "lidar", "keep": 1.5}, "data.sparsify.keep is 1.5; it must be above 0 and at most 1"),
        ({"kind": "lidar", "keep": 0}, "data.sparsify.keep is 0; it must be above 0 and at most 1"),
        ({"kind": "holes", "edge": 0}, "data.sparsify.edge is 0; it must be positive"),
        ({"kind": "holes", "radius": 0}, "data.sparsify.radius is 0; it must be positive"),
        ({"kind": "holes", "far": 0}, "data.sparsify.far is 0; it must be positive"),
        ({"kind": "holes", "blobs": -1}, "data.sparsify.blobs is -1; it must be a number and at least 0"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        sparsifier(config)
