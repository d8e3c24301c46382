"""The library's reports as plain documents: what has no plain form is its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from llmspell_dist.revision import Revision

__all__ = ["as_document"]

_PLAIN = (bool, int, float, str, bytes, datetime)


def as_document(value: Any) -> Any:
    """Return a report as builtins; what is none of these is its text."""
    if value is None or (isinstance(value, _PLAIN) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return as_document(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_document(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Revision):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): as_document(part) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_document(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_document(part) for part in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
