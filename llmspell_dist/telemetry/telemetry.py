"""`Telemetry`: who is told of what a client does, as a value for `Options`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.trace import NoOpTracer, ProxyTracerProvider, TracerProvider

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.model import Event
from llmspell_dist.events.tracing import processing
from llmspell_dist.observation import NOTHING_OBSERVED, Observer, Span
from llmspell_dist.redis.metering import Meter
from llmspell_dist.telemetry.http import HttpMetrics
from llmspell_dist.telemetry.instruments import make_instruments
from llmspell_dist.telemetry.readings import Book
from llmspell_dist.telemetry.sampling import Head, IdsWithin, ratio_of
from llmspell_dist.telemetry.spans import Spans
from llmspell_dist.telemetry.traced import traced_state

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer

    from llmspell_dist.telemetry.direct import Direct

__all__ = ["SCOPE_NAME", "Telemetry"]

C = TypeVar("C", bound=type)

SCOPE_NAME: Final = "llmspell_dist"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.37.0"


class Telemetry:
    """Traces and metrics of the clients that have it in their options; one a process is enough.

    ::

        options = Options(telemetry=Telemetry())

    `tracer_provider` and `meter_provider` are OpenTelemetry's global ones unless given; which they
    are is asked when a client is opened, so set them before. `traces` and `metrics` switch one of
    the two off. `record_scopes`: spans name scopes and keys, too; values they never show.

    What is not sampled is not even told to OpenTelemetry, and what is counted is read when somebody
    exports it: see ``docs/telemetry``.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        traces: bool = True,
        metrics: bool = True,
        record_scopes: bool = False,
        own_readers: bool = False,
    ) -> None:
        for name, given in (
            ("traces", traces),
            ("metrics", metrics),
            ("record_scopes", record_scopes),
            ("own_readers", own_readers),
        ):
            if type(given) is not bool:
                raise InvalidArgumentError(name, given, "must be a bool")
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._traces = traces
        self._metrics = metrics
        self._record_scopes = record_scopes
        self._own_readers = own_readers
        self._instruments = False
        self.book = Book()
        """What was counted."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} traces={self._traces} metrics={self._metrics}>"

    # --- for servers and handlers

    def http(self) -> HttpMetrics:
        """Return what an HTTP server of this process tells of its requests; the same each time."""
        if self.book.http is None:
            self.book.http = HttpMetrics()
        self._make_instruments()
        return self.book.http

    def handling(self, event: Event, name: str = "") -> AbstractContextManager[Span]:
        """Go on with the trace of an event that was taken from a subscription by hand.

        ``with telemetry.handling(event):`` is what `Events.consume` does around each handler.
        """
        if not isinstance(event, Event):
            raise InvalidArgumentError("event", event, "must be an Event")
        return processing(event, self.observer({}), name)

    # --- for the client: `TelemetrySource`

    def observer(self, facts: Mapping[str, Any]) -> Observer:
        """Return what is told of a new client, about whose server these facts are known."""
        tracer = self._tracer() if self._traces else None
        if tracer is None:
            return NOTHING_OBSERVED
        ratio = ratio_of(getattr(tracer, "sampler", None))
        inner = getattr(tracer, "id_generator", None)
        if ratio and inner is not None and not isinstance(inner, IdsWithin):
            tracer.id_generator = IdsWithin(inner, ratio)  # type: ignore[attr-defined]
        direct = None
        if ratio and not self._record_scopes:  # names of keys have a limit that the SDK sees to
            direct = self._direct_of(tracer)
        return Spans(tracer, Head(ratio), facts, direct=direct, record_scopes=self._record_scopes)

    @staticmethod
    def _direct_of(tracer: Any) -> Direct | None:
        if "opentelemetry.sdk.trace" not in sys.modules:
            return None  # then it is not the SDK's
        from llmspell_dist.telemetry.direct import direct_of  # noqa: PLC0415

        return direct_of(tracer, tracer.id_generator, SCOPE_NAME, _SCHEMA)

    def _tracer(self) -> Tracer | None:
        provider = self._tracer_provider or trace.get_tracer_provider()
        if isinstance(provider, ProxyTracerProvider):
            return None  # nobody has set one
        tracer = provider.get_tracer(SCOPE_NAME, schema_url=_SCHEMA)
        return None if isinstance(tracer, NoOpTracer) else tracer

    def meter(self) -> Meter | None:
        """Return what counts on the connections of a new client; None: nothing does."""
        return Meter() if self._metrics else None

    def state_class(self, kind: C, observer: Observer) -> C:
        """Return the class of state managers to use for this one."""
        return traced_state(kind, observer) if isinstance(observer, Spans) else kind

    def attach(
        self,
        client: Any,
        meter: Meter | None,
        facts: Mapping[str, Any],
        listening: Callable[[], list[Any]],
    ) -> None:
        """Read this client's counts from now on."""
        if self._metrics:
            self.book.attach(client, meter, facts, listening)
            self._make_instruments()

    def detach(self, client: Any) -> None:
        """Read this client's counts a last time."""
        self.book.detach(client)

    def export_to(self, provider: MeterProvider) -> None:
        """Use a meter provider whose readers are this telemetry's own; before the first client."""
        self._meter_provider = provider
        self._make_instruments()

    def _make_instruments(self) -> None:
        if self._instruments or not self._metrics:
            return
        self._instruments = True
        provider = self._meter_provider or metrics.get_meter_provider()
        meter = provider.get_meter(SCOPE_NAME, schema_url=_SCHEMA)
        make_instruments(meter, self.book, replay=not self._own_readers)
