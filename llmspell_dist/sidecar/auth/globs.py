r"""Patterns of grants and claims: one wildcard, ``*``, which stands for any text, also none.

**Why a request may itself be a pattern.** Who asks to list ``agent:team-*`` is allowed by a grant
whose pattern matches that text, star and all. No literal of a grant's pattern holds a star, so the
star that is asked for is absorbed by one of the grant's, and with it whatever it may stand for:
everything that the request can mean, the grant matches too. Of the other wildcards of requests,
``?`` is absorbed the same way. ``[a-z]`` and ``\`` are longer than one character, so a request is
cut off at the first of them and ends with a star instead: more is asked for, never less.
"""

from __future__ import annotations

import re
from typing import Final

from llmspell_dist.errors import InvalidArgumentError, InvalidScopeError
from llmspell_dist.scope import Scope, ScopeKind, decode_part, encode_part

__all__ = ["OTHER_TARGETS", "Glob", "check_grant_pattern", "widened"]

OTHER_TARGETS: Final = ("backup", "correlation", "event")
"""What is granted beside scopes, as the text before the colon."""
_KINDS: Final = frozenset(
    {*OTHER_TARGETS, *(k.value for k in ScopeKind if k not in (ScopeKind.GLOBAL, ScopeKind.STEP))}
)
_MAX_PATTERN: Final = 1024
_FORBIDDEN: Final = re.compile(r"[?\[\]{}\\\s\x00-\x1f\x7f-\x9f]")
_ARGUMENT: Final = "scopes"


class Glob:
    """A pattern in which ``*`` stands for any text; everything else for itself, case and all.

    Matching takes time that grows with text times pieces at worst: no backtracking.
    """

    __slots__ = ("_begin", "_end", "_least", "_middle", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._begin, *rest = text.split("*")
        self._end = rest.pop() if rest else None
        self._middle = [piece for piece in rest if piece]
        self._least = len(self._begin) + len(self._end or "")

    def matches(self, text: str) -> bool:
        """Return whether the pattern stands for the whole of `text`."""
        if self._end is None:
            return text == self._begin
        if len(text) < self._least or not text.startswith(self._begin):
            return False
        if not text.endswith(self._end):
            return False
        at, stop = len(self._begin), len(text) - len(self._end)
        for piece in self._middle:  # the leftmost place leaves the most for the rest
            found = text.find(piece, at, stop)
            if found < 0:
                return False
            at = found + len(piece)
        return True

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"


def widened(target: str) -> str:
    r"""Return what is asked for without the wildcards ``[`` and ``\``; see the module."""
    cuts = [at for at in (target.find("["), target.find("\\")) if at >= 0]
    return f"{target[: min(cuts)]}*" if cuts else target


def check_grant_pattern(pattern: str) -> str:
    """Return the pattern of a grant; `InvalidArgumentError` if it could mean nothing.

    A misspelt kind, a lower-case or needless percent-escape, a text that is not NFC: each would
    look like a grant and match no scope.
    """
    if not pattern or len(pattern) > _MAX_PATTERN:
        raise InvalidArgumentError(_ARGUMENT, pattern, f"must have 1 to {_MAX_PATTERN} characters")
    if _FORBIDDEN.search(pattern):
        rule = "must have no wildcard but *, and reserved characters of ids percent-encoded"
        raise InvalidArgumentError(_ARGUMENT, pattern, rule)
    kind, colon, rest = pattern.partition(":")
    if "*" in kind or pattern == "global":
        pass
    elif not colon or kind not in _KINDS:
        known = ", ".join(f"{one}:…" for one in sorted(_KINDS))
        raise InvalidArgumentError(_ARGUMENT, pattern, f"must begin as *, global or {known}")
    elif not rest:
        raise InvalidArgumentError(_ARGUMENT, pattern, "must have an id or a * after the colon")
    elif "*" not in rest and kind not in OTHER_TARGETS:
        _check_exact(pattern)
    if kind not in OTHER_TARGETS:
        _check_spelling(pattern)
    return pattern


def _check_exact(pattern: str) -> None:
    try:
        canonical = Scope.parse(pattern).text
    except InvalidScopeError as error:
        raise InvalidArgumentError(_ARGUMENT, pattern, error.rule) from None
    if canonical != pattern:
        raise InvalidArgumentError(_ARGUMENT, pattern, "must be NFC-normalised")


def _check_spelling(pattern: str) -> None:
    for piece in filter(None, re.split("[*:/]", pattern)):
        try:
            canonical = encode_part(decode_part(piece))
        except InvalidScopeError as error:
            raise InvalidArgumentError(_ARGUMENT, pattern, error.rule) from None
        if canonical != piece:
            raise InvalidArgumentError(_ARGUMENT, pattern, "must be NFC-normalised")
