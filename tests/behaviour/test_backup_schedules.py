"""Backups on a schedule: each moment is one process's, whoever dies in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fix_replay import START, Watch
from fix_state import until

from llmspell_dist import blocking, connect
from llmspell_dist.backup.errors import BaseMissingError, TargetError
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.retention import RetentionPolicy
from llmspell_dist.backup.running import SCOPE
from llmspell_dist.backup.schedule_model import BackupSchedule, Progress
from llmspell_dist.backup.schedules import ScheduledBackups, Work
from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    ClosedError,
    InvalidArgumentError,
    LeaseLostError,
    StaleFencingTokenError,
)
from llmspell_dist.schedule import Cron, Every
from llmspell_dist.state.server_time import ServerTime

pytestmark = [pytest.mark.integration, pytest.mark.backup]

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
FULL, INCREMENTAL = BackupType.FULL, BackupType.INCREMENTAL
HOURLY = BackupSchedule("hourly", Every(HOUR, start=START), full_every=3)


class Place:
    """Takes the place of the backups: notes what is to be made."""

    def __init__(self, watch: Watch) -> None:
        self.made: list[tuple[BackupType, datetime]] = []
        self.begun = 0
        self.pruned: list[str] = []
        self.fail: Callable[[BackupType], BaseException | None] = lambda _: None
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self._watch = watch

    @property
    def types(self) -> list[BackupType]:
        """What was made, by type."""
        return [kind for kind, _ in self.made]

    async def taken(self) -> list[tuple[BackupType, datetime]]:
        """Return what was made."""
        return list(self.made)

    async def create(self, kind: BackupType) -> str:
        """Note a backup, or fail."""
        self.begun += 1
        if self.meanwhile is not None:
            await self.meanwhile()
        failure = self.fail(kind)
        if failure is not None:
            raise failure
        self.made.append((kind, self._watch.now))
        return f"backup-{len(self.made)}"

    async def prune(self, policy: RetentionPolicy) -> None:
        """Note a policy."""
        self.pruned.append(policy.text)

    @property
    def work(self) -> Work:
        """What a schedule is given."""
        return Work(self.taken, self.create, self.prune)


@pytest.fixture
def watch() -> Watch:
    """The clock of all."""
    return Watch()


@pytest.fixture
def backups(watch: Watch) -> Place:
    """Where backups are made."""
    return Place(watch)


Make = Callable[..., ScheduledBackups]


@pytest.fixture
def make(watch: Watch, backups: Place) -> Make:
    """A factory of what serves a schedule, with that clock and place."""
    return lambda spell, schedule=HOURLY: ScheduledBackups(
        spell._driver, spell.leases, schedule, backups.work, now=watch
    )


async def turn(served: ScheduledBackups) -> datetime | None:
    """Be the process that runs the schedule, once."""
    async with served._holding() as lease:
        return await served._turn(lease)


def failing(error: BaseException, *kinds: BackupType) -> Callable[[BackupType], Any]:
    """Return what makes backups of some types fail, of all without."""
    return lambda kind: error if not kinds or kind in kinds else None


BROKEN = TargetError("s3://bucket", "x", "put", "503")


async def test_a_backup_is_made_when_it_is_due_and_not_again(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """Whoever looks, and however often."""
    served = make(spell)
    assert await turn(served) == START + HOUR
    assert backups.begun == 0
    watch.go_on(minutes=61)
    for _ in range(3):
        assert await turn(make(spell)) == START + 2 * HOUR
    assert backups.types == [FULL]
    status = await served.status()
    assert status.next == START + 2 * HOUR
    assert (status.progress.runs, status.progress.last_backup) == (1, "backup-1")
    assert status.progress.last_due == START + HOUR


async def test_full_ones_come_every_so_many(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """And what lies between them is incremental; pruned after each."""
    schedule = BackupSchedule("hourly", HOURLY.when, full_every=3, retention="last=5 min=2")
    await turn(make(spell, schedule))
    for _ in range(7):
        watch.go_on(hours=1)
        await turn(make(spell, schedule))
    assert backups.types == [FULL, INCREMENTAL, INCREMENTAL] * 2 + [FULL]
    assert backups.pruned == ["last=5 min=2"] * 7


async def test_another_process_knows_how_far_it_has_come(
    spell: Spell, url: str, namespace: str, *, make: Make, watch: Watch, backups: Place
) -> None:
    """A moment is one process's."""
    await turn(make(spell))
    async with connect(url, namespace=namespace) as other:
        for _ in range(3):
            watch.go_on(hours=1)
            await turn(make(other))
            await turn(make(spell))
    assert len(backups.made) == 3


async def test_moments_that_were_missed_are_made_up_for_once(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """Ten hours without any process."""
    await turn(make(spell))
    watch.go_on(hours=10, minutes=5)
    await turn(make(spell))
    await turn(make(spell))
    assert len(backups.made) == 1
    assert (await make(spell).status()).progress.missed == 9


async def test_if_the_log_no_longer_reaches_back_a_full_one_is_made(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """In the same turn: there must be a backup."""
    await turn(make(spell))
    watch.go_on(hours=1)
    await turn(make(spell))
    backups.fail = failing(BaseMissingError("backup-1", "trimmed"), INCREMENTAL)
    watch.go_on(hours=1)
    await turn(make(spell))
    assert backups.types == [FULL, FULL]
    assert (await make(spell).status()).progress.last_type == "full"


async def test_a_failure_is_tried_again_and_given_up_after_three_attempts(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """A minute apart; the next moment begins anew."""
    await turn(make(spell))
    backups.fail = failing(BROKEN)
    watch.go_on(hours=1)
    for attempts in (1, 2, 3):
        assert await turn(make(spell)) == watch.now + MINUTE
        assert backups.begun == attempts
        assert await turn(make(spell)) == watch.now + MINUTE, "not before its time"
        assert backups.begun == attempts
        watch.go_on(minutes=1)
    assert await turn(make(spell)) == START + 2 * HOUR
    progress = (await make(spell).status()).progress
    assert backups.begun == 3
    assert "given up after 3 attempts" in progress.last_error
    assert "503" in progress.last_error
    backups.fail = failing(BROKEN, INCREMENTAL)
    watch.go_on(hours=1)
    await turn(make(spell))
    progress = (await make(spell).status()).progress
    assert (backups.types, progress.last_error) == ([FULL], "")


async def test_pruning_that_fails_is_told_and_no_reason_to_back_up_again(
    spell: Spell, make: Make, watch: Watch, backups: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one removes it."""

    async def denied(_: RetentionPolicy) -> None:
        raise TargetError("s3://bucket", "x", "delete", "denied")

    monkeypatch.setattr(backups, "prune", denied)
    schedule = BackupSchedule("hourly", HOURLY.when, retention="last=5")
    await turn(make(spell, schedule))
    watch.go_on(hours=1)
    await turn(make(spell, schedule))
    await turn(make(spell, schedule))
    assert len(backups.made) == 1
    assert "denied" in (await make(spell, schedule).status()).progress.last_error


async def test_a_process_that_dies_while_it_backs_up_is_followed_by_another(
    spell: Spell, url: str, namespace: str, *, make: Make, watch: Watch, backups: Place
) -> None:
    """At most three times; then the moment is given up, and told."""
    await turn(make(spell))
    watch.go_on(hours=1)
    begun = asyncio.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    backups.meanwhile = forever
    for _ in range(3):
        begun.clear()
        async with connect(url, namespace=namespace) as other:
            dying = asyncio.create_task(turn(make(other)))
            await begun.wait()
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
    assert backups.begun == 3
    assert (await make(spell).status()).progress.pending == START + HOUR
    backups.meanwhile = None
    await turn(make(spell))
    progress = (await make(spell).status()).progress
    assert (backups.begun, progress.pending) == (3, None)
    assert "its process died" in progress.last_error


async def test_a_process_that_lost_the_lease_begins_nothing(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """The store itself refuses it, however sure it is of itself."""
    await turn(make(spell))
    watch.go_on(hours=1)
    name = "schedule-hourly"
    lease = await spell.leases.acquire(SCOPE, name=name, on_lost="event")
    await spell.leases.break_lease(SCOPE, name=name, reason="test")
    with pytest.raises(StaleFencingTokenError):
        await make(spell)._turn(lease)
    assert backups.begun == 0, "it was to be written before it began"
    await turn(make(spell))
    assert backups.begun == 1


async def test_a_process_that_loses_the_lease_in_between_writes_nothing_more(
    spell: Spell, url: str, namespace: str, *, make: Make, watch: Watch, backups: Place
) -> None:
    """Another one went on meanwhile."""
    await turn(make(spell))
    watch.go_on(hours=1)
    async with connect(url, namespace=namespace) as other:

        async def lose() -> None:
            backups.meanwhile = None
            await other.leases.break_lease(SCOPE, name="schedule-hourly", reason="test")
            await turn(make(other))

        backups.meanwhile = lose
        with pytest.raises((LeaseLostError, StaleFencingTokenError)):
            await turn(make(spell))
    progress = (await make(spell).status()).progress
    assert progress.runs == 1


async def test_it_runs_until_it_is_stopped(
    spell: Spell, make: Make, watch: Watch, backups: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that run one backs up; when that one stops the other does."""
    monkeypatch.setattr("llmspell_dist.backup.schedules.LOOK_EVERY_S", 0.01)
    stops = asyncio.Event(), asyncio.Event()
    await turn(make(spell))
    running = [asyncio.create_task(make(spell).run(stop)) for stop in stops]
    watch.go_on(hours=1)
    await until(lambda: len(backups.made) == 1)
    stops[0].set()
    await asyncio.wait(running, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    watch.go_on(hours=1)
    await until(lambda: len(backups.made) == 2)
    stops[1].set()
    await asyncio.gather(*running)


async def test_what_nobody_foresaw_ends_no_schedule(
    spell: Spell,
    *,
    make: Make,
    watch: Watch,
    backups: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure without a name of ours is logged, noted and tried again as any other."""
    monkeypatch.setattr("llmspell_dist.backup.schedules.LOOK_EVERY_S", 0.01)
    stop, served = asyncio.Event(), make(spell)
    await turn(served)
    running = asyncio.create_task(served.run(stop))
    backups.fail = failing(RuntimeError("redis://user:hunter2@host broke"))
    watch.go_on(hours=1)
    await until(lambda: backups.begun == 1)

    async def noted() -> bool:
        return (await served.status()).progress.last_error != ""

    await until(noted)
    assert (await served.status()).progress.last_error == "RuntimeError: redis://***@host broke"
    backups.fail = failing(BROKEN, INCREMENTAL)
    plain, broken = served._turn, asyncio.Event()

    async def fails_once(lease: Any) -> Any:
        served._turn = plain  # type: ignore[method-assign]
        broken.set()
        raise KeyError("x")

    served._turn = fails_once  # type: ignore[method-assign]
    await broken.wait()
    watch.go_on(minutes=2)
    await until(lambda: len(backups.made) == 1)
    stop.set()
    await running
    assert "KeyError" in caplog.text


async def test_it_ends_with_its_client(
    *,
    url: str,
    namespace: str,
    make: Make,
    watch: Watch,
    backups: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for it is told; a closed client is nothing that waiting heals."""
    monkeypatch.setattr("llmspell_dist.backup.schedules.LOOK_EVERY_S", 0.01)
    async with connect(url, namespace=namespace) as spell:
        await turn(make(spell))
        running = asyncio.create_task(make(spell).run(asyncio.Event()))
        watch.go_on(hours=1)
        await until(lambda: len(backups.made) == 1)
    with pytest.raises(ClosedError):
        async with asyncio.timeout(5):
            await running


async def test_a_stop_waits_for_the_backup_that_is_under_way(
    spell: Spell, make: Make, watch: Watch, backups: Place
) -> None:
    """Nothing is given up in the middle."""
    await turn(make(spell))
    watch.go_on(hours=1)
    stop = asyncio.Event()

    async def stopping() -> None:
        stop.set()
        await asyncio.sleep(0)

    backups.meanwhile = stopping
    await make(spell).run(stop)
    assert backups.types == [FULL]


async def test_once_does_what_is_due_unless_another_process_does(
    spell: Spell, url: str, namespace: str, *, make: Make, watch: Watch, backups: Place
) -> None:
    """For whoever is started now and then."""
    served = make(spell)
    assert (await served.once()).next == START + HOUR
    watch.go_on(hours=1)
    async with connect(url, namespace=namespace) as other:
        async with make(other)._holding():
            assert (await served.once()).progress.runs == 0
        assert (await served.once()).progress.runs == 1
    assert served.schedule is HOURLY


async def test_real_backups_by_a_schedule_are_pruned_and_verify(
    spell: Spell, watch: Watch, tmp_path: Path
) -> None:
    """From the state to the folder, full and incremental ones, and what is too old goes."""
    kept = spell.backups.to(f"file://{tmp_path}")
    schedule = BackupSchedule("hourly", HOURLY.when, full_every=2, retention="last=2")
    served = kept.on_schedule(schedule)
    served._time = ServerTime(spell._driver, watch)
    await served.once()
    for number in range(5):
        await spell.state.set("user:1", f"k{number}", number)
        watch.go_on(hours=1)
        status = await served.once()
        assert (status.progress.last_error, status.progress.runs) == ("", number + 1)
    listed = await kept.list()
    assert [one.type for one in listed] == [FULL, INCREMENTAL, FULL]
    assert {one.manifest.reason for one in listed} == {"schedule"}
    report = await kept.verify(level="full")
    assert report.ok, str(report)
    await kept.close()


async def test_everything_is_restored_while_a_schedule_and_the_archive_run(
    spell: Spell, watch: Watch, tmp_path: Path
) -> None:
    """Their leases and their state lie in a scope that is in no backup, and is never put back."""
    kept = spell.backups.to(f"file://{tmp_path}")
    served = kept.on_schedule(BackupSchedule("hourly", HOURLY.when))
    served._time = ServerTime(spell._driver, watch)
    await spell.state.set("agent:alice", "mood", "curious")
    await served.once()
    made = await kept.create()
    assert made.stats.scopes == 1
    watch.go_on(hours=1)
    await served.once()
    await spell.state.clear("agent:alice")
    progress = await spell.state.get(SCOPE, "schedule/hourly")
    async with spell.leases.acquire(SCOPE, name="archive"):
        assert [one.scope for one in (await kept.diff(at=made.id)).keys] == ["agent:alice"]
        report = await kept.restore(at=made.id)
        assert (report.scopes, report.emptied) == (1, ())
        assert await spell.state.get("agent:alice", "mood") == "curious"
        assert report.rollback is not None
        await kept.rollback(report.rollback)
    assert await spell.state.get("agent:alice", "mood") is None
    assert await spell.state.get(SCOPE, "schedule/hourly") == progress
    await kept.close()


def test_the_blocking_surface_runs_schedules_too(tmp_path: Path) -> None:
    """In the background, until an event of threads is set."""
    with blocking.connect("memory://") as client:
        kept = client.backups.to(f"file://{tmp_path}")
        served = kept.on_schedule(BackupSchedule("a", Every(timedelta(milliseconds=50))))
        served.once()
        stop = threading.Event()
        running = threading.Thread(target=served.run, args=(stop,))
        running.start()
        for _ in range(300):
            if kept.list():
                break
            stop.wait(0.05)
        stop.set()
        running.join(30)
        assert not running.is_alive()
        assert served.status().progress.runs >= 1
        kept.close()


# --- values


def test_the_type_of_a_backup_follows_from_those_that_there_are() -> None:
    """By count, or by the age of the last full one."""
    days = timedelta(days=1)
    weekly = BackupSchedule("a", Every(HOUR, start=START), full_every=7 * days)
    assert weekly.type_of([], START) is FULL
    taken = [(FULL, START), (INCREMENTAL, START + days)]
    assert weekly.type_of(taken, START + 6 * days) is INCREMENTAL
    assert weekly.type_of(taken, START + 7 * days) is FULL
    daily = BackupSchedule("a", Every(days, start=START), full_every=7 * days)
    for late in (timedelta(seconds=-1), timedelta(seconds=20), 3 * HOUR):  # by what clock it may be
        taken = [(FULL, START + days + late), (INCREMENTAL, START + 2 * days)]
        assert daily.type_of(taken, START + 7 * days) is INCREMENTAL
        assert daily.type_of(taken, START + 8 * days) is FULL
    always = BackupSchedule("a", Every(HOUR, start=START), full_every=1)
    assert always.type_of(taken, START) is FULL
    differential = BackupSchedule("a", Every(HOUR, start=START), 3, between="differential")
    assert differential.type_of([(FULL, START)], START) is BackupType.DIFFERENTIAL
    assert differential.type_of([(INCREMENTAL, START)], START) is FULL


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\n"},
        {"when": "whenever"},
        {"when": 3},
        {"full_every": 0},
        {"full_every": True},
        {"full_every": timedelta(0)},
        {"between": "full"},
        {"retention": "last"},
        {"retention": 3},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError):
        BackupSchedule(**{"name": "a", "when": "0 3 * * *", **wrong})


def test_a_schedule_prints_itself() -> None:
    """As the command line shows it."""
    made = BackupSchedule("nightly", "0 3 * * *", retention="last=7")
    assert made.when == Cron("0 3 * * *")
    assert "a full one every 7 backups, else incremental; keep the last 7" in str(made)


def test_progress_that_cannot_be_read_begins_anew() -> None:
    """Of a newer release, or damaged."""
    unreadable: list[Any] = [None, [], {"v": 99}, {"v": 1}, {"v": 1, "unknown": 3}]
    for data in unreadable:
        assert Progress.of(data, START) == Progress(START)
    kept = Progress(START + HOUR, runs=3)
    assert Progress.of(kept.as_data(), START) == kept
