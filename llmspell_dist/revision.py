"""Revisions: the position of a commit in its shard's change log.

A revision is the id that the server's ``XADD *`` gives to the commit's log entry. It is unique and
never lower than an earlier one while the log lives, even if the server's clock steps back, and its
first half is server time. Revisions are ordered but not consecutive.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from llmspell_dist.errors import InvalidArgumentError

_FIRST, _LAST = struct.Struct(">HI"), struct.Struct(">I")
PACKED_BYTES = 10
NO_REVISION = b"\0" * PACKED_BYTES
"""What stands for "there was none before" wherever a packed revision is stored."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_MS, MAX_SEQ = 2**48 - 1, 2**32 - 1


class Revision(NamedTuple):
    """When and in which order a commit happened: comparable, hashable, printable, parseable.

    ``ms`` is the server's time in milliseconds since the epoch, ``seq`` the number within it.
    """

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @property
    def time(self) -> datetime:
        """The server time of the commit, aware, UTC."""
        return from_ms(self.ms)

    @property
    def packed(self) -> bytes:
        """The ten bytes that records and log entries hold: 48-bit ms, 32-bit seq, big-endian."""
        return _FIRST.pack(self.ms >> 32, self.ms & 0xFFFFFFFF) + _LAST.pack(self.seq)

    @classmethod
    def unpack(cls, packed: bytes) -> Revision | None:
        """Read the ten bytes; ``None`` if they say that there is no revision."""
        if packed == NO_REVISION:
            return None
        high, low = _FIRST.unpack_from(packed)
        return cls((high << 32) | low, _LAST.unpack_from(packed, 6)[0])

    @classmethod
    def parse(cls, text: str | bytes) -> Revision:
        """Read ``"ms-seq"``, the printed form; anything else is an ``InvalidArgumentError``."""
        try:
            ms, _, seq = text.partition("-") if isinstance(text, str) else text.partition(b"-")
            if not (ms.isdigit() and seq.isdigit() and text.isascii()):
                raise ValueError(text)  # noqa: TRY301 - as int() would
            revision = cls(int(ms), int(seq))
        except (ValueError, AttributeError, TypeError):
            raise InvalidArgumentError("revision", text, "must look like 1732374145123-0") from None
        if revision.ms > MAX_MS or revision.seq > MAX_SEQ:
            raise InvalidArgumentError("revision", text, "ms has 48 bits and seq 32 bits")
        return revision


BEGINNING = Revision(0, 0)
"""Before every commit."""


def from_ms(ms: int) -> datetime:
    """Turn milliseconds since the epoch into an aware datetime, without float rounding."""
    return _EPOCH + timedelta(milliseconds=ms)


def to_ms(moment: datetime) -> int:
    """Turn an aware datetime into milliseconds since the epoch, rounded down."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise InvalidArgumentError("time", moment, "must be aware: add a tzinfo, for example UTC")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
