"""W3C Trace Context: what a traceparent and a tracestate are, and what is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.correlation.traceparent import (
    TraceParent,
    active_traceparent,
    check_traceparent,
    combine_tracestate,
    new_traceparent,
    parse_traceparent,
)
from llmspell_dist.errors import InvalidArgumentError

pytestmark = pytest.mark.unit

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def test_the_example_of_the_specification_is_read_and_printed() -> None:
    """What goes in comes out."""
    found = parse_traceparent(VALID)
    assert found == TraceParent(TRACE, SPAN, 1)
    assert found.sampled
    assert str(found) == VALID
    assert not TraceParent(TRACE, SPAN, 0).sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        None,
        5,
        VALID.encode(),
        VALID.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01.more",
        f"01-{TRACE}-{SPAN}-0",
        f"0-{TRACE}-{SPAN}-01",
        f"00_{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"{VALID},{VALID}",
        f"００-{TRACE}-{SPAN}-01",
    ],
)
def test_what_the_specification_calls_invalid_is_none(value: object) -> None:
    """So that a new trace begins; one of the caller's own making is an error that names it."""
    assert parse_traceparent(value) is None
    with pytest.raises(InvalidArgumentError, match="traceparent must be a W3C traceparent"):
        check_traceparent(value)


@pytest.mark.parametrize("tail", ["", "-", "-what-the-future-adds"])
def test_a_future_version_is_read_as_far_as_it_is_known(tail: str) -> None:
    """Its first four fields, and of its flags those of today; what is passed on is version 00."""
    found = parse_traceparent(f"cc-{TRACE}-{SPAN}-ff{tail}")
    assert found == TraceParent(TRACE, SPAN, 0x03)
    assert str(found) == f"00-{TRACE}-{SPAN}-03"


def test_spaces_around_a_header_are_no_part_of_it() -> None:
    """As HTTP has it."""
    assert parse_traceparent(f" {VALID}\t") == parse_traceparent(VALID)


@given(st.text(alphabet="0123456789abcdefg-", max_size=80))
def test_whatever_is_read_is_a_traceparent_again(text: str) -> None:
    """Printing inverts parsing, for whatever parses."""
    found = parse_traceparent(text)
    assert found is None or parse_traceparent(str(found)) == found


def test_new_ones_are_valid_sampled_and_different() -> None:
    """A child has the trace of its parent and a span of its own."""
    one, other = new_traceparent(), new_traceparent()
    assert parse_traceparent(str(one)) == one
    assert one.trace_id != other.trace_id
    assert one.sampled
    child = one.child()
    assert (child.trace_id, child.flags) == (one.trace_id, one.flags)
    assert child.span_id != one.span_id
    assert TraceParent(TRACE, SPAN, 0xFF).child().flags == 0x03


@pytest.mark.parametrize(
    ("values", "combined"),
    [
        (["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (["a=1", "b=2"], "a=1,b=2"),
        ([" a=1 ,\t, b=2,"], "a=1,b=2"),
        (["a=1,a=2"], "a=1"),
        (["fw529a3039@dt=FfAAAA"], "fw529a3039@dt=FfAAAA"),
        (["1k=1"], "1k=1"),
        (["a@b@c=1"], "a@b@c=1"),
        (["a= b"], "a= b"),
        ([], None),
        ([""], None),
        (["A=1"], None),
        (["a=1,b"], None),
        (["a="], None),
        (["a=ü"], None),
        (["a=b=c"], None),
        ([",".join(f"k{n}=1" for n in range(33))], None),
    ],
)
def test_a_tracestate_is_passed_on_or_dropped_whole(
    values: list[str], combined: str | None
) -> None:
    """Several headers are one list; a malformed part drops all of it."""
    assert combine_tracestate(values) == combined


def test_a_long_tracestate_loses_members_from_its_end() -> None:
    """At least 512 characters are passed on."""
    members = [f"k{n}={'x' * 60}" for n in range(10)]
    assert combine_tracestate([",".join(members)]) == ",".join(members[:8])
    large = f"large={'x' * 200}"
    assert combine_tracestate([",".join([large, *members[:7]])]) == ",".join(members[:7])


def test_an_active_span_of_opentelemetry_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was imported; it is not imported for this."""
    span: Any = SimpleNamespace(
        is_valid=True, trace_id=int(TRACE, 16), span_id=int(SPAN, 16), trace_flags=1
    )
    current = SimpleNamespace(get_span_context=lambda: span)
    trace = SimpleNamespace(get_current_span=lambda: current)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", trace)
    assert str(active_traceparent()) == VALID
    span.is_valid = False
    assert active_traceparent() is None
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert active_traceparent() is None
