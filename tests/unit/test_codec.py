from __future__ import annotations

import contextlib
import enum
import pickle
import threading
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.codec import (
    Codec,
    decode,
    decode_number,
    encode,
    encode_number,
    is_number,
    validate_external,
)
from llmspell_dist.errors import (
    CircularReferenceError,
    CodecError,
    InvalidArgumentError,
    LimitError,
)

pytestmark = pytest.mark.unit
BERLIN = ZoneInfo("Europe/Berlin")


def same(one: Any, two: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(map(typed, one)) == list(map(typed, two)) and all(
            same(a, b) for a, b in zip(one.values(), two.values(), strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, (set, frozenset)):
        return {typed(x) for x in one} == {typed(x) for x in two}
    return repr(one) == repr(two) if isinstance(one, (float, Decimal)) else bool(one == two)


def typed(value: Any) -> Any:
    """Value and type, to compare by."""
    if isinstance(value, tuple):
        return tuple, tuple(map(typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(typed, value))
    return type(value), repr(value) if isinstance(value, (float, Decimal)) else value


ZONES = st.one_of(
    st.just(UTC),
    st.sampled_from([BERLIN, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")]),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)
HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**200), 2**200),
        st.floats(allow_nan=False),
        st.text(max_size=8),
        st.binary(max_size=8),
        st.datetimes(timezones=ZONES, allow_imaginary=True),
        st.dates(),
        st.uuids(),
        st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_goes_in_comes_out_equal_and_of_the_same_type(value: Any) -> None:
    """For everything that the codec accepts, as bytes and as a memoryview."""
    packed = encode(value)
    assert type(packed) is bytes
    assert same(decode(packed), value)
    assert same(decode(memoryview(packed)), value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_foreign_bytes_give_a_value_or_a_codec_error(data: bytes) -> None:
    """No exception of another library leaves the codec."""
    with contextlib.suppress(CodecError, LimitError):
        decode(data)


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("hour", [2, 3])
@pytest.mark.parametrize("day", [datetime(2024, 3, 31), datetime(2024, 10, 27)])  # noqa: DTZ001
def test_datetime_in_gap_or_fold_keeps_its_zone(day: datetime, hour: int, fold: int) -> None:
    """Key and fold are kept, so equality holds where it is at its hardest."""
    value = day.replace(hour=hour, minute=30, tzinfo=BERLIN, fold=fold)
    copy = decode(encode(value))
    assert copy == value
    assert (copy.tzinfo, copy.fold, copy.utcoffset()) == (BERLIN, fold, value.utcoffset())


class Odd(tzinfo):
    """A time zone that is not ours."""

    def __init__(self, *, folds: bool) -> None:
        self.folds = folds

    def utcoffset(self, dt: datetime | None) -> timedelta:
        return timedelta(hours=1 if self.folds and dt and dt.fold else 2)

    def dst(self, dt: datetime | None) -> None:  # noqa: ARG002 - as the standard library has it
        return None

    def tzname(self, dt: datetime | None) -> None:  # noqa: ARG002 - as the standard library has it
        return None


def test_datetime_of_a_foreign_zone_is_kept_as_its_offset() -> None:
    """If the moment is not ambiguous; else equality could not be kept, and it is refused."""
    value = datetime(2024, 1, 1, tzinfo=Odd(folds=False))
    assert decode(encode(value)) == value
    with pytest.raises(CodecError, match="gap or fold"):
        encode(datetime(2024, 1, 1, tzinfo=Odd(folds=True)))
    lonely = ZoneInfo.no_cache("Europe/Berlin")
    with pytest.raises(CodecError, match="gap or fold"):
        encode(datetime(2024, 10, 27, 2, 30, tzinfo=lonely))


class Color(enum.Enum):
    """Not storable."""

    RED = 1


class Level(enum.IntEnum):
    """Not storable, though an int."""

    HIGH = 1


class Text(str):
    """Not storable, though a str."""

    __slots__ = ()


@pytest.mark.parametrize(
    "bad",
    [datetime(2024, 1, 1), Color.RED, Level.HIGH, Text("a"), object(), bytearray(b"a"),  # noqa: DTZ001
     memoryview(b"a"), msgpack.ExtType(3, b"a"), msgpack.Timestamp(1), OrderedDict(a=1), "\ud800",
     timedelta(1), 1j, range(3), ..., UTC],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_unsupported_value_is_refused_with_its_path(bad: Any) -> None:
    """At the top, deep inside, in tuples and sets, small or large."""
    with pytest.raises(CodecError) as caught:
        encode(bad)
    assert caught.value.path == "$"
    for pad in ("", "x" * 5000):
        with pytest.raises(CodecError) as caught:
            encode({"pad": pad, "messages": [0, 1, 2, {"when": bad}]})
        assert caught.value.path == "$.messages[3].when"
        with pytest.raises(CodecError) as caught:
            encode({"pad": pad, "a b": ([bad],)})
        assert caught.value.path == "$['a b'][0][0]"


@pytest.mark.parametrize("items", [1, 15, 16, 300, 70_000])
@pytest.mark.parametrize("bad", [bytearray(b"a"), memoryview(b"a"), msgpack.Timestamp(1)])
def test_unsupported_first_part_of_a_large_value_is_refused(bad: Any, items: int) -> None:
    """Right behind an outer header of any size, as an item and as a key."""
    pad = "x" * 5000
    with pytest.raises(CodecError):
        encode([bad, pad, *range(items)])
    if not isinstance(bad, bytearray):
        with pytest.raises(CodecError):
            encode({bad: pad, **{str(i): 0 for i in range(items)}})
    with pytest.raises(CodecError):
        encode(bytearray(5000))


@pytest.mark.parametrize("bad", [memoryview(b"a"), msgpack.ExtType(3, b"a"), Level.HIGH, "\udc00"])
def test_unsupported_dict_key_is_refused_with_its_path(bad: Any) -> None:
    """The path says that it is a key."""
    with pytest.raises(CodecError, match="<key"):
        encode({"a": {bad: 1}})


def test_value_that_contains_itself_is_a_circular_reference() -> None:
    """Never a RecursionError, through whatever containers the circle goes."""
    a: Any = {"list": [1]}
    a["list"].append(a)
    b: Any = []
    b.append((1, b))
    c: Any = {"x": {"y": ([],)}}
    c["x"]["y"][0].append(c["x"])
    for value, path in ((a, "$.list[1]"), (b, "$[0][1]"), (c, "$.x.y[0][0]")):
        with pytest.raises(CircularReferenceError) as caught:
            encode(value)
        assert caught.value.path == path


def test_shared_parts_are_no_circle() -> None:
    """The same list twice is stored twice."""
    part = [1]
    assert decode(encode([part, part])) == [[1], [1]]


def nest(levels: int, wrap: Any) -> Any:
    """Return 1 in that many containers."""
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("pad", ["", "x" * 5000, "\u0105" * 3000])
@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: frozenset({v})],
    ids=["list", "dict", "tuple", "frozenset"],
)  # fmt: skip
def test_nesting_is_limited_exactly(wrap: Any, pad: str) -> None:
    """128 levels are stored, 129 are refused with the path."""
    good = [pad, nest(127, wrap)]
    assert decode(encode(good)) == good
    bad = [pad, nest(128, wrap)]
    with pytest.raises(LimitError) as caught:
        encode(bad)
    assert caught.value.limit == 128
    assert caught.value.path is not None
    assert caught.value.path.startswith("$[1]")


@pytest.mark.parametrize("levels", [600, 50_000])
@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,)], ids=["list", "tuple"])
def test_absurd_nesting_is_a_limit_error(wrap: Any, levels: int) -> None:
    """Not a crash, on the way in or out."""
    with pytest.raises(LimitError):
        encode(nest(levels, wrap))
    with pytest.raises(LimitError):
        decode(b"\x91" * (levels + 1024) + b"\x01")


def test_nested_extensions_decode_in_a_small_stack() -> None:
    """128 tuples in one another must not overflow the C stack of a thread."""
    value = nest(128, lambda v: (v,))
    results: list[Any] = []
    old = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: results.append(decode(encode(value)) == value))
        thread.start()
    finally:
        threading.stack_size(old)
    thread.join()
    assert results == [True]


def test_hostile_nested_extensions_are_a_limit_error() -> None:
    """Foreign bytes cannot nest deeper than our own."""
    data = b"\x90"
    for _ in range(200):
        body = b"\x91" + b"\xc9" + len(data).to_bytes(4, "big") + b"\x08" + data
        data = body
    with pytest.raises(LimitError):
        decode(data)


def test_size_is_limited_on_both_ways() -> None:
    """The limit counts encoded bytes."""
    codec = Codec(max_bytes=100)
    assert codec.decode(codec.encode("x" * 98)) == "x" * 98
    with pytest.raises(LimitError) as caught:
        codec.encode("x" * 99)
    assert (caught.value.actual, caught.value.limit, caught.value.path) == (101, 100, "$")
    with pytest.raises(LimitError):
        codec.decode(b"\x00" * 101)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x01\x02", b"\x92\x01", b"\xa1\xff", b"\x81\x90\x01", b"\xd6\xff\0\0\0\1",
     b"\x91\xd6\xff\0\0\0\1", b"\xd4\x63a", b"\xd4\x01a", b"\xd4\x08\x01", b"\xd4\x06\x80",
     b"\xc7\x05\x05hello", b"\xc7\x0f\x02" + b"\x07\xe8\1\1\0\0\0\0\0\0\0" + b"Nope"],
)  # fmt: skip
def test_bytes_that_nothing_encodes_to_are_a_codec_error(data: bytes) -> None:
    """Truncated, trailing, foreign and damaged bytes."""
    with pytest.raises(CodecError):
        decode(data)


def test_an_int_that_looks_like_a_timestamp_is_read() -> None:
    """The check for MessagePack's own timestamps looks at values, not only at bytes."""
    value = [b"\xd6\xff\x00\x00", -1, 2**64 - 1]
    assert decode(encode(value)) == value


def test_equal_sets_have_equal_bytes() -> None:
    """Whatever order they iterate in."""
    names = [f"n{i}" for i in range(50)]
    assert encode(set(names)) == encode({f"n{i}" for i in range(49, -1, -1)})


def test_encoding_is_pinned() -> None:
    """Stored bytes keep their meaning: these are release 1's."""
    golden: list[tuple[Any, str]] = [
        ((1, "a"), "d60892 01a161"),
        (frozenset({1}), "d5079101"),
        ({1}, "d5069101"),
        (2**64, "c7090901 0000000000000000"),
        (date(2024, 2, 29), "d60307e8021d"),
        (UUID(int=1), "d804" + "00" * 15 + "01"),
        (Decimal("1.50"), "d605312e3530"),
        (datetime(2024, 2, 29, 1, 2, 3, 4, UTC), "c70f0107e8021d0102030000000400000000"),
        (
            datetime(2024, 2, 29, 1, 2, 3, 4, BERLIN, fold=1),
            "c7180207e8021d01020380000004" + b"Europe/Berlin".hex(),
        ),
    ]
    for value, packed in golden:
        assert encode(value).hex() == packed.replace(" ", "")
        assert same(decode(bytes.fromhex(packed)), value)


def test_codec_is_shared_between_threads_safely() -> None:
    """Tuples call back into Python while their packer is in use."""
    values = [[(i, (j, "x" * 50)) for j in range(40)] for i in range(4)]
    expected = [encode(v) for v in values]
    wrong: list[int] = []

    def work(i: int) -> None:
        if any(encode(values[i]) != expected[i] for _ in range(60)):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "value"), [("max_bytes", 0), ("max_depth", 0), ("max_depth", 999)]
)
def test_bad_codec_limit_is_refused(name: str, value: int) -> None:
    """The error names the argument."""
    with pytest.raises(InvalidArgumentError) as caught:
        Codec(**{name: value})
    assert caught.value.argument == name


def test_codec_pickles() -> None:
    """As its limits."""
    assert repr(pickle.loads(pickle.dumps(Codec(99, 9)))) == repr(Codec(99, 9))  # noqa: S301


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
)
def test_number_survives_as_decimal_text(value: float) -> None:
    """Equal, of the same type, with the sign of zero."""
    assert same(decode_number(encode_number(value)), value)
    assert is_number(value)


@pytest.mark.parametrize("bad", [2**63, float("inf"), float("nan"), True, "1", None])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    """Other values are stored as values."""
    assert not is_number(bad)
    with pytest.raises(CodecError):
        encode_number(bad)


@pytest.mark.parametrize("bad", [b"", b" 1", b"1_0", b"+1", b"inf", b"nan", b"1e999", b"9" * 19])
def test_text_that_is_no_number_is_refused(bad: bytes) -> None:
    """Exactly decimal text is understood."""
    with pytest.raises(CodecError):
        decode_number(bad)


def test_external_data_of_json_shape_passes() -> None:
    """The rules for data from outside."""
    validate_external({"a": [1, 2.5, None, True, "x", {"é": []}]})


@pytest.mark.parametrize(
    ("bad", "path"),
    [({"a": (1,)}, "$.a"), ({"a": {1: 2}}, "$.a[1]"), ([2**63], "$[0]"), ([float("nan")], "$[0]"),
     ({"a\x07": 1}, r"$['a\x07']"), ([b"x"], "$[0]"), ([{1}], "$[0]"),
     ({"x\x85": 1}, r"$['x\x85']")],
)  # fmt: skip
def test_external_data_against_the_rules_is_refused(bad: Any, path: str) -> None:
    """With the path."""
    with pytest.raises(CodecError) as caught:
        validate_external(bad)
    assert caught.value.path == path


def test_external_data_is_limited() -> None:
    """32 levels, 1 MiB."""
    validate_external(nest(32, lambda v: [v]))
    for bad in (nest(33, lambda v: [v]), "x" * (1 << 20)):
        with pytest.raises(LimitError):
            validate_external(bad)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(CircularReferenceError):
        validate_external(circle)
