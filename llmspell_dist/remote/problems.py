"""Problem documents back to the very errors that the library raises, by their stable codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib import import_module
from typing import Any, Final

from llmspell_dist.ack import Ack, AckKind
from llmspell_dist.errors import (
    AckNotReachedError,
    AnswerLostError,
    ConflictError,
    ConflictingKey,
    DeadlockError,
    HistoryDivergedError,
    InvalidArgumentError,
    SpellError,
    StoreUnavailableError,
    error_classes,
    shorten,
)
from llmspell_dist.revision import Revision

__all__ = ["error_of", "pause_of", "reason_of", "register_facts"]

_MODULES: Final = (
    "llmspell_dist.agents.errors",
    "llmspell_dist.backup.errors",
    "llmspell_dist.events.errors",
    "llmspell_dist.hooks.errors",
    "llmspell_dist.remote.errors",
    "llmspell_dist.security.errors",
    "llmspell_dist.sidecar.auth.errors",
    "llmspell_dist.sidecar.errors",
    "llmspell_dist.watch.errors",
)
"""Where errors are, beside `llmspell_dist.errors`. By name: what raises them is not needed here."""

_OF_STATUS: Final = {401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND"}
"""What an answer without a body says, as one to HEAD."""
_DIGITS: Final = 6
_AWAY: Final = frozenset({502, 503, 504})

Restore = Callable[[Any], Any]


def _revision(fact: Any) -> Any:
    """Return the revision that a fact prints; anything else as it is."""
    if type(fact) is not str:
        return fact
    try:
        return Revision.parse(fact)
    except InvalidArgumentError:
        return fact


def _conflicting(fact: Any) -> list[ConflictingKey]:
    return [
        ConflictingKey(
            one["scope"], one["key"], _revision(one["expected"]), _revision(one["actual"])
        )
        for one in fact
    ]


def _ack(fact: Any) -> Ack:
    if isinstance(fact, Mapping):
        return Ack(AckKind(fact["kind"]), fact["replicas"])
    return Ack.parse(fact)


_FACTS: Final[dict[type[SpellError], dict[str, Restore]]] = {
    ConflictError: {"expected": _revision, "actual": _revision, "keys": _conflicting},
    HistoryDivergedError: {"last_common": _revision, "known": _revision},
    AckNotReachedError: {"level": _ack},
    AnswerLostError: {"revision": _revision},
    DeadlockError: {"cycle": lambda fact: [tuple(step) for step in fact]},
    # What settles it lies in the sidecar; the transport gives its own.
    StoreUnavailableError: {"operation": lambda fact: None},  # noqa: ARG005
}


def register_facts(error: type[SpellError], **restore: Restore) -> None:
    """Say how facts of an error, and of its children, are made from what a document says."""
    _FACTS.setdefault(error, {}).update(restore)


@cache
def _classes() -> dict[str, type[SpellError]]:
    for module in _MODULES:
        import_module(module)
    register_facts(error_classes()["WATCH_TRIMMED"], since=_revision, floor=_revision)
    return error_classes()


def error_of(status: int, document: Any, server: str) -> SpellError:
    """Return the error that an answer stands for.

    One that is none of a sidecar's, as that of a gateway between, gets a code of its status.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("code"), str):
        return _foreign(status, server)
    code, detail = document["code"], str(document.get("detail", ""))
    facts = document.get("facts")
    known = _classes().get(code)
    if known is None or not isinstance(facts, Mapping):
        return _unknown(code, detail, bool(document.get("retryable")))
    error = known.__new__(known)
    error.args = (detail,)
    error.__dict__.update({str(name): _fact(known, name, fact) for name, fact in facts.items()})
    return error


def _fact(error: type[SpellError], name: str, fact: Any) -> Any:
    if fact is None:
        return None
    for cls in error.__mro__:
        restore = _FACTS.get(cls, {}).get(name)
        if restore is not None:
            try:
                return restore(fact)
            except (KeyError, TypeError, ValueError):
                return fact
    return fact


def _foreign(status: int, server: str) -> SpellError:
    said = f"it answered with status {status}"
    if status in _AWAY:
        return StoreUnavailableError(server, said)
    code = _OF_STATUS.get(status)
    known = None if code is None else _classes()[code]
    if known is None:
        return _unknown(f"HTTP_{status}", f"{server}: {said}", status == 429)
    error = known.__new__(known)
    error.args = (f"{server}: {said}",)
    return error


def _unknown(code: str, detail: str, retryable: bool) -> SpellError:
    error = SpellError(detail)
    error.__dict__.update(code=code, retryable=retryable)
    return error


def pause_of(headers: Mapping[str, str]) -> float:
    """Return how many seconds an answer asks to wait (``Retry-After``), 0 if it does not.

    A sidecar says seconds; a gateway may say a date, which is counted from the answer's own.
    """
    said = headers.get("retry-after", "")
    if said.isascii() and said.isdigit():
        return float(said) if len(said) < _DIGITS else 0.0
    until, sent = _moment(said), _moment(headers.get("date", ""))
    if until is None:
        return 0.0
    return max(0.0, (until - (sent or datetime.now(UTC))).total_seconds())


def _moment(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def reason_of(error: Exception) -> str:
    """Return what happened to a connection, without the address: that stands before it."""
    inner = getattr(error, "os_error", None) or error
    return shorten(f"{type(inner).__name__}: {inner}", 200).strip("'\"")
