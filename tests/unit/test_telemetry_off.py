"""Without telemetry nothing of OpenTelemetry is loaded, and nothing of ours stands in the way."""

from __future__ import annotations

import pytest

from llmspell_dist import Options
from llmspell_dist.assembly import assemble, complete_options
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.observation import NOTHING_OBSERVED
from llmspell_dist.redis.lane import Lane
from llmspell_dist.redis.lanes import Lanes
from llmspell_dist.redis.wire import Wire
from llmspell_dist.state.manager import StateManager

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("telemetry", [None, False])
def test_off_everything_is_the_plain_kind(telemetry: bool | None) -> None:
    """The same classes as if there were no telemetry in the world."""
    options = complete_options("test", None, Options(telemetry=telemetry))
    assembly = assemble("redis://127.0.0.1:1", options)
    assert assembly.core.observer is NOTHING_OBSERVED
    assert assembly.meter is None
    assert assembly.state_class(StateManager) is StateManager
    lanes = Lanes(assembly.resolver, meter=assembly.meter)
    assert type(lanes.fast) is Lane
    assert type(lanes.fast.make_wire(lanes.fast)) is Wire


def test_telemetry_must_be_one() -> None:
    """Whatever else is given is named."""
    with pytest.raises(InvalidArgumentError, match="telemetry must be"):
        Options(telemetry="otlp")  # type: ignore[arg-type]


def test_what_observes_nothing_can_be_asked_for_everything() -> None:
    """Services do not ask first whether somebody observes."""
    with NOTHING_OBSERVED.span("any", "client", {"a": 1}, parent=None, covers=True) as span:
        span.set("name", "value")
        span.event("now")
    assert NOTHING_OBSERVED.traceparent() is None
    assert not NOTHING_OBSERVED.recording()
