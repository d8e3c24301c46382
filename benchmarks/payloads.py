"""The values that rows read and write: chat messages cut to an exact number of packed bytes."""

from __future__ import annotations

from typing import Any

import msgpack

__all__ = ["HUGE", "LARGE", "MAIN", "MEDIUM", "SMALL", "SPARE_SIZES", "packed", "value"]

SMALL = 143
MAIN = 663
MEDIUM = 4_300
LARGE = 100_000
HUGE = 10_000_000
SPARE_SIZES = {"143 B": SMALL, "4.3 KB": MEDIUM, "100 KB": LARGE}

_WORDS = (
    "The test fails because the field rounds instead of truncating, so a duration of 345 ms comes "
    "back as 344. I will open the serializer, look at how the integer is computed, change it to "
    "round half up, and run the suite again before I submit. "
)


def value(size: int, variant: int = 0) -> dict[str, Any]:
    """Return a message whose MessagePack form has exactly ``size`` bytes; variants differ."""
    if size < 2_000:
        return _padded({"role": "assistant", "agent": "main"}, size, variant)
    turns = [value(MAIN, variant + n) for n in range(size // (MAIN + 40))]
    return _padded({"role": "assistant", "agent": "main", "turns": turns}, size, variant)


def packed(size: int, variant: int = 0) -> bytes:
    """Return the same message as bytes, as a client without a codec would store it."""
    return _pack(value(size, variant))


def _padded(message: dict[str, Any], size: int, variant: int) -> dict[str, Any]:
    text = f"[{variant:04d}] " + _WORDS * (size // len(_WORDS) + 1)
    length = size - len(_pack({**message, "content": ""}))
    # The string's own header grows with it: approach from above, at most four bytes away.
    for content in (text[: length - header] for header in range(5)):
        candidate = {**message, "content": content}
        if len(_pack(candidate)) == size:
            return candidate
    raise ValueError(f"no message of exactly {size} bytes")


def _pack(message: dict[str, Any]) -> bytes:
    data: bytes = msgpack.packb(message)
    return data
