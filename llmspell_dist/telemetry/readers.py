"""Readers that add our histograms to what they export, as they stand, bucket by bucket.

`MetricReader._receive_metrics` is the method that OpenTelemetry gives subclasses to override.
"""

from __future__ import annotations

from dataclasses import replace
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    PeriodicExportingMetricReader,
    ScopeMetrics,
)

from llmspell_dist.telemetry.names import METRICS
from llmspell_dist.telemetry.telemetry import SCOPE_NAME

if TYPE_CHECKING:
    from llmspell_dist.telemetry.readings import Book

__all__ = ["PeriodicReader", "PrometheusReader", "with_histograms"]

_BEGUN: Final = time_ns()
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


def with_histograms(given: MetricsData, book: Book, *, now_ns: int | None = None) -> MetricsData:
    """Return what is to be exported, with the histograms of a book beside our other metrics."""
    points: dict[str, list[HistogramDataPoint]] = {}
    now = time_ns() if now_ns is None else now_ns
    for (name, key), histogram in book.histograms().items():
        count = histogram.count
        if count:
            points.setdefault(name, []).append(
                HistogramDataPoint(
                    attributes=dict(key),
                    start_time_unix_nano=_BEGUN,
                    time_unix_nano=now,
                    count=count,
                    sum=histogram.total,
                    bucket_counts=tuple(histogram.counts),
                    explicit_bounds=histogram.bounds,
                    # Optional in OTLP, and not kept: nobody is told what is none.
                    min=None,  # type: ignore[arg-type]
                    max=None,  # type: ignore[arg-type]
                )
            )
    ours = [
        Metric(name, METRICS[name].description, METRICS[name].unit, Histogram(found, _CUMULATIVE))
        for name, found in points.items()
    ]
    return _added(given, ours) if ours else given


def _added(given: MetricsData, ours: list[Metric]) -> MetricsData:
    resources = []
    for resource in given.resource_metrics:
        scopes: list[ScopeMetrics] = []
        for scope in resource.scope_metrics:
            if scope.scope.name == SCOPE_NAME and ours:
                scopes.append(replace(scope, metrics=[*scope.metrics, *ours]))
                ours = []
            else:
                scopes.append(scope)
        resources.append(replace(resource, scope_metrics=scopes))
    return replace(given, resource_metrics=resources)


class PeriodicReader(PeriodicExportingMetricReader):
    """Exports every so often, with our histograms."""

    def __init__(self, book: Book, exporter: Any, **options: Any) -> None:
        self._book = book
        super().__init__(exporter, **options)

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        whole = with_histograms(metrics_data, self._book)
        super()._receive_metrics(whole, timeout_millis, **kwargs)


class PrometheusReader(PrometheusMetricReader):
    """Collects when Prometheus asks, with our histograms."""

    def __init__(self, book: Book, **options: Any) -> None:
        self._book = book
        super().__init__(**options)

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        whole = with_histograms(metrics_data, self._book)
        super()._receive_metrics(whole, timeout_millis, **kwargs)
