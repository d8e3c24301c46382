"""Which scopes an object may hold records of, so that a restore of few scopes reads few objects.

By the CRC-32 of each scope's printed name, sorted, four bytes each: small, and it may only say yes
too often.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

__all__ = ["mark_of", "marks_of", "may_hold"]

_BYTES = 4


def mark_of(scope: bytes) -> bytes:
    """Return the mark of a scope."""
    return crc32(scope).to_bytes(_BYTES, "big")


def marks_of(scopes: Iterable[bytes]) -> bytes:
    """Return the marks of an object with these scopes."""
    return b"".join(sorted({mark_of(scope) for scope in scopes}))


def may_hold(marks: bytes | None, wanted: frozenset[bytes]) -> bool:
    """Whether an object may have records of one of the scopes with these marks."""
    if marks is None:
        return True  # it is not known
    found = (marks[at : at + _BYTES] for at in range(0, len(marks), _BYTES))
    return any(mark in wanted for mark in found)
