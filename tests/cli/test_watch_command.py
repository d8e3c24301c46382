"""``llmspell-dist watch``: changes as lines, from now or since a revision."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmspell_dist import StateClass

pytestmark = pytest.mark.integration

ALICE = "agent:alice"
Here = Callable[..., Any]
Prepare = Callable[..., None]


async def write(state: Any) -> None:
    """Make four changes."""
    await state.set(ALICE, "mood", "calm")
    await state.append(ALICE, "log", "a\tb")
    await state.set(ALICE, "bulk", 1, state_class=StateClass.BULK)
    await state.delete(ALICE, "mood")


def test_the_past_comes_as_lines(here: Here, prepare: Prepare) -> None:
    """One a change, cells separated by tabs; what could break a line is escaped."""
    prepare(write)
    done = here("watch", ALICE, "--since", "0-0", "--limit", "4")
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(line[2], line[3]) for line in lines] == [
        ("set", "mood"),
        ("append", "log"),
        ("set", "bulk"),
        ("delete", "mood"),
    ]
    assert lines[0][-1] == '"calm"'
    assert lines[2][-1] == "-"


def test_json_is_one_document_a_line(here: Here, prepare: Prepare) -> None:
    """With all that is known."""
    prepare(write)
    done = here("--json", "watch", ALICE, "--since", "0-0", "--limit", "1", "--prefix", "l")
    assert done.code == 0
    (document,) = [json.loads(line) for line in done.out.splitlines()]
    assert (document["scope"], document["key"]) == (ALICE, "log")
    assert document["value"] == {"$tuple": ["a\tb"]}


def test_a_limit_ends_it_and_a_revision_begins_it(here: Here, prepare: Prepare) -> None:
    """As a shell script would go on where it was."""
    prepare(write)
    first = here("--json", "watch", ALICE, "--since", "0-0", "--limit", "1")
    (document,) = [json.loads(line) for line in first.out.splitlines()]
    assert (document["key"], document["op"], document["value"]) == ("mood", "set", "calm")
    second = here("--json", "watch", ALICE, "--since", document["revision"], "--limit", "3")
    keys = [json.loads(line)["key"] for line in second.out.splitlines()]
    assert keys == ["log", "bulk", "mood"]


def test_a_bad_revision_is_named(here: Here) -> None:
    """And nothing is watched."""
    done = here("watch", ALICE, "--since", "yesterday")
    assert done.code == 2
    assert "INVALID_ARGUMENT" in done.err


def test_a_log_that_does_not_reach_back_is_exit_code_5(
    here: Here, prepare: Prepare, raw: Any, store: Any
) -> None:
    """Unless a snapshot is wanted."""
    prepare(write)
    oldest = str(store.log()[0].revision)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    done = here("watch", ALICE, "--since", oldest, "--limit", "1")
    assert done.code == 5
    assert "WATCH_TRIMMED" in done.err
    done = here("watch", ALICE, "--since", oldest, "--limit", "3", "--snapshot")
    assert [line.split("\t")[2] for line in done.out.splitlines()] == [
        "reset",
        "snapshot",
        "snapshot",
    ]
