"""Correlation contexts: what a run of several steps, tasks and processes has in common.

``with correlation("run-7"):`` stamps every commit, event and hook run made inside, in every task
started inside, with the correlation id, what caused it and the trace that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from llmspell_dist.context import CommitContext, check_text, current_context, entered
from llmspell_dist.correlation.traceparent import (
    TraceParent,
    active_traceparent,
    check_traceparent,
    combine_tracestate,
    new_traceparent,
    parse_traceparent,
)
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.ids import new_id

__all__ = ["CorrelationContext", "correlation", "current_correlation"]

MAX_METADATA: Final = 64
"""Most entries of metadata, and most tags."""
_NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationContext:
    """Which correlation something belongs to, and where that came from.

    Ids are text of 1 to 256 bytes. `parent_id` and `root_id` are correlation ids: a root has no
    parent and is its own root.
    """

    correlation_id: str = field(default_factory=new_id)
    parent_id: str | None = None
    root_id: str = ""
    """By default the correlation itself."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA)
    tags: frozenset[str] = frozenset()
    traceparent: str | None = None
    """The W3C trace context."""
    tracestate: str | None = None
    causation_id: str | None = None
    """The event or commit that caused what happens inside; by default the parent."""

    def __post_init__(self) -> None:
        check_text("correlation_id", self.correlation_id)
        if self.root_id == "":
            object.__setattr__(self, "root_id", self.correlation_id)
        check_text("root_id", self.root_id)
        for name in ("parent_id", "causation_id"):
            value = getattr(self, name)
            if value is not None:
                check_text(name, value)
        if self.parent_id == self.correlation_id:
            rule = "must not be the correlation itself"
            raise InvalidArgumentError("parent_id", self.parent_id, rule)
        if not isinstance(self.created_at, datetime) or self.created_at.tzinfo is None:
            raise InvalidArgumentError("created_at", self.created_at, "must be an aware datetime")
        object.__setattr__(self, "metadata", _checked_metadata(self.metadata))
        object.__setattr__(self, "tags", _checked_tags(self.tags))
        if self.traceparent is not None:
            object.__setattr__(self, "traceparent", str(check_traceparent(self.traceparent)))
        if self.tracestate is not None and combine_tracestate([self.tracestate]) is None:
            raise InvalidArgumentError("tracestate", self.tracestate, "must be a W3C tracestate")

    @classmethod
    def new_root(
        cls,
        correlation_id: str | None = None,
        *,
        metadata: Mapping[str, str] = _NO_METADATA,
        tags: Iterable[str] = (),
        traceparent: str | None = None,
    ) -> CorrelationContext:
        """Return a context without a parent.

        Its trace is `traceparent`, else the active span of OpenTelemetry, else a new one.
        """
        return cls(
            correlation_id=new_id() if correlation_id is None else correlation_id,
            metadata=metadata,
            tags=_checked_tags(tags),
            traceparent=traceparent or str(active_traceparent() or new_traceparent()),
        )

    def create_child(
        self,
        correlation_id: str | None = None,
        *,
        metadata: Mapping[str, str] = _NO_METADATA,
        tags: Iterable[str] = (),
    ) -> CorrelationContext:
        """Return a context of its own below this one: same root and trace, a new span.

        Metadata and tags are this one's and those given.
        """
        own, trace = self.trace, active_traceparent()
        if trace is None and own is not None:
            trace = own.child()
        same = own is not None and trace is not None and own.trace_id == trace.trace_id
        return CorrelationContext(
            correlation_id=new_id() if correlation_id is None else correlation_id,
            parent_id=self.correlation_id,
            root_id=self.root_id,
            metadata={**self.metadata, **_checked_metadata(metadata)},
            tags=self.tags | _checked_tags(tags),
            traceparent=None if trace is None else str(trace),
            tracestate=self.tracestate if same else None,
        )

    @property
    def is_root(self) -> bool:
        """Whether it has no parent."""
        return self.parent_id is None

    @property
    def trace(self) -> TraceParent | None:
        """The traceparent, taken apart."""
        return None if self.traceparent is None else check_traceparent(self.traceparent)

    def stamp(self, actor: str | None = None) -> CommitContext:
        """Return what the log says about commits made inside."""
        return CommitContext(
            actor,
            self.correlation_id,
            self.parent_id if self.causation_id is None else self.causation_id,
            self.traceparent,
            None if self.root_id == self.correlation_id else self.root_id,
        )


def _checked_metadata(metadata: object) -> Mapping[str, str]:
    if not isinstance(metadata, Mapping):
        raise InvalidArgumentError("metadata", metadata, "must be a mapping of text to text")
    if len(metadata) > MAX_METADATA:
        rule = f"must have at most {MAX_METADATA} entries"
        raise InvalidArgumentError("metadata", metadata, rule)
    for name, value in metadata.items():
        check_text("metadata", name)
        if type(value) is not str:
            raise InvalidArgumentError(f"metadata[{name!r}]", value, "must be text")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                rule = "must be valid Unicode"
                raise InvalidArgumentError(f"metadata[{name!r}]", value, rule) from None
    return MappingProxyType(dict(metadata)) if metadata else _NO_METADATA


def _checked_tags(tags: object) -> frozenset[str]:
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise InvalidArgumentError("tags", tags, "must be several texts")
    found = frozenset(check_text("tags", tag) for tag in tags)
    if len(found) > MAX_METADATA:
        raise InvalidArgumentError("tags", tags, f"must be at most {MAX_METADATA}")
    return found


_current: ContextVar[CorrelationContext | None] = ContextVar(
    "llmspell_dist.correlation", default=None
)


def current_correlation() -> CorrelationContext | None:
    """Return the correlation in force here, None outside of any.

    One that only `llmspell_dist.context` set is found too; then nothing is known of its parent.
    """
    said, found = current_context(), _current.get()
    if said.correlation_id is None:
        return None
    if found is None or found.correlation_id != said.correlation_id:
        trace = parse_traceparent(said.traceparent)  # free text is allowed there
        found = CorrelationContext(
            correlation_id=said.correlation_id,
            root_id=said.root_id or said.correlation_id,
            traceparent=None if trace is None else str(trace),
        )
    if found.stamp().causation_id != said.causation_id:  # set closer to here
        found = replace(found, causation_id=said.causation_id)
    return found


@contextmanager
def correlation(
    given: CorrelationContext | str | None = None,
    *,
    actor: str | None = None,
    causation_id: str | None = None,
    metadata: Mapping[str, str] = _NO_METADATA,
    tags: Iterable[str] = (),
) -> Iterator[CorrelationContext]:
    """Let what happens inside belong to a correlation.

    `given`: a context, as one that came with a message; the id of a new root; None: a child of the
    correlation in force here, else a new root. Every commit, event and hook run inside, in every
    task started inside, carries its ids and its trace; `causation_id` names what caused them, by
    default the parent. `actor` is by default that of the surrounding context.
    """
    if isinstance(given, CorrelationContext):
        inner = given
        if metadata or tags:
            inner = replace(
                given,
                metadata={**given.metadata, **_checked_metadata(metadata)},
                tags=given.tags | _checked_tags(tags),
            )
    elif given is None and (outer := current_correlation()) is not None:
        inner = outer.create_child(metadata=metadata, tags=tags)
    else:
        inner = CorrelationContext.new_root(given, metadata=metadata, tags=tags)
    if causation_id is not None:
        inner = replace(inner, causation_id=causation_id)
    who = current_context().actor if actor is None else actor
    token = _current.set(inner)
    try:
        with entered(inner.stamp(who)):
            yield inner
    finally:
        _current.reset(token)
