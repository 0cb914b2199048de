"""Any Python value becomes JSON at the call, and none raises."""

import json
import math
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.client.encode import MAX_DEPTH, encode, plain


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Word(StrEnum):
    HI = "hi"


@dataclass
class Point:
    x: float
    y: object = None


@attrs.define
class Box:
    width: int


class Thing(msgspec.Struct):
    size: int


class Model:
    """Stands in for pydantic: what counts is the method."""

    def model_dump(self, mode="python"):
        return {"mode": mode, "score": math.nan}


class Scalar:
    """Stands in for numpy."""

    dtype = "float32"
    shape = ()

    def item(self):
        return 0.5


class Array:
    dtype = "int64"
    shape = (2,)
    size = 2

    def item(self):
        raise ValueError("can only convert an array of size 1")

    def tolist(self):
        return [1, 2]


class Silent:
    def __repr__(self):
        raise RuntimeError("no")


class Liar(dict):
    def items(self):
        raise RuntimeError("no")


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the plain one is what is tested


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "something else"


TABLE = [
    ({"a": 1, "b": [1, 2.5, None, True, "x"]}, {"a": 1, "b": [1, 2.5, None, True, "x"]}),
    (None, None),
    ("plain", "plain"),
    (math.nan, "NaN"),
    ({"x": math.inf, "y": None}, {"x": "Infinity", "y": None}),
    ({"deep": [{"x": -math.inf}]}, {"deep": [{"x": "-Infinity"}]}),
    ({"x": 1.5, "y": None}, {"x": 1.5, "y": None}),
    (b"\x00\xff", "AP8="),
    (bytearray(b"ab"), "YWI="),
    (memoryview(b"ab"), "YWI="),
    (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006Z"),
    (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000000Z"),
    (date(2026, 1, 2), "2026-01-02"),
    (timedelta(milliseconds=1500), 1.5),
    (Decimal("0.10"), "0.10"),
    (Decimal("NaN"), "NaN"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (PurePosixPath("/a/b"), "/a/b"),
    (Colour.RED, "red"),
    (Size.BIG, 3),
    (Word.HI, "hi"),
    (Text("kept"), "kept"),
    ((1, 2), [1, 2]),
    ({5}, [5]),
    (frozenset({5}), [5]),
    (deque([1]), [1]),
    ({"k": 1}.keys(), ["k"]),
    (Pair(1, 2), [1, 2]),
    (OrderedDict(a=1), {"a": 1}),
    ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
    ({False: 0, True: 1}, {"false": 0, "true": 1}),
    ({2.5: 1}, {"2.5": 1}),
    ({(1, 2): 1}, {"(1, 2)": 1}),
    ({Colour.RED: 1}, {"red": 1}),
    ({UUID(int=1): 1}, {"00000000-0000-0000-0000-000000000001": 1}),
    (Point(math.nan, {1}), {"x": "NaN", "y": [1]}),
    (Box(3), {"width": 3}),
    (Thing(2), {"size": 2}),
    (Model(), {"mode": "json", "score": "NaN"}),
    (Scalar(), 0.5),
    (Array(), [1, 2]),
    (msgspec.Raw(b'{"a": [1]}'), {"a": [1]}),
    ("a\ud800b", "a\ufffdb"),
    ({"\udfff": "\ud83d\ude00"}, {"\ufffd": "😀"}),
    (10**30, 10**30),
    (1 + 2j, "(1+2j)"),
    (range(3), "range(0, 3)"),
    (Silent(), "<unrepresentable test_client_encode.Silent>"),
]


@pytest.mark.parametrize(("value", "expected"), TABLE, ids=lambda value: type(value).__name__)
def test_every_kind_of_value_has_its_form(value, expected):
    """Promise 8: what is not JSON becomes JSON in the documented form, NaN and its like included."""
    data = encode({"v": value})
    assert json.loads(data, parse_constant=pytest.fail) == {"v": expected}
    assert json.loads(encode(value)) == expected


def test_an_exception_carries_class_message_and_traceback():
    """An exception in a payload says what it is, what it says, and where it came from."""
    with pytest.raises(ValueError, match="bad") as caught:
        raise ValueError("bad\ud800")
    found = plain({"e": caught.value})["e"]
    assert found["type"] == "ValueError"
    assert found["message"] == "bad\ufffd"
    assert "test_client_encode.py" in found["traceback"]


def test_a_long_traceback_keeps_its_end():
    """A traceback is bounded, and what is kept is the end, where the cause stands."""
    with pytest.raises(ValueError, match="the end") as caught:
        raise ValueError("x" * 50_000 + "the end")
    trace = plain(caught.value)["traceback"]
    assert len(trace) < 17_000
    assert trace.rstrip().endswith("the end")


def test_a_naive_datetime_is_local_time():
    """A datetime without a zone is taken to be local time and leaves as UTC."""
    naive = datetime(2026, 7, 1, 12)  # noqa: DTZ001 - the point of the test
    assert plain({"t": naive})["t"] == naive.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def test_a_cycle_ends_in_a_repr():
    """What contains itself is cut at that place, and the rest is kept."""
    value = {"name": "loop"}
    value["self"] = value
    assert plain(value)["name"] == "loop"
    assert isinstance(plain(value)["self"], str)


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 5000])
def test_depth_is_bounded(depth):
    """Whatever the nesting, the JSON stays within what the daemon takes."""
    value = leaf = []
    for _ in range(depth):
        leaf.append([])
        leaf = leaf[0]
    data = encode(value)
    assert data.count(b"[") - data.count(b"'[") <= MAX_DEPTH + 10
    json.loads(data)


def test_a_structure_that_doubles_at_each_level_ends():
    """A small structure whose written form would be endless costs a bounded time."""
    value = ["x"]
    for _ in range(100):
        value = [value, value]
    assert len(encode({"v": value})) < 10_000_000
    many = {"v": [[i] for i in range(30_000)]}
    assert json.loads(encode(many)) == many


@pytest.mark.parametrize(
    "value",
    [
        msgspec.Raw(b"{nonsense"),
        Liar(a=1),
        10**5000,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=2))),
        object,
        len,
        (i for i in "ab"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_resists_becomes_text(value):
    """What can't be written in its own form is written as text, and nothing raises."""
    assert isinstance(json.loads(encode({"v": value, "w": 1}))["v"], str)


def test_a_payload_with_a_repr_of_megabytes_is_bounded():
    """A repr is cut and says so."""

    class Loud:
        def __repr__(self):
            return "x" * 10**6

    assert plain(Loud()).endswith("…[cut 995904 characters]")


def test_later_changes_are_not_seen():
    """Promise 8: payloads are encoded before the call returns."""
    value = {"a": [1]}
    data = encode(value)
    value["a"].append(2)
    assert data == b'{"a":[1]}'


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.builds(Exception, st.text())
    | st.builds(Silent)
    | st.sampled_from([Colour.RED, Model(), Scalar(), Array(), object(), Liar(a=1), range(2), msgspec.Raw(b"[")])
)
KEYS = (
    st.text(st.characters())
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary()
    | st.datetimes()
    | st.tuples()
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.tuples(inner, inner)
        | st.builds(deque, st.lists(inner))
        | st.builds(Point, st.floats(), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(ANYTHING)
def test_any_value_becomes_valid_json(value):
    """Any Python value gives valid UTF-8 and strict JSON, and never raises."""
    json.loads(encode(value).decode(), parse_constant=pytest.fail)
    json.loads(encode({"v": value}).decode(), parse_constant=pytest.fail)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.floats() | st.text(st.characters()), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    )
)
def test_no_nan_becomes_null(value):
    """The quick way and the careful way agree on which values are null."""

    def nones(item):
        if isinstance(item, dict):
            return sum(map(nones, item.values()))
        return sum(map(nones, item)) if isinstance(item, list) else item is None

    assert nones(json.loads(encode(value))) == nones(value)
