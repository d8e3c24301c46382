"""Backups for threads: the same surface and the same promises, through the background."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmspell_dist import blocking
from llmspell_dist.backup.archive.shipper import Shipper as AsyncShipper
from llmspell_dist.backup.errors import BackupKeyError, BackupNotFoundError, RestoreRefusedError
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.progress import Phase, Progress
from llmspell_dist.backup.schedule_model import BackupSchedule
from llmspell_dist.backup.schedules import ScheduledBackups as AsyncScheduled
from llmspell_dist.backup.service import Backups as AsyncBackups
from llmspell_dist.backup.service import BackupStore as AsyncStore
from llmspell_dist.blocking._backups import Backups, BackupStore, ScheduledBackups, Shipper
from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.hooks import Cancel, OperationCancelledError
from llmspell_dist.schedule import Every
from llmspell_dist.security.keyring import FileKeys

pytestmark = pytest.mark.integration


@pytest.fixture
def client(url: str, namespace: str) -> Iterator[blocking.Spell]:
    """An open blocking client."""
    with blocking.connect(url, namespace=namespace) as spell:
        yield spell


@pytest.fixture
def kept(client: blocking.Spell, tmp_path: Path) -> Iterator[BackupStore]:
    """Encrypted backups in a folder."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    with client.backups.to(f"file://{tmp_path}/backups", keys=keys) as kept:
        yield kept


def test_a_backup_that_no_restore_made_is_no_way_back(kept: BackupStore) -> None:
    """As of the other surface."""
    with pytest.raises(RestoreRefusedError, match="no way back"):
        kept.rollback(kept.create().id)


def surface(cls: type) -> dict[str, Any]:
    """The public methods of a class with names and defaults of their parameters, and properties."""
    found: dict[str, Any] = {
        name: [
            (one.name, one.kind, None if callable(one.default) else one.default)
            for one in inspect.signature(member).parameters.values()
        ]
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }
    properties = inspect.getmembers(cls, lambda one: isinstance(one, property))
    return found | {name: "property" for name, _ in properties}


@pytest.mark.parametrize(
    ("threads", "tasks"),
    [
        (Backups, AsyncBackups),
        (BackupStore, AsyncStore),
        (Shipper, AsyncShipper),
        (ScheduledBackups, AsyncScheduled),
    ],
)
def test_the_surfaces_are_equal(threads: type, tasks: type) -> None:
    """Every method of the one is one of the other, with the same parameters and defaults."""
    own = surface(threads)
    own.pop("stats", None)  # an attribute there
    assert own == surface(tasks)


def test_a_backup_is_made_and_looked_at(client: blocking.Spell, kept: BackupStore) -> None:
    """The result is the asynchronous one's; progress is told from the background's thread."""
    client.state.set("agent:alice", "mood", "curious")
    told: list[tuple[Progress, str]] = []

    def progress(now: Progress) -> None:
        told.append((now, threading.current_thread().name))

    made = kept.create(tags={"why": "test"}, progress=progress)
    later = kept.create(type="incremental")
    assert (made.type, made.encrypted, made.stats.records) == (BackupType.FULL, True, 1)
    assert [one.id for one in kept.list()] == [made.id, later.id]
    assert kept.info(made.id).stats == made.stats
    assert kept.inexact(made.id) == ()
    assert told[-1][0].phase is Phase.COMPLETED
    assert {thread for _, thread in told} == {"llmspell-background"}
    assert repr(kept) == f"<BackupStore in {kept.label}>"


def test_errors_are_those_of_the_other_surface(
    client: blocking.Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """Bad input before anything is sent; what is not there; a key that nobody has."""
    with pytest.raises(InvalidArgumentError, match="type must be one of"):
        kept.create(type="half")
    with pytest.raises(BackupNotFoundError):
        kept.info("20260101T000000Z-00000000")
    made = kept.create()
    with (
        client.backups.to(f"file://{tmp_path}/backups") as without,
        pytest.raises(BackupKeyError),
    ):
        without.inexact(made.id)


def test_hooks_of_a_blocking_client_see_and_refuse_backups(
    client: blocking.Spell, kept: BackupStore
) -> None:
    """They run in a thread that may wait, so they may use the client that they belong to."""
    seen: list[str] = []

    @client.hooks.on("backup:end")
    def note(ctx: Any) -> None:
        client.state.set("global", "last backup", ctx.data["id"])
        seen.append(threading.current_thread().name)

    made = kept.create()
    assert client.state.get("global", "last backup") == made.id
    assert "llmspell-background" not in seen

    @client.hooks.on("backup:start")
    def never(_: Any) -> Cancel:
        return Cancel("not now")

    with pytest.raises(OperationCancelledError, match="not now"):
        kept.create()
    assert [one.id for one in kept.list()] == [made.id]


def test_events_are_published(client: blocking.Spell, kept: BackupStore) -> None:
    """As the asynchronous client does it."""
    with client.events.subscribe("backup.*", durable="q") as heard:
        made = kept.create()
        types = [
            (event.type, event.data["id"]) for event in (heard.next(5), heard.next(5)) if event
        ]
    assert types == [("backup.started", made.id), ("backup.completed", made.id)]


def test_a_closed_client_makes_no_backup(url: str, namespace: str, tmp_path: Path) -> None:
    """And says so; its thread is gone."""
    others = set(threading.enumerate())
    with blocking.connect(url, namespace=namespace) as spell:
        kept = spell.backups.to(f"file://{tmp_path}/backups")
        kept.create()
    with pytest.raises(ClosedError):
        kept.create()
    left = set(threading.enumerate()) - others
    assert not any(one.name == "llmspell-background" for one in left)


def test_restored_undone_verified_pruned(client: blocking.Spell, kept: BackupStore) -> None:
    """What a thread gets is what a task gets."""
    client.state.set("agent:alice", "mood", "curious")
    made = kept.create()
    client.state.set("agent:alice", "mood", "busy")
    report = kept.restore(at=made.id)
    assert client.state.get("agent:alice", "mood") == "curious"
    kept.rollback(report)
    assert client.state.get("agent:alice", "mood") == "busy"
    assert kept.verify(level="full").ok
    assert kept.drill(at=made.id).ok
    assert kept.last_proof() is not None
    assert kept.prune("last=1").report is None
    assert len(kept.gc()) == 0


def test_a_thread_ships_the_log_until_another_says_stop(
    client: blocking.Spell, kept: BackupStore
) -> None:
    """What is left is shipped before it returns."""
    client.state.set("agent:alice", "mood", "curious")
    kept.create()
    shipper, stop = kept.archive(interval=0.05), threading.Event()
    thread = threading.Thread(target=shipper.run, args=(stop,))
    thread.start()
    try:
        last = client.state.set("agent:alice", "mood", "busy")
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert shipper.stats.positions == {"0": last}
    assert kept.archive_status().pending == 0


def test_a_thread_serves_a_schedule_until_another_says_stop(
    client: blocking.Spell, kept: BackupStore
) -> None:
    """What is due by then was made."""
    client.state.set("agent:alice", "mood", "curious")
    often = Every(timedelta(milliseconds=50))
    scheduled, stop = kept.on_schedule(BackupSchedule("often", often)), threading.Event()
    assert scheduled.schedule.name == "often"
    thread = threading.Thread(target=scheduled.run, args=(stop,))
    thread.start()
    try:
        for _ in range(600):
            assert thread.is_alive()
            if scheduled.status().progress.runs:
                break
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    made, progress = kept.list(), scheduled.status().progress
    assert {one.manifest.reason for one in made} == {"schedule"}
    assert progress.runs == len(made)
    assert progress.last_backup in {one.id for one in made}
