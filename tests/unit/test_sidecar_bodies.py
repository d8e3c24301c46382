"""Bodies in both forms: no type is lost, nothing malformed is taken, the client's wish counts."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.codec import encode
from llmspell_dist.errors import LimitError
from llmspell_dist.sidecar import weighing
from llmspell_dist.sidecar.bodies import JSON, MESSAGEPACK, Bodies, accepted
from llmspell_dist.sidecar.errors import BodyError, NotAcceptableError, UnsupportedMediaTypeError

pytestmark = pytest.mark.unit

BODIES = Bodies(10_000)
VALUES: list[Any] = [
    None,
    True,
    2**70,
    -1.5,
    float("inf"),
    "text",
    b"\x00\xff",
    [1, [2]],
    {"a": {"b": 1}},
    {1: "one", (2, 3): "pair"},
    {"$bytes": "a key like a tag"},
    (1, 2),
    {1, 2},
    frozenset({"a"}),
    datetime(2026, 11, 26, 8, tzinfo=UTC),
    date(2026, 11, 26),
    UUID(int=7),
    Decimal("1.10"),
]


@pytest.mark.parametrize("media", [JSON, MESSAGEPACK])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_its_type(value: Any, media: str) -> None:
    """Also inside of another one."""
    for sent in (value, [value], {"k": value}):
        back = BODIES.read(BODIES.write(sent, media), media)
        assert back == sent
        assert type(back) is type(sent)


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"{", JSON),
        (b'{"a":1}x', JSON),
        (b"NaN", JSON),
        (b'"\xff"', JSON),
        (b'{"$bytes":"!"}', JSON),
        (b'{"$datetime":"2026-11-26"}', JSON),
        (b"[" * 5000 + b"]" * 5000, JSON),
        (b"\xc1", MESSAGEPACK),
        (b"\x92\x01", MESSAGEPACK),
        (b"\x01\x01", MESSAGEPACK),
        (b"\x91" * 5000 + b"\xc0", MESSAGEPACK),
        (b"\xdd\xff\xff\xff\xff", MESSAGEPACK),
        (msgpack.packb(msgpack.ExtType(99, b"x")), MESSAGEPACK),
    ],
)
def test_what_is_malformed_is_refused(body: bytes, media: str) -> None:
    """By an error that says which form it is not."""
    with pytest.raises(BodyError):
        BODIES.read(body, media)


def test_a_body_without_its_type_is_refused() -> None:
    """And so is a form, which any page could send."""
    for media in (
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ):
        with pytest.raises(UnsupportedMediaTypeError):
            BODIES.read(b"1", media)
    assert BODIES.read(b"1", "application/json; charset=utf-8") == 1
    assert BODIES.read(b"1", "application/merge-patch+json") == 1


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/msgpack", MESSAGEPACK),
        ("application/json;q=0.5, application/msgpack", MESSAGEPACK),
        ("application/msgpack;q=0.1, application/json", JSON),
        ("text/html, application/*;q=0.2", JSON),
        ("application/x-msgpack", MESSAGEPACK),
    ],
)
def test_the_answer_has_the_form_that_is_wanted_most(accept: str | None, media: str) -> None:
    """RFC 9110, 12.5.1."""
    assert accepted(accept) == media


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "image/*", "application/xml"]
)
def test_who_takes_neither_form_is_told_so(accept: str) -> None:
    """Before anything is done."""
    with pytest.raises(NotAcceptableError):
        accepted(accept)


@pytest.mark.parametrize("number", [1.5, 7, 2**40, -(2**40), 300, 70_000, None])
def test_a_body_of_numbers_is_not_weighed_one_by_one(
    number: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one size in line they are counted as a whole, as cheaply as they are decoded."""
    looked = 0
    behind = weighing._behind

    def look(*arguments: Any) -> int:
        nonlocal looked
        looked += 1
        return behind(*arguments)

    monkeypatch.setattr(weighing, "_behind", look)
    monkeypatch.setattr(weighing, "MAX_ELEMENTS", 1001)
    weighing.weigh_messagepack(msgpack.packb([number] * 1000))
    assert looked <= 2
    monkeypatch.setattr(weighing, "MAX_ELEMENTS", 1000)
    with pytest.raises(LimitError) as caught:
        weighing.weigh_messagepack(msgpack.packb([number] * 1000))
    assert caught.value.actual == 1001


@pytest.mark.parametrize("media", [JSON, MESSAGEPACK])
async def test_a_large_body_is_read_beside_the_event_loop(
    media: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes time that others would wait for; a small one is read at once."""
    bodies = Bodies(1_000_000)
    readers: list[int] = []
    read = Bodies.read

    def seen(self: Bodies, body: bytes, given: str | None) -> Any:
        readers.append(threading.get_ident())
        return read(self, body, given)

    monkeypatch.setattr(Bodies, "read", seen)
    for value in ("small", "large" * 20_000):
        assert await bodies.read_aside(bodies.write(value, media), media) == value
    here = threading.get_ident()
    assert [reader == here for reader in readers] == [True, False]


LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False)),
    *(st.text(), st.binary(), st.dates(), st.uuids()),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)
    ),
)


def _containers(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(_containers, inside)) if isinstance(value, (list, tuple, dict)) else 0


@given(TREES)
def test_lists_and_dicts_are_counted_as_they_are(value: Any) -> None:
    """In both forms, whatever stands in texts and bytes: one more than allowed is refused."""
    count = _containers(value)
    packed, text = encode(value), BODIES.write(value, JSON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighing, "MAX_CONTAINERS", count)
        weighing.weigh_messagepack(packed)
        if count:
            patch.setattr(weighing, "MAX_CONTAINERS", count - 1)
            with pytest.raises(LimitError):
                weighing.weigh_messagepack(packed)
            with pytest.raises(LimitError):  # tags of JSON are objects too
                weighing.weigh_json(text)


@pytest.mark.parametrize(
    "text", [b'["' + b'\\"' * 500_000, b'["' + b"\\" * 1_000_001, b'"a' * 500_001]
)
def test_json_of_quotes_without_end_is_weighed_in_linear_time(text: bytes) -> None:
    """A megabyte must not hold up the event loop; it took hours where it grew by the square."""
    started = time.process_time()
    with suppress(LimitError):
        weighing.weigh_json(text + b"[" * (weighing.MAX_CONTAINERS + 1))
    assert time.process_time() - started < 2  # some 50 ms
