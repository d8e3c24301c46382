"""Numbers and durations in words, for people."""

from __future__ import annotations

from typing import Final

__all__ = ["counted", "spoken"]

_NOTATION: Final = (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with what is counted: 1 key, 2 keys."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def spoken(seconds: float) -> str:
    """Return a duration for people, as ``--ttl`` takes it: 50ms, 4.2s, 3m12s, 2d3h."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    tenths = round(seconds * 10)
    if tenths < 600:
        return f"{tenths / 10:g}s"
    whole = tenths // 10
    unit, size, below, small_size = next(row for row in _NOTATION if whole >= row[1])
    large, rest = divmod(whole, size)
    small = rest // small_size
    return f"{large}{unit}{small}{below}" if small else f"{large}{unit}"
