"""Queries: each filter with what it must leave out, scores, reasons, orders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_correlation import START_US, build_timeline, entry, link

from llmspell_dist.correlation.query import (
    CorrelationQuery,
    SortOrder,
    match_timeline,
    sorted_matches,
)
from llmspell_dist.errors import InvalidArgumentError

pytestmark = pytest.mark.unit

START = datetime.fromtimestamp(START_US / 1e6, UTC)
TIMELINE = build_timeline(
    "run",
    [
        entry("plan", 0, type="agent.planned", source="ann", language="python", tags=("a", "b")),
        entry("call", 10, type="tool.called", source="ann", target="search", cause="plan"),
        entry("fail", 20, type="tool.failed", source="bob", language="lua", cause="call"),
        entry("alone", 3000, type="agent.idle", source="bob", tags=("b",)),
    ],
    [link("fail", "alone", "related_to", 0.9), link("alone", "plan", "part_of", 0.6)],
)


def found(**filters: Any) -> list[str]:
    """The ids that pass."""
    return [one.entry.id for one in match_timeline(CorrelationQuery(**filters), TIMELINE)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "plan call fail alone"),
        ({"correlation_ids": ["run", "other"]}, "plan call fail alone"),
        ({"correlation_ids": ["other"]}, ""),
        ({"types": ["tool.called"]}, "call"),
        ({"types": ["tool.*"]}, "call fail"),
        ({"types": ["*.failed", "agent.idle"]}, "fail alone"),
        ({"types": ["*"]}, "plan call fail alone"),
        ({"types": ["nothing.*"]}, ""),
        ({"since": START + timedelta(milliseconds=10)}, "call fail alone"),
        ({"until": START + timedelta(milliseconds=10)}, "plan"),
        ({"since": START + timedelta(microseconds=1)}, "call fail alone"),
        ({"until": START + timedelta(microseconds=1)}, "plan"),
        ({"until": START + timedelta(microseconds=10_001)}, "plan call"),
        ({"since": START, "until": START + timedelta(microseconds=1)}, "plan"),
        (
            {"since": START + timedelta(milliseconds=5), "until": START + timedelta(seconds=3)},
            "call fail",
        ),
        ({"sources": ["ann"]}, "plan call"),
        ({"sources": ["ann", "bob"]}, "plan call fail alone"),
        ({"sources": ["nobody"]}, ""),
        ({"targets": ["search"]}, "call"),
        ({"targets": ["ann"]}, ""),
        ({"languages": ["lua"]}, "fail"),
        ({"languages": ["lua", "python"]}, "plan fail"),
        ({"tags": ["a"]}, "plan"),
        ({"tags": ["a", "b"]}, "plan alone"),
        ({"tags": ["c"]}, ""),
        ({"min_depth": 1}, "call fail"),
        ({"max_depth": 1}, "plan call alone"),
        ({"min_depth": 1, "max_depth": 1}, "call"),
        ({"min_depth": 3}, ""),
        ({"relationships": ["related_to"]}, "fail alone"),
        ({"relationships": ["PartOf"]}, "plan alone"),
        ({"relationships": ["caused_by"]}, ""),
        ({"root_causes_only": True}, "plan alone"),
        ({"leaf_effects_only": True}, "fail alone"),
        ({"root_causes_only": True, "leaf_effects_only": True}, "alone"),
        ({"min_events": 4}, "plan call fail alone"),
        ({"min_events": 5}, ""),
        ({"max_events": 4}, "plan call fail alone"),
        ({"max_events": 3}, ""),
        ({"types": ["tool.*"], "sources": ["bob"]}, "fail"),
    ],
)
def test_a_filter_passes_what_it_names_and_nothing_else(
    filters: dict[str, Any], expected: str
) -> None:
    """All filters must pass; of one with several values any."""
    assert found(**filters) == expected.split()


def test_a_match_says_how_well_it_matches_and_why() -> None:
    """The mean over the filters that were given; none given is 1."""
    query = CorrelationQuery(
        correlation_ids=["run"],
        types=["agent.planned", "agent.*"],
        tags=["a", "b", "c", "d"],
        relationships=["part_of"],
        min_depth=0,
    )
    match, other = match_timeline(query, TIMELINE)
    assert match.correlation_id == "run"
    assert match.reasons == (
        "correlation run",
        "type agent.planned",
        "tags a, b",
        "depth 0",
        "part_of link",
    )
    assert match.score == pytest.approx((1 + 1 + 0.5 + 1 + 0.6) / 5)
    assert other.score == pytest.approx((1 + 0.8 + 0.25 + 1 + 0.6) / 5)
    assert [one.score for one in match_timeline(CorrelationQuery(), TIMELINE)] == [1.0] * 4
    patterns = CorrelationQuery(types=["*", "tool.*"])
    assert [one.score for one in match_timeline(patterns, TIMELINE)] == [0.5, 0.8, 0.8, 0.5]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("time", "plan call fail alone"),
        ("time_descending", "alone fail call plan"),
        ("depth", "plan alone call fail"),
        ("depth_descending", "fail call plan alone"),
        ("type", "alone plan call fail"),
        ("relevance", "call fail plan alone"),
    ],
)
def test_the_six_orders(order: str, expected: str) -> None:
    """Ties go by time."""
    assert SortOrder(order) in list(SortOrder)
    matches = list(match_timeline(CorrelationQuery(types=["*", "tool.*"]), TIMELINE))
    assert [one.entry.id for one in sorted_matches(matches[::-1], order)] == expected.split()


@pytest.mark.parametrize(
    "wrong",
    [
        {"correlation_ids": "run"},
        {"correlation_ids": [""]},
        {"types": ["not a type"]},
        {"types": "tool.*"},
        {"since": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is what is wrong
        {"until": 5},
        {"sources": [5]},
        {"languages": b"lua"},
        {"tags": 5},
        {"min_depth": -1},
        {"max_depth": 1.5},
        {"relationships": ["friend_of"]},
        {"root_causes_only": 1},
        {"min_events": -1},
        {"sort": "backwards"},
        {"limit": 0},
        {"limit": 10_001},
        {"max_correlations": 0},
    ],
)
def test_a_wrong_filter_is_named(wrong: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError) as caught:
        CorrelationQuery(**wrong)
    assert caught.value.argument in wrong


def test_ranges_that_are_the_wrong_way_round_are_named() -> None:
    """Nothing could pass them."""
    for wrong in (
        {"since": START, "until": START},
        {"min_depth": 2, "max_depth": 1},
        {"min_events": 2, "max_events": 1},
    ):
        with pytest.raises(InvalidArgumentError, match=list(wrong)[-1]):
            CorrelationQuery(**wrong)
