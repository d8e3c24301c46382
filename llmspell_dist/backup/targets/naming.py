"""Which names objects may have: nothing that could lead out of a folder or a prefix."""

from __future__ import annotations

import re
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["MAX_NAME", "check_name", "check_prefix", "is_name"]

MAX_NAME: Final = 900
"""Bytes of a name; S3 has 1,024 for it and the target's own prefix together."""
MAX_PART: Final = 255
"""Bytes between two slashes: what file systems have."""

_NAME: Final = re.compile(r"[A-Za-z0-9._=+-]+(?:/[A-Za-z0-9._=+-]+)*", re.ASCII).fullmatch
_PREFIX: Final = re.compile(r"[A-Za-z0-9._=+/-]*", re.ASCII).fullmatch
_RULE: Final = "must be of A-Z a-z 0-9 . _ - = + between slashes"


def is_name(name: object) -> bool:
    """Return whether an object may have this name."""
    return _broken(name) is None


def check_name(name: str) -> str:
    """Return `name`; InvalidArgumentError if no object may have it."""
    rule = _broken(name)
    if rule is not None:
        raise InvalidArgumentError("name", name, rule)
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix`; InvalidArgumentError if no name could begin with it."""
    if not isinstance(prefix, str) or not _PREFIX(prefix):
        raise InvalidArgumentError("prefix", prefix, _RULE)
    if len(prefix) > MAX_NAME:
        raise InvalidArgumentError("prefix", prefix, f"must be at most {MAX_NAME} bytes")
    parts = prefix.split("/")
    if any(part in {"", ".", ".."} for part in parts[:-1]):
        raise InvalidArgumentError("prefix", prefix, "must not have the parts '', '.' and '..'")
    return prefix


def _broken(name: object) -> str | None:
    if not isinstance(name, str) or not _NAME(name):
        return _RULE
    if len(name) > MAX_NAME:
        return f"must be at most {MAX_NAME} bytes"
    parts = name.split("/")
    if any(part in {".", ".."} for part in parts):
        return "must not have the parts '.' and '..'"
    if max(map(len, parts)) > MAX_PART:
        return f"must have at most {MAX_PART} bytes between slashes"
    return None
