"""What a program exports is read from the standard variables, and checked."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.telemetry import Telemetry, TelemetrySettings

pytestmark = pytest.mark.unit

FACTS = ("traces", "metrics", "logs")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, ((), ("prometheus",), ())),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
            (("otlp",), ("otlp", "prometheus"), ("otlp",)),
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"},
            (("otlp",), ("prometheus",), ()),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"},
            (("console",), (), ()),
        ),
        (
            {"OTEL_METRICS_EXPORTER": "otlp, prometheus", "OTEL_LOGS_EXPORTER": "otlp"},
            ((), ("otlp", "prometheus"), ("otlp",)),
        ),
        (
            {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
            ((), (), ()),
        ),
    ],
)
def test_the_environment_says_what_is_exported(
    environment: dict[str, str], found: tuple[tuple[str, ...], ...]
) -> None:
    """As OpenTelemetry's own variables mean it; metrics for Prometheus cost nothing and are on."""
    settings = TelemetrySettings.from_environment(environment)
    assert tuple(getattr(settings, name) for name in FACTS) == found


def test_what_is_given_goes_before_the_environment() -> None:
    """For programs with switches of their own."""
    environment = {"OTEL_TRACES_EXPORTER": "otlp"}
    settings = TelemetrySettings.from_environment(environment, traces=(), sample_ratio=0.5)
    assert settings.traces == ()
    assert settings.sample_ratio == 0.5


def test_an_unknown_exporter_is_named() -> None:
    """With the variable, and what there is."""
    with pytest.raises(InvalidArgumentError, match="OTEL_TRACES_EXPORTER must be of otlp"):
        TelemetrySettings.from_environment({"OTEL_TRACES_EXPORTER": "zipkin"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("traces", ("jaeger",)), ("traces", "otlp"), ("sample_ratio", 1.5), ("sample_ratio", "1")],
)
def test_settings_are_checked(name: str, value: Any) -> None:
    """The error names the field."""
    with pytest.raises(InvalidArgumentError, match=f"{name} must be"):
        TelemetrySettings(**{name: value})


@pytest.mark.parametrize("name", ["traces", "metrics", "record_scopes"])
def test_switches_are_bools(name: str) -> None:
    """As everywhere."""
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a bool"):
        Telemetry(**{name: "yes"})  # type: ignore[arg-type]


def test_without_a_provider_that_somebody_set_nothing_is_traced() -> None:
    """The global one is asked when a client is opened."""
    assert not Telemetry().observer({}).tracing
