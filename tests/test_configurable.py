"""Sections of a config as dataclasses and back."""

import dataclasses
from collections.abc import Mapping

import pytest

from mf_jax.configurable import Kinds, Named, Section, check_at_least, check_one_of, nearest, part


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float
    colour: str = "red"


@dataclasses.dataclass(frozen=True)
class Square:
    side: int = 2
    colour: str = "blue"


@dataclasses.dataclass(frozen=True)
class Pen:
    width: int = 1
    dashes: tuple[int, ...] = ()
    labels: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_at_least("pen", self, width=1)


SHAPE = Kinds({"square": Square, "circle": Circle})


@dataclasses.dataclass(frozen=True)
class Drawing:
    title: str
    shape: Square | Circle = dataclasses.field(default_factory=Square, metadata=part(SHAPE))
    pen: Pen = dataclasses.field(default_factory=Pen, metadata=part(Section(Pen)))
    others: Mapping[str, Square | Circle] = dataclasses.field(default_factory=dict, metadata=part(Named(SHAPE)))


SPEC = Section(Drawing)


def test_defaults_are_filled_in_at_every_depth():
    given = {"title": "a", "shape": {"kind": "circle", "radius": 3.0}, "pen": {"width": 4}}
    before = dict(given)
    assert SPEC.complete(given, "") == {
        "title": "a",
        "shape": {"kind": "circle", "radius": 3.0, "colour": "red"},
        "pen": {"width": 4, "dashes": (), "labels": {}},
        "others": {},
    }
    assert given == before and given["pen"] == {"width": 4}
    others = SPEC.complete({"title": "a", "others": {"left": {}}}, "")["others"]
    assert others == {"left": {"kind": "square", "side": 2, "colour": "blue"}}


def test_no_default_is_shared():
    first, second = SPEC.complete({"title": "a"}, ""), SPEC.complete({"title": "a"}, "")
    first["pen"]["labels"]["x"] = first["shape"]["side"] = first["others"]["left"] = 3
    assert second["pen"]["labels"] == {} == second["others"] and second["shape"]["side"] == 2
    assert SPEC.complete({"title": "a"}, "") == second


def test_what_is_required_may_be_missing_until_it_is_built():
    assert SPEC.complete({"shape": {"kind": "circle"}}, "")["shape"] == {"kind": "circle", "colour": "red"}
    with pytest.raises(ValueError, match=r"^config key title is missing$"):
        SPEC.build({}, "")
    with pytest.raises(ValueError, match=r"^config key shape\.radius is missing$"):
        SPEC.build({"title": "a", "shape": {"kind": "circle"}}, "")


def test_built_and_plain_again():
    given = {
        "title": "a",
        "shape": {"kind": "circle", "radius": 3.0},
        "pen": {"dashes": [1, 2], "labels": {"x": [1, [2]]}},
        "others": {"left": {"side": 5}, "right": {"kind": "circle", "radius": 1.0}},
    }
    built = SPEC.build(given, "")
    assert built.shape == Circle(3.0) and built.others == {"left": Square(5), "right": Circle(1.0)}
    assert built.pen.dashes == (1, 2) and built.pen.labels == {"x": (1, (2,))}
    plain = SPEC.plain(built)
    assert plain["shape"] == {"kind": "circle", "radius": 3.0, "colour": "red"}
    assert plain["others"]["left"] == {"kind": "square", "side": 5, "colour": "blue"}
    assert SPEC.build(plain, "") == built and SPEC.complete(plain, "") == plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"titel": "a"}, r"^unknown config key titel; did you mean 'title'\?"),
        ({"title": "a", "pen": {"widht": 1}}, r"^unknown config key pen\.widht; did you mean 'width'\?"),
        ({"title": "a", "shape": {"radius": 1.0}}, r"^unknown config key shape\.radius; there are: colour, side"),
        ({"title": "a", "shape": {"kind": "sqare"}}, r"^shape\.kind is 'sqare'; did you mean 'square'\?"),
        ({"title": "a", "shape": 3}, r"^config key shape is 3; it must be a section"),
        ({"title": "a", "pen": "thin"}, r"^config key pen is 'thin'; it must be a section"),
        ({"title": "a", "pen": {"width": 1.5}}, r"^config key pen\.width is 1\.5; it must be a whole number"),
        ({"title": "a", "pen": {"width": 0}}, r"^pen\.width is 0; it must be a number and at least 1"),
        ({"title": "a", "others": {}}, r"^config section others is empty"),
        ({"title": "a", "others": {"left": {"kind": "cube"}}}, r"^others\.left\.kind is 'cube'"),
    ],
)
def test_errors_name_the_key(given, message):
    with pytest.raises(ValueError, match=message):
        SPEC.build(given, "")


def test_a_kind_may_be_required():
    with pytest.raises(ValueError, match=r"config key shape\.kind is missing; there are: square, circle"):
        Kinds(SHAPE.table, required=True).build({"side": 1}, "shape")
    assert SHAPE.build({"side": 1}, "shape") == Square(1)


def test_another_kind_keeps_what_it_knows():
    assert SHAPE.with_kind({"kind": "square", "side": 7, "colour": "green"}, "circle", "shape") == {
        "kind": "circle",
        "colour": "green",
    }
    assert SHAPE.with_kind({"kind": "circle", "radius": 3.0, "colour": "green"}, "square", "shape") == {
        "kind": "square",
        "side": 2,
        "colour": "green",
    }
    with pytest.raises(ValueError, match=r"shape\.kind is 'cube'"):
        SHAPE.with_kind({"kind": "square"}, "cube", "shape")


def test_children_and_their_names():
    assert SPEC.child({}, "title") is None and SPEC.child({}, "shape") is SHAPE
    assert SHAPE.child({"kind": "circle"}, "radius") is None and SHAPE.child({}, "kind") is None
    assert Named(SHAPE).child({}, "anything") is SHAPE
    with pytest.raises(KeyError):
        SHAPE.child({"kind": "square"}, "radius")
    assert list(SHAPE.names({"kind": "circle"})) == ["kind", "radius", "colour"]
    assert list(Named(SHAPE).names({"left": {}})) == ["left"]


def test_checks():
    for value in (True, "3", float("nan"), 0):
        with pytest.raises(ValueError, match=r"pen\.width is .*; it must be a number and at least 1"):
            Pen(width=value)
    check_one_of("pen.ink", "red", ("red", "blue"))
    for value in ("green", None):
        with pytest.raises(ValueError, match=r"pen\.ink is .*; it must be one of 'red', 'blue'"):
            check_one_of("pen.ink", value, ("red", "blue"))
    with pytest.raises(ValueError, match=r"it must be one of True, False"):
        check_one_of("pen.dry", 1, (True, False))


def test_hints():
    assert nearest("colr", ("colour", "radius")) == "did you mean 'colour'?"
    assert nearest("zzz", ("radius", "colour")) == "there are: colour, radius"
