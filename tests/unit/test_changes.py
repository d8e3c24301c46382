"""Change log entries, byte by byte."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.changes import OMITTED, LoggedChange, Op, unpack_entry
from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError
from llmspell_dist.revision import NO_REVISION, Revision

pytestmark = pytest.mark.unit
OPERATION = bytes(range(8)) + (300).to_bytes(6, "big")


def frame(change: LoggedChange, *, named: bool = True) -> bytes:
    """One frame as the script writes it."""
    payload = change.payload
    scope = change.scope.encode() if named else b""
    return b"".join(
        (
            bytes((change.op + (OMITTED if payload is None else 0),)),
            bytes((change.kind << 4 | change.state_class, change.flags)),
            change.schema_version.to_bytes(2, "big"),
            len(change.key.encode()).to_bytes(2, "big"),
            len(payload or b"").to_bytes(4, "big"),
            len(scope).to_bytes(2, "big"),
            change.previous.packed if change.previous else NO_REVISION,
            change.previous_in_scope.packed if change.previous_in_scope else NO_REVISION,
            change.expires_ms.to_bytes(6, "big"),
            scope,
            change.key.encode(),
            payload or b"",
        )
    )


def entry(*frames: bytes, meta: bytes = b"", operation: bytes = OPERATION) -> list[bytes]:
    """Return the fields of an entry."""
    return [b"c", b"\x01" + b"".join(frames), b"m", meta, b"o", operation]


revisions = st.builds(Revision, st.integers(1, 2**48 - 1), st.integers(0, 2**32 - 1))
changes = st.builds(
    LoggedChange,
    op=st.sampled_from([int(op) for op in Op]),
    kind=st.integers(0, 5),
    state_class=st.integers(0, 7),
    flags=st.sampled_from([0, 4, 8]),
    schema_version=st.integers(0, 65_535),
    scope=st.sampled_from(["global", "agent:é", "workflow:w/step:s"]),
    key=st.text(st.characters(codec="utf-8"), max_size=10),
    previous=st.none() | revisions,
    previous_in_scope=st.none() | revisions,
    expires_ms=st.integers(0, 2**48 - 1),
    payload=st.none() | st.binary(max_size=20),
)


def test_numbers_of_operations_are_pinned() -> None:
    """They stand in logs."""
    assert [(op.name, int(op)) for op in Op] == [
        ("SET", 1), ("DELETE", 2), ("EXPIRED", 3), ("TTL", 4), ("INCREMENT", 5), ("APPEND", 6),
        ("MERGE", 7), ("ADOPT", 8), ("CLEAR", 9), ("COPY", 10), ("POLICY", 11), ("BROKEN", 12),
        ("RESTORED", 13),
    ]  # fmt: skip


@given(st.lists(changes, min_size=1, max_size=5))
def test_frames_come_back(logged: list[LoggedChange]) -> None:
    """A scope that is the one of the frame before is not repeated."""
    frames, last = [], ""
    for change in logged:
        frames.append(frame(change, named=change.scope != last))
        last = change.scope
    meta = msgpack.packb({"a": "me"})
    found = unpack_entry(b"5-6", entry(*frames, meta=meta))
    assert list(found.changes) == logged
    assert (found.revision, found.meta) == (Revision(5, 6), {"a": "me"})
    assert found.operation == "0001020304050607:300"


def test_the_layout_is_pinned() -> None:
    """Bytes of yesterday's releases lie in Redis."""
    raw = (
        bytes.fromhex(
            "01"  # format
            "01 10 04 0002 0001 00000003 0006"
            "000000000001 00000002 000000000003 00000004 000000000005"
        )
        + b"globalkabc"
    )
    (change,) = unpack_entry(b"9-0", [b"c", raw, b"m", b"", b"o", OPERATION]).changes
    assert change == LoggedChange(
        1, 1, 0, 4, 2, "global", "k", Revision(1, 2), Revision(3, 4), 5, b"abc"
    )


WHOLE = frame(LoggedChange(1, 1, 0, 0, 1, "global", "k", None, None, 0, b"payload"))


@pytest.mark.parametrize("end", range(1, len(WHOLE)))
def test_an_entry_that_was_cut_is_named(end: int) -> None:
    """Wherever it was cut."""
    with pytest.raises(CorruptRecordError) as caught:
        unpack_entry(b"5-6", entry(WHOLE[:end]))
    assert (caught.value.scope, caught.value.key) == ("log", "5-6")


@pytest.mark.parametrize(
    "fields",
    [
        [], [b"c"], [b"c", b"\x01", b"m", b""], [b"x", b"y", b"m", b"", b"o", b""],
        [b"c", b"\x01", b"m", b"\xc1", b"o", OPERATION],
        [b"c", b"\x01" + WHOLE.replace(b"global", b"\xff" * 6), b"m", b"", b"o", OPERATION],
    ],
)  # fmt: skip
def test_an_entry_of_other_fields_is_named(fields: list[bytes]) -> None:
    """Somebody else may have written it."""
    with pytest.raises(CorruptRecordError) as caught:
        unpack_entry(b"5-6", fields)
    assert caught.value.key == "5-6"


@pytest.mark.parametrize("raw", [b"", b"\x02" + WHOLE])
def test_a_newer_format_is_told_from_damage(raw: bytes) -> None:
    """So that one knows to upgrade."""
    with pytest.raises(UnsupportedFormatError):
        unpack_entry(b"5-6", [b"c", raw, b"m", b"", b"o", OPERATION])


def test_what_a_later_release_says_about_itself_does_no_harm() -> None:
    """Unknown parts of the metadata, or metadata that is no map."""
    later = msgpack.packb({"a": "me", "zz": 1})
    assert unpack_entry(b"5-6", entry(WHOLE, meta=later)).meta == {"a": "me", "zz": 1}
    assert unpack_entry(b"5-6", entry(WHOLE, meta=msgpack.packb([1]))).meta == {}
