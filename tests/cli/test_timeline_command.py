"""timeline, on every server of the table: a tree, lines for a pipe, a document."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from fix_correlation import build_timeline, entry, link
from rich.console import Console

from llmspell_dist import connect
from llmspell_dist.cli.timelines import summary, tree_of
from llmspell_dist.context import context
from llmspell_dist.correlation import Timeline, correlation

pytestmark = pytest.mark.integration

Here = Callable[..., Any]


def drawn(timeline: Timeline, *, depth: int = 10, width: int = 80) -> list[str]:
    """The lines that a terminal shows."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(tree_of(timeline, depth))
    return out.getvalue().rstrip("\n").split("\n")


@pytest.fixture
def facts(url: str, namespace: str) -> dict[str, str]:
    """What a run left behind: an event, a commit that it caused, an event after both."""

    async def run() -> dict[str, str]:
        async with connect(url, namespace=namespace) as spell:
            with correlation("run 1", actor="ann"):
                asked = await spell.events.publish("tool.request", {"secret": "hush"}, target="web")
                with context("bob", causation_id=asked.id):
                    values = {f"k{n}": "hush" for n in range(5)}
                    changed = await spell.state.set_many("agent:a", values)
                with context(causation_id=str(changed)):
                    done = await spell.events.publish("tool.response")
                await spell.correlation.link(done.id, asked.id, "response_to")
        return {"asked": asked.id, "changed": str(changed), "done": done.id}

    return asyncio.run(run())


def test_a_pipe_gets_a_line_for_each_entry(here: Here, facts: dict[str, str]) -> None:
    """Position, time, kind, depth, causes, type, id, source, what it is about."""
    result = here("timeline", "run 1")
    assert (result.code, result.err) == (0, "")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [[*row[:1], *row[2:]] for row in rows] == [
        ["0", "event", "0", "-", "tool.request", facts["asked"], "ann", "web"],
        ["1", "change", "1", "0", "state.set", facts["changed"], "bob",
         "agent:a k0, k1, k2 and 2 more"],
        ["2", "event", "2", "0,1", "tool.response", facts["done"], "ann", "-"],
    ]  # fmt: skip


def test_a_document_says_all_but_values(here: Here, facts: dict[str, str]) -> None:
    """Causes, effects, links and numbers."""
    result = here("--json", "timeline", "run 1")
    said = json.loads(result.out)
    assert said["correlation_id"] == "run 1"
    assert [one["causes"] for one in said["entries"]] == [[], [0], [0, 1]]
    assert [one["effects"] for one in said["entries"]] == [[1, 2], [2], []]
    assert [one["id"] for one in said["entries"]] == list(facts.values())
    assert said["links"] == [
        {
            "from_id": facts["done"],
            "to_id": facts["asked"],
            "relationship": "response_to",
            "strength": 0.8,
        }
    ]
    assert said["statistics"]["by_kind"] == {"event": 2, "change": 1}
    assert said["truncated"] is False
    assert "hush" not in result.out
    assert json.loads(here("--json", "timeline", "run 1", "--limit", "1").out)["truncated"] is True


def test_nothing_kept_is_exit_code_1(here: Here) -> None:
    """Said beside the output, which stays empty; or an empty document."""
    result = here("timeline", "no\x1bwhere")
    assert (result.code, result.out) == (1, "")
    assert result.err == "nothing is kept of correlation no\\x1bwhere\n"
    assert here("-q", "timeline", "nowhere").err == ""
    result = here("--json", "timeline", "nowhere")
    assert (result.code, result.err) == (1, "")
    assert json.loads(result.out)["entries"] == []


def test_a_wrong_id_or_option_is_a_usage_error(here: Here) -> None:
    """Named as it was typed."""
    result = here("timeline", "")
    assert result.code == 2
    assert "ID must be text" in result.err
    assert here("timeline", "run", "--depth", "0").code == 2
    assert here("timeline", "run", "--limit", "10001").code == 2


# --- trees ----------------------------------------------------------------------------------------

RUN = build_timeline(
    "run",
    [
        entry("a", 0, type="tool.request", source="ann", target="web"),
        entry("b", 5, type="tool.response", cause="a"),
        entry("c", 1500, type="agent.done", cause="b"),
        entry("d", 130_000, type="agent.idle"),
    ],
    [link("c", "a")],
)


def test_effects_stand_below_their_causes_and_once() -> None:
    """The other causes are named."""
    assert drawn(RUN) == [
        "run: 4 events, 2.2m from 2026-11-25T23:32:35.954+00:00".replace(
            "2026-11-25T23:32:35.954", summary(RUN).split(" from ")[1].removesuffix("+00:00")
        ),
        "├── #0 +0ms tool.request web by ann",
        "│   └── #1 +5ms tool.response",
        "│       └── #2 +1.500s agent.done (also from #0)",
        "└── #3 +2.2m agent.idle",
    ]


def test_levels_below_the_depth_are_counted() -> None:
    """So that a deep chain stays readable."""
    lines = drawn(RUN, depth=1)
    assert lines[1:] == [
        "├── #0 +0ms tool.request web by ann",
        "│   └── … 2 below, see --depth",
        "└── #3 +2.2m agent.idle",
    ]


def test_no_line_is_wrapped_and_nothing_steers_the_terminal() -> None:
    """Long lines end in an ellipsis; markup and escapes are shown."""
    wild = build_timeline("run", [entry("a", source="[red]x[/red]\x1b[31m", target="y" * 300)])
    lines = drawn(wild)
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].endswith("…")
    wide = drawn(wild, width=500)
    assert "[red]x[/red]\\x1b[31m" in wide[1]


def test_a_tree_of_ten_thousand_is_drawn() -> None:
    """A chain of them too: nothing recurses."""
    chain = [entry(str(n), n, cause=str(n - 1) if n else None) for n in range(10_000)]
    lines = drawn(build_timeline("run", chain))
    assert lines[-1].endswith("… 9990 below, see --depth")
    fan = [entry("root"), *(entry(str(n), n + 1, cause="root") for n in range(5000))]
    assert len(drawn(build_timeline("run", fan))) == 5002
