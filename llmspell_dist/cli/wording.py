"""Errors in the words of the command line: its options instead of the API's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llmspell_dist.backup.errors import BackupKeyError
from llmspell_dist.config import NAMESPACE_VARIABLE, URL_VARIABLE
from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.quantities import counted, spoken
from llmspell_dist.watch.errors import WatchTrimmedError

__all__ = ["counted", "described", "renamed", "spoken", "wrong"]

_TYPED: Final = {
    "at": "--at",
    "backup_id": "ID",
    "binary": "--binary",
    "compression": "--compression",
    "correlation_id": "ID",
    "cron": "--cron",
    "full_every": "--full-every",
    "expected": "--expected",
    "folder": "--folder",
    "grace": "--grace",
    "importance": "--importance",
    "include": "--include",
    "into": "--into",
    "key": "KEY",
    "keys": "KEY...",
    "kind": "--kind",
    "level": "--level",
    "limit": "--limit",
    "mode": "--mode",
    "match": "--match",
    "name": "--name",
    "parent": "--parent",
    "pattern": "PATTERN",
    "point": "--point",
    "policy": "--policy",
    "prefix": "--prefix",
    "reason": "--reason",
    "retention": "--policy",
    "sample": "--sample",
    "scope": "SCOPE",
    "scopes": "--scope",
    "state_class": "--class",
    "tags": "--tag",
    "timeline": "--timeline",
    "token": "--token",
    "ttl": "--ttl",
    "type": "--type",
    "value": "VALUE",
    "waiters": "--waiters",
}
_EVERYWHERE: Final = {"url": URL_VARIABLE, "namespace": NAMESPACE_VARIABLE}
"""May also come from the environment."""


def wrong(argument: str, rule: str) -> InvalidArgumentError:
    """Return the error for what was typed, without the value, which may be a secret."""
    error = InvalidArgumentError(argument, None, rule)
    error.value = "…"
    error.args = (f"{argument} {rule}",)
    return error


def renamed(error: InvalidArgumentError, argument: str) -> InvalidArgumentError:
    """Return an error about an argument under the name that was typed; its value stays."""
    error.argument = argument
    error.args = (f"{argument} {error.rule}, got {error.value}",)
    return error


def described(error: SpellError, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return message and facts of an error, for whoever typed `words`."""
    facts = error.facts
    if isinstance(error, WatchTrimmedError):
        return str(error).replace('watch with on_trimmed="snapshot"', "use --snapshot"), facts
    if isinstance(error, BackupKeyError):
        return str(error).replace("plaintext=True", "--plaintext"), facts
    if not isinstance(error, InvalidArgumentError):
        return str(error), facts
    name = _TYPED.get(error.argument)
    variable = _EVERYWHERE.get(error.argument)
    if variable is not None:
        option = f"--{error.argument}"
        name = option if _given(option, words) else variable
    # Of a lease there is a --token, too.
    if error.argument == "token" and _given("--token-file", words) and not _given(name, words):
        name = "--token-file"
    if name is None:
        return str(error), facts
    return f"{name} {error.rule}, got {error.value}", facts | {"argument": name}


def _given(option: str | None, words: Sequence[str]) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)
