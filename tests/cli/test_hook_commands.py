"""hooks history, show and replay, on every server of the table."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fix_replay import execution

from llmspell_dist import connect
from llmspell_dist.cli.hook_commands import Head, lines, loaded
from llmspell_dist.context import context
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.results import Modified
from llmspell_dist.ids import new_id
from llmspell_dist.schedule import Once

pytestmark = pytest.mark.integration

Here = Callable[..., Any]
CODE = """
    from llmspell_dist.hooks.results import Modified

    def same(ctx):
        return Modified({"value": [ctx.data["value"], ctx.now()]})

    class Other:
        def execute(self, ctx):
            ctx.now()
            return Modified({"value": ctx.data["value"]})

    other = Other()
"""


@pytest.fixture
def recorded(url: str, namespace: str) -> list[str]:
    """The ids of two runs, the second of which failed."""

    def stamp(ctx: HookContext) -> Modified:
        if ctx.data["value"] == 2:
            raise ValueError("two")
        return Modified({"value": [ctx.data["value"], ctx.now()]})

    async def work() -> list[str]:
        async with connect(url, namespace=namespace) as spell:
            spell.hooks.register("BeforeStateWrite", stamp, replayable=True)
            with context(correlation_id="run"):
                for value in (1, 2):
                    await spell.state.set("agent:a", "k", value)
            await spell.hooks.history.flush()
            return [one.id for one in await spell.hooks.history.query()]

    return asyncio.run(work())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with hooks in the folder in which the command runs."""
    name = f"hooks_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_history_lists_runs_newest_first(here: Here, recorded: list[str]) -> None:
    """All of them, or those that are asked for."""
    result = here("hooks", "history")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [(row[1], row[3], row[6]) for row in rows] == [
        ("stamp:1.0.0", "error", recorded[1]),
        ("stamp:1.0.0", "modified", recorded[0]),
    ]
    assert len(here("hooks", "history", "--failed").out.splitlines()) == 1
    assert here("hooks", "history", "--hook", "another").out == ""
    said = json.loads(here("--json", "hooks", "history", "--correlation", "run").out)
    assert [one["error"] for one in said["executions"]] == ["ValueError", None]


def test_show_prints_what_a_hook_was_told_took_and_answered(
    here: Here, recorded: list[str]
) -> None:
    """As one document."""
    said = json.loads(here("--json", "hooks", "show", recorded[0]).out)
    assert said["context"]["data"]["value"] == 1
    assert said["result"]["name"] == "modified"
    assert [one["kind"] for one in said["inputs"]] == ["now"]
    assert said["gaps"] == []
    missing = here("hooks", "show", "no-such-run")
    assert missing.code == 1
    assert "no-such-run" in missing.err


def test_replay_says_what_the_code_of_now_does_otherwise(
    here: Here, recorded: list[str], module: str
) -> None:
    """Exit code 0 if nothing."""
    same = here("hooks", "replay", recorded[0], "--hook", f"{module}:same", "--mode", "exact")
    assert (same.code, same.out) == (0, "stamp:1.0.0: identical\n")
    other = here("--json", "hooks", "replay", recorded[0], "--hook", f"{module}:other")
    said = json.loads(other.out)
    assert other.code == 1
    assert said["first_difference"] == "result.data.value: <list of 2> became 1"
    assert said["mode"] == "simulate"


def test_a_module_that_runs_a_program_when_it_is_imported_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told what went wrong and where that belongs; it is no bug of the command line."""
    (tmp_path / "runs_at_once.py").write_text("raise RuntimeError('no event loop here')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    with pytest.raises(InvalidArgumentError, match=r"no event loop here.*__main__"):
        loaded("runs_at_once:hook")


@pytest.mark.parametrize("name", ["stamp", "no_such_module:f", "json:no_such", "json:__name__"])
def test_a_hook_that_cannot_be_imported_is_refused(name: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="--hook"):
        loaded(name)


def test_on_a_narrow_terminal_ids_are_whole() -> None:
    """To be copied: a run takes lines, not columns."""
    run, correlation = new_id(), new_id()
    said = lines(Head.of(execution(id=run, correlation_id=correlation)))
    assert all(len(line) <= 80 for line in said)
    assert said[0].split() == [run, "2026-03-01T12:00:01Z", "continue", "0.0ms"]
    assert said[1:] == ["    h:1.0.0 at BeforeStateWrite", f"    of {correlation}"]
    assert len(lines(Head.of(execution(correlation_id=None)))) == 2


def test_schedules_are_listed(here: Here, url: str, namespace: str) -> None:
    """With when they run next and how they went."""

    async def work() -> None:
        async with connect(url, namespace=namespace) as spell:
            at = Once(datetime(2100, 1, 1, tzinfo=UTC))
            await spell.replay.schedules.add("release", at, executions=["run-1"])

    assert here("hooks", "schedules").out == ""
    asyncio.run(work())
    assert here("hooks", "schedules").out == "release\t2100-01-01T00:00:00Z\t0\t0/0\t-\n"
    (said,) = json.loads(here("--json", "hooks", "schedules").out)["schedules"]
    assert (said["name"], said["enabled"], said["runs"]) == ("release", True, 0)
    assert said["next"] == "2100-01-01T00:00:00+00:00"
