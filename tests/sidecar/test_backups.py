"""Backups over HTTP: operations that are asked about, followed and ended, and what they do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fix_grants import only
from fix_sidecar import Sidecar, StartSidecar
from fix_streams import listening

from llmspell_dist.backup.progress import Phase, Progress
from llmspell_dist.sidecar.operations import Operations

pytestmark = [pytest.mark.integration, pytest.mark.backup]
KEY = "/v1/state/agent:alice/note"


@pytest.fixture
async def kept(start_sidecar: StartSidecar, tmp_path: Path) -> Sidecar:
    """A sidecar that keeps backups in a folder."""
    started: Sidecar = await start_sidecar(backups=f"file://{tmp_path}")
    return started


async def ended(sidecar: Sidecar, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Begin an operation, follow it to its end by polling; how it ended."""
    answer = await sidecar.ask("POST", path, body)
    assert answer.status_code == 202, answer.text
    where = answer.headers["location"]
    assert where == f"/v1/operations/{answer.json()['id']}"
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await sidecar.ask("GET", where)).json()
            if found["status"] != "running":
                return found
            await asyncio.sleep(0.01)


async def done(sidecar: Sidecar, path: str, body: dict[str, Any]) -> Any:
    """Carry an operation out; its result."""
    found = await ended(sidecar, path, body)
    assert found["status"] == "succeeded", found
    return found["result"]


async def test_a_backup_is_made_listed_and_restored(kept: Sidecar) -> None:
    """What was there comes back, and a rollback brings back what was there before that."""
    await kept.ask("PUT", KEY, "before")
    made = await done(kept, "/v1/backups", {"tags": {"for": "test"}})
    assert (made["type"], made["tags"], made["stats"]["records"]) == ("full", {"for": "test"}, 1)
    listed = (await kept.ask("GET", "/v1/backups")).json()["backups"]
    assert [one["id"] for one in listed] == [made["id"]]
    shown = (await kept.ask("GET", f"/v1/backups/{made['id']}")).json()
    assert (shown["revision"], shown["inexact"]) == (made["revision"], [])

    await kept.ask("PUT", KEY, "after")
    order = {"at": made["id"], "scopes": ["agent:*"]}
    plan = await kept.ask("POST", "/v1/restores", order | {"dry_run": True})
    assert plan.status_code == 200
    assert plan.json()["sources"] == [f"backup {made['id']}"]
    assert (await kept.ask("GET", KEY)).json() == "after"
    report = await done(kept, "/v1/restores", order)
    assert (report["scopes"], report["records"]) == (1, 1)
    assert (await kept.ask("GET", KEY)).json() == "before"
    await done(kept, "/v1/rollbacks", {"point": report["rollback"]})
    assert (await kept.ask("GET", KEY)).json() == "after"


async def test_backups_are_verified(kept: Sidecar) -> None:
    """The report is the operation's result."""
    await kept.ask("PUT", KEY, 1)
    made = await done(kept, "/v1/backups", {})
    report = await done(kept, "/v1/backup-verifications", {"level": "full"})
    assert (report["ok"], report["backups"], report["findings"]) == (True, [made["id"]], [])


@pytest.mark.one_server
async def test_a_backup_is_proved_and_compared(kept: Sidecar) -> None:
    """In a server of its own; what drills proved is kept, with the last time that all was well."""
    await kept.ask("PUT", KEY, "before")
    made = await done(kept, "/v1/backups", {})
    await kept.ask("PUT", KEY, "after")
    found = await done(kept, "/v1/backup-diffs", {"at": made["id"]})
    assert (found["changed"], found["keys"]) == (
        1,
        [{"scope": "agent:alice", "key": "note", "what": "changed"}],
    )
    report = await done(kept, "/v1/backup-drills", {"at": made["id"]})
    assert (report["ok"], report["mismatches"], report["records"]) == (True, 0, 1)
    kept_ones = (await kept.ask("GET", "/v1/backup-drills")).json()
    assert [one["id"] for one in kept_ones["drills"]] == [report["id"]]
    assert kept_ones["last_proof"] is not None


async def test_what_fails_says_so_as_a_problem(kept: Sidecar) -> None:
    """With the library's code; asking about what is not there is a 404."""
    failed = await ended(kept, "/v1/restores", {"at": "20200101T000000Z-00000000"})
    assert (failed["status"], failed["error"]["code"]) == ("failed", "BACKUP_NOT_FOUND")
    wrong = await ended(kept, "/v1/backups", {"type": "partial"})
    assert wrong["error"]["code"] == "INVALID_ARGUMENT"
    gone = await kept.ask("GET", "/v1/backups/20200101T000000Z-00000000")
    assert (gone.status_code, gone.json()["code"]) == (404, "BACKUP_NOT_FOUND")
    assert (await kept.ask("GET", "/v1/operations/none")).status_code == 404


async def test_pruning_is_planned_first(kept: Sidecar) -> None:
    """Only a plan is carried out, and that once."""
    first = await done(kept, "/v1/backups", {})
    second = await done(kept, "/v1/backups", {})
    plan = await kept.ask("POST", "/v1/backup-prunings", {"policy": "last=1"})
    assert plan.status_code == 200
    assert len((await kept.ask("GET", "/v1/backups")).json()["backups"]) == 2
    assert (await kept.ask("POST", "/v1/backup-prunings", {})).status_code == 400
    await done(kept, "/v1/backup-prunings", {"plan": plan.json()["id"]})
    left = (await kept.ask("GET", "/v1/backups")).json()["backups"]
    assert ([one["id"] for one in left], first["id"] != second["id"]) == ([second["id"]], True)
    again = await kept.ask("POST", "/v1/backup-prunings", {"plan": plan.json()["id"]})
    assert again.status_code == 404
    assert (await done(kept, "/v1/backup-collections", {}))["removed"] == 0


async def test_a_sidecar_without_a_place_has_no_backups(sidecar: Sidecar) -> None:
    """404 that says so; a client cannot name a place."""
    answer = await sidecar.ask("POST", "/v1/backups", {})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    named = await sidecar.ask("POST", "/v1/backups", {"target": "file:///tmp"})
    assert (named.status_code, named.json()["code"]) == (400, "BODY")


async def test_the_archive_is_shipped_until_the_end(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """Inside the sidecar, if its settings say so; what is left is shipped at the end."""
    sidecar = await start_sidecar(backups=f"file://{tmp_path}", archive=True)
    await sidecar.ask("PUT", KEY, 1)
    async with asyncio.timeout(10):
        while True:
            found = (await sidecar.ask("GET", "/v1/archive")).json()
            if found["shipper"]["shipping"]:
                break
            await asyncio.sleep(0.01)
    await sidecar.ask("PUT", KEY, 2)
    await sidecar.services.end()
    status = await sidecar.services.spell.backups.to(f"file://{tmp_path}").archive_status()
    assert (len(status.timelines), status.pending) == (1, 0)


async def test_only_who_may_administer_makes_and_restores(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """One backup can be looked at with a right on it alone."""
    sidecar = await start_sidecar(
        only(("backup:*", "read list"), ("agent:*", "read write delete list admin")),
        backups=f"file://{tmp_path}",
    )
    made = await sidecar.services.spell.backups.to(f"file://{tmp_path}").create()
    assert (await sidecar.ask("GET", f"/v1/backups/{made.id}")).status_code == 200
    assert len((await sidecar.ask("GET", "/v1/backups")).json()["backups"]) == 1
    for method, path, body in (
        ("POST", "/v1/backups", {}),
        ("POST", "/v1/restores", {"scopes": ["agent:alice"]}),
        ("POST", "/v1/backup-prunings", {"policy": "last=1"}),
        ("GET", "/v1/operations", None),
        ("GET", "/v1/archive", None),
    ):
        assert (await sidecar.ask(method, path, body)).status_code == 403, path


# --- operations -----------------------------------------------------------------------------------


async def test_an_operation_is_followed_to_its_end(sidecar: Sidecar) -> None:
    """Each change comes as an event, and the end with the result."""
    go_on = asyncio.Event()

    async def work(tell: Any) -> Any:
        tell(Progress(Phase.SCANNING, bytes=10))
        await go_on.wait()
        return {"made": 1}

    operation = sidecar.services.one(Operations).begin("test", work)
    async with listening(sidecar, f"/v1/operations/{operation.id}/events") as events:
        while True:
            said = await events.next()
            assert said.event == "progress"
            if said.data["progress"] is not None:
                break
        assert said.data["progress"]["phase"] == "scanning"
        go_on.set()
        last = await events.next()
        assert (last.event, last.data["result"]) == ("done", {"made": 1})
        assert [one.event for one in await events.ended()] == ["end"]


async def test_an_operation_can_be_ended(sidecar: Sidecar) -> None:
    """It is cancelled, and says so from then on."""
    operations = sidecar.services.one(Operations)
    operation = operations.begin("test", lambda _: asyncio.Event().wait())
    answer = await sidecar.ask("DELETE", f"/v1/operations/{operation.id}")
    assert answer.json()["status"] == "cancelled"
    again = await sidecar.ask("DELETE", f"/v1/operations/{operation.id}")
    assert again.json()["ended"] == answer.json()["ended"]
    listed = (await sidecar.ask("GET", "/v1/operations")).json()["operations"]
    assert [one["id"] for one in listed] == [operation.id]


async def test_operations_are_few_at_once(sidecar: Sidecar) -> None:
    """The ninth is refused, until one ends; a stop ends them all."""
    operations = sidecar.services.one(Operations)
    begun = [operations.begin("test", lambda _: asyncio.Event().wait()) for _ in range(8)]
    with pytest.raises(Exception, match="under way"):
        operations.begin("test", lambda _: asyncio.Event().wait())
    await operations.close()
    assert {one.status for one in begun} == {"cancelled"}
