"""Backups through a sidecar: the library's reports, errors, progress and cancellation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_remote import Grants, Relay
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist import Options, connect
from llmspell_dist.backup import (
    BackupNotFoundError,
    BackupStore,
    PointNotCoveredError,
    RestoreRefusedError,
)
from llmspell_dist.backup.progress import Phase, Progress
from llmspell_dist.backup.retention import KeepLast, RetentionPolicy
from llmspell_dist.client import Spell
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.backups import ABSENT
from llmspell_dist.remote.errors import NotThroughSidecarError, OperationLostError
from llmspell_dist.remote.operations import carry_out
from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.sidecar.backing import store_of
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.operations import Operations

pytestmark = [pytest.mark.integration, pytest.mark.backup, pytest.mark.one_server]
ALICE = "agent:alice"
NONE = "20200101T000000Z-00000000"


@dataclass
class Kept:
    """A sidecar with a place for backups, a client of it, and the library's own view of both."""

    sidecar: Sidecar
    spell: Any
    store: Any
    ours: BackupStore

    @property
    def operations(self) -> Operations:
        return self.sidecar.services.one(Operations)


@pytest.fixture
async def kept(start_sidecar: StartSidecar, tmp_path: Path) -> AsyncIterator[Kept]:
    """One that keeps them in a folder."""
    sidecar: Sidecar = await start_sidecar(backups=f"file://{tmp_path}")
    async with connect(sidecar.url) as spell, spell.backups.to() as store:
        yield Kept(sidecar, spell, store, store_of(sidecar.services))


def facts(info: Any) -> Any:
    """Return what a backup says of itself, but for its objects."""
    said = {name: getattr(info.manifest, name) for name in info.manifest.__dataclass_fields__}
    for name in ("objects", "mac", "told_key"):
        said.pop(name, None)
    properties = ("id", "type", "created", "moment", "revision", "parent", "stats", "encrypted")
    return said, [getattr(info, name) for name in (*properties, "took")], str(info)


async def test_a_backup_is_made_looked_at_and_restored(kept: Kept) -> None:
    """With the reports of the library; a rollback brings back what was there before."""
    state, store = kept.spell.state, kept.store
    before = await state.set(ALICE, "note", "before")
    made = await store.create(tags={"for": "test"}, importance="critical", scopes=["agent:*"])
    (listed,) = await store.list()
    (ours,) = await kept.ours.list()
    assert facts(made) == facts(listed) == facts(await store.info(made.id)) == facts(ours)
    assert (made.revision, made.manifest.tags) == (before, {"for": "test"})
    assert await store.inexact(made.id) == ()

    await state.set(ALICE, "note", "after")
    await state.set(ALICE, "later", 1)
    assert await store.plan(made.id) == await kept.ours.plan(made.id)
    found = await store.diff(made.id, scopes="agent:*")
    assert found == await kept.ours.diff(made.id, scopes="agent:*")
    assert (found.changed, found.removed) == (1, 1)
    report = await store.restore(made.id, scopes=ALICE)
    assert (report.scopes, report.records, report.revision) == (1, 1, before)
    assert report.namespace == kept.spell.namespace
    assert await state.get_all(ALICE) == {"note": "before"}
    assert report.rollback in {one.id for one in await store.list()}
    assert (await store.rollback(report)).scopes == 1
    assert await state.get_all(ALICE) == {"note": "after", "later": 1}


async def test_a_moment_is_one_of_every_kind(kept: Kept) -> None:
    """A revision, an aware time, a backup, the latest; each means the same as in the library."""
    state, store = kept.spell.state, kept.store
    first = await state.set(ALICE, "n", 1)
    made = await store.create()
    second = await state.set(ALICE, "n", 2)
    for at in (first, str(second), second.time, second.time.isoformat(), made.id, None, "latest"):
        assert await store.plan(at) == await kept.ours.plan(at)
    assert (await store.restore(first, scopes=[ALICE], key="n", into="agent:bob")).records == 1
    assert await state.get("agent:bob", "n") == 1
    assert (await store.restore(first, ttl="remaining", rollback=False)).rollback is None
    with pytest.raises(PointNotCoveredError, match="future"):
        await store.plan(datetime.now(UTC) + timedelta(days=1))


async def test_a_backup_is_verified_and_proved(kept: Kept) -> None:
    """What drills proved is kept, with the last time that all was well."""
    await kept.spell.state.set(ALICE, "note", 1)
    made = await kept.store.create()
    report = await kept.store.verify(level="full")
    assert (report.ok, report.backups) == (True, [made.id])
    assert report == await kept.ours.verify(level="full")
    assert await kept.store.last_proof() is None
    proved = await kept.store.drill()
    assert (proved.ok, proved.backup, proved.records) == (True, made.id, 1)
    assert await kept.store.drills() == await kept.ours.drills()
    assert await kept.store.last_proof() == proved.at


async def test_what_a_policy_does_not_keep_goes_by_its_plan(kept: Kept) -> None:
    """Once; a plan that was carried out is not known any more."""
    store, policy = kept.store, RetentionPolicy(KeepLast(1))
    first, second, third = [await store.create(tags={"n": str(n)}) for n in range(3)]
    planned = await store.prune(policy)
    ours = await kept.ours.prune(policy)
    assert planned.as_data() | {"now": ""} == ours.as_data() | {"now": ""}
    assert [one.id for one in planned.goes] == [first.id, second.id]
    assert [one.id for one in planned.stays] == [third.id]
    assert bool(planned)
    assert planned.report is None
    done = await store.prune("last=1", confirm=True, plan=planned)
    assert done.report is not None
    assert done.report.backups == [first.id, second.id]
    assert [one.id for one in await store.list()] == [third.id]
    with pytest.raises(NotFoundError, match="make it again"):
        await store.prune(policy, confirm=True, plan=planned)
    for wrong in (done, ours):
        with pytest.raises(InvalidArgumentError, match="plan must be what prune"):
            await store.prune(policy, confirm=True, plan=wrong)
    nothing = await store.prune("last=1", confirm=True)
    assert nothing.report is not None
    assert (bool(nothing), nothing.report.backups) == (False, [])


async def test_garbage_is_found_and_removed(kept: Kept, tmp_path: Path) -> None:
    """What is younger than the grace stays."""
    await kept.spell.state.set(ALICE, "note", 1)
    made = await kept.store.create()
    lose(tmp_path, made.id)
    found = await kept.store.gc()
    assert found.as_data() == (await kept.ours.gc()).as_data()
    assert found.objects == (await kept.ours.gc()).objects != []
    week = timedelta(days=7)
    assert len(await kept.store.gc(grace=week, drills_after=week)) == 0
    removed = await kept.store.gc(confirm=True)
    assert removed.removed == len(found)
    assert len(await kept.store.gc()) == 0
    with pytest.raises(InvalidArgumentError, match="grace"):
        await kept.store.gc(grace=timedelta(0))


def lose(place: Path, backup_id: str) -> None:
    """Take a backup's manifest away, two days after it was made."""
    (manifest,) = place.rglob(f"{backup_id}/manifest.json")
    manifest.unlink()
    for file in place.rglob("*"):
        made = file.stat().st_mtime - 2 * 86_400
        os.utime(file, (made, made))


async def test_the_archive_says_what_it_covers(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    """By timeline and shard, as the library has it."""
    sidecar = await start_sidecar(backups=f"file://{tmp_path}")
    ours = store_of(sidecar.services)
    async with connect(sidecar.url) as spell:
        store = spell.backups.to()
        assert (await store.archive_status()).timelines == ()
        await spell.state.set(ALICE, "note", 1)
        await ours.archive().once()
        told, known = await store.archive_status(), await ours.archive_status()
        assert told.timelines == known.timelines
        assert len(told.timelines) == 1


# --- what fails -----------------------------------------------------------------------------------


async def test_errors_are_those_of_the_library(kept: Kept) -> None:
    """With their facts, whether they come at once or at the end of an operation."""
    store = kept.store
    with pytest.raises(BackupNotFoundError) as caught:
        await store.info(NONE)
    assert caught.value.backup_id == NONE
    with pytest.raises(BackupNotFoundError):
        await store.info("../../etc")
    with pytest.raises(BackupNotFoundError) as caught:
        await store.restore(NONE)
    assert caught.value.backup_id == NONE
    with pytest.raises(RestoreRefusedError, match="no rollback point"):
        await store.rollback(await _without_rollback(kept))
    async with kept.spell.leases.acquire(ALICE):
        with pytest.raises(RestoreRefusedError) as refused:
            await store.restore(scopes=[ALICE])
    assert refused.value.scope == ALICE


async def _without_rollback(kept: Kept) -> Any:
    await kept.spell.state.set(ALICE, "note", 1)
    await kept.store.create()
    await kept.spell.state.set(ALICE, "note", 2)
    return await kept.store.restore(rollback=False)


async def test_bad_input_is_refused_before_anything_is_sent(kept: Kept) -> None:
    """By the library's rules; the sidecar has begun nothing."""
    store = kept.store
    for rule, call in (
        ("type", store.create(type="partial")),
        ("include", store.create(include=["state"])),
        ("importance", store.create(importance="huge")),
        ("tags", store.create(tags={"n": 1})),
        ("scopes", store.create(scopes=["no scope"])),
        ("at", store.plan("yesterday")),
        ("ttl", store.restore(ttl="none")),
        ("key", store.restore(key="k")),
        ("into", store.restore(into="agent:bob", scopes="agent:*")),
        ("limit", store.diff(limit=0)),
        ("policy", store.prune("sometimes")),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await call
        assert caught.value.argument == rule
    assert kept.operations.all() == []


async def test_what_is_the_sidecars_cannot_be_given(kept: Kept) -> None:
    """No place, no keys; what needs a process or files of one's own says why."""
    backups = kept.spell.backups
    for given in (
        {"target": "file:///tmp"},
        {"keys": "env:KEY"},
        {"older_keys": ["env:KEY"]},
        {"compression": "lz4"},
    ):
        with pytest.raises(NotThroughSidecarError, match="sidecar"):
            backups.to(**given)
    for name, why in ABSENT.items():
        with pytest.raises(NotThroughSidecarError, match=why[:20]):
            getattr(kept.store, name)
    with pytest.raises(NotThroughSidecarError, match="one namespace"):
        await kept.store.restore(namespace="another")
    assert kept.operations.all() == []


async def test_a_sidecar_without_a_place_says_so(sidecar: Sidecar) -> None:
    """With the first request."""
    async with connect(sidecar.url) as spell:
        with pytest.raises(NotFoundError, match="started without one"):
            await spell.backups.to().list()


async def test_grants_decide(start_sidecar: StartSidecar, granted: Grants, tmp_path: Path) -> None:
    """A right on a backup lets it be seen, not restored."""
    access, token = granted(("backup:*", "read list"), (ALICE, "read write"))
    sidecar = await start_sidecar(access, backups=f"file://{tmp_path}")
    made = await store_of(sidecar.services).create()
    async with connect(sidecar.url, token=token) as spell:
        store = spell.backups.to()
        assert [one.id for one in await store.list()] == [made.id]
        assert (await store.info(made.id)).id == made.id
        for refused in (store.create(), store.restore(), store.gc(), store.drills()):
            with pytest.raises(ForbiddenError):
                await refused


# --- operations -----------------------------------------------------------------------------------


async def test_progress_is_told_with_the_librarys_own(kept: Kept) -> None:
    """Phase by phase, to the end."""
    await kept.spell.state.set(ALICE, "note", "x" * 1000)
    seen: list[Progress] = []
    await kept.store.create(progress=seen.append)
    assert all(isinstance(one.phase, Phase) for one in seen)
    assert (seen[-1].phase, seen[-1].records) == (Phase.COMPLETED, 1)
    assert len(seen) == len({repr(one) for one in seen})


class Endless:
    """Work that goes on until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = False

    async def create(self, **given: Any) -> None:
        given["progress"](Progress(Phase.SCANNING, bytes=1))
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_whoever_is_cancelled_ends_what_he_waits_for(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the cancellation comes back to him, it has ended."""
    work = Endless()
    monkeypatch.setattr(kept.ours, "create", work.create)
    waiting = asyncio.create_task(kept.store.create())
    await work.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.cancelled
    assert [one.status for one in kept.operations.all()] == ["cancelled"]


async def test_what_an_operator_ends_is_lost_to_who_waits(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is what a sidecar that was started anew does not know: the error says which."""
    work = Endless()
    monkeypatch.setattr(kept.ours, "create", work.create)
    waiting = asyncio.create_task(kept.store.create())
    await work.begun.wait()
    (operation,) = kept.operations.all()
    await kept.operations.cancel(operation)
    with pytest.raises(OperationLostError, match="cancelled there") as caught:
        await waiting
    assert (caught.value.operation_id, caught.value.retryable) == (operation.id, False)

    work = Endless()
    monkeypatch.setattr(kept.ours, "create", work.create)
    monkeypatch.setattr(kept.operations, "get", _unknown)
    with pytest.raises(OperationLostError, match="not known there"):
        await kept.store.create()


def _unknown(operation_id: str) -> Any:
    raise NotFoundError(f"operation {operation_id!r}")


async def test_a_sidecar_that_is_away_is_not_waited_for(
    kept: Kept, relay: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the retry budget; what it does may have happened, so the error says that."""
    monkeypatch.setattr("llmspell_dist.remote.operations._QUIET_S", 0.05)
    work = Endless()
    monkeypatch.setattr(kept.ours, "create", work.create)
    between: Relay = await relay(kept.sidecar.url)
    url, budget = f"http://127.0.0.1:{between.port}", Options(retry_budget=1.5)
    heard = asyncio.Event()
    async with connect(url, options=budget) as spell:
        waiting = asyncio.create_task(spell.backups.to().create(progress=lambda _: heard.set()))
        await heard.wait()
        between.point_to(1)
        await between.close()
        with pytest.raises(OperationLostError) as caught:
            await waiting
    assert caught.value.may_have_happened
    assert [one.id for one in kept.operations.all()] == [caught.value.operation_id]


async def test_a_lost_connection_is_not_noticed(
    kept: Kept, relay: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation is followed further, to its result."""
    heard, go_on, create = asyncio.Event(), asyncio.Event(), kept.ours.create

    async def slow(**given: Any) -> Any:
        given["progress"](Progress(Phase.PREPARING))
        await go_on.wait()
        return await create(**given)

    monkeypatch.setattr(kept.ours, "create", slow)
    between: Relay = await relay(kept.sidecar.url)
    async with connect(f"http://127.0.0.1:{between.port}") as spell:
        waiting = asyncio.create_task(spell.backups.to().create(progress=lambda _: heard.set()))
        await heard.wait()
        await between.close()
        go_on.set()
        made = await waiting
    assert [one.id for one in await kept.store.list()] == [made.id]


async def test_what_cannot_be_followed_is_ended(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes on that nobody can hear of."""
    work = Endless()
    monkeypatch.setattr(kept.ours, "create", work.create)
    transport = kept.spell._transport

    def broken(*_: Any, **__: Any) -> Any:
        raise InvalidArgumentError("stream", None, "cannot be had")

    monkeypatch.setattr(transport, "stream", broken)
    with pytest.raises(InvalidArgumentError, match="cannot be had"):
        await carry_out(transport, ("v1", "backups"), {})
    assert [one.status for one in kept.operations.all()] == ["cancelled"]


async def test_the_library_has_no_place_of_its_own(spell: Spell) -> None:
    """Without a target it says so; the names that a sidecar lacks are the library's."""
    with pytest.raises(InvalidArgumentError, match="target must say where"):
        spell.backups.to()
    assert all(hasattr(BackupStore, name) for name in ABSENT)
