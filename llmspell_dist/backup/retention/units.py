"""Spans of time and sizes as short text: ``30d``, ``12h``, ``10GB``, ``512MiB``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["parse_size", "parse_span", "print_size", "print_span", "say_size", "say_span"]

_SPANS: Final = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}
_WORDS: Final = {"w": "week", "d": "day", "h": "hour", "m": "minute", "s": "second"}
_SIZES: Final = {
    "TiB": 2**40,
    "TB": 10**12,
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "kB": 10**3,
    "B": 1,
}
_NUMBER: Final = re.compile(r"([0-9]{1,15})([A-Za-z]+)", re.ASCII)


def parse_span(text: str, argument: str) -> timedelta:
    """Return the span of time that a text like ``30d`` says."""
    found = _NUMBER.fullmatch(text)
    unit = _SPANS.get(found[2]) if found else None
    if found is None or unit is None:
        raise InvalidArgumentError(argument, text, "must look like 90s, 30m, 12h, 7d or 4w")
    try:
        return int(found[1]) * unit
    except OverflowError:
        raise InvalidArgumentError(argument, text, "must be less than that") from None


def print_span(span: timedelta) -> str:
    """Return the text that `parse_span` reads, in the largest unit that is exact."""
    number, unit = _in_units(span)
    return f"{number}{unit}"


def say_span(span: timedelta) -> str:
    """Return a span as a sentence has it: ``30 days``."""
    number, unit = _in_units(span)
    return f"{number:,} {_WORDS[unit]}{'' if number == 1 else 's'}"


def _in_units(span: timedelta) -> tuple[int, str]:
    # Weeks are read, but who asked for 14 days wants to see days.
    for unit in "dhm":
        if span % _SPANS[unit] == timedelta(0):
            return span // _SPANS[unit], unit
    return span // _SPANS["s"], "s"


def parse_size(text: str, argument: str) -> int:
    """Return the bytes that a text like ``10GB`` says."""
    found = _NUMBER.fullmatch(text)
    unit = _SIZES.get(found[2]) if found else None
    if found is None or unit is None:
        rule = "must look like 10GB, 512MiB or 4096B"
        raise InvalidArgumentError(argument, text, rule)
    return int(found[1]) * unit


def print_size(size: int) -> str:
    """Return the text that `parse_size` reads, in the largest unit that is exact."""
    name, unit = next(pair for pair in _SIZES.items() if size % pair[1] == 0 and size >= pair[1])
    return f"{size // unit}{name}"


def say_size(size: int) -> str:
    """Return a size as a sentence has it, rounded: ``1.2 GB``."""
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= _SIZES[unit]:
            return f"{size / _SIZES[unit]:.1f} {unit}"
    return f"{size} bytes"
