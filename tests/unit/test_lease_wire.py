"""The records of leases, as bytes: what is written is what is read, by Python and by Lua alike."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.leases.model import LeaseHow, LeaseMode, LeasePast
from llmspell_dist.leases.wire import (
    NONCE_BYTES,
    pack_info,
    pack_said,
    read_holder,
    read_holders,
    read_past,
    read_waiter,
)

pytestmark = pytest.mark.unit

# 2026-01-02 03:04:05.678 UTC, and ten seconds later.
SINCE, EXPIRES = 1_767_323_045_678, 1_767_323_055_678
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def holder(
    token: int = 7,
    *,
    since: int = SINCE,
    expires: int = EXPIRES,
    ttl_ms: int = 10_000,
    holds: int = 1,
    owner: bytes = b"job",
    info: bytes = pack_info("label", "host", 42),
) -> bytes:
    """Put a record together as `lib/lease.lua` describes it."""
    head = token.to_bytes(8, "big") + expires.to_bytes(6, "big") + since.to_bytes(6, "big")
    nonces = b"".join(bytes((n,)) * NONCE_BYTES for n in range(holds))
    return head + struct.pack(">IH", ttl_ms, holds) + nonces + bytes((len(owner),)) + owner + info


def test_a_holder_s_record() -> None:
    """Byte by byte."""
    found = read_holder(holder(holds=3))
    assert (found.owner, found.token, found.holds, found.ttl_s) == ("job", 7, 3, 10.0)
    assert (found.label, found.host, found.pid) == ("label", "host", 42)
    assert found.since == MOMENT
    assert (found.expires - found.since).total_seconds() == 10
    assert found.mode is LeaseMode.EXCLUSIVE
    assert read_holder(holder(), LeaseMode.SHARED).mode is LeaseMode.SHARED


@given(
    st.integers(1, 2**53 - 1),
    st.integers(0, 2**42),
    st.integers(50, 86_400_000),
    st.integers(0, 40),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
)
def test_any_holder_s_record(token: int, since: int, ttl_ms: int, holds: int, owner: str) -> None:
    """Whatever numbers and names."""
    raw = holder(token, since=since, expires=since + ttl_ms, ttl_ms=ttl_ms, holds=holds,
                 owner=owner.encode())  # fmt: skip
    found = read_holder(raw)
    assert (found.token, found.holds, found.owner) == (token, holds, owner)
    assert found.ttl_s == ttl_ms / 1000
    assert round((found.expires - found.since).total_seconds() * 1000) == ttl_ms


def test_holders_as_scripts_list_them() -> None:
    """Mode and record in turn; of one that lacks its half nothing is guessed."""
    found = read_holders([b"x", holder(1), b"s", holder(2)])
    assert [(one.mode, one.token) for one in found] == [
        (LeaseMode.EXCLUSIVE, 1),
        (LeaseMode.SHARED, 2),
    ]
    with pytest.raises(ValueError, match="shorter"):
        read_holders([b"x"])


def test_a_waiter_s_record() -> None:
    """With a deadline, or without end."""
    info = pack_info(None, "host", 1)
    for deadline in (0, EXPIRES):
        raw = b"s" + (500).to_bytes(4, "big") + deadline.to_bytes(6, "big")
        raw += SINCE.to_bytes(6, "big") + b"\x02" + b"me" + info
        found = read_waiter(raw, connected=bool(deadline))
        assert (found.owner, found.mode, found.since) == ("me", LeaseMode.SHARED, MOMENT)
        assert (found.deadline is not None) is bool(deadline) is found.connected
        assert (found.label, found.host, found.pid) == (None, "host", 1)


@pytest.mark.parametrize(
    ("code", "how", "mode"),
    [
        (1, LeaseHow.RELEASED, LeaseMode.EXCLUSIVE),
        (2, LeaseHow.EXPIRED, LeaseMode.EXCLUSIVE),
        (3, LeaseHow.BROKEN, LeaseMode.EXCLUSIVE),
        (11, LeaseHow.RELEASED, LeaseMode.SHARED),
        (12, LeaseHow.EXPIRED, LeaseMode.SHARED),
        (13, LeaseHow.BROKEN, LeaseMode.SHARED),
    ],
)
def test_an_ended_hold(code: int, how: LeaseHow, mode: LeaseMode) -> None:
    """How, when, and the holder's record."""
    said = b""
    if how is LeaseHow.BROKEN:
        said = pack_said("it hangs", "ann")
        said = len(said).to_bytes(2, "big") + said
    past = read_past(bytes((code,)) + (SINCE + 2500).to_bytes(6, "big") + said + holder())
    assert isinstance(past, LeasePast)
    assert (past.reason, past.actor) == (("it hangs", "ann") if said else (None, None))
    assert (past.how, past.holder.mode, past.holder.owner) == (how, mode, "job")
    assert past.held_s == 2.5


def test_what_a_later_release_says_about_a_holder_is_left_out() -> None:
    """The record is read all the same; a message never fails over a label."""
    for info in (b"", b"\xc1", b"\x91\x01", pack_info("a", "b", 1) + b"more", b"\x80"):
        found = read_holder(holder(info=info))
        assert found.owner == "job"
        assert (found.label, found.host, found.pid) == (None, None, None)
        assert "job" in str(found)
