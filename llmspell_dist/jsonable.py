"""Values as JSON and back, without loss.

What JSON lacks is an object with one tag: ``{"$bytes": "aGk="}``, ``{"$set": [1, 2]}``. A dict that
has a tag among its own keys, or keys that are not text, is written as ``{"$map": [[key, value]]}``,
so a reader is never in doubt. Any other object stays what it is, ``{"$ref": "x"}`` too.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["TAGS", "from_json", "to_json"]

SAFE_INT: Final = 2**53 - 1
"""Beyond it most readers of JSON lose digits."""

_SEQUENCES: Final[dict[str, type]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_TAG_OF: Final[dict[type, str]] = {cls: tag for tag, cls in _SEQUENCES.items()}
_LEAVES: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode()},
    date: lambda value: {"$date": value.isoformat()},
    UUID: lambda value: {"$uuid": str(value)},
    Decimal: lambda value: {"$decimal": str(value)},
}


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _big_int(text: str) -> int:
    if len(text) > 4000:
        raise ValueError(text[:10])
    return int(text)


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "$bytes": _bytes,
    "$date": date.fromisoformat,
    "$datetime": datetime.fromisoformat,
    "$uuid": UUID,
    "$decimal": Decimal,
    "$int": _big_int,
    "$float": float,
}
TAGS: Final = frozenset({*_READ, *_SEQUENCES, "$map"})


def to_json(value: Any) -> Any:
    """Return a value of ours as one that `json` can write; `from_json` inverts it."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -SAFE_INT <= value <= SAFE_INT else {"$int": str(value)}
    if kind is float:
        return value if isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [to_json(item) for item in value]
    if kind is dict:
        if all(type(key) is str and key not in TAGS for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if kind is datetime:
        zone = getattr(value.tzinfo, "key", None)
        text = {"$datetime": value.isoformat()}
        return text | {"zone": zone} if zone else text
    if kind in _LEAVES:
        return _LEAVES[kind](value)
    items = [to_json(item) for item in value]
    if kind is not tuple:
        items.sort(key=json.dumps)  # a set has no order, the output should
    return {_TAG_OF[kind]: items}


def from_json(document: Any, path: str = "$") -> Any:
    """Return the value that a JSON document stands for; a wrong tag names its path."""
    if isinstance(document, list):
        return [from_json(item, f"{path}[{place}]") for place, item in enumerate(document)]
    if not isinstance(document, dict):
        return document
    tags = TAGS & document.keys()
    if not tags:
        return {key: from_json(item, f"{path}.{key}") for key, item in document.items()}
    try:
        return _tagged(document, path)
    except (ValueError, TypeError, KeyError, binascii.Error, InvalidOperation):
        raise _bad(path, min(tags)) from None


def _tagged(document: dict[str, Any], path: str) -> Any:
    zone = document.get("zone") if "$datetime" in document else None
    if len(document) != (1 if zone is None else 2):
        raise ValueError(path)
    tag = next(name for name in document if name in TAGS)
    content = document[tag]
    inner = f"{path}.{tag}"
    if tag in _READ:
        if not isinstance(content, str):
            raise TypeError(path)
        return _zoned(_READ[tag](content), zone) if tag == "$datetime" else _READ[tag](content)
    if not isinstance(content, list):
        raise TypeError(path)
    if tag == "$map":
        return {from_json(key, inner): from_json(item, inner) for key, item in content}
    return _SEQUENCES[tag](from_json(item, inner) for item in content)


def _zoned(moment: datetime, zone: str | None) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(moment)
    try:
        return moment if zone is None else moment.astimezone(ZoneInfo(zone))
    except ZoneInfoNotFoundError:
        raise ValueError(zone) from None


def _bad(path: str, tag: str) -> InvalidArgumentError:
    error = InvalidArgumentError(f"value at {path[:200]}", None, "")
    error.rule, error.value = f"must have well-formed content in {tag}", "…"  # it may be a secret
    error.args = (f"{error.argument} {error.rule}",)
    return error
