"""Correlation contexts: root and parent, tasks and threads, and the way through headers."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.context import context, current_context, get_context
from llmspell_dist.correlation import (
    CorrelationContext,
    TraceParent,
    correlation,
    current_correlation,
    from_headers,
    to_headers,
)
from llmspell_dist.errors import InvalidArgumentError

pytestmark = pytest.mark.unit

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


# --- the context ----------------------------------------------------------------------------------


def test_a_root_is_its_own_and_has_no_parent() -> None:
    """And it begins a trace."""
    root = CorrelationContext.new_root(metadata={"user": "ann"}, tags=["nightly"])
    assert root.is_root
    assert root.root_id == root.correlation_id
    assert root.parent_id is None
    assert root.trace is not None
    assert root.created_at.tzinfo is not None
    assert dict(root.metadata) == {"user": "ann"}
    assert root.tags == {"nightly"}


def test_a_child_has_root_trace_metadata_and_tags_of_its_parent() -> None:
    """And an id and a span of its own."""
    root = CorrelationContext.new_root("run", metadata={"a": "1", "b": "1"}, tags=["x"])
    child = root.create_child(metadata={"b": "2"}, tags=["y"])
    grandchild = child.create_child("leaf")
    assert (child.parent_id, child.root_id) == ("run", "run")
    assert (grandchild.parent_id, grandchild.root_id) == (child.correlation_id, "run")
    assert dict(child.metadata) == {"a": "1", "b": "2"}
    assert child.tags == {"x", "y"}
    spans = {one.trace.span_id for one in (root, child, grandchild) if one.trace}
    traces = {one.trace.trace_id for one in (root, child, grandchild) if one.trace}
    assert len(spans) == 3
    assert len(traces) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"correlation_id": ""},
        {"correlation_id": "x" * 257},
        {"correlation_id": 5},
        {"parent_id": ""},
        {"root_id": 7},
        {"causation_id": "\ud800"},
        {"correlation_id": "a", "parent_id": "a"},
        {"created_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is what is wrong
        {"metadata": {"a": 1}},
        {"metadata": {"a": "\udcff"}},
        {"metadata": {"": "a"}},
        {"metadata": [("a", "b")]},
        {"metadata": {str(n): "x" for n in range(65)}},
        {"tags": "abc"},
        {"tags": [""]},
        {"traceparent": "00-nonsense"},
        {"tracestate": "NO"},
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    """By the name of the argument."""
    with pytest.raises(InvalidArgumentError) as caught:
        CorrelationContext(**wrong)
    assert caught.value.argument.partition("[")[0] == list(wrong)[-1]


def test_metadata_cannot_be_changed_afterwards() -> None:
    """A context is a value."""
    given = {"a": "1"}
    made = CorrelationContext(metadata=given)
    given["a"] = "2"
    assert made.metadata["a"] == "1"
    with pytest.raises(TypeError):
        made.metadata["a"] = "3"  # type: ignore[index]


# --- in force -------------------------------------------------------------------------------------


def test_commits_inside_are_stamped_with_ids_cause_and_trace() -> None:
    """A child is caused by its parent, unless something closer is said."""
    assert current_correlation() is None
    with correlation("run", actor="ann") as root:
        said = current_context()
        assert (said.correlation_id, said.causation_id, said.root_id) == ("run", None, None)
        assert (said.actor, said.traceparent) == ("ann", root.traceparent)
        with correlation() as child:
            said = current_context()
            assert said.correlation_id == child.correlation_id
            assert (said.causation_id, said.root_id, said.actor) == ("run", "run", "ann")
            assert current_correlation() is child
        with correlation(child, causation_id="1795651555954-0"):
            assert current_context().causation_id == "1795651555954-0"
        assert current_correlation() is root
    assert get_context() is None
    assert current_correlation() is None


def test_a_context_of_commits_alone_is_a_correlation_too() -> None:
    """Nothing is known of its parent; a cause that is set closer is seen."""
    with context(correlation_id="plain", traceparent="free text"):
        found = current_correlation()
        assert found is not None
        assert (found.correlation_id, found.root_id, found.traceparent) == ("plain", "plain", None)
    with correlation("run"), context(causation_id="event-1"):
        found = current_correlation()
        assert found is not None
        assert (found.correlation_id, found.causation_id) == ("run", "event-1")
    with context(correlation_id="outer"), correlation() as child:
        assert child.parent_id == "outer"


def test_what_a_block_adds_to_a_context_is_for_it_alone() -> None:
    """Metadata and tags."""
    root = CorrelationContext.new_root("run", metadata={"a": "1"})
    with correlation(root, metadata={"b": "2"}, tags=["x"]) as inner:
        assert dict(inner.metadata) == {"a": "1", "b": "2"}
        assert inner.tags == {"x"}
    assert dict(root.metadata) == {"a": "1"}


def test_an_exception_ends_it() -> None:
    """Nothing leaks into what follows."""
    with pytest.raises(KeyError), correlation("run"):
        raise KeyError
    assert current_correlation() is None
    assert get_context() is None


async def test_tasks_started_inside_carry_it_each_with_its_own_children() -> None:
    """Through `contextvars`."""

    async def work(name: str) -> tuple[str, str | None]:
        with correlation(metadata={"name": name}) as child:
            await asyncio.sleep(0)
            here = current_correlation()
            assert here is child
            return here.metadata["name"], here.parent_id

    with correlation("run") as root:
        found = list(await asyncio.gather(work("a"), work("b"), asyncio.to_thread(_in_thread)))
        assert current_correlation() is root
    assert found == [("a", "run"), ("b", "run"), ("run", None)]


def _in_thread() -> tuple[str, str | None]:
    found = current_correlation()
    assert found is not None
    return found.correlation_id, found.parent_id


def test_a_thread_has_it_if_it_is_given_the_context() -> None:
    """A bare thread starts with none, as `contextvars` have it."""
    seen: list[object] = []
    with correlation("run"):
        carried = copy_context()
        threads = [
            threading.Thread(target=lambda: seen.append(current_correlation())),
            threading.Thread(target=lambda: seen.append(carried.run(_in_thread))),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert seen == [None, ("run", None)]


# --- headers --------------------------------------------------------------------------------------


def same(one: CorrelationContext, other: CorrelationContext) -> bool:
    """Whether two are equal but for the time at which they were made."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return replace(one, created_at=moment) == replace(other, created_at=moment)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
NAMES = st.text(alphabet="abcdefghijklmnop-_.0123456789", min_size=1, max_size=20)


@given(
    ids=st.lists(TEXT, min_size=4, max_size=4, unique=True),
    metadata=st.dictionaries(NAMES, TEXT, max_size=5),
    tags=st.frozensets(TEXT, max_size=5),
    cause=st.booleans(),
)
def test_a_context_survives_the_way_through_headers(
    ids: list[str], metadata: dict[str, str], tags: frozenset[str], cause: bool
) -> None:
    """Any ids, in headers that are plain ASCII without line breaks."""
    there = CorrelationContext(
        correlation_id=ids[0],
        parent_id=ids[1],
        root_id=ids[2],
        metadata=metadata,
        tags=tags,
        traceparent=VALID,
        tracestate="a=1,b=2",
        causation_id=ids[3] if cause else None,
    )
    headers = to_headers(there)
    for name, value in headers.items():
        assert name == name.lower()
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
    assert same(from_headers(headers), there)
    as_pairs = [(name.title().encode(), value.encode()) for name, value in headers.items()]
    assert same(from_headers(as_pairs), there)


def test_what_caused_a_message_can_be_said() -> None:
    """An event's id, a commit's revision."""
    root = CorrelationContext.new_root("run")
    headers = to_headers(root, causation_id="1795651555954-0")
    assert headers["x-causation-id"] == "1795651555954-0"
    assert from_headers(headers).stamp().causation_id == "1795651555954-0"
    assert "x-root-id" not in headers
    with pytest.raises(InvalidArgumentError, match="x-causation-id"):
        to_headers(root, causation_id="")


def test_metadata_that_is_large_stays_here() -> None:
    """The ids go all the same."""
    root = CorrelationContext.new_root("run", metadata={"a": "x" * 5000})
    headers = to_headers(root)
    assert "baggage" not in headers
    assert from_headers(headers).correlation_id == "run"


def test_a_tracestate_stays_with_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """An active span of another trace goes out without it; one of the same with it."""
    there = CorrelationContext(correlation_id="run", traceparent=VALID, tracestate="a=1")
    assert to_headers(there)["tracestate"] == "a=1"
    assert there.create_child().tracestate == "a=1"
    for trace_id, passed_on in ((TRACE, "a=1"), ("f" * 32, None)):
        active = TraceParent(trace_id, "c" * 16)
        for module in ("context", "headers"):
            name = f"llmspell_dist.correlation.{module}.active_traceparent"
            monkeypatch.setattr(name, lambda active=active: active)
        headers = to_headers(there)
        assert (headers["traceparent"], headers.get("tracestate")) == (str(active), passed_on)
        child = there.create_child()
        assert (child.trace, child.tracestate) == (active, passed_on)
        assert CorrelationContext.new_root().trace == active


@pytest.mark.parametrize(
    "garbage",
    ["", "garbage", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", "00-é", "\0", VALID + "x"],
)
def test_foreign_garbage_in_traceparent_starts_a_new_trace(garbage: str) -> None:
    """As W3C demands; the tracestate that came with it belongs to nothing then."""
    found = from_headers({"traceparent": garbage, "tracestate": "a=1", "x-correlation-id": "run"})
    assert found.correlation_id == "run"
    assert found.trace is not None
    assert found.trace.trace_id != TRACE
    assert found.tracestate is None
    assert from_headers({"traceparent": garbage}).is_root


def test_two_traceparents_are_none() -> None:
    """Nobody can tell which of them is meant."""
    found = from_headers([("traceparent", VALID), ("Traceparent", VALID)])
    assert found.trace is not None
    assert found.trace.trace_id != TRACE


def test_a_trace_without_a_correlation_id_is_one() -> None:
    """What a foreign caller sends: its trace id serves."""
    found = from_headers({"Traceparent": VALID, "TraceState": "a=1"})
    assert (found.correlation_id, found.traceparent, found.tracestate) == (TRACE, VALID, "a=1")
    assert found.is_root


def test_no_headers_are_a_new_root() -> None:
    """Every time another one."""
    assert from_headers({}).is_root
    assert from_headers({}).correlation_id != from_headers({}).correlation_id


def test_foreign_baggage_is_read_as_far_as_it_is_sound() -> None:
    """Members with properties too; what is malformed is left out."""
    found = from_headers({"baggage": "user=ann%20b;prop=1, ,=x,two words=1,flag,ok=%ff"})
    assert dict(found.metadata) == {"user": "ann b", "ok": "\ufffd"}


@pytest.mark.parametrize(
    "wrong", ["llmspell.tags=a\udcff", "k=\udcff", "k=%41\udcff;p=1", "k\udcff=1"]
)
def test_bytes_that_a_server_could_not_decode_are_left_out_of_baggage(wrong: str) -> None:
    """WSGI and aiohttp hand them out as surrogates; what came in can go out again."""
    found = from_headers({"x-correlation-id": "run", "baggage": f"user=ann,{wrong},last=1"})
    assert dict(found.metadata) == {"user": "ann", "last": "1"}
    assert found.tags == frozenset()
    assert to_headers(found)["baggage"] == "user=ann,last=1"


def test_what_caused_a_message_stays_without_a_correlation() -> None:
    """It says more than what a new root says by itself; parent and root of nothing say nothing."""
    found = from_headers({"x-causation-id": "event-1", "x-parent-id": "a", "x-root-id": "b"})
    assert found.stamp().causation_id == "event-1"
    assert found.is_root
    assert found.root_id == found.correlation_id


@pytest.mark.parametrize("name", ["x-correlation-id", "x-parent-id", "x-root-id", "x-causation-id"])
@pytest.mark.parametrize("value", ["", " ", "x" * 257, "%ff"])
def test_a_wrong_id_of_ours_is_an_error_that_names_its_header(name: str, value: str) -> None:
    """Ours are not guessed at."""
    with pytest.raises(InvalidArgumentError) as caught:
        from_headers({"x-correlation-id": "run", name: value})
    assert caught.value.argument == name


def test_an_id_of_ours_that_is_there_twice_is_an_error() -> None:
    """Unless both say the same."""
    pairs = [("x-correlation-id", "a"), ("X-Correlation-Id", "b")]
    with pytest.raises(InvalidArgumentError, match="x-correlation-id must be there once"):
        from_headers(pairs)
    assert from_headers([pairs[0], pairs[0]]).correlation_id == "a"
    with pytest.raises(InvalidArgumentError, match="x-parent-id"):
        from_headers({"x-correlation-id": "a", "x-parent-id": "a"})
    with pytest.raises(InvalidArgumentError, match="headers"):
        from_headers({"x-correlation-id": 5})  # type: ignore[arg-type]
