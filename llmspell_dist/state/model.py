"""What state operations give back: records, pages, changes, statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from llmspell_dist.classes import StateClass
from llmspell_dist.context import CommitContext
from llmspell_dist.revision import Revision

__all__ = ["Change", "Page", "Record", "ScopeStat", "Snapshot"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A value with all that is known about it."""

    scope: str
    key: str
    value: Any
    revision: Revision
    """The commit that wrote it last; give it to `compare_and_set`."""
    created: datetime
    updated: datetime
    expires: datetime | None
    state_class: StateClass
    schema_version: int
    kind: str
    """``value``, ``number``, ``list``, ``map`` or ``blob``: how it lies in Redis."""


class Page(NamedTuple, Generic[T]):
    """Some of many, and where to go on; ``cursor`` is None after the last page."""

    items: list[T]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one key, as the log has it."""

    scope: str
    key: str
    op: str
    """set, increment, append, merge, ttl, delete, expired, clear or restored (by a restore of the
    whole scope); from a watch that had to begin anew also reset (forget everything) and snapshot
    (what is there)."""
    revision: Revision
    time: datetime
    has_value: bool
    """Whether the log still tells what was written."""
    value: Any = None
    """set: the value; increment: the new number; append: the elements; merge: the fields set."""
    removed: tuple[Any, ...] = ()
    """merge: the fields removed."""
    previous: Revision | None = None
    """The revision that the key had before; None if it was not there."""
    expires: datetime | None = None
    state_class: StateClass | None = None
    operation: str = ""
    context: CommitContext = field(default_factory=CommitContext)

    @property
    def actor(self) -> str | None:
        """Who changed it."""
        return self.context.actor

    @property
    def correlation_id(self) -> str | None:
        """What the change belongs to."""
        return self.context.correlation_id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in a scope as of one moment."""

    scope: str
    revision: Revision
    """The last commit that is in it, to watch from; ``Revision(0, 0)``: there was none."""
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScopeStat:
    """How much lies in a scope."""

    scope: str
    keys: int
    """Without those that have expired."""
    bytes: int
    """Of records and elements, with those that have expired and are not removed yet."""
    revision: Revision | None
    """The last commit that changed the scope."""
    schema_version: int
    fence: int
