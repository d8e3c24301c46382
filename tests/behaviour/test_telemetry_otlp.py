"""Telemetry of a whole program: OTLP over HTTP to a collector, from the standard variables."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fix_telemetry import Collector, running_collector

from llmspell_dist import Options, connect, context
from llmspell_dist.telemetry import TelemetrySettings, start_telemetry

pytestmark = pytest.mark.integration


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the environment points."""
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "worker-7")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        yield collector


async def test_traces_metrics_and_logs_reach_a_collector(
    collector: Collector, url: str, namespace: str
) -> None:
    """All three, decoded from what went over the wire; the histogram bucket by bucket."""
    running = start_telemetry()
    try:
        options = Options(telemetry=running.telemetry)
        async with connect(url, namespace=namespace, options=options) as spell:
            with context(actor="planner", correlation_id="run-1"):
                await spell.state.set("agent:a", "k", "canary-value")
                logging.getLogger("app").warning("step %d of %s", 3, "redis://u:canary-pw@h")
            await spell.state.get("agent:a", "k")
            running.flush()
            assert {"state.set", "state.get"} <= collector.span_names()
            (metric,) = collector.metric("db.client.operation.duration")
            assert metric.unit == "s"
            points = {
                {a.key: a.value.string_value for a in point.attributes}["db.operation.name"]: point
                for point in metric.histogram.data_points
            }
            commit = points["commit"]
            assert commit.count == 1
            assert sum(commit.bucket_counts) == 1
            assert len(commit.bucket_counts) == len(commit.explicit_bounds) + 1
            (held,) = collector.metric("llmspell.lease.held")
            assert [point.as_int for point in held.gauge.data_points] == [0]
    finally:
        running.shutdown()
        running.shutdown()  # twice is allowed
    (request, *_) = collector.traces
    resource = {a.key: a.value.string_value for a in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "worker-7"
    assert resource["deployment.environment.name"] == "test"
    records = [
        record
        for sent in collector.logs
        for one in sent.resource_logs
        for scope in one.scope_logs
        for record in scope.log_records
    ]
    (record,) = [one for one in records if one.body.string_value.startswith("step 3")]
    assert record.body.string_value == "step 3 of redis://***@h"
    said = {a.key: a.value.string_value for a in record.attributes}
    assert said == {"actor": "planner", "correlation_id": "run-1"}
    everything = "".join(map(str, [*collector.traces, *collector.metrics, *collector.logs]))
    assert "canary" not in everything
    assert not logging.getLogger().handlers or all(
        type(one).__name__ != "OTLPHandler" for one in logging.getLogger().handlers
    )


async def test_what_is_not_exported_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, url: str, namespace: str
) -> None:
    """A program that is only scraped has no tracer."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    running = start_telemetry()
    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        assert not spell.state._driver.core.observer.tracing
        await spell.state.set("agent:a", "k", 1)
    assert b"db_client_operation_duration_seconds_count" in running.prometheus()[0]
    running.shutdown()


async def test_a_disabled_sdk_is_nothing_at_all(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, url: str, namespace: str
) -> None:
    """``OTEL_SDK_DISABLED`` goes before everything else."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    running = start_telemetry(TelemetrySettings.from_environment())
    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        await spell.state.set("agent:a", "k", 1)
    running.shutdown()
    assert running.prometheus()[0] == b""
    assert not collector.traces
    assert not collector.metrics
