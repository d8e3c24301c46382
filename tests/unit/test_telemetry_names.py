"""The table of names: it is what it says it is, and the docs say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fix_telemetry import prometheus_names

from llmspell_dist.telemetry.names import METRICS, SPAN_ATTRIBUTES, SPANS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "telemetry" / "README.md"


def test_names_are_the_conventions_or_begin_with_ours() -> None:
    """Dots and lower case; counters count things, durations are seconds."""
    for metric in METRICS.values():
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)+", metric.name), metric.name
        assert metric.name.startswith(("llmspell.", "db.client.", "http.server.", "process."))
        assert metric.description.endswith(".")
        assert (metric.kind == "histogram") == bool(metric.bounds)
        if (
            metric.name.endswith((".duration", ".age", ".lag"))
            and metric.name != "llmspell.event.lag"
        ):
            assert metric.unit == "s", metric.name


def test_no_metric_has_an_attribute_that_names_a_key_or_an_id() -> None:
    """There may be millions of them."""
    for metric in METRICS.values():
        for attribute in metric.attributes:
            assert not attribute.endswith((".key", ".id", ".scope")), (metric.name, attribute)


def test_the_docs_have_every_metric_span_and_attribute_and_no_other() -> None:
    """By name, kind and unit."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| (counter|gauge|histogram|updown) \| `?([^|`]*)`? \|",
        page,
        re.MULTILINE,
    )
    assert {name: (kind, unit.strip()) for name, kind, unit in rows} == {
        one.name: (one.kind, one.unit) for one in METRICS.values()
    }
    for metric in METRICS.values():
        (row,) = re.findall(rf"^\| `{re.escape(metric.name)}` .*$", page, re.MULTILINE)
        assert set(re.findall(r"`([a-z_.]+)`", row.rpartition(" | ")[2])) == set(metric.attributes)
    spans = re.findall(
        r"^\| `([A-Za-z_.<> ]+)` \| (client|internal|producer|consumer|server) \|",
        page,
        re.MULTILINE,
    )
    assert dict(spans) == {name: kind for name, (kind, _) in SPANS.items()}
    attributes = page.partition("## Attributes of spans")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([a-z_.]+)` \|", attributes, re.MULTILINE)
    assert set(found) == set(SPAN_ATTRIBUTES)


def test_prometheus_names_have_unit_and_kind() -> None:
    """As OpenTelemetry's exporter makes them; the metrics tests compare them with what it does."""
    assert prometheus_names(METRICS["llmspell.lane.io"]) == ("llmspell_lane_io_bytes_total",)
    assert prometheus_names(METRICS["llmspell.backup.age"]) == ("llmspell_backup_age_seconds",)
    assert prometheus_names(METRICS["llmspell.lane.connected"]) == ("llmspell_lane_connected",)
    assert "db_client_operation_duration_seconds_bucket" in prometheus_names(
        METRICS["db.client.operation.duration"]
    )


def test_what_the_conventions_define_is_as_they_define_it() -> None:
    """Kinds, units and the attributes that they require."""
    for name, kind, unit, required in (
        ("db.client.operation.duration", "histogram", "s", {"db.system.name"}),
        (
            *("http.server.request.duration", "histogram", "s"),
            {"http.request.method", "url.scheme", "http.route", "error.type"},
        ),
        (
            *("http.server.active_requests", "updown", "{request}"),
            {"http.request.method", "url.scheme"},
        ),
        ("process.memory.usage", "updown", "By", set()),
        ("process.uptime", "gauge", "s", set()),
    ):
        metric = METRICS[name]
        assert (metric.kind, metric.unit) == (kind, unit)
        assert required <= set(metric.attributes)
    bounds = set(METRICS["db.client.operation.duration"].bounds)
    assert {0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10} <= bounds
