"""What a client of a sidecar is given for a lease: all that it takes to renew, release, fence it.

No sidecar remembers who holds what. A handle carries the facts, and Redis compares them with its
own: owner and token by every renewal and every fenced write, the nonce by every release. So one
that was made up, or changed, finds no such hold and is refused as a stale one is. It is no secret
and no credential: who may do something with a lease is decided by the right to write its scope.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from llmspell_dist.context import get_context
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.steps import Claim
from llmspell_dist.leases.terms import DEFAULT_TTL_S, MAX_TTL_MS, MIN_TTL_MS, make_terms
from llmspell_dist.leases.wire import MODES, NONCE_BYTES

if TYPE_CHECKING:
    from llmspell_dist.leases.steps import LeaseSteps
    from llmspell_dist.redis.commits import Fence

__all__ = ["Handle", "read_handle", "read_handles"]

_VERSION: Final = 1
_MODES: Final = {wire: mode for mode, wire in MODES.items()}
_MAX_TEXT: Final = 4096
_MAX_OWNER: Final = 128
_MAX_TOGETHER: Final = 64
_RULE: Final = "must be a handle that acquiring the lease gave"


class Handle(NamedTuple):
    """One hold of a lease."""

    scope: str
    name: str
    mode: LeaseMode
    owner: str
    token: int
    nonce: bytes = b""
    """Which hold of the owner; empty: all of them."""
    ttl_ms: int = round(DEFAULT_TTL_S * 1000)
    """For how long it was taken, which is what a renewal asks for by default."""

    @property
    def text(self) -> str:
        """As clients carry it: a version byte and the facts, in characters that fit everywhere."""
        facts = [self.scope, self.name, MODES[self.mode], *self[3:]]
        raw = bytes((_VERSION,)) + msgpack.packb(facts)
        return urlsafe_b64encode(raw).rstrip(b"=").decode()

    def claim(self, steps: LeaseSteps, ttl: float | None = None) -> Claim:
        """Return the claim that was granted, as far as renewing and releasing it need that."""
        terms = make_terms(ttl=self.ttl_ms / 1000 if ttl is None else ttl, mode=self.mode)
        target = steps.target(self.scope, self.name)
        said = get_context()
        # A release that is sent again is known by its nonce; a longer one means all holds.
        nonce = self.nonce or b"*" + steps.new_nonce()
        return Claim(target, terms, self.owner.encode(), nonce, b"", said)

    def fence(self, steps: LeaseSteps) -> Fence:
        """Return what a write under it carries."""
        return steps.fence(steps.target(self.scope, self.name), self.owner.encode(), self.token)


def read_handle(text: str) -> Handle:
    """Return the handle of a text; anything else is an `InvalidArgumentError`."""
    try:
        return _checked(_facts(text))
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        raise InvalidArgumentError("handle", text, _RULE) from None


def _facts(text: str) -> Any:
    raw = urlsafe_b64decode(text.encode("ascii") + b"==") if len(text) <= _MAX_TEXT else b""
    if raw[:1] != bytes((_VERSION,)):
        raise ValueError
    return msgpack.unpackb(raw[1:])


def _checked(facts: Any) -> Handle:
    scope, name, mode, owner, token, nonce, ttl_ms = facts
    fits = (
        type(scope) is str
        and type(name) is str
        and type(owner) is str
        and 0 < len(owner.encode()) <= _MAX_OWNER
        and type(token) is int
        and 0 < token < 2**53
        and type(nonce) is bytes
        and len(nonce) in (0, NONCE_BYTES)
        and type(ttl_ms) is int
        and MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS
    )
    if not fits:
        raise ValueError
    return Handle(scope, name, _MODES[mode], owner, token, nonce, ttl_ms)


def read_handles(header: bytes) -> list[Handle]:
    """Return the handles of a header, which commas separate."""
    texts = header.decode("latin-1").split(",", _MAX_TOGETHER)
    if len(texts) > _MAX_TOGETHER:
        rule = f"must be at most {_MAX_TOGETHER} handles"
        raise InvalidArgumentError("llmspell-lease", len(texts), rule)
    return [read_handle(text.strip()) for text in texts]
