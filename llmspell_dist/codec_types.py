"""MessagePack extension types: what they are called on the wire, and their bytes.

====  ================  ========================================================================
code  type              payload (big-endian)
====  ================  ========================================================================
1     aware datetime    year u16, month, day, hour, minute, second u8, microsecond u32 with the
      (fixed offset)    fold in its highest bit, offset in seconds i32 [, its microseconds u32]
2     aware datetime    the same without offset, then the zone's key in UTF-8
      (time zone)
3     date              year u16, month u8, day u8
4     UUID              its 16 bytes
5     Decimal           its text
6     set               a MessagePack array, its items' encodings in byte order
7     frozenset         the same
8     tuple             a MessagePack array
9     int over 64 bits  two's complement
====  ================  ========================================================================

Codes and payloads never change their meaning; a new form gets a new code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Final
from uuid import UUID

__all__ = [
    "FROZENSET",
    "LEAF_TYPES",
    "SET",
    "TUPLE",
    "UnsupportedValueError",
    "pack_leaf",
    "unpack_leaf",
]

DATETIME: Final = 1
ZONED_DATETIME: Final = 2
DATE: Final = 3
UUID_: Final = 4
DECIMAL: Final = 5
SET: Final = 6
FROZENSET: Final = 7
TUPLE: Final = 8
BIG_INT: Final = 9

_FOLD: Final = 1 << 31
_MOMENT: Final = struct.Struct(">HBBBBBI")
_OFFSET: Final = struct.Struct(">i")
_FINE_OFFSET: Final = struct.Struct(">iI")
_DATE: Final = struct.Struct(">HBB")
_SECOND: Final = timedelta(seconds=1)


class UnsupportedValueError(Exception):
    """Raised inside the codec with the reason why one leaf cannot be stored; never leaves it."""


def _zone(key: str) -> tzinfo:
    # Imported by the first who needs it: it reads the build's configuration.
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    return ZoneInfo(key)


def _pack_datetime(value: datetime) -> tuple[int, bytes]:
    zone = value.tzinfo
    moment = _MOMENT.pack(
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond | _FOLD if value.fold else value.microsecond,
    )
    if zone is UTC:
        return DATETIME, moment + b"\0\0\0\0"
    key = getattr(zone, "key", None)
    if key and zone is _zone(key):
        return ZONED_DATETIME, moment + key.encode()
    offset = value.utcoffset()
    if offset is None:
        raise UnsupportedValueError("a datetime without a time zone cannot be stored")
    if type(zone) is not timezone and value.replace(fold=1 - value.fold).utcoffset() != offset:
        # Between different zones, Python holds no two moments in a gap or a fold for equal.
        reason = f"a datetime in a gap or fold of a {type(zone).__qualname__} cannot be stored"
        raise UnsupportedValueError(f"{reason}; use zoneinfo.ZoneInfo(key)")
    seconds = offset // _SECOND
    fine = (offset - seconds * _SECOND).microseconds
    tail = _FINE_OFFSET.pack(seconds, fine) if fine else _OFFSET.pack(seconds)
    return DATETIME, moment + tail


_UTC_TAIL: Final = b"\0\0\0\0"


def _moment(data: bytes) -> tuple[int, int, int, int, int, int, int, int]:
    *fields, last = _MOMENT.unpack_from(data)
    year, month, day, hour, minute, second = fields
    return year, month, day, hour, minute, second, last & ~_FOLD, last >> 31


def _unpack_datetime(data: bytes) -> datetime:
    if data[_MOMENT.size :] == _UTC_TAIL:
        year, month, day, hour, minute, second, micro = _MOMENT.unpack_from(data)
        if micro < _FOLD:  # nearly always so: in UTC nothing happens twice
            return datetime(year, month, day, hour, minute, second, micro, UTC)
    year, month, day, hour, minute, second, micro, fold = _moment(data)
    tail = data[_MOMENT.size :]
    if tail == _UTC_TAIL:
        zone = UTC
    else:
        seconds, fine = (*_OFFSET.unpack(tail), 0) if len(tail) == 4 else _FINE_OFFSET.unpack(tail)
        zone = timezone(timedelta(seconds=seconds, microseconds=fine))
    return datetime(year, month, day, hour, minute, second, micro, zone, fold=fold)


def _unpack_zoned(data: bytes) -> datetime:
    year, month, day, hour, minute, second, micro, fold = _moment(data)
    zone = _zone(data[_MOMENT.size :].decode())
    return datetime(year, month, day, hour, minute, second, micro, zone, fold=fold)


def _pack_int(value: int) -> tuple[int, bytes]:
    return BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


_PACK: Final[dict[type, Callable[..., tuple[int, bytes]]]] = {
    datetime: _pack_datetime,
    date: lambda value: (DATE, _DATE.pack(value.year, value.month, value.day)),
    UUID: lambda value: (UUID_, value.bytes),
    Decimal: lambda value: (DECIMAL, str(value).encode()),
    int: _pack_int,
}

_UNPACK: Final[dict[int, Callable[[bytes], object]]] = {
    DATETIME: _unpack_datetime,
    ZONED_DATETIME: _unpack_zoned,
    DATE: lambda data: date(*_DATE.unpack(data)),
    UUID_: lambda data: UUID(bytes=data),
    DECIMAL: lambda data: Decimal(data.decode("ascii")),
    BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
}

LEAF_TYPES: Final = frozenset({str, bytes, bool, float, type(None), *_PACK})
"""Every type without parts that can be stored; of each exactly this type, no subclass."""


def pack_leaf(value: object) -> tuple[int, bytes]:
    """Return extension code and payload of a leaf that MessagePack itself does not know.

    Raises UnsupportedValueError with the reason if there is no such code.
    """
    pack = _PACK.get(type(value))
    if pack is None:
        raise UnsupportedValueError(f"{type(value).__qualname__} cannot be stored")
    return pack(value)


def unpack_leaf(code: int, data: bytes) -> object:
    """Return the leaf with this extension code and payload; KeyError for a foreign code."""
    return _UNPACK[code](data)
