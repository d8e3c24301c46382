"""Hooks over HTTP: which there are, where they may stand, and what they did."""

from __future__ import annotations

import pytest
from fix_sidecar import Sidecar

from llmspell_dist.hooks import HookContext

KEY = "/v1/state/agent:alice/note"


async def test_hooks_are_listed_with_how_they_have_done(sidecar: Sidecar) -> None:
    """In the order in which they run."""
    hooks = sidecar.services.spell.hooks

    def fail(_: HookContext) -> None:
        raise ValueError("boom")

    hooks.register("BeforeStateWrite", lambda _: None, name="late", priority=9)
    hooks.register("BeforeStateWrite", fail, name="early", priority=-9, tags=["x"])
    await sidecar.ask("PUT", KEY, 1)
    listed = (await sidecar.ask("GET", "/v1/hooks")).json()
    assert [one["name"] for one in listed["hooks"]] == ["early", "late"]
    early = listed["hooks"][0]
    assert (early["failures"], early["tags"], early["breaker"]) == (1, ["x"], "closed")
    assert (listed["joined"], listed["fleet"]) == (False, [])


@pytest.mark.parametrize("queued", [False, True])
async def test_a_listed_hook_shows_all_of_its_runs(sidecar: Sidecar, queued: bool) -> None:
    """Also those of one that only ever says to go on."""
    hooks = sidecar.services.spell.hooks
    hooks.register("AfterStateWrite", lambda _: None, name="look", queued=queued)
    for value in range(3):
        await sidecar.ask("PUT", KEY, value)
    await hooks.drain()
    (listed,) = (await sidecar.ask("GET", "/v1/hooks")).json()["hooks"]
    assert listed["runs"] == 3


async def test_the_points_say_what_may_be_answered_there(sidecar: Sidecar) -> None:
    """Behind a write nothing can be cancelled."""
    found = (await sidecar.ask("GET", "/v1/hooks/points")).json()["points"]
    points = {one["point"]: one["results"] for one in found}
    assert "cancel" in points["BeforeStateWrite"]
    assert "cancel" not in points["AfterStateWrite"]


async def test_recorded_runs_are_found_and_shown(sidecar: Sidecar) -> None:
    """With what the hook was told and answered."""
    hooks = sidecar.services.spell.hooks
    hooks.register("BeforeStateWrite", lambda _: None, name="seen", replayable=True)
    await sidecar.ask("PUT", KEY, {"a": 1}, headers={"x-correlation-id": "c-1"})
    await hooks.history.flush()
    found = await sidecar.ask("GET", "/v1/hooks/history", correlation_id="c-1", hook="seen")
    (run,) = found.json()["executions"]
    assert (run["outcome"], run["point"]) == ("continue", "BeforeStateWrite")
    assert run["context"]["data"]["value"] == {"a": 1}
    assert (await sidecar.ask("GET", f"/v1/hooks/history/{run['id']}")).json() == run
    none = await sidecar.ask("GET", "/v1/hooks/history/unknown")
    assert (none.status_code, none.json()["code"]) == (404, "EXECUTION_NOT_FOUND")


async def test_a_time_without_a_zone_is_refused(sidecar: Sidecar) -> None:
    """By the parameter's name."""
    answer = await sidecar.ask("GET", "/v1/hooks/history", since="2026-01-01T00:00:00")
    assert (answer.status_code, answer.json()["facts"]["argument"]) == (400, "since")
