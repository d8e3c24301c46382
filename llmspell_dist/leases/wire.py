"""The bytes of leases: what the scripts are given and what they answer.

A holder's record, big-endian: token 8, expires 6, since 6, ttl 4, holds 2, a nonce of 12 a hold,
length of the owner 1, owner, info. A waiter's: mode 1, ttl 4, deadline 6, since 6, length of the
owner 1, owner, info. Info is a MessagePack list of label, host and process id.
The correlation id of whoever took it follows, if there is one. ``lua_scripts/lib/lease.lua`` writes
both.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgpack

from llmspell_dist.leases.model import LeaseHolder, LeaseHow, LeaseMode, LeasePast, LeaseWaiter
from llmspell_dist.revision import from_ms

__all__ = [
    "MODES",
    "NONCE_BYTES",
    "pack_info",
    "pack_said",
    "read_holder",
    "read_holders",
    "read_past",
    "read_said",
    "read_waiter",
]

NONCE_BYTES: Final = 12
MODES: Final = {LeaseMode.EXCLUSIVE: b"x", LeaseMode.SHARED: b"s"}
_MODES: Final = {wire: mode for mode, wire in MODES.items()}
_HOW: Final = {1: LeaseHow.RELEASED, 2: LeaseHow.EXPIRED, 3: LeaseHow.BROKEN}
_HOLDER: Final = struct.Struct(">QHIHIIH")
_WAITER: Final = struct.Struct(">cIHIHIB")


def pack_info(label: str | None, host: str, pid: int, correlation_id: str | None = None) -> bytes:
    """Return what people are told about a holder."""
    info: list[str | int | None] = [label, host, pid]
    if correlation_id is not None:
        info.append(correlation_id)
    packed: bytes = msgpack.packb(info)
    return packed


def _info(raw: bytes) -> tuple[str | None, str | None, int | None, str | None]:
    try:
        label, host, pid, *more = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None, None, None, None  # of a later release: said by nobody here
    return label, host, pid, more[0] if more else None


def read_holder(raw: bytes, mode: LeaseMode = LeaseMode.EXCLUSIVE) -> LeaseHolder:
    """Read a holder's record."""
    token, e_high, e_low, s_high, s_low, ttl, holds = _HOLDER.unpack_from(raw)
    at = _HOLDER.size + holds * NONCE_BYTES
    owner_end = at + 1 + raw[at]
    label, host, pid, correlation_id = _info(raw[owner_end:])
    return LeaseHolder(
        raw[at + 1 : owner_end].decode("utf-8", "replace"),
        mode,
        token,
        from_ms((s_high << 32) | s_low),
        from_ms((e_high << 32) | e_low),
        ttl / 1000,
        holds,
        label,
        host,
        pid,
        correlation_id,
    )


def read_holders(flat: Sequence[bytes]) -> list[LeaseHolder]:
    """Read holders as scripts list them, mode and record in turn; first who was granted first."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    holders = [read_holder(raw, _MODES[mode]) for mode, raw in pairs]
    holders.sort(key=lambda holder: holder.token)  # a hash lists them in any order
    return holders


def read_waiter(raw: bytes, connected: bool) -> LeaseWaiter:
    """Read a waiter's record."""
    mode, _, d_high, d_low, s_high, s_low, length = _WAITER.unpack_from(raw)
    owner_end = _WAITER.size + length
    label, host, pid, _ = _info(raw[owner_end:])
    deadline = (d_high << 32) | d_low
    return LeaseWaiter(
        raw[_WAITER.size : owner_end].decode("utf-8", "replace"),
        _MODES[mode],
        from_ms((s_high << 32) | s_low),
        from_ms(deadline) if deadline else None,
        connected,
        label,
        host,
        pid,
    )


def read_past(raw: bytes) -> LeasePast:
    """Read a hold that has ended: how 1 (10 more of a reader's), when 6, the holder's record.

    Before the record of a broken one stands what was said about it: length 2, text.
    """
    when = int.from_bytes(raw[1:7], "big")
    mode = LeaseMode.SHARED if raw[0] > 10 else LeaseMode.EXCLUSIVE
    how, record, reason, actor = _HOW[raw[0] % 10], raw[7:], None, None
    if how is LeaseHow.BROKEN:
        size = 2 + int.from_bytes(record[:2], "big")
        (reason, actor), record = read_said(record[2:size]), record[size:]
    return LeasePast(read_holder(record, mode), how, from_ms(when), reason, actor)


def pack_said(reason: str, actor: str | None) -> bytes:
    """Return what the holders of a broken lease are told."""
    packed: bytes = msgpack.packb([reason, actor])
    return packed


def read_said(raw: bytes) -> tuple[str | None, str | None]:
    """Read why a lease was broken, and by whom."""
    try:
        reason, actor = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None, None
    return reason, actor
