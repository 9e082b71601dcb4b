import pickle

import numpy as np
import pytest

from mf_jax.data.sparsify import make_sparsifier

CONFIGS = [
    {"kind": "none"},
    {"kind": "random", "fraction": 0.1},
    {"kind": "lidar", "lines": 8, "keep": 0.7},
    {"kind": "holes", "far": 6.0},
]
ids = [config["kind"] for config in CONFIGS]


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
    sparsify = make_sparsifier(config)
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
    make_sparsifier(config)(depth, valid, np.random.default_rng(0))
    np.testing.assert_array_equal(depth, before[0])
    np.testing.assert_array_equal(valid, before[1])
    empty = np.zeros_like(valid)
    assert not make_sparsifier(config)(np.zeros_like(depth), empty, np.random.default_rng(0)).any()


def test_random_keeps_the_fraction_of_the_valid_pixels():
    depth, valid = scene()
    for fraction in (0.001, 0.2, 1.0):
        kept = make_sparsifier({"kind": "random", "fraction": fraction})(depth, valid, np.random.default_rng(0))
        assert kept.sum() == round(fraction * valid.sum())


def test_random_is_uniform():
    valid = np.ones((4, 5), bool)
    sparsify = make_sparsifier({"kind": "random", "fraction": 0.25})
    counts = sum(sparsify(valid, valid, np.random.default_rng(seed)).astype(int) for seed in range(2000))
    assert np.abs(counts / 2000 - 0.25).max() < 0.05


def test_lidar_lines():
    """Without jitter, 8 lines give 8 pixels in every column where all are in view, on curves that bend outwards."""
    valid = np.ones((64, 64), bool)
    lidar = make_sparsifier({"kind": "lidar", "lines": 8, "keep": 1.0, "jitter": 0.0})
    kept = lidar(valid, valid, np.random.default_rng(0))
    assert (kept[:, 28:36].sum(0) == 8).all()
    rows_centre, rows_side = np.flatnonzero(kept[:, 32]), np.flatnonzero(kept[:, 2])
    assert np.all(np.diff(rows_centre) >= 6)
    assert rows_side[rows_side > 32].min() >= rows_centre[rows_centre > 32].min()
    half = make_sparsifier({"kind": "lidar", "lines": 8, "keep": 0.5, "jitter": 0.0})
    assert 0.4 < half(valid, valid, np.random.default_rng(0)).sum() / kept.sum() < 0.6


def test_holes_are_at_edges_and_far_away():
    depth, valid = scene()
    kept = make_sparsifier({"kind": "holes", "far": 6.0, "edge": 0.1, "blobs": 0})(
        depth, valid, np.random.default_rng(0)
    )
    assert not kept[depth > 6].any()
    for inside, outside in (((24, 20), (24, 19)), ((24, 39), (24, 40)), ((29, 30), (30, 30))):
        assert not kept[inside] and not kept[outside]
    assert kept[22:28, 22:38].all()  # the inside of the box
    blind = make_sparsifier({"kind": "holes", "far": 6.0, "edge": 0.1, "blobs": 5})(
        depth, valid, np.random.default_rng(0)
    )
    assert blind.sum() < kept.sum() and not (blind & ~kept).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "sparsify.kind is missing; there are: none, random, lidar, holes"),
        ({"kind": "lidr"}, "unknown sparsify.kind 'lidr'; did you mean 'lidar'"),
        ({"kind": "random", "fractoin": 0.1}, "sparsify.fractoin for kind 'random'; did you mean 'fraction'"),
        ({"kind": "none", "fraction": 0.1}, "sparsify.fraction for kind 'none'; it takes no parameters"),
        ({"kind": "random"}, "sparsify.fraction is missing"),
        ({"kind": "random", "fraction": 0.0}, "random.fraction must be above 0 and at most 1, got 0.0"),
        ({"kind": "random", "fraction": 20}, "random.fraction .* got 20"),
        ({"kind": "random", "fraction": "0.2"}, "wrong type in .*'0.2'"),
        ({"kind": "lidar", "lines": 0}, "lidar.lines must be at least 1, got 0"),
        ({"kind": "lidar", "jitter": -1}, "lidar.jitter must not be negative, got -1"),
        ({"kind": "holes", "far": 0}, "holes.far must be positive, got 0"),
        ({"kind": "holes", "blobs": -1}, "holes.blobs must not be negative, got -1"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        make_sparsifier(config)
