"""The order of tries, with memory and times by formulas in the place of compilations.

A preset keeps KEPT bytes for each example of a part; 10 are always there, and 16 / fsdp for the parameters. By the
roofline a step takes COST / 10 s per example, and fsdp / 4 s for each part (gathered weights); by the compiler four
times that.
"""

import pytest

from mf_jax.aot.search import CANNOT_FIT, CANNOT_WIN, DOES_NOT_FIT, FITS, Axis, Result, Search

KEPT = {"none": 16, "dots": 8, "attention_mlp": 4, "full": 1}
COST = {"none": 30, "dots": 31, "attention_mlp": 35, "full": 40}
SHARES = 4


def axes(remat="full", fsdp=4, part=1, batch=16):
    presets = list(reversed(KEPT))
    sizes = [4, 2, 1]
    whole = batch // SHARES
    parts = [(batch, whole // d) for d in range(1, whole + 1) if whole % d == 0]
    parts += [(batch * 2, 1), (batch * 4, 1)]
    return [
        Axis(tuple({"model.remat": p} for p in presets), presets.index(remat), all=True),
        Axis(tuple({"mesh.data": 4 // s, "mesh.fsdp": s} for s in sizes), sizes.index(fsdp)),
        Axis(
            tuple({"train.batch": b, "train.accumulate": a} for b, a in parts),
            parts.index((batch, whole // part)),
            directions=(1,),
        ),
    ]


class Stub:
    """Memory and times by the formulas; counts compilations."""

    def __init__(self, most=1e9, impossible=(), gather=1.0):
        self.compiled, self.seen, self.limit, self.impossible, self.gather = [], [], most, impossible, gather

    def measure(self, of):
        self.compiled.append(self.named(of))
        part = of["train.batch"] // SHARES // of["train.accumulate"]
        needed = 10 + 16 / of["mesh.fsdp"] + KEPT[of["model.remat"]] * part
        per_part = self.gather * of["train.accumulate"] * of["mesh.fsdp"] / 4
        roofline = of["train.batch"] * COST[of["model.remat"]] / 10 + per_part
        return Result(needed, roofline, 4 * roofline, 1.0)

    def most(self, of):
        if of["mesh.fsdp"] in self.impossible:
            raise ValueError("no such mesh")
        return self.limit(of) if callable(self.limit) else self.limit

    def named(self, of):
        return of["model.remat"], of["mesh.fsdp"], of["train.batch"], of["train.accumulate"]

    def run(self, available, axes):
        best = Search(axes, available, self.measure, self.most, self.seen.append).run()
        return self.named(best.overrides) if best else None

    @property
    def verdicts(self):
        return {self.named(one.overrides): one.verdict for one in self.seen}


def test_fastest_along_the_axes():
    """All fits: the preset that computes least again, parameters whole, the largest parts."""
    stub = Stub()
    assert stub.run(10_000, axes()) == ("none", 1, 64, 1)
    assert stub.compiled[:4] == [(preset, 4, 16, 4) for preset in ("full", "attention_mlp", "dots", "none")]
    assert len(stub.compiled) == len(set(stub.compiled)) == len(stub.seen)
    assert [name for name in stub.compiled if name[0] == "full"] == [("full", 4, 16, 4)]  # all presets only once


def test_rate_is_by_the_geometric_mean():
    """16 examples in 50 and 200 s: 16 / 100."""
    stub = Stub()
    stub.measure = lambda of: Result(1, 50, 200)
    Search(axes(), 10, stub.measure, stub.most, stub.seen.append).run()
    assert stub.seen[0].overrides["train.batch"] == 16 and stub.seen[0].rate == pytest.approx(0.16)


def test_what_is_slower_ends_a_direction():
    """Gathering costs nothing: neither layouts nor parts get faster, the first try on both axes is the last."""
    stub = Stub(gather=0.0)
    assert stub.run(10_000, axes(fsdp=4)) == ("none", 4, 16, 4)
    assert stub.compiled[4:] == [("none", 2, 16, 4), ("none", 4, 16, 2)]


def test_both_directions_of_layouts():
    """From the middle: whole parameters do not fit into 22 bytes with 'none', four parts are slower."""
    stub = Stub()
    best = stub.run(18 + 16, axes(remat="none", fsdp=2))
    assert best == ("none", 2, 16, 4)
    assert stub.verdicts["none", 1, 16, 4] == DOES_NOT_FIT and stub.verdicts["none", 4, 16, 4] == FITS


def test_memory_that_cannot_suffice_is_not_compiled():
    """'dots' does not fit whole on 2 devices; 'none', which keeps more, is not compiled there or elsewhere."""
    stub = Stub()
    stub.run(21, axes(fsdp=4))
    assert stub.verdicts["dots", 4, 16, 4] == DOES_NOT_FIT
    assert not any(name[0] == "none" for name in stub.compiled)


def test_nor_is_what_needs_more_on_another_axis():
    """'attention_mlp' does not fit with parts of 1; when parts of 2 are the best, it is not compiled again."""
    stub = Stub(impossible=(2, 1))
    assert stub.run(17.5, axes()) == ("full", 4, 16, 2)
    assert stub.verdicts["attention_mlp", 4, 16, 4] == DOES_NOT_FIT
    assert stub.verdicts["attention_mlp", 4, 16, 2] == CANNOT_FIT


def test_extrapolated_part():
    """Parts of 1, 2 and 4 examples need 16 more each: 30, 46 and 78 of 100; 8 would need 142, which nobody compiles."""
    stub = Stub(impossible=(2, 1))
    assert stub.run(100, axes(remat="none")) == ("none", 4, 16, 1)
    assert ("none", 4, 32, 1) not in stub.compiled
    assert stub.verdicts["none", 4, 32, 1] == CANNOT_FIT


def test_what_cannot_win_is_not_compiled():
    """At the peak, 'full' and 'attention_mlp' have fewer examples per second than 'dots' has been found to have."""
    rate = {"none": 1.0, "dots": 1.0, "attention_mlp": 0.1, "full": 0.1}
    stub = Stub(most=lambda of: rate[of["model.remat"]], impossible=(2, 1))
    stub.run(10_000, axes(remat="dots"))
    assert {name[0] for name in stub.compiled} == {"dots", "none"}
    assert stub.verdicts["full", 4, 16, 4] == CANNOT_WIN


def test_a_layout_that_is_not_possible_is_passed_over():
    stub = Stub(impossible=(2,))
    assert stub.run(10_000, axes()) == ("none", 1, 64, 1)
    assert stub.verdicts["none", 2, 16, 4] == "not possible: no such mesh"


def test_a_config_that_is_not_possible_is_an_error():
    with pytest.raises(ValueError, match="no such mesh"):
        Stub(impossible=(4,)).run(10_000, axes())


def test_down_until_it_fits():
    """Parts of 4 need 14 + 4 with 'full', of 2 14 + 2, of 1 14 + 1: less is kept first, then the parts get smaller."""
    stub = Stub()
    assert stub.run(16.5, axes(remat="dots", part=4)) == ("full", 4, 16, 2)
    found = list(stub.verdicts.items())
    assert found[:4] == [
        (("dots", 4, 16, 1), DOES_NOT_FIT),
        (("attention_mlp", 4, 16, 1), DOES_NOT_FIT),
        (("full", 4, 16, 1), DOES_NOT_FIT),
        (("full", 4, 16, 2), FITS),
    ]


def test_nothing_fits():
    stub = Stub()
    assert stub.run(9, axes()) is None
    assert stub.verdicts == {("full", 4, 16, 4): DOES_NOT_FIT}


def test_out_of_memory_has_no_times():
    stub = Stub()
    stub.measure = lambda of: Result(5)
    assert Search(axes(), 10, stub.measure, stub.most, stub.seen.append).run() is None
