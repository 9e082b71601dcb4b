"""Captions in rows: everything is there, once, on its own device, and the sizes are those of a short list."""

import math

import numpy as np
import pytest

from mf_jax.data.packing import SHARES, TextLayout, TextShape, expected_rows, first_fit_decreasing, fixed_rows

L = 16


def batch_of(lengths, seed=0, **more):
    mask = np.arange(L) < np.asarray(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(1, 1000, mask.shape).astype(np.int32)
    return {"text_ids": np.where(mask, ids, 0), "text_mask": mask, **more}


def drawn(count, seed=0, mean=4):
    return np.clip(np.random.default_rng(seed).geometric(1 / mean, count), 1, L)


@pytest.mark.parametrize("seed", range(20))
def test_first_fit_decreasing(seed):
    """No two texts overlap, none is cut, and the rows are at most 11/9 of the fewest that could do, and one."""
    lengths = drawn(60, seed)
    rows, starts = first_fit_decreasing(lengths, L)
    taken = np.zeros((60, L), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        assert start + length <= L
        taken[row, start : start + length] += 1
    assert taken.max() == 1 and taken.sum() == lengths.sum()
    assert rows.max() + 1 <= 11 / 9 * math.ceil(lengths.sum() / L) + 1
    assert set(rows) == set(range(rows.max() + 1))


def test_first_fit_decreasing_by_hand():
    """Rows of ten: 8 and 2; 6, 3 and 1; the other 3, for which there is no room above."""
    rows, starts = first_fit_decreasing([3, 8, 1, 6, 3, 2], 10)
    assert rows.tolist() == [1, 0, 1, 1, 2, 0] and starts.tolist() == [6, 0, 9, 0, 0, 8]


@pytest.mark.parametrize(("group", "parts"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_every_caption_is_where_it_is_said_to_be(group, parts):
    """Read back as the step does: part i of the rows of device d, end to end, from `text_at` on."""
    devices = 2
    batch = batch_of(drawn(devices * group * parts, 3), depth=np.zeros(devices * group * parts))
    shape, out = TextLayout((L,), True, group, parts).arrange(batch)
    assert out["text_ids"].shape == out["text_segments"].shape == (devices * shape.rows * parts, L)
    by_part = out["text_ids"].reshape(devices, shape.rows, parts, L)
    segments = out["text_segments"].reshape(devices, shape.rows, parts, L)
    assert out["depth"] is batch["depth"]
    for i in range(devices * group * parts):
        device, part = i // (group * parts), i % parts
        at, length = out["text_at"][i], batch["text_mask"][i].sum()
        found = by_part[device, :, part].ravel()[at : at + length]
        np.testing.assert_array_equal(found, batch["text_ids"][i, :length])
        segment = segments[device, :, part].ravel()[at : at + length]
        assert segment[0] > 0 and len(set(segment)) == 1
        assert (segments[device, at // L, part] == segment[0]).sum() == length  # nobody else has the number
    assert (out["text_segments"] > 0).sum() == batch["text_mask"].sum()
    np.testing.assert_array_equal(out["text_mask"], batch["text_mask"])


def test_neighbours_of_equal_length_are_told_apart():
    _, out = TextLayout((L,), True, 8).arrange(batch_of([4] * 8))
    assert out["text_segments"][:2].tolist() == [[1] * 4 + [2] * 4 + [3] * 4 + [4] * 4] * 2


def test_the_numbers_of_rows_are_few():
    for group in (1, 3, 32, 100, 2048):
        possible = {fixed_rows(needed, group) for needed in range(1, group + 1)}
        assert len(possible) <= len(SHARES) and max(possible) == group
        for needed in range(1, group + 1):
            assert fixed_rows(needed, group) >= needed


def test_captions_that_fill_their_rows_are_not_packed():
    shape, out = TextLayout((L,), True, 8).arrange(batch_of([L] * 8))
    assert shape == TextShape(8, L) and sorted(out["text_at"].tolist()) == [L * row for row in range(8)]


def test_the_sizes_are_what_all_processes_agree_on():
    """Another process needs more rows and a longer text; the rows of this one are then partly empty."""
    layout = TextLayout((4, 8, L), True, 8)
    batch = batch_of([2] * 8)
    alone, _ = layout.arrange(batch)
    assert alone == TextShape(1, 4)
    asked = []
    shape, out = layout.arrange(batch, lambda values: asked.append(values) or (3, 7))
    assert asked == [(1, 2)] and shape == TextShape(3, 8)
    assert out["text_ids"].shape == (3, L) and (out["text_segments"][1:] == 0).all() and out["text_mask"].shape[1] == 8


@pytest.mark.parametrize(("longest", "length"), [(1, 4), (4, 4), (5, 8), (9, L), (L, L)])
def test_the_length_is_the_smallest_that_holds_the_longest_caption(longest, length):
    batch = batch_of([1, longest])
    shape, out = TextLayout((4, 8, L), False, 2).arrange(batch)
    assert shape == TextShape(0, length)
    np.testing.assert_array_equal(out["text_ids"], batch["text_ids"][:, :length])
    features = {"text_features": np.ones((2, L, 3)), "text_mask": batch["text_mask"]}
    _, out = TextLayout((4, 8, L), False, 2).arrange(features)
    assert out["text_features"].shape == (2, length, 3) and out["text_mask"].shape == (2, length)


def test_with_nothing_to_choose_the_batch_stays_and_nobody_is_asked():
    batch = {"text_ids": np.ones((2, 5))}
    shape, out = TextLayout((5,), False, 2).arrange(batch, None)
    assert shape == TextShape(0, 5) and out is batch


def test_shapes_are_known_before_data():
    layout = TextLayout((L,), True, 8, 2)
    shape, out = layout.arrange(batch_of(drawn(32)))
    expected = layout.packed_shapes(32, shape.rows, L)
    assert {name: (out[name].shape, out[name].dtype) for name in expected} == expected
    assert TextLayout((L,), False, 8).packed_shapes(32, 0, L) == {}
    assert layout.encoded(shape) == shape.rows / 8
    assert TextLayout((4, L), False, 8).encoded(TextShape(0, 4)) == 0.25


@pytest.mark.parametrize(("group", "devices"), [(32, 64), (64, 32), (160, 16)])
def test_the_rows_to_expect_are_near_those_of_drawn_captions(group, devices):
    """Gamma-distributed lengths of mean 60 and deviation 40, 1 to 256: of 10 batches, at most a quarter off."""
    generator = np.random.default_rng(0)
    expected = expected_rows(60, 256, group)
    for _ in range(10):
        lengths = np.clip(generator.gamma(2.25, 60 / 2.25, (devices, group)).round(), 1, 256).astype(int)
        needed = max(first_fit_decreasing(of_one, 256)[0].max() + 1 for of_one in lengths)
        assert 0.75 * expected <= fixed_rows(needed, group) <= 1.25 * expected
    assert expected_rows(256, 256, group) == group
