"""Every exception that the library raises, in one tree.

::

    SpellError
     ├ InvalidArgumentError                 (also ValueError)
     │   ├ InvalidKeyError
     │   ├ InvalidScopeError
     │   ├ InvalidTTLError
     │   └ InvalidURLError
     ├ CodecError                           (also ValueError)
     │   └ CircularReferenceError
     ├ LimitError                           (also ValueError)
     │   └ NumberOverflowError
     ├ ConflictError
     │   └ UpdateConflictError
     ├ WrongKindError
     ├ ClassChangedError
     ├ StagedElementsLostError
     ├ CrossShardError
     ├ CorruptRecordError
     │   └ UnsupportedFormatError
     ├ HistoryUnavailableError
     │   └ WatchTrimmedError                (llmspell_dist.watch.errors)
     ├ HistoryDivergedError
     ├ OperationReusedError
     ├ CipherNotConfiguredError
     ├ LeaseError
     │   ├ LeaseUnavailableError
     │   ├ LeaseAlreadyHeldError
     │   ├ LeaseNotHeldError
     │   ├ LeaseLostError
     │   ├ DeadlockError
     │   ├ StaleFencingTokenError
     │   └ LeaseRequiredError
     ├ AgentNotFoundError, IllegalTransitionError, EffectError and its children
     │                                      (llmspell_dist.agents.errors)
     ├ OperationCancelledError, HookError and its children, DuplicateHookError,
     │   HookNotFoundError, ReplayError and its children, ExecutionNotFoundError,
     │   ScheduleNotFoundError              (llmspell_dist.hooks.errors)
     ├ EventError and its children          (llmspell_dist.events.errors)
     ├ KeyProviderError and its child       (llmspell_dist.security.errors)
     ├ AccessFileError, UnsafeBindError, UnauthenticatedError and its child, ForbiddenError
     │                                      (llmspell_dist.sidecar.auth.errors)
     ├ WaitTimeoutError                     (also TimeoutError; llmspell_dist.watch.errors)
     ├ NamespaceMismatchError
     ├ ClosedError                          (also RuntimeError)
     ├ WrongEventLoopError                  (also RuntimeError)
     └ StoreUnavailableError
         ├ OutcomeUnknownError
         │   ├ AckNotReachedError
         │   └ AnswerLostError
         ├ StoreTimeoutError
         ├ StoreBusyError
         ├ StoreLoadingError
         ├ StoreReadOnlyError
         ├ StoreFullError
         ├ StoreMisconfiguredError
         ├ StoreAuthenticationError
         ├ StorePermissionError
         └ StoreProtocolError

Each class has a stable ``code`` that the command line, the sidecar and the metrics use too. Each
instance carries its facts as attributes; its message is derived from them. All of them pickle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

from llmspell_dist.masking import MASK, mask_text

__all__ = [
    "CHALLENGE",
    "AckNotReachedError",
    "AnswerLostError",
    "CipherNotConfiguredError",
    "CircularReferenceError",
    "ClassChangedError",
    "ClosedError",
    "CodecError",
    "ConflictError",
    "ConflictingKey",
    "CorruptRecordError",
    "CrossShardError",
    "DeadlockError",
    "ForbiddenError",
    "HistoryDivergedError",
    "HistoryUnavailableError",
    "InvalidArgumentError",
    "InvalidKeyError",
    "InvalidScopeError",
    "InvalidTTLError",
    "InvalidURLError",
    "LeaseAlreadyHeldError",
    "LeaseError",
    "LeaseLostError",
    "LeaseNotHeldError",
    "LeaseRequiredError",
    "LeaseUnavailableError",
    "LimitError",
    "NamespaceMismatchError",
    "NumberOverflowError",
    "OperationReusedError",
    "OutcomeUnknownError",
    "SpellError",
    "StagedElementsLostError",
    "StaleFencingTokenError",
    "StoreAuthenticationError",
    "StoreBusyError",
    "StoreFullError",
    "StoreLoadingError",
    "StoreMisconfiguredError",
    "StorePermissionError",
    "StoreProtocolError",
    "StoreReadOnlyError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnauthenticatedError",
    "UnsupportedFormatError",
    "UpdateConflictError",
    "WrongEventLoopError",
    "WrongKindError",
    "error_classes",
    "mask_secrets",
    "shorten",
]

_SHOWN_AS_REPR = (bool, float, timedelta, datetime, date, time, Decimal, UUID)
_PATH_LIMIT = 200
_SERVER_TEXT_LIMIT = 500


def shorten(value: object, width: int = 60) -> str:
    """Return `value` as it may stand in a message: at most `width` characters, on one line.

    Only plain values are shown. Of anything else just the type's name is, because the ``repr`` of a
    foreign object may be slow, may raise, and may hold a secret.
    """
    cls = type(value)
    if value is None or cls in _SHOWN_AS_REPR:
        text = repr(value)
    elif cls is int:
        bits = value.bit_length()  # type: ignore[attr-defined]
        # repr() of an int of more than 4,300 digits raises ValueError.
        text = repr(value) if bits <= 256 else f"<int of {bits} bits>"
    elif cls is str or cls is bytes:
        text = repr(value[: width + 1])  # type: ignore[index]  # a slice first: repr() copies
    elif isinstance(value, Enum):
        text = f"{cls.__name__}.{value.name}"
    elif isinstance(value, (str, bytes, int)):
        text = f"<{cls.__qualname__}>"
    elif cls in (list, tuple, dict, set, frozenset):
        text = f"<{cls.__name__} of {len(value)}>"  # type: ignore[arg-type]
    else:
        text = f"<{cls.__qualname__}>"
    return text if len(text) <= width else text[: width - 1] + "…"


# A server that does not know HELLO answers with its arguments, the password among them:
# unknown command, with args beginning with: '3' 'AUTH' 'default' '<password>'.
_ECHOED_ARGUMENTS = re.compile(r"(?is),? with args beginning with:.*")


def mask_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with what looks like a secret, echoed arguments and all `secrets` hidden."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    text = mask_text(_ECHOED_ARGUMENTS.sub("", text))
    return text if len(text) <= _SERVER_TEXT_LIMIT else text[: _SERVER_TEXT_LIMIT - 1] + "…"


def _rebuild(cls: type[SpellError], message: str, facts: Mapping[str, Any]) -> SpellError:
    error = cls.__new__(cls)
    error.args = (message,)
    error.__dict__.update(facts)
    return error


class SpellError(Exception):
    """The library could not do what was asked."""

    code: ClassVar[str] = "SPELL_ERROR"
    """Stable name of the error, the same in every release."""
    retryable: bool = False
    """Whether trying again can succeed and cannot apply a write twice.

    After a conflict "again" means to read again first.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args`, which are not our parameters.
        return _rebuild, (type(self), self.args[0] if self.args else "", dict(self.__dict__))

    @property
    def facts(self) -> dict[str, Any]:
        """The attributes that describe the error, by name, without the private ones."""
        return {name: fact for name, fact in self.__dict__.items() if not name.startswith("_")}


def error_classes() -> dict[str, type[SpellError]]:
    """Return every error class of the tree by its code."""
    found: dict[str, type[SpellError]] = {}
    todo: list[type[SpellError]] = [SpellError]
    while todo:
        cls = todo.pop()
        found.setdefault(cls.code, cls)
        todo.extend(cls.__subclasses__())
    return found


# --- what the caller passed ---------------------------------------------------------------------


class InvalidArgumentError(SpellError, ValueError):
    """An argument breaks its rule; nothing was sent."""

    code = "INVALID_ARGUMENT"

    def __init__(self, argument: str, value: object, rule: str) -> None:
        self.argument = argument
        self.value = shorten(value)
        """The offending value, shortened, as text."""
        self.rule = rule
        super().__init__(f"{argument} {rule}, got {self.value}")


class InvalidKeyError(InvalidArgumentError):
    """A key breaks the rules for keys; nothing was sent."""

    code = "INVALID_KEY"


class InvalidScopeError(InvalidArgumentError):
    """A scope, id or namespace breaks the rules for scopes; nothing was sent."""

    code = "INVALID_SCOPE"


class InvalidTTLError(InvalidArgumentError):
    """A time to live is not usable; nothing was sent."""

    code = "INVALID_TTL"


class InvalidURLError(InvalidArgumentError):
    """A server URL cannot be understood."""

    code = "INVALID_URL"

    def __init__(self, argument: str, value: object, rule: str) -> None:
        # A URL may hold a password, so it is never quoted as it came.
        super().__init__(argument, mask_secrets(value) if isinstance(value, str) else value, rule)


class CodecError(SpellError, ValueError):
    """A value cannot be stored, or stored bytes cannot be read back, as they are."""

    code = "CODEC"

    def __init__(self, path: str, reason: str) -> None:
        self.path = path if len(path) <= _PATH_LIMIT else path[: _PATH_LIMIT - 1] + "…"
        """Where in the value, such as ``$.messages[3].when``."""
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def inside(self, step: str) -> CodecError:
        """Return the error as one of a larger value: ``$.x`` at the step ``[3]`` is ``$[3].x``."""
        return type(self)(f"${step}{self.path.removeprefix('$')}", self.reason)


class CircularReferenceError(CodecError):
    """A value contains itself."""

    code = "CIRCULAR_REFERENCE"

    def __init__(self, path: str, reason: str = "the value contains itself") -> None:
        super().__init__(path, reason)


class LimitError(SpellError, ValueError):
    """Something is larger than its limit allows; nothing was sent."""

    code = "LIMIT_EXCEEDED"

    def __init__(
        self, what: str, actual: float | None, limit: float, path: str | None = None
    ) -> None:
        self.what = what
        self.actual = actual
        """The size found, in the unit that `what` names; None if it was not counted to the end."""
        self.limit = limit
        self.path = path if path is None or len(path) <= _PATH_LIMIT else path[:199] + "…"
        at = f"{self.path}: " if self.path else ""
        found = "more than the limit" if actual is None else f"{actual:,} exceeds the limit"
        super().__init__(f"{at}{what}: {found} of {limit:,}")

    def inside(self, step: str) -> LimitError:
        """Return the error as one of a larger value, as `CodecError.inside` does."""
        path = f"${step}{(self.path or '').removeprefix('$')}"
        return type(self)(self.what, self.actual, self.limit, path)


class NumberOverflowError(LimitError):
    """An increment would leave the range of a stored number; nothing was changed."""

    code = "NUMBER_OVERFLOW"


# --- what the stored state says -----------------------------------------------------------------


class ConflictingKey(NamedTuple):
    """One key whose revision was not the expected one."""

    scope: str
    key: str
    expected: Any
    """The revision that the caller required; None: that there be no value."""
    actual: Any
    """The revision found; None: there is no value."""


class ConflictError(SpellError):
    """Another writer was first; nothing was changed."""

    code = "CONFLICT"
    retryable = True

    def __init__(
        self,
        expected: Any,
        actual: Any,
        keys: Iterable[tuple[str, str, Any, Any]] = (),
        message: str = "",
    ) -> None:
        self.expected = expected
        self.actual = actual
        self.keys = [ConflictingKey(*key) for key in keys]
        super().__init__(message or f"expected revision {expected}, found {actual}{self._where()}")

    def _where(self) -> str:
        shown = [f"{shorten(key.key)} in {key.scope}" for key in self.keys[:3]]
        if len(self.keys) > len(shown):
            shown.append(f"{len(self.keys) - len(shown)} more")
        return f" ({', '.join(shown)})" if shown else ""


class UpdateConflictError(ConflictError):
    """Other writers were first at every attempt; nothing was changed."""

    code = "UPDATE_CONFLICT"

    def __init__(
        self,
        expected: Any,
        actual: Any,
        keys: Iterable[tuple[str, str, Any, Any]] = (),
        *,
        attempts: int,
        elapsed_s: float,
    ) -> None:
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        keys = list(keys)
        super().__init__(expected, actual, keys)
        self.args = (f"gave up after {attempts} attempts in {elapsed_s:.3f} s: {self.args[0]}",)


_HELD = {
    "value": "another kind of value",
    "blob": "a large value",
    "map": "a dict",
    "str": "a text",
    "bytes": "bytes",
    "NoneType": "None",
    "int": "a number",
    "float": "a number",
    # What a transaction has planned for the key, before anything is sent.
    "append": "a list",
    "merge": "a dict",
    "increment": "a number",
    "adopt": "another kind of value",
    "set": "another kind of value",
    "ttl": "another kind of value",
    "delete": "nothing",
}


class WrongKindError(SpellError):
    """The operation does not fit the kind of value that the key holds; nothing was changed."""

    code = "WRONG_KIND"

    def __init__(self, scope: str, key: str, kind: str, operation: str) -> None:
        self.scope = scope
        self.key = key
        self.kind = kind
        self.operation = operation
        held = _HELD.get(kind, f"a {kind}")
        super().__init__(f"{shorten(key)} in {scope} holds {held}: {operation} does not work on it")


class ClassChangedError(SpellError):
    """The record has a class that needs another encoding than the one sent; encode it again."""

    code = "CLASS_CHANGED"

    def __init__(self, scope: str, key: str, state_class: int) -> None:
        super().__init__(f"{shorten(key)} in {scope} has state class {state_class}")
        self.scope = scope
        self.key = key
        self.state_class = state_class


class StagedElementsLostError(SpellError):
    """Elements that were staged for a large value were gone before the commit; stage them again."""

    code = "STAGED_LOST"
    retryable = True


class CrossShardError(SpellError):
    """One commit cannot span several shards; nothing was changed."""

    code = "CROSS_SHARD"

    def __init__(self, scopes: Iterable[str]) -> None:
        self.scopes = [str(scope) for scope in scopes]
        shown = ", ".join(self.scopes[:8]) + (", …" if len(self.scopes) > 8 else "")
        super().__init__(f"these scopes lie in different shards: {shown}")


class CorruptRecordError(SpellError):
    """A stored record cannot be read; the others stay readable."""

    code = "CORRUPT_RECORD"

    def __init__(self, scope: str, key: str, reason: str) -> None:
        self.scope = scope
        self.key = key
        self.reason = reason
        super().__init__(f"the record at {shorten(key)} in {scope} cannot be read: {reason}")


class UnsupportedFormatError(CorruptRecordError):
    """A stored record has a format that this release does not know."""

    code = "UNSUPPORTED_FORMAT"


class HistoryUnavailableError(SpellError):
    """The past of this key is not kept."""

    code = "HISTORY_UNAVAILABLE"

    def __init__(self, scope: str, key: str, reason: str) -> None:
        self.scope = scope
        self.key = key
        self.reason = reason
        super().__init__(f"no history of {shorten(key)} in {scope}: {reason}")


class HistoryDivergedError(SpellError):
    """The server's history is not the one that was read before; acknowledged writes may be gone."""

    code = "HISTORY_DIVERGED"

    def __init__(self, last_common: Any, known: Any = None) -> None:
        self.last_common = last_common
        """The last revision that both histories hold, or None."""
        self.known = known
        """What was read before, or given to begin after, and is not there; None: not said."""
        what = "what was read before" if known is None else f"revision {known}"
        common = "nothing known before it is there either"
        if last_common is not None:
            common = f"the last that is there is {last_common}"
        super().__init__(
            f"the server's history does not have {what} ({common}): it lost writes, "
            "or it is not the history that the revision is from"
        )


class OperationReusedError(SpellError):
    """An operation id came again with another request; nothing was changed."""

    code = "OPERATION_REUSED"

    def __init__(self, operation_id: str) -> None:
        self.operation_id = operation_id
        super().__init__(f"operation {operation_id} was used before for another request")


class CipherNotConfiguredError(SpellError):
    """A sensitive value needs a cipher and none is configured; nothing was sent."""

    code = "CIPHER_NOT_CONFIGURED"

    def __init__(self, scope: str, key: str) -> None:
        self.scope = scope
        self.key = key
        super().__init__(f"{shorten(key)} in {scope} is sensitive, and no cipher is configured")


class NamespaceMismatchError(SpellError):
    """The namespace on the server was created with other settings."""

    code = "NAMESPACE_MISMATCH"

    def __init__(self, namespace: str, what: str, expected: object, actual: object) -> None:
        self.namespace = namespace
        self.what = what
        """The setting that differs: ``format``, ``shards``, or of a sidecar's ``name``."""
        self.expected = expected
        self.actual = actual
        said = f"namespace {shorten(namespace)} has {what} {actual} on the server, not {expected}"
        if what == "name":
            said = f"the namespace there is {actual}, not {expected}"
        super().__init__(said)


# --- leases ---------------------------------------------------------------------------------------


class LeaseError(SpellError):
    """A lease is not there as it was needed."""

    code = "LEASE"

    def __init__(self, scope: str, name: str, reason: str) -> None:
        self.scope = scope
        self.name = name
        self.reason = reason
        super().__init__(f"lease {shorten(name)} of {scope}: {reason}")


class LeaseUnavailableError(LeaseError):
    """Somebody else holds the lease, and it did not come free in the time given."""

    code = "LEASE_UNAVAILABLE"
    retryable = True

    def __init__(self, scope: str, name: str, waited_s: float, holders: Iterable[Any] = ()) -> None:
        self.waited_s = waited_s
        self.holders = list(holders)
        """Who holds it, as far as is known: `LeaseHolder`s."""
        held = f"held by {self.holders[0]}" if self.holders else "held by others"
        waited = f"after {waited_s:.3f} s of waiting" if waited_s else "and waiting was not wanted"
        super().__init__(scope, name, f"{held}, {waited}")


class LeaseAlreadyHeldError(LeaseError):
    """The owner holds this lease already, and waiting for itself would never end."""

    code = "LEASE_ALREADY_HELD"

    def __init__(self, scope: str, name: str, owner: str, token: int, *, mode: str = "") -> None:
        self.owner = owner
        self.token = token
        self.mode = mode
        """The mode that it is held in, if another one was asked for."""
        if mode:
            how = f"held in mode {mode} by the same owner; release it before you change the mode"
        else:
            how = "held by the same owner; acquire it with reentrant=True, or give another owner="
        super().__init__(scope, name, f"{how} (owner {shorten(owner)}, token {token})")


class LeaseNotHeldError(LeaseError):
    """The lease is not this holder's any more, or never was; nothing was changed."""

    code = "LEASE_NOT_HELD"

    def __init__(
        self, scope: str, name: str, operation: str, why: str, *, current: Any = None
    ) -> None:
        self.operation = operation
        self.why = why
        self.current = current
        """Who holds it now, if anybody."""
        now = f"; it is held by {current}" if current is not None else ""
        again = "" if operation == "break it" else "; acquire it again"
        super().__init__(scope, name, f"cannot {operation}: {why}{now}{again}")


class LeaseLostError(LeaseError):
    """The lease ended while it was thought to be held; what was done since may be out of turn."""

    code = "LEASE_LOST"

    def __init__(self, scope: str, name: str, reason: str, token: int) -> None:
        self.token = token
        super().__init__(scope, name, f"{reason} (token {token})")


class DeadlockError(LeaseError):
    """To wait for the lease would never end: its holder waits for one that this owner holds."""

    code = "DEADLOCK"
    retryable = True

    def __init__(self, scope: str, name: str, cycle: Iterable[tuple[str, str]]) -> None:
        self.cycle = [tuple(step) for step in cycle]
        """Who waits for which lease, one after the other: ``(owner, "scope lease")``."""
        steps = ", ".join(f"{shorten(owner)} waits for {lease}" for owner, lease in self.cycle)
        super().__init__(scope, name, f"a deadlock: {steps}; release what you hold and try again")


_FENCED: Mapping[str, str] = {
    "ended": "the lease was released or broken, or its time was over",
    "lost": "the server does not know the lease: its data was lost or went back",
    "token": "the lease has been granted anew since",
    "owner": "the lease has another owner",
    "expired": "the time of the lease is over",
    "below": "the scope has seen a write with a higher token",
}


class StaleFencingTokenError(LeaseError):
    """A write carried a lease that does not hold any more; nothing was changed."""

    code = "STALE_FENCING_TOKEN"

    def __init__(self, scope: str, name: str, given: int, current: int | None, why: str) -> None:
        self.given = given
        """The token that the write carried."""
        self.current = current
        """The token of the present holder, or the highest seen; None: nobody holds the lease."""
        self.why = why
        said = _FENCED.get(why, why)
        super().__init__(scope, name, f"{said}; given token {given}, current {current}")


class LeaseRequiredError(LeaseError):
    """Every write of this scope must carry a lease, and this one does not; nothing was changed."""

    code = "LEASE_REQUIRED"

    def __init__(self, scope: str, name: str) -> None:
        super().__init__(
            scope, name, "every write of the scope must carry it; acquire it, write by lease.state"
        )


# --- how the library is used ----------------------------------------------------------------------


# --- who asks: only through a sidecar ------------------------------------------------------------

CHALLENGE: Final = 'Bearer realm="llmspell"'
"""The ``WWW-Authenticate`` of an answer to a request without credentials."""
_INVALID_TOKEN: Final = f'{CHALLENGE}, error="invalid_token"'


class UnauthenticatedError(SpellError):
    """The request has no credentials, or none that are accepted.

    `reason` says which, and stays out of message and facts: it is for the log. Whatever it quotes
    is shortened, and never a credential.
    """

    code = "UNAUTHENTICATED"

    def __init__(self, reason: str, *, given: bool = True) -> None:
        self._reason = reason
        self._challenge = _INVALID_TOKEN if given else CHALLENGE
        super().__init__("not accepted" if given else "no credentials")

    @property
    def reason(self) -> str:
        """Why, for the log."""
        return self._reason

    @property
    def challenge(self) -> str:
        """The value of the header ``WWW-Authenticate``."""
        return self._challenge


class ForbiddenError(SpellError):
    """The caller is known, and none of its grants covers this."""

    code = "FORBIDDEN"

    def __init__(self, verb: str, target: str) -> None:
        self.verb = str(verb)
        self.target = target if len(target) <= 200 else f"{target[:199]}…"
        super().__init__(f"no grant to {self.verb} {shorten(target, 200)}")


class ClosedError(SpellError, RuntimeError):
    """The client is closed."""

    code = "CLOSED"


class WrongEventLoopError(SpellError, RuntimeError):
    """The client belongs to another event loop."""

    code = "WRONG_EVENT_LOOP"


# --- the server -----------------------------------------------------------------------------------


class StoreUnavailableError(SpellError):
    """The server could not be reached, or refused."""

    code = "STORE_UNAVAILABLE"
    retryable = True

    def __init__(
        self,
        server: str,
        said: str = "",
        may_have_happened: bool = False,
        operation: Any = None,
    ) -> None:
        self.server = mask_secrets(server)
        """Which server, without secrets."""
        self.said = mask_secrets(said)
        """What the server or the operating system said, without secrets."""
        self.may_have_happened = may_have_happened
        """Whether the write may have been applied all the same."""
        self.operation = operation
        """Settles an unknown outcome through ``state.retry(operation)``, or None."""
        if may_have_happened:
            self.retryable = False  # made again as it is, the write could apply twice
        super().__init__(self._message())

    def partly(self) -> StoreUnavailableError:
        """Return the error as that of a larger operation, a part of which has happened."""
        return self if self.may_have_happened else type(self)(self.server, self.said, True)

    def _message(self) -> str:
        said = self.said or (type(self).__doc__ or "").partition("\n")[0].rstrip(".")
        tail = "; the write may have happened" if self.may_have_happened else ""
        return f"{self.server}: {said}{tail}"


class OutcomeUnknownError(StoreUnavailableError):
    """A write was sent and its outcome is not known; ``state.retry(operation)`` settles it."""

    code = "OUTCOME_UNKNOWN"
    retryable = False

    def __init__(
        self,
        server: str,
        said: str = "",
        may_have_happened: bool = True,
        operation: Any = None,
    ) -> None:
        super().__init__(server, said, may_have_happened, operation)


class AckNotReachedError(OutcomeUnknownError):
    """A write is in the primary's memory, but the level asked for was not reached in time."""

    code = "ACK_NOT_REACHED"

    def __init__(
        self,
        server: str,
        level: Any,
        reached: Any,
        operation: Any = None,
    ) -> None:
        self.level = level
        """The acknowledgement level that was asked for."""
        self.reached = reached
        """What was reached instead, such as a number of replicas."""
        super().__init__(server, f"asked for {level}, reached {reached}", True, operation)

    def _message(self) -> str:
        return f"{self.server}: the write has happened, but not as safely: {self.said}"


class AnswerLostError(OutcomeUnknownError):
    """A write has happened, and only its answer is lost: what it found, or made of the value."""

    code = "ANSWER_LOST"

    def __init__(self, server: str, revision: Any = None, operation: Any = None) -> None:
        self.revision = revision
        """Of the commit that did it; None if nothing had to be changed."""
        said = "nothing had to be changed" if revision is None else f"it is commit {revision}"
        super().__init__(server, said, True, operation)

    def _message(self) -> str:
        return f"{self.server}: the write has happened, only its answer is lost: {self.said}"


class StoreTimeoutError(StoreUnavailableError):
    """The server did not answer in time."""

    code = "STORE_TIMEOUT"


class StoreBusyError(StoreUnavailableError):
    """The server is busy with a script (BUSY)."""

    code = "STORE_BUSY"


class StoreLoadingError(StoreUnavailableError):
    """The server is still loading its data (LOADING)."""

    code = "STORE_LOADING"


class StoreReadOnlyError(StoreUnavailableError):
    """The server is a replica and takes no writes (READONLY)."""

    code = "STORE_READ_ONLY"


class StoreFullError(StoreUnavailableError):
    """The server has no memory left for writes (OOM)."""

    code = "STORE_FULL"


class StoreMisconfiguredError(StoreUnavailableError):
    """The server cannot persist and takes no writes (MISCONF)."""

    code = "STORE_MISCONFIGURED"


class StoreAuthenticationError(StoreUnavailableError):
    """The server refused the user name or password (NOAUTH, WRONGPASS)."""

    code = "STORE_AUTHENTICATION"
    retryable = False


class StorePermissionError(StoreUnavailableError):
    """The user lacks a right that the operation needs (NOPERM)."""

    code = "STORE_PERMISSION"
    retryable = False


class StoreProtocolError(StoreUnavailableError):
    """The server's reply could not be understood."""

    code = "STORE_PROTOCOL"
    retryable = False
