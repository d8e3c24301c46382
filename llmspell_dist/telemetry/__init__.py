"""OpenTelemetry for shared state: traces, metrics, logs, with the conventions for databases.

``Options(telemetry=Telemetry())`` for a program that has providers of its own; `start_telemetry`
for one that has none. Importing `llmspell_dist` imports nothing of this.
"""

from __future__ import annotations

from llmspell_dist.telemetry.http import HttpMetrics
from llmspell_dist.telemetry.inspecting import Inspector, inspecting
from llmspell_dist.telemetry.logs import JSONFormatter, OTLPHandler
from llmspell_dist.telemetry.names import METRICS, SPAN_ATTRIBUTES, SPANS, Metric
from llmspell_dist.telemetry.setup import Running, TelemetrySettings, start_telemetry
from llmspell_dist.telemetry.telemetry import Telemetry

__all__ = [
    "METRICS",
    "SPANS",
    "SPAN_ATTRIBUTES",
    "HttpMetrics",
    "Inspector",
    "JSONFormatter",
    "Metric",
    "OTLPHandler",
    "Running",
    "Telemetry",
    "TelemetrySettings",
    "inspecting",
    "start_telemetry",
]
