"""Times to live: what a caller may pass, and the milliseconds that it means."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from math import ceil, isfinite
from typing import Final, Literal, TypeAlias, overload

from llmspell_dist.errors import InvalidTTLError

__all__ = ["KEEP", "MAX_TTL_MS", "TTL", "Keep", "ttl_ms"]

MAX_TTL_MS: Final = 100 * 36_525 * 24 * 36_000
"""A hundred years of 365.25 days."""


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""As a TTL: leave the one that the value has."""

TTL: TypeAlias = float | timedelta | Literal[Keep.KEEP] | None
"""Seconds or a timedelta; None drops the TTL, KEEP leaves it."""

_MICROSECOND: Final = timedelta(microseconds=1)


@overload
def ttl_ms(value: float | timedelta) -> int: ...
@overload
def ttl_ms(value: None) -> None: ...
@overload
def ttl_ms(value: Literal[Keep.KEEP]) -> Literal[Keep.KEEP]: ...


def ttl_ms(value: TTL) -> int | Literal[Keep.KEEP] | None:
    """Return the time to live `value` in whole milliseconds, rounded up; None and KEEP as they are.

    Raises InvalidTTLError if it is zero, negative, not finite, over a hundred years or no time.
    """
    if value is KEEP or value is None:
        return value
    if isinstance(value, timedelta):
        ms = -(-(value // _MICROSECOND) // 1000)  # -timedelta.max would overflow
    elif type(value) is float:
        if not isfinite(value):
            raise InvalidTTLError("ttl", value, "must be finite")
        # 0.29 * 1000 is 290.00000000000006 or less than 290: what is meant is 290.
        ms = ceil(round(value * 1000, 6)) if abs(value) < 1e12 else int(value) * 1000
        if value > 0:
            ms = max(ms, 1)
    elif type(value) is int:
        ms = value * 1000
    else:
        raise InvalidTTLError("ttl", value, "must be seconds, a timedelta, None or KEEP")
    if ms <= 0:
        raise InvalidTTLError("ttl", value, "must be more than zero")
    if ms > MAX_TTL_MS:
        raise InvalidTTLError("ttl", value, "must be at most 100 years")
    return ms
