"""Telemetry of a whole program, from the standard ``OTEL_…`` variables, on and off as one.

For a program that has no OpenTelemetry of its own: the sidecar, a worker. One that has gives its
providers to `Telemetry`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Running", "TelemetrySettings", "start_telemetry"]

_SIGNALS: Final = {
    "traces": ("otlp", "console", "none"),
    "metrics": ("otlp", "prometheus", "console", "none"),
    "logs": ("otlp", "none"),
}
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What a program exports, and where to."""

    traces: tuple[str, ...] = ()
    """Of ``otlp`` and ``console``."""
    metrics: tuple[str, ...] = ("prometheus",)
    """Of ``otlp``, ``prometheus`` and ``console``."""
    logs: tuple[str, ...] = ()
    """``otlp`` or nothing."""
    sample_ratio: float | None = None
    """Share of traces that are recorded, where no caller has decided it; None: what
    ``OTEL_TRACES_SAMPLER`` says, else one in a hundred."""
    service_name: str = "llmspell-dist"
    """Unless ``OTEL_SERVICE_NAME`` says otherwise."""
    record_scopes: bool = False
    """Whether spans name scopes and keys."""
    resource: Mapping[str, str] = field(default_factory=dict)
    """More about the program, beside ``OTEL_RESOURCE_ATTRIBUTES``."""

    def __post_init__(self) -> None:
        for name, known in _SIGNALS.items():
            given = getattr(self, name)
            if type(given) is not tuple or any(one not in known for one in given):
                rule = f"must be a tuple of {', '.join(one for one in known if one != 'none')}"
                raise InvalidArgumentError(name, given, rule)
        ratio = self.sample_ratio
        if ratio is not None and (type(ratio) not in (int, float) or not 0 <= ratio <= 1):
            raise InvalidArgumentError("sample_ratio", ratio, "must be a number from 0 to 1")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """Return what the standard variables say; what is `given` goes before.

        ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER``, ``OTEL_LOGS_EXPORTER``: lists such as
        ``otlp,prometheus``. Without one of them, ``otlp`` if an endpoint is set, and metrics always
        for Prometheus. ``OTEL_SDK_DISABLED=true`` is nothing at all. Raises `InvalidArgumentError`
        for an exporter that there is none of.
        """
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls(**{"traces": (), "metrics": (), "logs": (), **given})
        for signal, known in _SIGNALS.items():
            name = f"OTEL_{signal.upper()}_EXPORTER"
            said = environ.get(name, "").strip()
            if said:
                wanted = tuple(one.strip().lower() for one in said.split(",") if one.strip())
                if any(one not in known for one in wanted):
                    raise InvalidArgumentError(name, said, f"must be of {', '.join(known)}")
                found = tuple(one for one in wanted if one != "none")
            else:
                own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
                found = ("otlp",) if environ.get(_ENDPOINT) or environ.get(own) else ()
                found += ("prometheus",) if signal == "metrics" else ()
            given.setdefault(signal, found)
        return cls(**given)


class Running:
    """The telemetry of a program that is on; `shutdown` sends what there is and ends it."""

    def __init__(self, telemetry: Telemetry, registry: CollectorRegistry | None) -> None:
        self.telemetry = telemetry
        """For ``Options(telemetry=…)``."""
        self._registry = registry
        self._providers: list[Any] = []
        self._handler: logging.Handler | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.telemetry!r}>"

    def prometheus(self) -> tuple[bytes, str]:
        """Return all metrics as Prometheus's text, and its content type.

        It takes a few milliseconds: a server calls it in a thread. Without the exporter it is an
        empty text.
        """
        from prometheus_client.exposition import (  # noqa: PLC0415 - only who is scraped needs it
            CONTENT_TYPE_PLAIN_0_0_4,
            generate_latest,
        )

        if self._registry is None:
            return b"", CONTENT_TYPE_PLAIN_0_0_4
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def flush(self, timeout_s: float = 10.0) -> None:
        """Send what there is now."""
        for provider in self._providers:
            provider.force_flush(int(timeout_s * 1000))

    def shutdown(self) -> None:
        """Send what there is and stop; twice is allowed."""
        handler, self._handler = self._handler, None
        if handler is not None:
            logging.getLogger().removeHandler(handler)
        providers, self._providers = self._providers, []
        for provider in providers:
            provider.shutdown()

    def own(self, provider: Any) -> None:
        """Flush and shut a provider down with the rest."""
        self._providers.append(provider)

    def log_through(self, handler: logging.Handler) -> None:
        """Send what is logged anywhere in the program, until `shutdown`."""
        self._handler = handler
        logging.getLogger().addHandler(handler)


def start_telemetry(settings: TelemetrySettings | None = None) -> Running:
    """Start what `settings` (by default the environment's) ask for; nothing global is changed.

    Endpoints, headers, intervals and limits of batches are those of the standard variables
    ``OTEL_EXPORTER_OTLP_…``, ``OTEL_METRIC_EXPORT_INTERVAL``, ``OTEL_BSP_…``. What is not asked for
    is not even imported. Raises `ImportError` where the extra ``otel`` is not installed.
    """
    if settings is None:
        settings = TelemetrySettings.from_environment()
    tracer_provider = _tracer_provider(settings) if settings.traces else None
    registry: CollectorRegistry | None = None
    if "prometheus" in settings.metrics:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - as above

        registry = CollectorRegistry(auto_describe=False)
    telemetry = Telemetry(
        tracer_provider=tracer_provider,
        traces=tracer_provider is not None,
        metrics=bool(settings.metrics),
        record_scopes=settings.record_scopes,
        own_readers=True,
    )
    running = Running(telemetry, registry)
    if tracer_provider is not None:
        running.own(tracer_provider)
    if settings.metrics:
        meter_provider = _meter_provider(settings, telemetry, registry)
        running.own(meter_provider)
        telemetry.export_to(meter_provider)
    if "otlp" in settings.logs:
        _start_logs(settings, running)
    return running


def _resource(settings: TelemetrySettings) -> Any:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above

    # What the environment says goes before: `create` merges it over its argument, but for the name.
    named = os.environ.get("OTEL_SERVICE_NAME") or settings.service_name
    return Resource.create({**settings.resource, "service.name": named})


def _tracer_provider(settings: TelemetrySettings) -> Any:
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        ConsoleSpanExporter,
    )
    from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415
        ParentBased,
        TraceIdRatioBased,
    )

    sampler = None
    ratio = settings.sample_ratio
    if ratio is None and not os.environ.get("OTEL_TRACES_SAMPLER"):
        ratio = 0.01
    if ratio is not None:
        sampler = ParentBased(TraceIdRatioBased(ratio))
    provider = TracerProvider(sampler=sampler, resource=_resource(settings), shutdown_on_exit=False)
    if "otlp" in settings.traces:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if "console" in settings.traces:
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    return provider


def _meter_provider(
    settings: TelemetrySettings, telemetry: Telemetry, registry: CollectorRegistry | None
) -> Any:
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - as above

    readers: list[Any] = []
    if registry is not None:
        from llmspell_dist.telemetry.readers import PrometheusReader  # noqa: PLC0415

        readers.append(
            PrometheusReader(telemetry.book, registry=registry, scope_info_enabled=False)
        )
    for name in ("otlp", "console"):
        if name in settings.metrics:
            from llmspell_dist.telemetry.readers import PeriodicReader  # noqa: PLC0415

            readers.append(PeriodicReader(telemetry.book, _metric_exporter(name)))
    return MeterProvider(readers, resource=_resource(settings), shutdown_on_exit=False)


def _metric_exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter  # noqa: PLC0415

        return ConsoleMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )

    return OTLPMetricExporter()


def _start_logs(settings: TelemetrySettings, running: Running) -> None:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import (  # noqa: PLC0415
        OTLPLogExporter,
    )
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415

    from llmspell_dist.telemetry.logs import OTLPHandler  # noqa: PLC0415

    provider = LoggerProvider(resource=_resource(settings), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    running.own(provider)
    running.log_through(OTLPHandler(provider))
