"""What one process asks of another: to run a hook, and what came of it. As data, and combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import CorruptRecordError, UnsupportedFormatError
from llmspell_dist.hooks.kept import RecordedFailure
from llmspell_dist.hooks.recording import error_parts, result_of, result_parts
from llmspell_dist.hooks.results import Cancel, HookResult, Modified

if TYPE_CHECKING:
    from llmspell_dist.hooks.fleet_model import FleetHook

__all__ = [
    "NOT_HERE",
    "Answer",
    "Request",
    "Travel",
    "answer_of",
    "combined",
    "going_on",
    "request_of",
    "travelled",
    "under_way",
]

FORMAT: Final = 1
NOT_HERE: Final = RecordedFailure("HookNotFoundError", "there is no such hook here")
"""What a process answers that has not, or no longer, the hook that it is to run."""


@dataclass(frozen=True, slots=True)
class Travel:
    """How far something has come through the fleet."""

    hops: int
    deadline_ms: float
    """Server time after which nobody begins any more."""
    origin: str
    """The process in which it began."""


_under_way: ContextVar[Travel | None] = ContextVar("llmspell_dist.hooks.fleet", default=None)

travelled: Final = _under_way.get
"""How far what runs here has come; None if it began here."""


@contextmanager
def under_way(travel: Travel) -> Iterator[None]:
    """Say that what runs in the block came from another process."""
    token = _under_way.set(travel)
    try:
        yield
    finally:
        _under_way.reset(token)


def going_on(hook: FleetHook, own: str, now_ms: float) -> Travel | str:
    """Return how a call to other processes travels on, or why it does not: ``hops``, ``time``."""
    before = travelled()
    deadline_ms = now_ms + hook.timeout * 1000
    if before is None:
        hops, origin = 1, own
    else:
        hops, origin = before.hops + 1, before.origin
        deadline_ms = min(deadline_ms, before.deadline_ms)
    if hops > hook.max_hops:
        return "hops"
    if now_ms >= deadline_ms:
        return "time"
    return Travel(hops, deadline_ms, origin)


@dataclass(frozen=True, slots=True)
class Request:
    """Asks a process to run one of its hooks."""

    id: str
    hook: str
    point: str
    travel: Travel
    reply_to: str | None
    """The process that waits for the answer."""
    context: bytes
    """What the hook is told, sealed."""

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        travel = self.travel
        return {
            "v": FORMAT,
            "what": "run",
            "id": self.id,
            "hook": self.hook,
            "point": self.point,
            "hops": travel.hops,
            "deadline_ms": travel.deadline_ms,
            "origin": travel.origin,
            "reply_to": self.reply_to,
            "context": self.context,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request in one process."""

    id: str
    process: str
    result: HookResult | None = None
    error: RecordedFailure | None = None

    def parts(self) -> dict[str, Any]:
        """Return what is to be sealed of it."""
        return {
            "result": result_parts(self.result),
            "error": None if self.error is None else error_parts(self.error),
        }

    def as_data(self, sealed: bytes) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "v": FORMAT,
            "what": "ran",
            "id": self.id,
            "process": self.process,
            "sealed": sealed,
        }

    @classmethod
    def of(cls, request_id: str, process: str, parts: dict[str, Any] | None) -> Answer:
        """Return the answer with these parts; None if they could not be opened."""
        if parts is None:
            return cls(
                request_id, process, error=RecordedFailure("ReplayError", "the answer was left out")
            )
        error = parts["error"]
        result = result_of(parts["result"]) if parts["result"] else None
        return cls(request_id, process, result, None if error is None else RecordedFailure(*error))


def request_of(data: Any) -> Request:
    """Return a request that came; a child of `SpellError` if it is none."""
    _check(data)
    _check_fields("a request", data, _REQUEST)
    travel = Travel(data["hops"], float(data["deadline_ms"]), data["origin"])
    return Request(
        data["id"], data["hook"], data["point"], travel, data["reply_to"], data["context"]
    )


def answer_of(data: Any, open_sealed: Callable[[bytes, str], dict[str, Any] | None]) -> Answer:
    """Return an answer that came; a child of `SpellError` if it is none."""
    _check(data)
    _check_fields("an answer", data, _ANSWER)
    parts = open_sealed(data["sealed"], data["id"])
    try:
        return Answer.of(data["id"], data["process"], parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"an answer cannot be read: {type(error).__name__}"
        raise CorruptRecordError("hooks", "fleet", reason) from None


_REQUEST: Final[dict[str, tuple[type, ...]]] = {
    "id": (str,),
    "hook": (str,),
    "point": (str,),
    "hops": (int,),
    "deadline_ms": (float, int),
    "origin": (str,),
    "reply_to": (str, NoneType),
    "context": (bytes,),
}
_ANSWER: Final[dict[str, tuple[type, ...]]] = {"id": (str,), "process": (str,), "sealed": (bytes,)}


def _check_fields(what: str, data: dict[str, Any], fields: dict[str, tuple[type, ...]]) -> None:
    for name, types in fields.items():
        if name not in data:
            raise CorruptRecordError("hooks", "fleet", f"{what} lacks {name!r}")
        value = data[name]
        if type(value) not in types or (type(value) is float and not isfinite(value)):
            reason = f"{name!r} of {what} is no {types[0].__name__}"
            raise CorruptRecordError("hooks", "fleet", reason)


def _check(data: Any) -> None:
    if type(data) is not dict or data.get("v") != FORMAT:
        raise UnsupportedFormatError("hooks", "fleet", "it is no message of this release")


def combined(answers: Iterable[Answer]) -> HookResult | None:
    """Return what several processes answered as one result, in the order of their ids.

    A `Cancel` goes before all else, then the first result that ends a chain; what is modified comes
    together, later processes last. None: all said to go on. What is forked is not in it.
    """
    modified: dict[str, Any] = {}
    ending: HookResult | None = None
    for answer in sorted(answers, key=lambda one: one.process):
        result = answer.result
        if result is None:
            continue
        if isinstance(result, Cancel):
            return result
        if isinstance(result, Modified):
            modified.update(result.data)
        elif not result.should_continue and ending is None:
            ending = result
    if ending is not None:
        return ending
    return Modified(modified) if modified else None
