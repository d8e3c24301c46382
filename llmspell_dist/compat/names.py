"""How the names and tokens of redis-py's locks become scopes and owners of leases; no I/O."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final

from llmspell_dist.errors import InvalidArgumentError, InvalidScopeError
from llmspell_dist.scope import Scope

__all__ = ["as_bytes", "is_owner", "lock_scope", "make_owner", "new_token"]

Name = str | bytes | memoryview | int | float
MAX_TOKEN_BYTES: Final = 110
"""Of a token that is shown as it is: an owner has at most 128 bytes."""


def as_bytes(argument: str, value: Name) -> bytes:
    """Return what redis-py would send for a name or token."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if type(value) in (int, float):
        return repr(value).encode()
    if not isinstance(value, str):
        rule = "must be text, bytes or a number"
        raise InvalidArgumentError(argument, value, rule)
    return value.encode("utf-8", "surrogatepass")


def lock_scope(name: Name) -> Scope:
    """Return the scope whose lease ``main`` is the lock of that name.

    A scope for each lock, and not one scope with a lease for each: the scope remembers the highest
    token that wrote with its lease ``main``, so the fence holds even if the lease itself was lost
    with the server's data; `leases.require` can bind everybody who writes there; ``lease ls`` shows
    the name first; and in a cluster the locks lie in all shards, not in one.

    Names that no scope can have (empty, too long, not text) are known by their digest. Names that
    are the same text to a reader (NFC) are one lock.
    """
    raw = as_bytes("name", name)
    try:
        return Scope.custom(raw.decode())
    except (InvalidScopeError, UnicodeDecodeError):
        return Scope.custom(f"sha256-{sha256(raw).hexdigest()}")


def new_token() -> bytes:
    """Return a token that nobody else has."""
    return secrets.token_hex(16).encode()


def _shown(token: bytes) -> str:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable() and len(token) <= MAX_TOKEN_BYTES:
        return text
    return f"sha256-{sha256(token).hexdigest()}"


def make_owner(token: bytes) -> str:
    """Return the owner that a hold with a token has: the token, and what makes it unique.

    Each hold is an owner of its own, because redis-py's lock is not re-entrant and a token that is
    used twice at a time has to wait for itself like any other.
    """
    return f"{_shown(token)}#{secrets.token_hex(4)}"


def is_owner(owner: str, token: bytes) -> bool:
    """Whether an owner was made for a token."""
    return owner.rpartition("#")[0] == _shown(token)
