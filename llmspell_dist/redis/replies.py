"""The one place where the server's error replies become exceptions, and are judged."""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import (
    StoreAuthenticationError,
    StoreBusyError,
    StoreFullError,
    StoreLoadingError,
    StoreMisconfiguredError,
    StorePermissionError,
    StoreProtocolError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llmspell_dist.redis.resp import ErrorReply

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NOSCRIPT",
    "RETRIED",
    "error_code",
    "error_from_reply",
    "is_refusal",
    "nothing_ran",
    "refused_by_role",
    "system_said",
]

NOSCRIPT = "NOSCRIPT"

_CLASSES: dict[str, type[StoreUnavailableError]] = {
    "BUSY": StoreBusyError,
    "LOADING": StoreLoadingError,
    "READONLY": StoreReadOnlyError,
    "OOM": StoreFullError,
    "MISCONF": StoreMisconfiguredError,
    "NOAUTH": StoreAuthenticationError,
    "WRONGPASS": StoreAuthenticationError,
    "NOPERM": StorePermissionError,
    "MASTERDOWN": StoreUnavailableError,
    "CLUSTERDOWN": StoreUnavailableError,
    "TRYAGAIN": StoreUnavailableError,
    "NOREPLICAS": StoreUnavailableError,
    "MOVED": StoreUnavailableError,
    "ASK": StoreUnavailableError,
    "UNBLOCKED": StoreUnavailableError,
}

RETRIED = frozenset({"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "READONLY"})
"""States of a server that pass: asked again, with pauses, inside the call's budget."""

_BEFORE_ANY_WRITE = RETRIED | {
    "OOM", "MISCONF", "NOREPLICAS", "NOSCRIPT", "NOAUTH", "MOVED", "ASK",
}  # fmt: skip
"""Refusals that come before a command, or before the *first* write of a script: the server does not
look at memory, role or disk again once a script has written."""

_NO_ANSWER = (StoreTimeoutError, StoreBusyError, StoreLoadingError, StoreAuthenticationError)
"""Whatever had been asked for: it took too long, or nothing is answered yet, or to this user."""

_IN_SCRIPT = re.compile(r"@user_script|user_script:|Error running script|Error compiling script")
_NO_RIGHT = re.compile(r"ACL failure in script|user executing the script can't")
"""What a script hears instead of NOPERM."""
_WRAPPED_CODE = re.compile(r"-([A-Z]{2,})\s")
"""Redis 6.2 wraps what a command said inside a script, as in ``ERR Error running script (call to
f_…): @user_script:3: @user_script: 3: -OOM command not allowed …``."""


def error_code(text: str) -> str:
    """Return the code of an error reply, also of one that Redis 6.2 wrapped for a script."""
    code = text.partition(" ")[0]
    if code.startswith("@user_script"):  # 6.2, caught inside the script
        found = _WRAPPED_CODE.search(text)
        return found[1] if found else "ERR"
    if code == "ERR":
        if "max number of clients" in text:
            return "MAXCLIENTS"
        if _NO_RIGHT.search(text):
            return "NOPERM"
        if "Error running script" in text:
            found = _WRAPPED_CODE.search(text)
            if found:
                return found[1]
    return code


def nothing_ran(text: str) -> bool:
    """Tell whether the reply proves that the request changed nothing."""
    return error_code(text) in _BEFORE_ANY_WRITE or not _IN_SCRIPT.search(text)


def refused_by_role(outcomes: Sequence[Any]) -> ErrorReply | None:
    """Return what a replica said if it refused a group's first write: then nothing was written.

    A replica runs a script until that writes, so its refusal comes as an outcome of the commit.
    """
    for outcome in outcomes:
        if type(outcome) is bytes and outcome.startswith(b"FAILED ") and b"READONLY " in outcome:
            text = outcome[7:].decode("utf-8", "replace")
            return ErrorReply(text) if error_code(text) == "READONLY" else None
    return None


def error_from_reply(
    reply: ErrorReply, server: str, *, may_have_happened: bool = False, operation: Any = None
) -> StoreUnavailableError:
    """Return the exception for an error reply of `server`.

    `may_have_happened` says whether the same write was sent before; a reply that leaves open what
    a script did counts as well.
    """
    text = reply.text
    code = error_code(text)
    if code == "MAXCLIENTS":
        cls: type[StoreUnavailableError] = StoreUnavailableError
    else:
        cls = _CLASSES.get(code, StoreProtocolError)
    return cls(server, text, may_have_happened, operation)


def is_refusal(error: StoreUnavailableError) -> bool:
    """Tell whether an error is the server's answer to what was asked, not that none came."""
    if type(error) is StoreUnavailableError:
        return error_code(error.said) in _CLASSES
    return not isinstance(error, _NO_ANSWER)


def system_said(error: BaseException) -> str:
    """Return what the operating system said, in its own words."""
    # asyncio puts addresses and internals into the text. TLS and getaddrinfo have numbers of their
    # own, and good texts.
    if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        number = error.errno
        return os.strerror(number) if number else str(error) or repr(error)
    return str(error) or repr(error)
