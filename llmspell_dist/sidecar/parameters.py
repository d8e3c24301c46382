"""Reads the parameters of a query into the Struct that a route declares."""

from __future__ import annotations

from functools import cache
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.errors import shorten_reason

__all__ = ["read_query"]

_MOST: Final = 1000


def read_query(text: bytes, shape: type | None) -> Any:
    """Return the parameters as a Struct; one that is unknown or twice is an `InvalidArgumentError`.

    A field that is a list takes as many as there are.
    """
    if not text:
        return None if shape is None else _empty(shape)
    try:
        pairs = parse_qsl(
            text.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            max_num_fields=_MOST,
            errors="strict",
        )
    except ValueError:
        raise InvalidArgumentError("query", None, "must be name=value pairs, in UTF-8") from None
    lists = _fields(shape)
    given: dict[str, Any] = {}
    for name, value in pairs:
        many = lists.get(name)
        if many is None:
            rule = f"is no parameter here; there are {', '.join(lists) or 'none'}"
            raise InvalidArgumentError(f"query parameter {name[:60]}", value, rule)
        if "\0" in value:
            raise InvalidArgumentError(name, value, "must not hold a NUL")
        if many:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise InvalidArgumentError(name, None, "must be there once")
        else:
            given[name] = value
    assert shape is not None  # noqa: S101 - then no parameter is known
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as error:
        raise _unfit(error, given) from None


def _unfit(error: msgspec.ValidationError, given: dict[str, Any]) -> InvalidArgumentError:
    reason, _, place = str(error).partition(" - at `$.")
    name = place.rstrip("`") or "query"
    return InvalidArgumentError(name, given.get(name), f"does not fit: {shorten_reason(reason)}")


@cache
def _empty(shape: type) -> Any:
    """Structs of queries are frozen: one for all who give no parameter."""
    try:
        return msgspec.convert({}, shape)
    except msgspec.ValidationError as error:
        raise _unfit(error, {}) from None


@cache
def _fields(shape: type | None) -> dict[str, bool]:
    """Return the names of the parameters, and whether each can come several times."""
    if shape is None:
        return {}
    return {
        info.encode_name: isinstance(msgspec.inspect.type_info(info.type), msgspec.inspect.ListType)
        for info in msgspec.structs.fields(shape)
    }
