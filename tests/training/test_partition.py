"""Splitting a parameter tree into trained and frozen, and back."""

import pytest

from mf_jax.training import partition

TREE = {"a": {"x": {"k": 1, "s": 2}, "y": {"k": 3}}, "b": {"k": 4}}


@pytest.mark.parametrize(
    ("prefixes", "frozen"),
    [
        ((), {}),
        (("a/x",), {"a": {"x": {"k": 1, "s": 2}}}),
        (("a/x/s", "b"), {"a": {"x": {"s": 2}}, "b": {"k": 4}}),
        (("a",), {"a": TREE["a"]}),
    ],
)
def test_split_and_merge(prefixes, frozen):
    parts = partition.partition(TREE, prefixes)
    assert parts[1] == frozen
    assert partition.combine(*parts) == TREE
    assert "a" in parts[0] or "a" in prefixes


def test_a_prefix_is_a_whole_path():
    """ "a/x" does not freeze "a/xs"."""
    assert partition.partition({"a": {"x": 1, "xs": 2}}, ("a/x",)) == ({"a": {"xs": 2}}, {"a": {"x": 1}})


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [(("a/z",), r"train\.freeze names 'a/z'; did you mean 'a/"), (("a", "b"), "leaves nothing to train")],
)
def test_bad_prefixes(prefixes, message):
    with pytest.raises(ValueError, match=message):
        partition.partition(TREE, prefixes)
