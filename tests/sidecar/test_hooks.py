"""Hooks over HTTP: which there are, where they may stand, and what they did."""

from __future__ import annotations

from typing import Any

import pytest
from fix_sidecar import Sidecar
from fix_sidecar_process import StartProcess

from llmspell_dist import connect
from llmspell_dist.hooks import Cancel, HookContext

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


@pytest.mark.needs("process")
@pytest.mark.one_server
async def test_a_sidecar_of_the_fleet_asks_its_guards_from_the_first_request_on(
    sidecar_process: StartProcess, url: str, namespace: str
) -> None:
    """One that takes no part asks nobody."""

    def no_prices(ctx: HookContext) -> Cancel | None:
        return Cancel("prices are fixed") if ctx.data.get("key") == "price" else None

    how: dict[str, Any] = {"run": "every", "await_remote": True, "continue_on_failure": False}
    async with connect(url, namespace=namespace) as guard:
        await guard.hooks.fleet.add("BeforeStateWrite", no_prices, **how)
        asking = await sidecar_process(url, "--fleet")
        async with asking.http() as http:
            refused = await http.put("/v1/state/tool:shop/price", json=1)
            assert (refused.status_code, refused.json()["code"]) == (422, "OPERATION_CANCELLED")
            assert (await http.put("/v1/state/tool:shop/stock", json=1)).status_code == 200
            assert (await http.get("/v1/hooks")).json()["joined"] is True
        passing = await sidecar_process(url)
        async with passing.http() as http:
            assert (await http.put("/v1/state/tool:shop/price", json=1)).status_code == 200
