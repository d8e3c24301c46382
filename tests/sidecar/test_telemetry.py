"""The sidecar's telemetry: spans go on with the caller's trace, metrics name routes, not paths."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from llmspell_dist import connect
from llmspell_dist.config import Options
from llmspell_dist.sidecar.app import make_services
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.serving import serving
from llmspell_dist.sidecar.settings import Listen, SidecarSettings
from llmspell_dist.telemetry import Running, Telemetry, TelemetrySettings, start_telemetry

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
KEY = "/v1/state/agent:alice/secret-key"


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """What was recorded."""
    return InMemorySpanExporter()


@pytest.fixture
def running(exported: InMemorySpanExporter) -> Iterator[Running]:
    """Telemetry of a program: Prometheus' metrics, and traces of a caller who samples."""
    settings = TelemetrySettings(metrics=("prometheus",))
    started = start_telemetry(settings)
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(exported))
    traced = Telemetry(tracer_provider=provider, own_readers=True)
    traced.book = started.telemetry.book
    started.telemetry = traced
    yield started
    started.shutdown()
    provider.shutdown()


@pytest.fixture
async def http(
    url: str, namespace: str, sidecar_port: Callable[[], int], running: Running
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a sidecar with telemetry."""
    port = sidecar_port()
    settings = replace(SidecarSettings(bind=Listen("127.0.0.1", port), drain_s=2.0))
    options = Options(namespace=namespace, telemetry=running.telemetry)
    async with connect(url, options=options) as spell:
        services = make_services(spell, Access.open_on_loopback(), settings, running)
        async with serving(services), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as one:
            yield one


async def _put(http: httpx.AsyncClient, flags: str, value: bytes = b"1") -> httpx.Response:
    headers = {
        "content-type": "application/json",
        "traceparent": f"00-{TRACE}-{CALLER}-{flags}",
    }
    return await http.put(KEY, content=value, headers=headers)


async def test_a_request_is_a_span_of_its_callers_trace_and_its_commit_is_inside(
    http: httpx.AsyncClient, exported: InMemorySpanExporter
) -> None:
    """Caller, request, operation; and the log names the trace."""
    assert (await _put(http, "01")).status_code == 200
    spans: dict[str, Any] = {span.name: span for span in exported.get_finished_spans()}
    request = spans["PUT /v1/state/{scope}/{key}"]
    operation = spans["state.set"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == CALLER
    assert operation.parent.span_id == request.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    (change,) = (await http.get(f"{KEY}/history")).json()["changes"]
    assert change["traceparent"].split("-")[1] == TRACE


async def test_what_the_caller_does_not_sample_is_not_recorded(
    http: httpx.AsyncClient, exported: InMemorySpanExporter
) -> None:
    """Neither the request nor anything inside."""
    await _put(http, "00")
    assert not exported.get_finished_spans()


async def test_a_callers_error_is_none_of_the_servers(
    http: httpx.AsyncClient, exported: InMemorySpanExporter
) -> None:
    """The span has the status of the answer, and is no error."""
    assert (await _put(http, "01", b"{")).status_code == 400
    (span,) = exported.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 400
    assert span.status.is_unset


async def test_metrics_name_routes_and_never_paths_or_values(http: httpx.AsyncClient) -> None:
    """A path of each key would be a metric of each key."""
    await _put(http, "00", b'"canary-value"')
    await http.get("/v1/nothing/of/the/kind")
    text = (await http.get("/metrics")).text
    assert 'http_route="/v1/state/{scope}/{key}"' in text
    assert 'http_response_status_code="404",http_route="(none)"' in text
    for canary in ("secret-key", "canary-value", "alice", "kind"):
        assert canary not in text
