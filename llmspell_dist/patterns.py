"""Patterns of event types: which types a subscriber or a query means.

A type is segments of letters, digits, ``_``, ``-`` and ``:``, joined by dots:
``state.agent.changed``. A pattern is a type in which whole segments may be ``*``:

- ``*`` alone means every type;
- ``*`` at the end stands for one or more segments: ``state.*``;
- ``*`` elsewhere stands for exactly one: ``state.*.changed``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Pattern", "check_type"]

MAX_LENGTH: Final = 256
_SEGMENT: Final = r"[\w:-]+"
_TYPE: Final = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*", re.ASCII)
_PATTERN: Final = re.compile(rf"(?:{_SEGMENT}|\*)(?:\.(?:{_SEGMENT}|\*))*", re.ASCII)
_TYPE_RULE: Final = (
    "must be segments of ASCII letters, digits, _, - and : joined by dots, "
    f"at most {MAX_LENGTH} characters"
)


def check_type(value: object, argument: str = "type") -> str:
    """Return an event type; anything else is an `InvalidArgumentError`."""
    if type(value) is not str or len(value) > MAX_LENGTH or not _TYPE.fullmatch(value):
        raise InvalidArgumentError(argument, value, _TYPE_RULE)
    return value


class Pattern:
    """A pattern of event types, checked: `InvalidArgumentError` for anything that is none."""

    __slots__ = ("_expression", "exact", "text")

    def __init__(self, text: str, argument: str = "pattern") -> None:
        if type(text) is not str or len(text) > MAX_LENGTH or not _PATTERN.fullmatch(text):
            rule = f"{_TYPE_RULE}; whole segments may be *"
            raise InvalidArgumentError(argument, text, rule)
        self.text = text
        self.exact = "*" not in text
        """Whether it means one type only."""
        self._expression = _compiled(text)

    def matches(self, event_type: str) -> bool:
        """Return whether it means this type."""
        if self.exact:
            return event_type == self.text
        return self._expression.fullmatch(event_type) is not None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=1024)
def _compiled(text: str) -> re.Pattern[str]:
    *heads, last = text.split(".")
    parts = [r"[^.]+" if head == "*" else re.escape(head) for head in heads]
    parts.append(r".+" if last == "*" else re.escape(last))
    return re.compile(r"\.".join(parts))
