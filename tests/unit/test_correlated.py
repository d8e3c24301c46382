"""The bytes of hook runs, links and lease events; what is damaged says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from llmspell_dist.codec import Codec
from llmspell_dist.correlated import (
    EventLink,
    EventRelationship,
    HookRun,
    LeaseEvent,
    pack_hook_run,
    pack_lease_event,
    pack_link,
    unpack_hook_run,
    unpack_lease_event,
    unpack_link,
)
from llmspell_dist.correlation.building import build_timeline
from llmspell_dist.correlation.entries import Collected
from llmspell_dist.correlation.model import EntryKind
from llmspell_dist.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    LimitError,
    UnsupportedFormatError,
)
from llmspell_dist.events.model import Event
from llmspell_dist.events.wire import pack_event
from llmspell_dist.revision import Revision

pytestmark = pytest.mark.unit

RUN = HookRun(
    id="run-1",
    point="before_state_write",
    hook="redact",
    result="modified",
    duration_us=120,
    time_us=1_795_651_555_954_321,
    causation_id="event-1",
    error=None,
)
LEASE = LeaseEvent(what="acquired", scope="agent:alice", name="main", token=7, owner="w1")
LINK = EventLink("b", "a", EventRelationship.CAUSED_BY, 0.9, {"why": "told so"})


def test_each_kind_is_read_as_it_was_written() -> None:
    """Absent parts take no bytes."""
    assert unpack_hook_run(pack_hook_run(RUN)) == RUN
    assert unpack_lease_event(pack_lease_event(LEASE)) == LEASE
    back = unpack_link(pack_link(LINK))
    assert back == LINK
    assert back.metadata == LINK.metadata
    assert b"error" not in pack_hook_run(RUN)


def test_yesterdays_bytes_are_read() -> None:
    """As the first release wrote them."""
    raw = b"\x01" + msgpack.packb({"id": "r", "point": "p", "hook": "h", "result": "continue"})
    assert unpack_hook_run(raw) == HookRun(id="r", point="p", hook="h", result="continue")
    raw = bytes.fromhex("0184a466726f6da162a2746fa161ac72656c6174696f6e73686970a9") + b"caused_by"
    raw += bytes.fromhex("a8737472656e677468cb3feccccccccccccd")
    assert unpack_link(raw) == EventLink("b", "a", EventRelationship.CAUSED_BY, 0.9)


def test_what_a_later_release_adds_is_left_out() -> None:
    """Readers take what they know."""
    raw = pack_lease_event(LEASE)
    more = {**msgpack.unpackb(raw[1:]), "colour": "red"}
    assert unpack_lease_event(b"\x01" + msgpack.packb(more)) == LEASE


@pytest.mark.parametrize("unpack", [unpack_hook_run, unpack_lease_event, unpack_link])
@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", UnsupportedFormatError),
        (b"\x02\x80", UnsupportedFormatError),
        (b"\x01", CorruptRecordError),
        (b"\x01\xc1", CorruptRecordError),
        (b"\x01\x93\x01\x02\x03", CorruptRecordError),
        (b"\x01\x80", CorruptRecordError),
        (
            b"\x01"
            + msgpack.packb(
                {name: ["no text"] for name in ("id", "point", "hook", "result")}
                | {name: ["no text"] for name in ("what", "scope", "name", "token", "from", "to")}
            ),
            CorruptRecordError,
        ),
        (
            b"\x01" + msgpack.packb({"from": "a", "to": "a", "relationship": "x"}),
            CorruptRecordError,
        ),
    ],
)
def test_damaged_bytes_say_so(unpack: Any, raw: bytes, error: type[Exception]) -> None:
    """And where they stood."""
    with pytest.raises(error, match="12-0"):
        unpack(raw, "12-0")


def test_a_link_with_itself_is_damaged_too() -> None:
    """Whoever wrote it."""
    raw = {"from": "a", "to": "a", "relationship": "caused_by"}
    with pytest.raises(CorruptRecordError, match="another one"):
        unpack_link(b"\x01" + msgpack.packb(raw))


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (("", "a", "caused_by"), "from_id"),
        (("b", 5, "caused_by"), "to_id"),
        (("b", "a", "friend_of"), "relationship"),
        (("b", "a", "caused_by", 1.01), "strength"),
        (("b", "a", "caused_by", True), "strength"),
        (("b", "a", "caused_by", float("nan")), "strength"),
        (("b", "a", "caused_by", 1, "x"), "metadata"),
    ],
)
def test_a_wrong_link_is_named(arguments: tuple[Any, ...], argument: str) -> None:
    """By its argument."""
    with pytest.raises(InvalidArgumentError) as caught:
        EventLink(*arguments)
    assert caught.value.argument == argument


def test_metadata_that_cannot_be_packed_or_is_too_large_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="metadata"):
        pack_link(EventLink("b", "a", EventRelationship.CAUSED_BY, 1, {"a": object()}))
    with pytest.raises(LimitError):
        pack_link(EventLink("b", "a", EventRelationship.CAUSED_BY, 1, {"a": "x" * 70_000}))


# --- a stream as it is read -----------------------------------------------------------------------


def collected(*items: tuple[bytes, bytes]) -> Collected:
    """Read a stream that holds these kinds and bytes."""
    found = Collected(Codec())
    found.add_page(
        [[b"1795651555954-%d" % n, [b"k", kind, b"b", raw]] for n, (kind, raw) in enumerate(items)]
    )
    return found


def test_every_kind_becomes_an_entry_in_the_order_of_the_stream() -> None:
    """Links are no entries."""
    event = Event("tool.called", {"n": 1}, source="ann", tags=("a",), causation_id="run-1")
    packed = pack_event(event, Codec())
    found = collected(
        (b"h", pack_hook_run(RUN)),
        (b"e", packed),
        (b"x", pack_lease_event(LEASE)),
        (b"l", pack_link(LINK)),
        (b"e", packed),
    )
    assert [one.kind for one in found.entries] == ["hook", "event", "lease", "event"]
    assert found.links == [LINK]
    hook, said, lease, _ = found.entries
    assert (hook.id, hook.type, hook.source) == ("run-1", "hook.before_state_write", "redact")
    assert hook.time_us == RUN.time_us
    assert hook.detail == RUN
    assert (said.id, said.causation_id, said.source, list(said.tags)) == (
        event.id,
        "run-1",
        "ann",
        ["a"],
    )
    assert said.detail == event
    assert said.detail is said.detail
    assert said.data == {"n": 1}
    assert said.data is said.data
    assert (hook.data, lease.data) == (None, None)
    assert (lease.type, lease.target, lease.source) == ("lease.acquired", "agent:alice", "w1")
    assert lease.id == "lease:agent:alice:main:7:acquired"


def test_a_lease_was_acquired_when_its_token_says() -> None:
    """A token is server time, unless tokens had run ahead; it is recorded a little later.

    To the millisecond, as commits are: one of the same millisecond is not before it for that.
    """
    recorded_us = 1795651555954 * 1000
    for token, time_us in (
        (recorded_us - 500, recorded_us - 1000),
        (recorded_us + 500, recorded_us),
        (recorded_us + 10**9, recorded_us),
        (7, recorded_us),
    ):
        for what, expected in (("acquired", time_us), ("released", recorded_us)):
            event = LeaseEvent(what=what, scope="agent:a", name="main", token=token)
            (one,) = collected((b"x", pack_lease_event(event))).entries
            assert one.time_us == expected


def test_a_hook_run_cannot_have_begun_after_it_was_recorded() -> None:
    """Whatever its process's clock says."""
    late = HookRun(id="r", point="p", hook="h", result="continue", time_us=2**60)
    (one,) = collected((b"h", pack_hook_run(late))).entries
    assert one.time_us == 1795651555954 * 1000 + 999


def envelope(place: int, wrong: object) -> bytes:
    """An event's bytes, one part of which is replaced."""
    parts = msgpack.unpackb(pack_event(Event("tool.called", tags=("a",)), Codec())[1:])
    parts[place] = wrong
    return bytes([1]) + bytes(msgpack.packb(parts))


WRONG_PARTS: list[tuple[int, object]] = [
    (0, ""),
    (0, "x" * 257),
    (0, "é" * 129),
    (1, 5),
    (2, "text"),
    (3, {"a": 1}),
    (7, ["x"]),
    (9, ["source"]),
    (10, [1]),
    (11, [["a"]]),
    (11, "a"),
]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (b"z", b"what a later release keeps"),
        (b"\xff", b""),
        (b"h", b"\x07later"),
        (b"l", b"\x01\x80"),
        (b"e", b""),
        (b"e", b"\x01\xc1"),
        (b"e", b"\x02\x90"),
        (b"e", b"\x01\x93\x01\x02\x03"),
        (b"e", b"\x01" + msgpack.packb([5] * 15)),
        (b"e", b"\x01" + msgpack.packb({"id": 1})),
        (b"e", b"garbage"),
        *[
            pytest.param(b"e", envelope(place, wrong), id=f"event-{number}")
            for number, (place, wrong) in enumerate(WRONG_PARTS)
        ],
        pytest.param(b"h", pack_hook_run(replace(RUN, id="")), id="hook-id"),
        pytest.param(b"h", pack_hook_run(replace(RUN, time_us=-(2**63))), id="hook-time"),
    ],
)
def test_what_cannot_be_read_is_shown_and_stops_nothing(kind: bytes, raw: bytes) -> None:
    """Unknown kinds, later formats, broken bytes; what stands beside them is read."""
    good = pack_event(Event("tool.called"), Codec())
    found = collected((b"e", good), (kind, raw), (b"h", pack_hook_run(RUN)))
    kinds = [one.kind for one in found.entries]
    assert kinds == [EntryKind.EVENT, EntryKind.UNKNOWN, EntryKind.HOOK]
    assert found.entries[1].type.startswith("unknown.")
    assert found.entries[1].detail == raw
    assert found.unreadable == 1


def test_a_moment_that_no_calendar_has_stops_nothing() -> None:
    """A stream's or log's ids go on for longer than years do; the last moment stands for them."""
    found = Collected(Codec())
    packed = pack_event(Event("tool.called"), Codec())
    for kind, raw in ((b"e", packed), (b"h", pack_hook_run(RUN)), (b"z", b"")):
        found.add_page([[b"%d-0" % (2**64 - 1), [b"k", kind, b"b", raw]]])
    found.add_changes([1, b"\xff" * 10, None, None])
    assert {one.time.year for one in found.entries if one.kind != EntryKind.HOOK} == {9999}
    build_timeline("run", found.entries)


def test_places_in_the_log_that_are_none_stop_nothing() -> None:
    """Neither one that an event came behind, nor one in the list of commits."""
    found = Collected(Codec())
    for number, after in enumerate((b"", b"short", b"\0" * 11)):
        packed = pack_event(Event("tool.called"), Codec())
        fields = [b"k", b"e", b"b", packed, b"r", after]
        found.add_page([[b"1795651555954-%d" % number, fields]])
    at = Revision(1795651555954, 3).packed
    assert found.add_changes([2, b"short", None, None, at, None, None]) == 2
    kinds = [one.kind for one in build_timeline("run", found.entries)]
    assert sorted(kinds) == ["change", "event", "event", "event", "unknown"]
    assert found.unreadable == 1
