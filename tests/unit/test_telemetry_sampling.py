"""Whether an operation is traced is decided before OpenTelemetry is asked, and as it would be."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from llmspell_dist.telemetry import sampling
from llmspell_dist.telemetry.sampling import Head, IdsWithin, ratio_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("sampler", "ratio"),
    [
        (ParentBased(TraceIdRatioBased(0.01)), 0.01),
        (ParentBased(TraceIdRatioBased(1e-7)), 1e-7),
        (DEFAULT_ON, 1.0),
        (DEFAULT_OFF, 0.0),
        (ParentBased(ALWAYS_ON, local_parent_not_sampled=ALWAYS_ON), None),
        (TraceIdRatioBased(0.5), None),
        (ALWAYS_OFF, None),
        (None, None),
    ],
)
def test_the_ratio_of_a_standard_sampler_is_known_and_of_no_other(
    sampler: Any, ratio: float | None
) -> None:
    """Of one that does not follow the parent everywhere nothing is assumed."""
    assert ratio_of(sampler) == ratio


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9])
def test_roots_are_drawn_as_often_as_the_ratio_says(ratio: float) -> None:
    """And one by one, not in a rhythm: gaps vary."""
    draw = random.Random(7).random
    head = Head(ratio, draw=draw)
    drawn = [head.root() for _ in range(100_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(ratio, rel=0.1)
    places = [place for place, one in enumerate(drawn) if one]
    assert len({after - before for before, after in itertools.pairwise(places)}) > 2


def test_of_none_none_is_drawn_and_of_all_all() -> None:
    """The ends of the scale."""
    none, all_of_them = Head(0.0), Head(1.0)
    assert not any(none.root() for _ in range(10_000))
    assert all(all_of_them.root() for _ in range(10_000))


def _inside(*, sampled: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return SpanContext(1, 1, is_remote=False, trace_flags=flags)


def test_inside_a_span_its_decision_counts() -> None:
    """Whatever the ratio is."""
    with use_span(NonRecordingSpan(_inside(sampled=True))):
        assert Head(0.0).wants()
    with use_span(NonRecordingSpan(_inside(sampled=False))):
        assert not Head(1.0).wants()
        assert Head(None).wants()  # OpenTelemetry's own sampler is asked


def test_without_the_context_variable_the_api_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of OpenTelemetry's insides may be gone in another release."""
    monkeypatch.setattr(sampling, "SPAN_KEY", None)
    span = NonRecordingSpan(_inside(sampled=True))
    with use_span(span):
        assert sampling.active_span() is span
        assert trace.get_current_span() is span


def test_this_release_of_opentelemetry_has_what_makes_it_quick() -> None:
    """The context variable and the span's key: else every call would cost half a microsecond."""
    assert sampling.SPAN_KEY is not None
    assert getattr(sampling.current_context, "__self__", None).__class__.__name__ == "ContextVar"


@pytest.mark.parametrize("ratio", [0.000_001, 0.01, 0.5, 1.0])
def test_the_sampler_says_yes_to_every_id_that_is_made(ratio: float) -> None:
    """So what was decided here is what OpenTelemetry decides too."""
    sampler = TraceIdRatioBased(ratio)
    ids = IdsWithin(RandomIdGenerator(), ratio)
    made = {ids.generate_trace_id() for _ in range(1000)}
    assert len(made) == 1000
    for trace_id in made:
        decision = sampler.should_sample(None, trace_id, "x").decision
        assert decision is Decision.RECORD_AND_SAMPLE
    assert ids.generate_span_id() > 0


def test_the_ids_of_other_tracers_stay_as_they_are() -> None:
    """Only the tracer of this library makes ids within the ratio."""
    from llmspell_dist.telemetry import Telemetry

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.01)), shutdown_on_exit=False)
    Telemetry(tracer_provider=provider).observer({})
    assert isinstance(provider.id_generator, RandomIdGenerator)
    assert isinstance(provider.get_tracer("app").id_generator, RandomIdGenerator)  # type: ignore[attr-defined]
