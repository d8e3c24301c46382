"""Errors in the words of the command line: its options instead of the API's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llmspell_dist.config import NAMESPACE_VARIABLE, URL_VARIABLE
from llmspell_dist.errors import InvalidArgumentError, SpellError

__all__ = ["described", "wrong"]

_TYPED: Final = {
    "binary": "--binary",
    "expected": "--expected",
    "folder": "--folder",
    "key": "KEY",
    "keys": "KEY...",
    "kind": "--kind",
    "limit": "--limit",
    "match": "--match",
    "prefix": "--prefix",
    "scope": "SCOPE",
    "state_class": "--class",
    "ttl": "--ttl",
    "value": "VALUE",
}
_EVERYWHERE: Final = {"url": URL_VARIABLE, "namespace": NAMESPACE_VARIABLE}
"""May also come from the environment."""


def wrong(argument: str, rule: str) -> InvalidArgumentError:
    """Return the error for what was typed, without the value, which may be a secret."""
    error = InvalidArgumentError(argument, None, rule)
    error.value = "…"
    error.args = (f"{argument} {rule}",)
    return error


def described(error: SpellError, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return message and facts of an error, for whoever typed `words`."""
    facts = error.facts
    if not isinstance(error, InvalidArgumentError):
        return str(error), facts
    name = _TYPED.get(error.argument)
    variable = _EVERYWHERE.get(error.argument)
    if variable is not None:
        option = f"--{error.argument}"
        given = any(word == option or word.startswith(f"{option}=") for word in words)
        name = option if given else variable
    if name is None:
        return str(error), facts
    return f"{name} {error.rule}, got {error.value}", facts | {"argument": name}
