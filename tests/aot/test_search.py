"""The order of tries, with memory by a formula in the place of compilations.

A preset keeps KEPT bytes for each example of a part; 10 are always there.
"""

from mf_jax.aot.search import PRESETS, search

KEPT = {"none": 16, "dots": 8, "attention_mlp": 4, "offload": 2, "full": 1}


def tries(batch, accumulate, available, shares=4):
    def need(batch, accumulate, remat):
        return 10 + KEPT[remat] * (batch // shares // accumulate)

    return list(search(batch, accumulate, shares, available, need))


def named(found):
    return [(one.batch, one.accumulate, one.remat, one.fits) for one in found]


def test_cheapest_preset_that_fits_then_less_accumulation():
    """64 in parts of 4: 'dots' needs 42 of 50; parts of 8 need 74."""
    assert named(tries(64, 4, 50)) == [
        (64, 4, "none", False),
        (64, 4, "dots", True),
        (64, 2, "dots", False),
    ]


def test_batch_grows_where_nothing_is_accumulated():
    """16 in parts of 4, 26 of 60 with 'none' at 1 example each; what two tries tell is not compiled."""
    found = tries(4, 1, 60)
    assert named(found) == [(4, 1, "none", True), (8, 1, "none", True), (16, 1, "none", False)]
    assert [one.skipped for one in found] == [False, False, True]
    assert found[-1].needed == 10 + 16 * 4
    found = tries(4, 1, 1000)
    assert [one.batch for one in found if one.fits] == [4, 8, 16, 32]


def test_smaller_parts_where_no_preset_fits():
    """Parts of 16 need 26 with 'full', of 8 need 18, of 4 need 14."""
    found = tries(64, 1, 15)
    assert named(found)[: len(PRESETS)] == [(64, 1, preset, False) for preset in PRESETS]
    assert named(found)[len(PRESETS) :] == [(64, 2, "full", False), (64, 4, "full", True)]


def test_nothing_fits():
    found = tries(64, 1, 9)
    assert not any(one.fits for one in found)
    assert found[-1].part == 1
