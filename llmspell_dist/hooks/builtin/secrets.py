"""Finds what looks like a secret in a value, by its shape or by the name that it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from llmspell_dist.masking import MASK, mask_shapes, secret_names, shapes
from llmspell_dist.typed import from_builtin, is_model, to_builtin

__all__ = ["PATTERNS", "SECRET_NAMES", "masked", "names_secret", "redacted"]

PATTERNS: Final = shapes()
"""Private keys, cloud, forge, model and chat tokens, JWTs, bearer tokens, passwords in URLs."""

SECRET_NAMES: Final = secret_names()
"""Names whose value is a secret whatever it looks like."""

_PARTS: Final = re.compile(r"[.:/]")


def redacted(value: Any, patterns: Iterable[re.Pattern[str]] = PATTERNS) -> Any:
    """Return the value with every secret masked; the very same object if there is none.

    Names in maps are looked at as their values are.
    """
    if isinstance(value, str):
        if patterns is PATTERNS:
            masked = mask_shapes(value)
        else:
            masked = value
            for pattern in patterns:
                masked = pattern.sub(MASK, masked)
        return value if masked == value else masked
    if isinstance(value, bytes):
        text = value.decode("utf-8", "surrogateescape")
        masked = redacted(text, patterns)
        return value if masked is text else masked.encode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return _changed(
            value,
            [
                (
                    redacted(name, patterns),
                    MASK if _is_named_secret(name, one) else redacted(one, patterns),
                )
                for name, one in value.items()
            ],
        )
    if isinstance(value, list | tuple | set | frozenset):
        parts = [redacted(one, patterns) for one in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(parts)
    if is_model(value):
        plain = to_builtin(value)
        clean = redacted(plain, patterns)
        return value if clean is plain else _as_before(type(value), clean)
    return value


def _as_before(kind: type, clean: Any) -> Any:
    """Return a model again; the plain value if what was masked does not fit into it."""
    try:
        return from_builtin(kind, clean)
    except Exception:  # noqa: BLE001 - a model's own checks raise anything
        return clean


def masked(value: Any, patterns: Iterable[re.Pattern[str]] = PATTERNS) -> Any:
    """Return the mask for a value that is a secret as a whole; lists and maps keep their shape."""
    if value is None or value in ("", MASK):
        return value
    if isinstance(value, list | tuple):
        parts = [masked(one, patterns) for one in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if isinstance(value, Mapping):
        return _changed(
            value,
            [(redacted(name, patterns), masked(one, patterns)) for name, one in value.items()],
        )
    return MASK


def _changed(before: Mapping[Any, Any], pairs: list[tuple[Any, Any]]) -> Mapping[Any, Any]:
    """Return a map of these pairs, or the one before if they are its own.

    Names that become the same by being masked are numbered, so that no value is lost.
    """
    own = before.items()
    if all(name is a and one is b for (name, one), (a, b) in zip(pairs, own, strict=True)):
        return before
    taken = {name for (name, _), a in zip(pairs, before, strict=True) if name is a}
    changed: dict[Any, Any] = {}
    numbers: dict[Any, int] = {}
    for (name, one), a in zip(pairs, before, strict=True):
        changed[name if name is a else _free(name, taken, numbers)] = one
    return changed


def _free(name: Any, taken: set[Any], numbers: dict[Any, int]) -> Any:
    number, free = numbers.get(name, 1), name  # those before it are taken
    while free in taken:
        number += 1
        free = (*name, number) if isinstance(name, tuple) else _numbered(name, number)
    taken.add(free)
    numbers[name] = number
    return free


def _numbered(name: Any, number: int) -> Any:
    return name + f" {number}".encode() if isinstance(name, bytes) else f"{name} {number}"


def names_secret(key: str) -> bool:
    """Whether a key, or its last part behind a dot, colon or slash, is named as a secret."""
    return bool(SECRET_NAMES.search(_PARTS.split(key)[-1]))


def _is_named_secret(name: Any, value: Any) -> bool:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return (
        isinstance(name, str) and value not in (None, "", MASK) and bool(SECRET_NAMES.search(name))
    )
