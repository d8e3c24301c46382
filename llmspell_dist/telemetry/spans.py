"""Spans of what a client does, with the names that OpenTelemetry's conventions give to databases.

What an attribute may be stands in `names.SPAN_ATTRIBUTES`. Errors are noted by their stable code:
their messages may name keys or show arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from time import perf_counter_ns, time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)

from llmspell_dist.correlation.traceparent import new_traceparent, parse_traceparent
from llmspell_dist.observation import UNSEEN, Span
from llmspell_dist.telemetry.sampling import Head, active_span, code_of, current_context

if TYPE_CHECKING:
    from llmspell_dist.telemetry.direct import Direct

__all__ = ["Spans"]

_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

_SYSTEM: Final = "db.system.name"
_USUAL: Final = {"server.port": 6379, "db.namespace": "0", "llmspell.namespace": "llmspell"}
"""Each attribute costs 6 µs from its span to the collector. The conventions ask for a port that is
not the usual one."""
_MESSAGING: Final = (SpanKind.PRODUCER, SpanKind.CONSUMER)


class _Recorded(AbstractContextManager[Span]):
    """A span that is recorded, and active in the block."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set(self, name: str, value: str | float | bool) -> None:
        self._span.set_attribute(name, value)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        otel_context.detach(self._token)
        # A caller that leaves is no failure of what it asked for.
        if error is not None and isinstance(error, Exception):
            code = code_of(error)
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()


class _Covered(AbstractContextManager[Span]):
    """The context of a trace that is not recorded, so that what happens inside is not either."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: SpanContext) -> None:
        self._context = context

    def __enter__(self) -> Span:
        span = NonRecordingSpan(self._context)
        self._token = otel_context.attach(trace.set_span_in_context(span))
        return UNSEEN

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        otel_context.detach(self._token)


class Spans:
    """An `Observer` that makes spans; `common` are facts about the server."""

    tracing = True

    def __init__(
        self,
        tracer: Tracer,
        head: Head,
        common: Mapping[str, Any],
        *,
        direct: Direct | None = None,
        record_scopes: bool = False,
    ) -> None:
        self._tracer = tracer
        self._direct = direct
        self.head = head
        self._facts = common
        self._common: dict[str, Any] = {}
        self.record_scopes = record_scopes

    @property
    def common(self) -> dict[str, Any]:
        """What stands in every span; what is as it nearly always is, is left out."""
        if not self._common or self._common.get(_SYSTEM) != self._facts.get(_SYSTEM):
            usual = _USUAL.items()
            self._common = {
                name: value for name, value in self._facts.items() if (name, value) not in usual
            }
        return self._common

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ratio={self.head.ratio}>"

    def span(
        self,
        name: str,
        kind: str = "internal",
        attributes: Mapping[str, Any] | None = None,
        *,
        parent: str | None = None,
        covers: bool = False,
    ) -> AbstractContextManager[Span]:
        """Record what the block does, if it is sampled; see `Observer.span`."""
        context: Any = None
        if parent is not None and (said := parse_traceparent(parent)) is not None:
            remote = SpanContext(
                *(int(said.trace_id, 16), int(said.span_id, 16)),
                is_remote=True,
                trace_flags=TraceFlags(said.flags & TraceFlags.SAMPLED),
            )
            if not said.sampled and self.head.ratio is not None:
                return _Covered(remote) if covers else UNSEEN
            context = trace.set_span_in_context(NonRecordingSpan(remote), current_context())
        elif not self.head.wants():
            if not covers or active_span().get_span_context().is_valid:
                return UNSEEN
            new = new_traceparent()
            return _Covered(SpanContext(int(new.trace_id, 16), int(new.span_id, 16), False))
        return self.record(name, _KINDS[kind], attributes, context)

    def record(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        context: Any = None,
    ) -> _Recorded:
        """Begin a span; nothing is asked any more, except OpenTelemetry's own sampler."""
        given = self.common if attributes is None else {**self.common, **attributes}
        if kind in _MESSAGING:
            given = {**given, "messaging.system": self.common.get("db.system.name", "redis")}
        return _Recorded(
            self._tracer.start_span(
                *(name, context, kind, given),
                record_exception=False,
                set_status_on_exception=False,
            )
        )

    def operation(
        self, name: str, attributes: Mapping[str, Any], *, active: bool = True
    ) -> AbstractContextManager[object]:
        """Record a hot operation, which is sampled; `active`: whether anybody asks meanwhile."""
        direct = self._direct
        if direct is not None and direct.usable:
            return direct.span(name, {**self.common, **attributes}, active=active)
        return self.record(name, SpanKind.CLIENT, attributes)

    def traceparent(self) -> str | None:
        """Return the active span as the W3C header says it; None without one."""
        if not current_context():
            return None
        context = active_span().get_span_context()
        if not context.is_valid:
            return None
        flags = int(context.trace_flags) & 0xFF
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"

    def recording(self) -> bool:
        """Whether there is an active span, and it is sampled."""
        return bool(current_context()) and active_span().get_span_context().trace_flags.sampled

    def ran(
        self,
        name: str,
        attributes: Mapping[str, Any],
        began: float,
        ended: float,
        error: str | None = None,
    ) -> None:
        """Record what has ended already, by `time.perf_counter`; a child of the active span."""
        offset = time_ns() - perf_counter_ns()
        span = self._tracer.start_span(
            name, attributes=dict(attributes), start_time=offset + int(began * 1e9)
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(offset + int(ended * 1e9))
