"""Correlation: what belongs together across tasks and processes, followed back to its cause."""

from __future__ import annotations

from llmspell_dist.correlated import EventLink, EventRelationship, HookRun, LeaseEvent
from llmspell_dist.correlation.auto_links import auto_links
from llmspell_dist.correlation.building import build_timeline
from llmspell_dist.correlation.context import (
    CorrelationContext,
    correlation,
    current_correlation,
)
from llmspell_dist.correlation.following import following
from llmspell_dist.correlation.headers import from_headers, to_headers
from llmspell_dist.correlation.model import (
    CausalChain,
    EntryKind,
    Gap,
    TimelineConfig,
    TimelineEntry,
    TimelineStatistics,
)
from llmspell_dist.correlation.query import CorrelationQuery, QueryMatch, SortOrder
from llmspell_dist.correlation.service import Correlations
from llmspell_dist.correlation.steps import KnownCorrelation
from llmspell_dist.correlation.timeline import Timeline
from llmspell_dist.correlation.traceparent import TraceParent, parse_traceparent

__all__ = [
    "CausalChain",
    "CorrelationContext",
    "CorrelationQuery",
    "Correlations",
    "EntryKind",
    "EventLink",
    "EventRelationship",
    "Gap",
    "HookRun",
    "KnownCorrelation",
    "LeaseEvent",
    "QueryMatch",
    "SortOrder",
    "Timeline",
    "TimelineConfig",
    "TimelineEntry",
    "TimelineStatistics",
    "TraceParent",
    "auto_links",
    "build_timeline",
    "correlation",
    "current_correlation",
    "following",
    "from_headers",
    "parse_traceparent",
    "to_headers",
]
