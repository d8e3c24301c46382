"""Histograms as they are exported: what was counted, and nothing that was not."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llmspell_dist.observation import Histogram
from llmspell_dist.telemetry.readers import with_histograms
from llmspell_dist.telemetry.readings import Book
from llmspell_dist.telemetry.telemetry import SCOPE_NAME

pytestmark = pytest.mark.unit


def test_an_exported_histogram_claims_no_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not kept: in OTLP `min` and `max` are optional, and left out."""
    histogram = Histogram()
    for value in (0.001, 0.002, 9.0):
        histogram.add(value)
    book = Book()
    monkeypatch.setattr(
        book, "histograms", lambda: {("db.client.operation.duration", ()): histogram}
    )
    scope = ScopeMetrics(InstrumentationScope(SCOPE_NAME), [], "")
    given = MetricsData([ResourceMetrics(Resource({}), [scope], "")])
    sent = encode_metrics(with_histograms(given, book))
    (metric,) = sent.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.histogram.data_points
    assert (point.count, point.sum) == (3, pytest.approx(9.003))
    assert sum(point.bucket_counts) == 3
    assert not point.HasField("min")
    assert not point.HasField("max")
