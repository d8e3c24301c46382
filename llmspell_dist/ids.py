"""Ids of events, hook runs and correlations: unique without asking anybody, ordered by time."""

from __future__ import annotations

import os
from time import time_ns
from typing import Final

__all__ = ["new_id"]

_AT_ONCE: Final = 256
_BYTES: Final = 10
_VARIANTS: Final = "89ab"

_random: list[bytes] = []
"""Random bytes for the next ids: asking the system for each id would be half of what it costs."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.clear)  # or the child would make its parent's ids


def _refill() -> bytes:
    fresh = os.urandom(_AT_ONCE * _BYTES)
    _random.extend(fresh[at : at + _BYTES] for at in range(_BYTES, len(fresh), _BYTES))
    return fresh[:_BYTES]


def new_id() -> str:
    """Return a new id as 36 characters: a UUID version 7 (RFC 9562), from this machine's clock."""
    try:
        # Taken out in one step, so that no two threads get the same.
        random = _random.pop()
    except IndexError:
        random = _refill()
    stamp = f"{time_ns() // 1_000_000:012x}"
    tail = random.hex()
    variant = _VARIANTS[random[9] & 3]
    return f"{stamp[:8]}-{stamp[8:]}-7{tail[:3]}-{variant}{tail[3:6]}-{tail[6:18]}"
