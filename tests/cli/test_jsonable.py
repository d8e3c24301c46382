"""Values as JSON and back."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.cli.jsonable import parse_json
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.jsonable import TAGS, from_json, to_json

pytestmark = pytest.mark.unit

_TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(sorted(TAGS))
_HASHABLE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | _TEXTS
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=st.just(UTC))
    | st.uuids()
    | st.decimals(allow_nan=False)
)
_VALUES = st.recursive(
    _HASHABLE | st.frozensets(_HASHABLE, max_size=4) | st.sets(_HASHABLE, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(_HASHABLE, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_every_value_comes_back_from_its_json(value: Any) -> None:
    """Equal and of the same type, through the text that is printed."""
    printed = json.dumps(to_json(value), allow_nan=False)
    back = parse_json(printed)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "document"),
    [
        (b"hi", {"$bytes": "aGk="}),
        ((1, 2), {"$tuple": [1, 2]}),
        ({2, 1}, {"$set": [1, 2]}),
        (frozenset(), {"$frozenset": []}),
        (2**53, {"$int": "9007199254740992"}),
        (float("inf"), {"$float": "inf"}),
        (Decimal("1.10"), {"$decimal": "1.10"}),
        (date(2026, 11, 23), {"$date": "2026-11-23"}),
        (datetime(2026, 11, 23, tzinfo=UTC), {"$datetime": "2026-11-23T00:00:00+00:00"}),
        (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
        ({1: "a"}, {"$map": [[1, "a"]]}),
        ({"$set": 1}, {"$map": [["$set", 1]]}),
        ({"$ref": "x"}, {"$ref": "x"}),
    ],
)
def test_what_json_lacks_is_a_tagged_object(value: Any, document: Any) -> None:
    """The documented forms."""
    assert to_json(value) == document
    assert from_json(document) == value


def test_a_named_zone_is_kept() -> None:
    """The name of the zone stands beside the time."""
    berlin = datetime(2026, 11, 23, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    document = to_json(berlin)
    assert document["zone"] == "Europe/Berlin"
    back = from_json(document)
    assert back == berlin
    assert back.tzinfo == berlin.tzinfo


def test_an_offset_is_kept() -> None:
    """A fixed offset needs no name."""
    moment = datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert from_json(to_json(moment)).utcoffset() == timedelta(hours=5, minutes=30)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "curious",
        "NaN",
        "{'a': 1}",
        '{"$bytes": "%%"}',
        '{"$bytes": 5}',
        '{"$bytes": "aGk=", "more": 1}',
        '{"$set": [[1]]}',
        '{"$map": [[1]]}',
        '{"$datetime": "2026-11-23T00:00:00"}',
        '{"$datetime": "2026-11-23T00:00:00Z", "zone": "Nowhere/City"}',
        '{"$uuid": "x"}',
        '{"$int": "1.5"}',
        "[" * 100_000,
    ],
)
def test_bad_json_is_refused(text: str) -> None:
    """As a wrong argument, whatever is wrong."""
    with pytest.raises(InvalidArgumentError):
        parse_json(text)


def test_the_error_names_the_path_of_a_bad_tag_and_not_the_value() -> None:
    """What is typed may be a secret."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_json('{"a": [1, {"$uuid": "hunter2"}]}')
    assert "$.a[1]" in str(caught.value)
    assert "hunter2" not in str(caught.value)
