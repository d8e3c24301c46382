"""Spans of hot operations, made with what they say when they end, and handed to the processors.

OpenTelemetry's own way to a span (a sampler, locks, attributes checked one by one, a log of its
own) costs 26 µs where it runs all the time, and five times that where it runs once in a hundred
operations and finds every cache cold. Nothing of it is needed for a span that gets its few
attributes once and never changes: this takes what `ReadableSpan` is made of and makes one.

Only where that comes to the same: with the SDK's tracer, a sampler that is known, and processors
that do nothing when a span begins. Else `Spans.record` is used, and all is as OpenTelemetry has it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from time import time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from llmspell_dist.telemetry.sampling import (
    SPAN_KEY,
    active_span,
    code_of,
    current_context,
)

if TYPE_CHECKING:
    from llmspell_dist.telemetry.sampling import IdsWithin

__all__ = ["Direct", "direct_of"]

_PASSIVE: Final = tuple(
    kind.on_start for kind in (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
)
_UNSET: Final = Status(StatusCode.UNSET)


class Direct:
    """Makes spans of one tracer."""

    def __init__(self, tracer: Tracer, ids: IdsWithin, scope: InstrumentationScope) -> None:
        self._processor: Any = tracer.span_processor
        self._resource = tracer.resource
        self._ids = ids
        self._scope = scope
        flags = TraceFlags.SAMPLED
        if ids.is_trace_id_random():
            flags |= getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
        self._root_flags = TraceFlags(flags)
        self.key = SPAN_KEY or ""
        self._known: tuple[Any, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether every processor only wants to know of spans that have ended."""
        there = getattr(self._processor, "_span_processors", None)
        if there is self._known:
            return True
        if not isinstance(there, tuple) or any(type(one).on_start not in _PASSIVE for one in there):
            return False
        self._known = there
        return True

    def span(self, name: str, attributes: Mapping[str, Any], *, active: bool) -> DirectSpan:
        """Return a span of kind client that begins when it is entered."""
        return DirectSpan(self, name, attributes, active)

    def context(self, parent: SpanContext | None) -> SpanContext:
        """Return the identity of a new span."""
        span_id = random.getrandbits(64) or 1
        if parent is None:
            trace_id = self._ids.generate_trace_id()
            return SpanContext(trace_id, span_id, False, self._root_flags)
        return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)

    def end(self, span: DirectSpan, error: str | None) -> None:
        """Hand an ended span to the processors."""
        said, status = span.attributes, _UNSET
        if error is not None:
            said, status = {**said, "error.type": error}, Status(StatusCode.ERROR, error)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=span.context,
                parent=span.parent,
                resource=self._resource,
                attributes=said,
                kind=SpanKind.CLIENT,
                status=status,
                start_time=span.began,
                end_time=time_ns(),
                instrumentation_scope=self._scope,
            )
        )


class DirectSpan:
    """One such span; active in the block, unless nobody there can ask for it."""

    __slots__ = ("_active", "_direct", "_token", "attributes", "began", "context", "name", "parent")

    def __init__(
        self, direct: Direct, name: str, attributes: Mapping[str, Any], active: bool
    ) -> None:
        self._direct = direct
        self._token: Any = None
        self._active = active
        self.name = name
        self.attributes = attributes

    def __enter__(self) -> None:
        parent = active_span().get_span_context() if current_context() else None
        self.parent = parent if parent is not None and parent.is_valid else None
        self.context = self._direct.context(self.parent)
        if self._active:
            active = {**current_context(), self._direct.key: NonRecordingSpan(self.context)}
            self._token = otel_context.attach(Context(active))
        self.began = time_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        self._direct.end(self, code_of(error) if isinstance(error, Exception) else None)


def direct_of(tracer: Any, ids: Any, name: str, schema: str) -> Direct | None:
    """Return what makes the spans of a tracer, if it is the SDK's; else None."""
    if not isinstance(tracer, Tracer) or SPAN_KEY is None:
        return None
    return Direct(tracer, ids, InstrumentationScope(name, "", schema))
