"""What to do about an error, where the command line can do something about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmspell_dist.backup.errors import BackupKeyError, RestoreRefusedError
from llmspell_dist.errors import InvalidScopeError, SpellError, StoreUnavailableError
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError

__all__ = ["hint_of"]

_KEYS: Final = "--keys or LLMSPELL_BACKUP_KEYS says where keys are"
_FIRST: Final = f"{_KEYS}; backup keygen makes the first"
_LOST: Final = f"{_KEYS}, LLMSPELL_BACKUP_OLDER_KEYS where older ones are; none can be made again"
_LATER: Final = "try again later"
_HINTS: Final[Mapping[str, str]] = {
    "UNAUTHENTICATED": "--token-file, LLMSPELL_TOKEN_FILE or LLMSPELL_TOKEN shows a token",
    "BACKUP_KEY": _LOST,
    "BACKUP_KEY_UNAVAILABLE": _LATER,
    "KEY_PROVIDER": _LOST,
    "KEY_PROVIDER_UNAVAILABLE": _LATER,
    "BACKUP_NOT_FOUND": "backup list shows what there is",
    "BACKUP_POINT_NOT_COVERED": "backup list and backup archive show what there is",
    "BACKUP_DAMAGED": "backup verify looks at all of them",
    "BACKUP_DIVERGED": "make it again",
    "BACKUP_IN_PROGRESS": _LATER,
    "BACKUP_TARGET_PERMISSION": "docs/backup/s3.md lists the rights that are needed",
    "UNKNOWN_HOOK_POINT": "docs/hooks/README.md lists them",
    "RESTORE_REFUSED": "lease ls shows who holds what; --force breaks leases",
}


_NOBODY_THERE: Final = ("refused", "No such file")
"""How the system says of an address that nobody listens there."""


def hint_of(error: SpellError) -> str | None:
    """Return what to do about an error, in few words."""
    if isinstance(error, StoreUnavailableError) and any(map(error.said.count, _NOBODY_THERE)):
        return "--url or LLMSPELL_URL says where a server is; server start starts one here"
    if isinstance(error, RestoreRefusedError) and not error.scope:
        return None  # no lease stands in the way
    if isinstance(error, InvalidScopeError) and any(char in error.value for char in "*?["):
        return "one scope is meant; scopes --prefix agent: lists all of a kind"
    cause = error.__cause__ if isinstance(error, BackupKeyError) else error
    if isinstance(cause, KeyProviderUnavailableError):
        return _LATER
    if isinstance(cause, KeyProviderError) and not cause.version:
        return _FIRST  # there is none at all, rather than one that is missing
    return _HINTS.get(error.code)
