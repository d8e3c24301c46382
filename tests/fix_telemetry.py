"""What tests of telemetry share: spans in memory, a collector on loopback, a scrape read."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client.parser import text_string_to_metric_families

from llmspell_dist.telemetry import Running
from llmspell_dist.telemetry.names import Metric

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}


def prometheus_names(metric: Metric) -> tuple[str, ...]:
    """Return the names of a metric's series in Prometheus's text, as OpenTelemetry translates."""
    base = re.sub(r"[^a-zA-Z0-9_:]", "_", metric.name)
    name = base + _UNITS.get(metric.unit, "")
    if metric.kind == "counter":
        return (name + "_total",)
    if metric.kind == "histogram":
        return (name + "_bucket", name + "_sum", name + "_count")
    return (name,)


class Traced:
    """A tracer provider of a test, and the spans that were exported."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return the spans that have ended, of one name or all."""
        return [one for one in self.exporter.get_finished_spans() if name in ("", one.name)]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        (found,) = self.spans(name)
        return found


@pytest.fixture
def traced() -> Iterator[Traced]:
    """A provider that samples everything."""
    made = Traced()
    yield made
    made.provider.shutdown()


class Collector:
    """An OTLP collector on loopback: what came, decoded."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.came = threading.Event()
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []

    def take(self, path: str, body: bytes) -> None:
        """Decode what was sent; a message that is none is an error of the request."""
        if path == "/v1/traces":
            self.traces.append(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            self.metrics.append(ExportMetricsServiceRequest.FromString(body))
        else:
            self.logs.append(ExportLogsServiceRequest.FromString(body))
        self.came.set()

    def span_names(self) -> set[str]:
        """Return the names of all spans."""
        return {
            span.name
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def metric(self, name: str) -> list[Any]:
        """Return what came last of one metric."""
        found = [
            metric
            for request in self.metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return found[-1:]


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(running: Running) -> Samples:
    """Return every series that a scrape gives: name and sorted labels, and the value."""
    text, _ = running.prometheus()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the series of a name that have these labels."""
    wanted = set(labels.items())
    found = [value for (one, key), value in samples.items() if one == name and wanted <= set(key)]
    assert found, f"no series {name} with {labels}"
    return sum(found)
