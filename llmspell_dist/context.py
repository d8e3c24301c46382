"""Who writes, and on whose behalf: what a process says about its commits, for the change log.

``with context(actor="planner-3", correlation_id=run):`` stamps every commit made inside, in every
task started inside; nested contexts add to the outer one. Reading it costs one context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import msgpack

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["CommitContext", "check_text", "context", "current_context", "entered"]

MAX_BYTES: Final = 256
_WIRE: Final = {
    "correlation_id": "c",
    "actor": "a",
    "causation_id": "p",
    "traceparent": "t",
    "root_id": "r",
}
"""The correlation id comes first: the commit script looks for it at a fixed offset."""


def check_text(argument: str, value: object) -> str:
    """Return an id, or another part of a context; `InvalidArgumentError` if it can be none."""
    if type(value) is not str or not 0 < len(value.encode("utf-8", "replace")) <= MAX_BYTES:
        rule = f"must be text of 1 to {MAX_BYTES} bytes"
        raise InvalidArgumentError(argument, value, rule)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(argument, value, "must be valid Unicode") from None
    return value


@dataclass(frozen=True, slots=True)
class CommitContext:
    """What stands beside a commit in the log; every part is optional text of at most 256 bytes."""

    actor: str | None = None
    """Who changed it: an agent, a worker, a person."""
    correlation_id: str | None = None
    """What the change belongs to: a run, a request."""
    causation_id: str | None = None
    """The event or commit that caused it."""
    traceparent: str | None = None
    """The W3C trace context."""
    root_id: str | None = None
    """The correlation id that all began with, if it is another one."""
    refuse: Callable[[Iterable[str]], NoReturn] | None = field(
        default=None, repr=False, compare=False
    )
    """Called with the scopes of a commit instead of sending it: for simulations."""
    packed: bytes = field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        said = {}
        for name, short in _WIRE.items():
            value = getattr(self, name)
            if value is None:
                continue
            said[short] = check_text(name, value)
        object.__setattr__(self, "packed", msgpack.packb(said) if said else b"")

    @classmethod
    def from_wire(cls, meta: dict[str, str]) -> CommitContext:
        """Read what the log kept; unknown parts, of a later release, are left out."""
        said: dict[str, Any] = {name: meta[short] for name, short in _WIRE.items() if short in meta}
        return cls(**said)


_current: ContextVar[CommitContext | None] = ContextVar("llmspell_dist.context", default=None)

get_context: Final = _current.get
"""The context in force or None; for the hot path."""


def current_context() -> CommitContext:
    """Return the context in force, an empty one if there is none."""
    return _current.get() or CommitContext()


@contextmanager
def context(
    actor: str | None = None,
    *,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    traceparent: str | None = None,
    root_id: str | None = None,
) -> Iterator[CommitContext]:
    """Stamp the commits made inside with who made them and what they belong to.

    Parts that are not given are those of the surrounding context.
    """
    given = {
        "actor": actor,
        "correlation_id": correlation_id,
        "causation_id": causation_id,
        "traceparent": traceparent,
        "root_id": root_id,
    }
    outer = current_context()
    inner = CommitContext(
        **{name: getattr(outer, name) if value is None else value for name, value in given.items()},
        refuse=outer.refuse,
    )
    with entered(inner):
        yield inner


@contextmanager
def entered(inner: CommitContext) -> Iterator[CommitContext]:
    """Stamp the commits made inside with exactly this, whatever surrounds it."""
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)
