"""Who writes, and on whose behalf."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from llmspell_dist.context import MAX_BYTES, CommitContext, context, current_context, get_context
from llmspell_dist.errors import InvalidArgumentError

pytestmark = pytest.mark.unit


def test_contexts_nest_and_end() -> None:
    """Inner ones add to the outer one."""
    assert get_context() is None
    assert current_context() == CommitContext()
    with context("me", correlation_id="run") as outer:
        assert current_context() is outer
        with context(causation_id="cause", correlation_id="inner"):
            inner = current_context()
            assert inner == CommitContext("me", "inner", "cause")
        assert current_context() is outer
    assert get_context() is None


def test_an_exception_ends_a_context_too() -> None:
    """Nothing leaks into what follows."""
    with pytest.raises(KeyError), context("me"):
        raise KeyError
    assert get_context() is None


async def test_tasks_started_inside_carry_it_and_do_not_change_it() -> None:
    """Each task has its own."""

    async def task(name: str) -> str | None:
        with context(correlation_id=name):
            await asyncio.sleep(0)
            assert current_context().correlation_id == name
            return current_context().actor

    with context("me"):
        assert list(await asyncio.gather(task("a"), task("b"))) == ["me", "me"]
        assert current_context() == CommitContext("me")


def test_it_is_packed_once_and_read_back() -> None:
    """Absent parts take no bytes; unknown parts of a later release are left out."""
    said = CommitContext("me", "run", "cause", "00-trace", "root")
    wire = msgpack.unpackb(said.packed)
    assert wire == {"a": "me", "c": "run", "p": "cause", "t": "00-trace", "r": "root"}
    assert said.packed.startswith(b"\x85\xa1c"), "where the commit script looks for it"
    assert CommitContext.from_wire({**wire, "zz": "?"}) == said
    assert CommitContext().packed == b""
    assert CommitContext.from_wire({}) == CommitContext()


@pytest.mark.parametrize(
    "name", ["actor", "correlation_id", "causation_id", "traceparent", "root_id"]
)
@pytest.mark.parametrize("value", ["", "x" * (MAX_BYTES + 1), "é" * MAX_BYTES, 5, b"x", "\ud800"])
def test_parts_are_text_of_bounded_length(name: str, value: Any) -> None:
    """They stand in every entry of the log."""
    with pytest.raises(InvalidArgumentError):
        CommitContext(**{name: value})
    longest: dict[str, Any] = {name: "x" * MAX_BYTES}
    assert getattr(CommitContext(**longest), name) == "x" * MAX_BYTES
