"""Events, their bytes and their CloudEvents: what goes in comes out, what is wrong is named."""

from __future__ import annotations

import json
import os
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist import context
from llmspell_dist.codec import Codec
from llmspell_dist.errors import CodecError, InvalidArgumentError, LimitError
from llmspell_dist.events import Event, UnreadableEventError
from llmspell_dist.events.cloudevents import NO_SOURCE
from llmspell_dist.events.terms import DurableTerms
from llmspell_dist.events.wire import MAX_EVENT_BYTES, pack_event, unpack_event

pytestmark = pytest.mark.unit

CODEC = Codec()

segments = st.text("abcXYZ019_-:", min_size=1, max_size=8)
types = st.lists(segments, min_size=1, max_size=4).map(".".join)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
maybe = st.none() | texts
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
odd = (
    st.binary(max_size=30)
    | st.sets(st.integers(), max_size=3)
    | st.datetimes(timezones=st.just(UTC))
)
events = st.builds(
    Event,
    types,
    plain | odd | st.lists(odd, max_size=2),
    id=texts,
    language=texts,
    time=st.datetimes(timezones=st.just(UTC)),
    sequence=st.integers(1, 2**63 - 1),
    correlation_id=maybe,
    causation_id=maybe,
    traceparent=maybe,
    source=maybe,
    target=maybe,
    tags=st.lists(texts, max_size=5).map(tuple),
    priority=st.integers(-100, 100),
    ttl=st.none() | st.floats(0.001, 1e6),
    schema_version=texts,
)


# --- fields ---------------------------------------------------------------------------------------


def test_what_is_not_given_is_filled_in() -> None:
    """Id, time, sequence, language and schema version."""
    one, two = Event("a.b", {"x": 1}), Event("a.b")
    assert one.id != two.id
    assert two.sequence == one.sequence + 1
    assert (one.language, one.schema_version, one.priority, one.ttl) == ("python", "1.0", 0, None)
    assert one.time.tzinfo is UTC
    assert abs(datetime.now(UTC) - one.time) < timedelta(seconds=10)
    assert (one.data, two.data, one.tags) == ({"x": 1}, None, ())


def test_causes_come_from_the_context_and_can_be_given() -> None:
    """The context in force says who and why; an argument goes before it."""
    with context("planner", correlation_id="run-1", causation_id="e0", traceparent="00-a-b-01"):
        event = Event("a")
        other = Event("a", source="me", correlation_id="run-2")
    assert (event.source, event.correlation_id) == ("planner", "run-1")
    assert (event.causation_id, event.traceparent) == ("e0", "00-a-b-01")
    assert (other.source, other.correlation_id, other.causation_id) == ("me", "run-2", "e0")
    assert Event("a").correlation_id is None


def test_times_of_other_zones_are_utc() -> None:
    """The moment stays."""
    there = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert Event("a", time=there).time == datetime(2026, 1, 1, 10, tzinfo=UTC)


def test_an_event_expires_after_its_time_to_live() -> None:
    """Counted from its time; without one it never does."""
    made = datetime(2026, 1, 1, tzinfo=UTC)
    event = Event("a", time=made, ttl=timedelta(seconds=5))  # type: ignore[arg-type]
    assert event.ttl == 5.0
    assert not event.is_expired(made + timedelta(seconds=4.9))
    assert event.is_expired(made + timedelta(seconds=5))
    assert event.is_expired()
    assert not Event("a", time=made).is_expired()


def test_an_event_knows_which_patterns_mean_it() -> None:
    """By text or by a pattern."""
    event = Event("state.agent.changed")
    assert event.matches("state.*")
    assert event.matches("state.*.changed")
    assert not event.matches("state.agent")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("type", ""),
        ("type", "a..b"),
        ("type", "state.*"),
        ("type", "ä"),
        ("type", 5),
        ("type", ["a"]),
        ("id", ""),
        ("id", 5),
        ("id", "x" * 257),
        ("language", ""),
        ("schema_version", 1.0),
        ("time", datetime(2026, 1, 1)),  # noqa: DTZ001 - that is what is wrong
        ("time", 5),
        ("sequence", 0),
        ("sequence", True),
        ("sequence", 2**63),
        ("correlation_id", ""),
        ("causation_id", 5),
        ("traceparent", "x" * 300),
        ("source", "\ud800"),
        ("target", b"x"),
        ("tags", "one"),
        ("tags", [""]),
        ("tags", [5]),
        ("tags", ["x"] * 65),
        ("tags", 5),
        ("priority", -101),
        ("priority", 101),
        ("priority", 1.0),
        ("priority", True),
        ("ttl", 0),
        ("ttl", -1),
        ("ttl", float("nan")),
        ("ttl", "5"),
        ("ttl", True),
        ("ttl", timedelta(0)),
    ],
)
def test_a_wrong_field_is_named(argument: str, value: Any) -> None:
    """The error says which and what the rule is."""
    fields = {"type": "a", argument: value}
    with pytest.raises(InvalidArgumentError) as caught:
        Event(**fields)
    assert caught.value.argument == argument
    assert caught.value.rule


def test_the_range_of_priorities_is_told() -> None:
    """With both ends."""
    with pytest.raises(InvalidArgumentError, match="priority must be an int from -100 to 100"):
        Event("a", priority=-1000)


def test_events_are_frozen_and_pickle() -> None:
    """They are values."""
    event = Event("a", {"x": [1]}, tags=["t"])  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        event.type = "b"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_numbers_its_events_from_one() -> None:
    """It is another process."""
    Event("a")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"%d" % Event("a").sequence)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"1"
    os.close(read)
    os.close(write)


# --- bytes ----------------------------------------------------------------------------------------


@given(events)
def test_the_bytes_of_an_event_give_it_back(event: Event) -> None:
    """Every field, and data of every type that the state holds."""
    assert unpack_event(pack_event(event, CODEC), CODEC) == event


def test_the_layout_is_as_it_was_released() -> None:
    """Yesterday's bytes are read tomorrow."""
    event = Event(
        "state.changed",
        {"a": 1},
        id="e1",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        sequence=7,
        correlation_id="c",
        causation_id="p",
        traceparent="t",
        source="s",
        target="g",
        tags=("x",),
        priority=-5,
        ttl=1.5,
    )
    packed = bytes.fromhex(
        "019fa26531ad73746174652e6368616e676564c40481a16101a6707974686f6ecf000647484620"
        "400007a163a170a174a173a16791a178fbcb3ff8000000000000a3312e30"
    )
    assert pack_event(event, CODEC) == packed
    assert unpack_event(packed, CODEC) == event


def test_what_a_later_release_appends_is_left_out() -> None:
    """More parts at the end are no reason to refuse an event."""
    event = Event("a", 1)
    parts = msgpack.unpackb(pack_event(event, CODEC)[1:])
    assert unpack_event(b"\x01" + msgpack.packb([*parts, {"new": 1}]), CODEC) == event


@given(st.binary(max_size=60))
def test_bytes_that_are_no_event_are_an_error_of_their_own(packed: bytes) -> None:
    """Whatever they are: a consumer can bury them."""
    for raw in (packed, b"\x01" + packed):
        with pytest.raises(UnreadableEventError):
            unpack_event(raw, CODEC)


@given(events, st.data())
def test_damaged_bytes_never_raise_anything_else(event: Event, data: st.DataObject) -> None:
    """Any one byte changed, or the end cut off: an event, or the one error."""
    packed = bytearray(pack_event(event, CODEC))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    for raw in (bytes(packed), bytes(packed[:cut])):
        try:
            found: Any = unpack_event(raw, CODEC)
        except UnreadableEventError as error:
            found = error.reason
        assert isinstance(found, (Event, str))
        assert found


def test_an_unknown_format_is_told() -> None:
    """With its number and ours."""
    with pytest.raises(UnreadableEventError, match="format 9, this release knows 1"):
        unpack_event(b"\x09rest", CODEC)
    with pytest.raises(UnreadableEventError, match="there are none"):
        unpack_event(b"", CODEC)


def test_data_that_cannot_be_stored_is_refused_with_its_path() -> None:
    """As the state refuses it."""
    with pytest.raises(CodecError, match=r"\$\.x"):
        pack_event(Event("a", {"x": object()}), CODEC)


def test_an_event_of_more_than_a_mebibyte_is_refused() -> None:
    """What is larger belongs into the state."""
    assert len(pack_event(Event("a", b"x" * (MAX_EVENT_BYTES - 200)), CODEC)) <= MAX_EVENT_BYTES
    with pytest.raises(LimitError, match="bytes of an event"):
        pack_event(Event("a", b"x" * MAX_EVENT_BYTES), CODEC)


@pytest.mark.parametrize(
    ("retry_delay", "deliveries", "pause_s"),
    [(0.5, 1, 0.5), (0.5, 3, 2), (0.5, 8, 60), (0.5, 1_000_000, 60), (0.0, 1_000_000, 0)],
)
def test_the_pause_before_an_event_comes_again_is_bounded(
    retry_delay: float, deliveries: int, pause_s: float
) -> None:
    """Also of one that fails for days."""
    assert DurableTerms(retry_delay=retry_delay).pause_s(deliveries) == pause_s


# --- CloudEvents ----------------------------------------------------------------------------------


@given(events)
def test_a_cloud_event_gives_the_event_back(event: Event) -> None:
    """Through JSON, with every field."""
    said = event.to_cloudevent()
    text = json.dumps(said, allow_nan=False)
    assert Event.from_cloudevent(said) == event
    assert Event.from_cloudevent(text) == event
    assert Event.from_cloudevent(text.encode()) == event


@given(events)
def test_a_cloud_event_is_one_by_the_specification(event: Event) -> None:
    """Required attributes, names of attributes, types of their values."""
    said = event.to_cloudevent()
    for name in ("specversion", "id", "source", "type"):
        assert isinstance(said[name], str)
        assert said[name]
    assert said["specversion"] == "1.0"
    for name, value in said.items():
        if name in {"data", "data_base64"}:
            continue
        assert name.isascii()
        assert name.isalnum()
        assert name.islower()
        assert len(name) <= 20
        assert isinstance(value, (str, int))
        assert not isinstance(value, int) or -(2**31) <= value < 2**31
    assert ("data" in said) + ("data_base64" in said) == 1
    assert datetime.fromisoformat(said["time"]).tzinfo is not None
    assert " " not in said["source"]


@given(events)
def test_the_library_of_cloud_events_takes_it(event: Event) -> None:
    """Its own reader of JSON finds the attributes."""
    formats = pytest.importorskip("cloudevents.core.formats.json")
    v1 = pytest.importorskip("cloudevents.core.v1.event")
    read = formats.JSONFormat().read(v1.CloudEvent, json.dumps(event.to_cloudevent()))
    assert read.get_id() == event.id
    assert read.get_type() == event.type
    assert read.get_specversion() == "1.0"
    assert read.get_time() == event.time
    assert read.get_extension("correlationid") == event.correlation_id
    assert read.get_extension("traceparent") == event.traceparent


def test_a_foreign_cloud_event_becomes_an_event() -> None:
    """The specification's own example."""
    event = Event.from_cloudevent(
        {
            "specversion": "1.0",
            "type": "com.example.someevent",
            "source": "/mycontext",
            "subject": None,
            "id": "C234-1234-1234",
            "time": "2018-04-05T17:31:00Z",
            "comexampleextension1": "value",
            "datacontenttype": "application/json",
            "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True},
        }
    )
    assert (event.type, event.id, event.source) == (
        "com.example.someevent",
        "C234-1234-1234",
        "/mycontext",
    )
    assert event.time == datetime(2018, 4, 5, 17, 31, tzinfo=UTC)
    assert event.data == {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True}
    assert event.language == "unknown"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("planner:3", "planner:3"),
        ("https://a.example/b?c#d", "https://a.example/b?c#d"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("urn:isbn:0451450523", "urn:isbn:0451450523"),
        ("/agents/planner:3", "/agents/planner:3"),
        ("3f2a:17", "3f2a%3A17"),
        ("my_agent:1", "my_agent%3A1"),
        ("a#b#c", "a%23b%23c"),
        ("[x]", "%5Bx%5D"),
        ("//host:name/x", "//host%3Aname/x"),
    ],
)
def test_a_source_is_a_uri_reference(source: str, said: str) -> None:
    """As the specification demands; what is none is escaped, and comes back as it was."""
    event = Event("a", 1, source=source)
    assert event.to_cloudevent()["source"] == said
    assert Event.from_cloudevent(event.to_cloudevent()) == event


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        ({"time": "2018-04-05t17:31:00z"}, "time", datetime(2018, 4, 5, 17, 31, tzinfo=UTC)),
        ({"priority": "-7"}, "priority", -7),
        ({"data_base64": "AP8="}, "data", b"\x00\xff"),
        ({"data_base64": "MQ==", "datacontenttype": "model/gltf+json; v=1"}, "data", 1),
        ({"data": 1, "data_base64": None}, "data", 1),
        (
            dict.fromkeys(("language", "tags", "ttl", "priority", "sequence", "correlationid")),
            "language",
            "unknown",
        ),
    ],
)
def test_what_other_programs_may_write_is_read(
    changed: dict[str, Any], name: str, value: Any
) -> None:
    """RFC 3339 in lower case, integers as text, null for what is not there, bytes of no type."""
    assert getattr(Event.from_cloudevent(GOOD | {"time": None} | changed), name) == value


def test_bytes_travel_as_base64() -> None:
    """And an event without a source has one that says so."""
    said = Event("a", b"\x00\xff").to_cloudevent()
    assert said["data_base64"] == "AP8="
    assert said["datacontenttype"] == "application/octet-stream"
    assert said["source"] == NO_SOURCE
    assert Event.from_cloudevent(said).data == b"\x00\xff"


GOOD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("cloudevent", b"{"),
        ("cloudevent", "[]"),
        ("cloudevent", 5),
        ("specversion", GOOD | {"specversion": "0.3"}),
        ("specversion", {"id": "1", "source": "/s", "type": "t"}),
        ("id", GOOD | {"id": ""}),
        ("source", GOOD | {"source": 5}),
        ("type", GOOD | {"type": "no/type"}),
        ("time", GOOD | {"time": "yesterday"}),
        ("time", GOOD | {"time": 5}),
        ("time", GOOD | {"time": "2018-04-05T17:31:00"}),
        ("sequence", GOOD | {"sequence": "x", "sequencetype": "Integer"}),
        ("tags", GOOD | {"tags": 5}),
        ("priority", GOOD | {"priority": 500}),
        ("priority", GOOD | {"priority": "soon"}),
        ("id", GOOD | {"id": None}),
        ("data_base64", GOOD | {"data_base64": "/w==", "datacontenttype": "application/json"}),
        ("ttl", GOOD | {"ttl": "soon"}),
        ("data_base64", GOOD | {"data_base64": "?"}),
        ("data_base64", GOOD | {"data_base64": 5}),
        ("data_base64", GOOD | {"data_base64": "", "data": 1}),
    ],
)
def test_what_is_no_cloud_event_is_named(argument: str, said: Any) -> None:
    """The attribute, as far as there is one."""
    with pytest.raises(InvalidArgumentError) as caught:
        Event.from_cloudevent(said)
    assert caught.value.argument == argument
