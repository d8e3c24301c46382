"""What can go wrong between a request and its right to be served.

::

    SpellError
     ├ AccessFileError                      (also ValueError)
     ├ UnsafeBindError
     ├ UnauthenticatedError
     │   └ KeysUnavailableError
     └ ForbiddenError

What a stranger is told says only that credentials are missing or were not accepted; why stands in
`UnauthenticatedError.reason`, for the log.
"""

from __future__ import annotations

import re
from typing import Final

from llmspell_dist.errors import (
    CHALLENGE,
    ForbiddenError,
    SpellError,
    UnauthenticatedError,
    shorten,
)

__all__ = [
    "CHALLENGE",
    "AccessFileError",
    "ForbiddenError",
    "KeysUnavailableError",
    "UnauthenticatedError",
    "UnsafeBindError",
]

_SECRET: Final = re.compile(r"llms_\w*")


class AccessFileError(SpellError, ValueError):
    """An access file breaks a rule; nothing of it is used."""

    code = "ACCESS_FILE"

    def __init__(self, path: str, entry: str, rule: str) -> None:
        self.path = path
        self.entry = _SECRET.sub("llms_…", entry)
        """Where in the file, such as ``token[0].grants[1].verbs``; empty if it is the file."""
        self.rule = _SECRET.sub("llms_…", rule)
        where = f"{path}: {self.entry}" if self.entry else path
        super().__init__(f"{where}: {self.rule}")


class UnsafeBindError(SpellError):
    """The address is reachable from elsewhere, and there everybody needs credentials."""

    code = "UNSAFE_BIND"

    def __init__(self, host: str, why: str) -> None:
        self.host = host
        self.why = why
        super().__init__(f"cannot serve {shorten(host)}, which is not loopback: {why}")


class KeysUnavailableError(UnauthenticatedError):
    """The keys that would verify a JWT cannot be had now; nobody knows whether it is good."""

    code = "KEYS_UNAVAILABLE"
    retryable = True

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.args = ("the credentials cannot be judged now",)
