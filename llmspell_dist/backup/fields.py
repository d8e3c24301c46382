"""JSON that somebody else may have written: each field is what it must be, or nothing is used.

All functions raise ValueError for what does not fit; who calls them says in which object it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from llmspell_dist.revision import Revision

__all__ = [
    "Check",
    "checked",
    "count",
    "flag",
    "load",
    "matching",
    "moment",
    "number",
    "revision",
    "text",
    "texts",
    "texts_by_name",
]

Check = Callable[[Any], Any]
_MOST: Final = 2**63 - 1
_YEARS: Final = range(1970, 9000)
"""Others cannot be reckoned with: a time zone or a span would lead out of what dates can be."""


def load(raw: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object."""
    try:
        found = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if type(found) is not dict:
        raise ValueError(type(found))
    return found


def checked(facts: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return fields, each as its check returns it; one that has no check is refused."""
    if type(facts) is not dict or facts.keys() - checks.keys():
        raise ValueError(facts)
    found = {}
    for name, value in facts.items():
        try:
            found[name] = checks[name](value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"its {name} is none") from error
    return found


def text(value: Any) -> str:
    """Return a text."""
    if type(value) is not str:
        raise ValueError(value)
    return value


def matching(pattern: str, *, empty: bool = False) -> Check:
    """Return a check: the text matches as a whole, or may be empty."""
    matches = re.compile(pattern, re.ASCII).fullmatch

    def check(value: Any) -> str:
        if (text(value) or not empty) and not matches(value):
            raise ValueError(value)
        return str(value)

    return check


def count(value: Any) -> int:
    """Return a number of things, or of bytes."""
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(value)
    return value


def number(value: Any) -> float:
    """Return a number that is not negative."""
    if type(value) not in {int, float} or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)


def flag(value: Any) -> bool:
    """Return a truth value."""
    if type(value) is not bool:
        raise ValueError(value)
    return value


def moment(value: Any) -> str:
    """Return ISO 8601 text with an offset."""
    found = datetime.fromisoformat(text(value))
    if found.tzinfo is None or found.year not in _YEARS:
        raise ValueError(value)
    return str(value)


def revision(value: Any) -> str:
    """Return the text of a revision, or nothing."""
    if text(value) and Revision.parse(value).time.year not in _YEARS:
        raise ValueError(value)
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts."""
    if type(value) is not list:
        raise ValueError(value)
    return tuple(map(text, value))


def texts_by_name(value: Any) -> dict[str, str]:
    """Return texts by name."""
    if type(value) is not dict:
        raise ValueError(value)
    return {text(name): text(one) for name, one in value.items()}
