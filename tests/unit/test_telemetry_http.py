"""What an HTTP server tells about its requests: by method, route template and status, bounded."""

from __future__ import annotations

import pytest
from fix_telemetry import scraped, total

from llmspell_dist.sidecar.observer import Observer
from llmspell_dist.telemetry import TelemetrySettings, start_telemetry

pytestmark = pytest.mark.unit


def test_requests_streams_and_refusals_are_counted() -> None:
    """While they are under way, and when they are over; unknown methods are one."""
    running = start_telemetry(TelemetrySettings())
    http: Observer = running.telemetry.http()
    assert running.telemetry.http() is http
    route = "/v1/state/{scope}/{key}"
    first, second = http.started("GET", "http"), http.started("GET", "http")
    http.ended(first, "GET", route, 200, "http")
    for attempt in range(3):
        http.ended(http.started(f"X{attempt}", "https"), f"X{attempt}", route, 405, "https")
    http.streams(1)
    http.streams(1)
    http.streams(-1)
    http.unauthenticated()
    http.forbidden()
    samples = scraped(running)
    http.ended(second, "GET", route, 503, "http")
    count = "http_server_request_duration_seconds_count"
    assert total(samples, "http_server_active_requests", http_request_method="GET") == 1
    assert total(samples, count, http_route=route, http_response_status_code="200") == 1
    assert total(samples, count, http_request_method="_OTHER") == 3
    assert total(samples, "llmspell_http_streams") == 1
    failures = "llmspell_http_auth_failures_total"
    for reason in ("unauthenticated", "forbidden"):
        assert total(samples, failures, llmspell_http_auth_reason=reason) == 1
    after = scraped(running)
    assert total(after, "http_server_active_requests", http_request_method="GET") == 0
    assert total(after, count, http_response_status_code="503") == 1
    # As the conventions want it: a failure of the server's has a type, an error of a caller's not.
    assert (
        total(after, count, error_type="503")
        == total(after, count, error_type="503", url_scheme="http")
        == 1
    )
    assert total(after, count, url_scheme="https") == 3
    assert total(after, count) == 5
    running.shutdown()
