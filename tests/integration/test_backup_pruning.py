"""Pruning and gc over a folder and S3, interrupted at every call: nothing dangles, all restores."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import (
    DAY,
    DRILL,
    HOUR,
    NOW,
    Aged,
    Interrupted,
    Unread,
    backup_id,
    make_backup,
    names_in,
)
from fix_s3 import Place, Service

from llmspell_dist.backup.collecting import Collector
from llmspell_dist.backup.drills import read_drills, write_drill
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupInProgressError,
    BackupNeededError,
    BackupNotFoundError,
    TargetError,
)
from llmspell_dist.backup.inventory import made_at, read_inventory
from llmspell_dist.backup.names import SegmentName
from llmspell_dist.backup.pruning import Pruner
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.retention import Importance, RetentionPolicy
from llmspell_dist.backup.targets import Target
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.backup.verifying import Verifier
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]

LAST_TWO = RetentionPolicy.parse("last=2")
KEY = "ab" * 32


@pytest.fixture
def target(place: Place) -> Iterator[Target]:
    """An empty target of each row, whose objects are a month old."""
    opened = place.open()
    yield Aged(opened)
    opened.close()


@pytest.fixture
def repository(target: Target) -> Repository:
    """A repository in it."""
    return Repository(target, "test")


def pruner(repository: Repository, **more: Any) -> Pruner:
    """Return a pruner whose clock stands still."""
    return Pruner(repository, now=lambda: NOW, **more)


def collector(repository: Repository, **more: Any) -> Collector:
    """Return a collector whose clock stands still."""
    return Collector(repository, now=lambda: NOW, **more)


def prune(repository: Repository, policy: RetentionPolicy = LAST_TWO) -> Any:
    """Plan and apply."""
    one = pruner(repository)
    return one.apply(one.plan(policy))


def fill(repository: Repository) -> None:
    """Make backups: a chain, and full ones that share objects."""
    old = make_backup(repository, 9 * DAY, numbers=(1, 2))
    first = make_backup(repository, 8 * DAY, parent=old)
    make_backup(repository, 7 * DAY, parent=first)
    shared = make_backup(repository, 6 * DAY, known=old, numbers=(1, 3))
    shared = make_backup(repository, 5 * DAY, known=shared, numbers=(1, 3, 4))
    last = make_backup(repository, 4 * DAY, known=shared, numbers=(1, 4))
    make_backup(repository, 3 * DAY, parent=last)


def fill_few(repository: Repository) -> None:
    """Make less of the same."""
    old = make_backup(repository, 4 * DAY, numbers=(1, 2))
    make_backup(repository, 3 * DAY, parent=old)
    last = make_backup(repository, 2 * DAY, known=old, numbers=(1, 3))
    make_backup(repository, 1 * DAY, parent=last)


def listed_backups_are_whole(target: Target) -> set[str]:
    """Assert that whatever lists can be restored, as far as hashes and chains tell."""
    repository = Repository(target, "test")
    report = Verifier(repository).verify(level="hashes")
    assert report.ok, str(report)
    return set(report.backups)


def nothing_dangles(target: Target) -> None:
    """Assert that every object is named by a manifest."""
    repository = Repository(target, "test")
    named = {
        repository.layout.object(ref.digest)
        for manifest in repository.manifests()
        for ref in manifest.objects
    }
    assert set(names_in(target, repository.layout.objects)) == named
    keys = {ref.key for one in repository.manifests() for ref in one.objects} - {""}
    found = {name.split("/")[-2] for name in names_in(target, repository.layout.keys)}
    assert found == keys


# --- pruning


def test_what_is_locked_in_the_bucket_stays_until_its_lock_ends(radosgw: Service) -> None:
    """A removal would only hide it: the bytes stay, and cost. Segments of the archive too."""
    query = {"lock_mode": "GOVERNANCE", "lock_days": 30}
    place = replace(radosgw.place(ObjectLockEnabledForBucket=True), query=query)
    target, at = place.open(), datetime.now(UTC)
    repository = Repository(target, "test")
    ages = (3 * DAY, 2 * DAY, DAY)
    old, middle, last = (make_backup(repository, age) for age in ages)
    segment = SegmentName("0a1b2c3d", "0", Revision(1, 0), Revision(2, 0), "ab" * 32)
    target.put(repository.layout.segment(segment), b"x")

    def planned(days: int) -> Any:
        return Pruner(repository, now=lambda: at + days * DAY).plan(RetentionPolicy.parse("last=1"))

    plan = planned(0)
    assert (plan.goes, plan.segments) == ((), ())
    assert [one.because.startswith("locked until") for one in plan.decisions[1:]] == [True, True]
    assert Pruner(repository, now=lambda: at).apply(plan).backups == []
    with pytest.raises(BackupNeededError, match="locked until"):
        Pruner(repository, now=lambda: at).remove(middle.backup_id, confirm=True)
    later = planned(31)
    assert [one.id for one in later.goes] == [old.backup_id, middle.backup_id]
    assert [one.name for one in later.segments] == [repository.layout.segment(segment)]
    assert [one.id for one in later.stays] == [last.backup_id]
    target.close()


def test_what_a_policy_removes_is_gone_and_the_rest_is_whole(
    repository: Repository, target: Target
) -> None:
    """Objects that backups which stay share are not removed."""
    fill(repository)
    plan = pruner(repository).plan(LAST_TWO)
    before = sum(info.size for info in target.list(repository.layout.objects))
    report = pruner(repository).apply(plan)
    assert len(report.backups) == 5
    assert listed_backups_are_whole(target) == {backup_id(4 * DAY), backup_id(3 * DAY)}
    nothing_dangles(target)
    after = sum(info.size for info in target.list(repository.layout.objects))
    assert report.freed == plan.freed == before - after
    assert not report.left
    assert not pruner(repository).plan(LAST_TWO)
    assert "5 backups" in str(report)
    assert report.as_data()["freed_bytes"] == report.freed


def test_planning_removes_nothing(repository: Repository, target: Target) -> None:
    """Dry until it is applied."""
    fill(repository)
    before = names_in(target)
    assert pruner(repository).plan(LAST_TWO).goes
    assert names_in(target) == before


def test_a_backup_that_came_after_the_plan_keeps_what_it_needs(repository: Repository) -> None:
    """The plan said that its parent goes."""
    old = make_backup(repository, 9 * DAY)
    make_backup(repository, 2 * DAY)
    make_backup(repository, 1 * DAY, numbers=(7,))
    plan = pruner(repository).plan(LAST_TWO)
    assert [one.id for one in plan.goes] == [old.backup_id]
    new = make_backup(repository, HOUR, parent=old)
    assert pruner(repository).apply(plan).backups == []
    assert new.backup_id in listed_backups_are_whole(repository.target)


def test_no_more_goes_than_the_plan_said(repository: Repository) -> None:
    """A newer backup pushes another one out, but nobody agreed to that."""
    for days in (3, 2, 1):
        make_backup(repository, days * DAY, numbers=(days,))
    plan = pruner(repository).plan(LAST_TWO)
    make_backup(repository, HOUR, numbers=(9,))
    assert pruner(repository).apply(plan).backups == [backup_id(3 * DAY)]
    assert len(repository.backup_ids()) == 3


def test_while_a_backup_may_be_running_nothing_goes(repository: Repository, target: Target) -> None:
    """It may go on from a backup that is to go, and use its objects."""
    assert isinstance(target, Aged)
    fill(repository)
    make_backup(repository, HOUR, numbers=(50,), number=7, unpublished=True)
    running = backup_id(HOUR)
    repository.started(running, {})
    target.young.add(repository.layout.started(running))
    before = names_in(target)
    with pytest.raises(BackupInProgressError, match=running):
        prune(repository)
    assert collector(repository).collect(confirm=True).kept_back
    assert names_in(target) == before
    # Whoever knows better says that it is not running any more: it was killed.
    found = collector(repository, running=lambda _: False).collect(confirm=True)
    assert len(found.objects) == 3
    nothing_dangles(target)
    knowing = pruner(repository, running=lambda _: False)
    assert len(knowing.apply(knowing.plan(LAST_TWO)).backups) == 5
    listed_backups_are_whole(target)


def test_a_backup_that_begins_between_two_batches_stops_the_removal(
    repository: Repository, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may store one of the objects anew that are about to go."""
    assert isinstance(target, Aged)
    monkeypatch.setattr("llmspell_dist.backup.claims.BATCH", 2)
    fill(repository)
    removed: list[str] = []
    delete = target.delete
    running = backup_id(HOUR)

    def deleting(names: Any) -> None:
        delete(names)
        removed.extend(names)
        if any("/objects/" in name for name in names):
            repository.started(running, {})
            target.young.add(repository.layout.started(running))

    monkeypatch.setattr(target, "delete", deleting)
    report = prune(repository)
    assert running in report.left
    assert len([name for name in removed if "/objects/" in name]) == 2 == report.objects


def test_who_no_longer_holds_the_lease_removes_nothing_more(
    repository: Repository, target: Target
) -> None:
    """It is asked before every step."""
    fill(repository)
    plan = pruner(repository).plan(LAST_TWO)
    for held in range(0, 12, 3):
        left = held

        def holding() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise BackupInProgressError("pruning", "another")

        before = len(names_in(target))
        with suppress(BackupInProgressError):
            pruner(repository, holding=holding).apply(plan)
        if held == 0:
            assert len(names_in(target)) == before
        listed_backups_are_whole(target)


def test_a_damaged_manifest_stops_pruning_and_gc(repository: Repository, target: Target) -> None:
    """Nobody knows what it needs."""
    fill(repository)
    name = repository.layout.manifest(backup_id(6 * DAY))
    target.put(name, b"{}")
    before = names_in(target)
    for what in (lambda: prune(repository), lambda: collector(repository).collect(confirm=True)):
        with pytest.raises(BackupDamagedError, match="manifest"):
            what()
    assert names_in(target) == before


def test_the_marks_of_backups_reach_the_policy(repository: Repository) -> None:
    """Importance, tags by name and by value, pinned, filtered ones as a series of their own."""
    make_backup(repository, 9 * DAY, importance="critical")
    make_backup(repository, 8 * DAY, number=1, tags={"release": "1.2"})
    make_backup(repository, 7 * DAY, number=2, tags={"pinned": ""})
    make_backup(repository, 6 * DAY, number=3, filtered=True)
    make_backup(repository, 5 * DAY, number=4)
    make_backup(repository, 4 * DAY, number=5)
    found = {one.id: one for one in read_inventory(repository).backups}
    assert found[backup_id(9 * DAY)].importance is Importance.CRITICAL
    policy = RetentionPolicy.parse("last=1 importance=critical tag=release:1.2")
    stays = {one.id for one in pruner(repository).plan(policy).stays}
    assert stays == {
        backup_id(9 * DAY),
        backup_id(8 * DAY, 1),
        backup_id(7 * DAY, 2),
        backup_id(6 * DAY, 3),
        backup_id(4 * DAY, 5),
    }


def test_data_keys_go_with_the_last_that_they_encrypt(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: an object that is used again has the key of the backup that stored it."""
    monkeypatch.setenv("TEST_BACKUP_KEYS", f"1:{KEY}")
    repository = Repository(target, "test", keys=EnvironmentKeys("TEST_BACKUP_KEYS"))
    first = make_backup(repository, 4 * DAY)
    make_backup(repository, 3 * DAY, known=first, numbers=(1, 2))
    make_backup(repository, 2 * DAY, numbers=(3,))
    report = prune(repository)
    assert report.backups == [backup_id(4 * DAY)]
    assert report.keys == 0
    make_backup(repository, 1 * DAY, numbers=(4,))
    assert prune(repository).keys == 2
    nothing_dangles(target)
    verified = Verifier(Repository(target, "test", keys=EnvironmentKeys("TEST_BACKUP_KEYS")))
    assert verified.verify(level="full").ok


# --- one by its id


def test_one_backup_goes_by_its_id_with_what_only_it_uses(
    repository: Repository, target: Target
) -> None:
    """Also the newest, and a pinned one; what others share stays, and they are whole."""
    old = make_backup(repository, 3 * DAY, numbers=(1, 2))
    made = make_backup(repository, DAY, known=old, numbers=(1, 3), tags={"pinned": ""})
    one, before = pruner(repository), names_in(target, "")
    told = one.remove(made.backup_id)
    assert (told.removed, told.objects) == (False, 3)
    assert names_in(target, "") == before
    done = one.remove(made.backup_id, confirm=True)
    assert (done.removed, done.objects, done.freed) == (True, told.objects, told.freed)
    assert listed_backups_are_whole(target) == {old.backup_id}
    nothing_dangles(target)
    with pytest.raises(BackupNotFoundError):
        one.remove(made.backup_id, confirm=True)


def test_what_others_need_is_not_removed(repository: Repository, target: Target) -> None:
    """What goes on from it, the archive, a backup that may be running; nothing is touched."""
    full = make_backup(repository, 3 * DAY)
    child = make_backup(repository, 2 * DAY, parent=full)
    one = pruner(repository)
    with pytest.raises(BackupNeededError, match=f"{child.backup_id} goes on from it"):
        one.remove(full.backup_id, confirm=True)
    one.remove(child.backup_id, confirm=True)
    segment = SegmentName("0a1b2c3d", "0", Revision(1, 0), Revision(2, 0), "ab" * 32)
    target.put(repository.layout.segment(segment), b"x")
    with pytest.raises(BackupNeededError, match="archive goes on from it alone"):
        one.remove(full.backup_id)
    another = make_backup(repository, DAY)
    assert isinstance(target, Aged)
    target.young.add(repository.layout.started(backup_id(HOUR)))
    repository.started(backup_id(HOUR), {})
    with pytest.raises(BackupInProgressError):
        one.remove(full.backup_id, confirm=True)
    assert repository.backup_ids() == [full.backup_id, another.backup_id]


def test_a_damaged_manifest_is_removed_and_no_longer_in_the_way(
    repository: Repository, target: Target
) -> None:
    """Its objects are garbage then; what goes on from it is still looked for."""
    damaged = make_backup(repository, 3 * DAY, numbers=(1, 2))
    child = make_backup(repository, 2 * DAY, parent=damaged)
    kept = make_backup(repository, DAY, numbers=(3,))
    target.put(repository.layout.manifest(damaged.backup_id), b"{}")
    one = pruner(repository)
    with pytest.raises(BackupDamagedError):
        one.plan(LAST_TWO)
    with pytest.raises(BackupNeededError):
        one.remove(damaged.backup_id, confirm=True)
    with pytest.raises(BackupDamagedError):  # nobody knows which objects it shares
        one.remove(child.backup_id, confirm=True)
    target.delete([repository.layout.manifest(child.backup_id)])
    done = one.remove(damaged.backup_id, confirm=True)
    assert (done.removed, done.objects) == (True, 0)
    assert repository.layout.manifest(damaged.backup_id) in done.left
    collector(repository).collect(confirm=True)
    assert listed_backups_are_whole(target) == {kept.backup_id}
    nothing_dangles(target)


def test_a_removal_interrupted_at_any_call_leaves_whole_backups(tmp_path: Path) -> None:
    """And nothing that gc does not find."""
    folders = (FolderTarget(tmp_path / str(n)) for n in count())
    rest = {backup_id(4 * DAY), backup_id(3 * DAY), backup_id(2 * DAY)}

    def make_target() -> Target:
        opened = next(folders)
        fill_few(Repository(opened, "test"))
        return opened

    def remove(repository: Repository) -> None:
        pruner(repository).remove(backup_id(DAY), confirm=True)

    def afterwards(target: Target, _: Exception | None) -> None:
        assert listed_backups_are_whole(target) >= rest
        repository = Repository(target, "test")
        with suppress(BackupNotFoundError):
            remove(repository)
        collector(repository).collect(confirm=True)
        assert listed_backups_are_whole(target) == rest
        nothing_dangles(target)
        target.close()

    assert interrupted_at_every_call(make_target, remove, afterwards) > 10


# --- interruptions


def interrupted_at_every_call(
    make_target: Callable[[], Target],
    what: Callable[[Repository], Any],
    afterwards: Callable[[Target, Exception | None], None],
    *,
    step: int = 1,
) -> int:
    """Do something that fails at the nth call, for every n until it does not; how many that is."""
    calls = 0
    while True:
        inner = make_target()
        target = Interrupted(inner, calls)
        failure: Exception | None = None
        try:
            what(Repository(target, "test"))
        except TargetError as error:
            failure = error
        afterwards(Aged(inner), failure)
        if not target.failed:
            return calls
        assert failure is not None, "an interruption was swallowed"
        calls += step


def interrupt_pruning(make_place: Callable[[], Target], step: int) -> int:
    """Interrupt pruning at every nth call, and look each time what is left."""

    def make_target() -> Target:
        opened = make_place()
        fill_few(Repository(opened, "test"))
        return opened

    def afterwards(target: Target, _: Exception | None) -> None:
        kept = {backup_id(2 * DAY), backup_id(1 * DAY)}
        assert listed_backups_are_whole(target) >= kept
        repository = Repository(target, "test")
        prune(repository)
        collector(repository).collect(confirm=True)
        assert listed_backups_are_whole(target) == kept
        nothing_dangles(target)
        target.close()

    return interrupted_at_every_call(make_target, prune, afterwards, step=step)


def test_pruning_interrupted_at_any_call_leaves_no_backup_that_does_not_restore(
    tmp_path: Path,
) -> None:
    """And nothing that gc does not find; pruning again ends where it should."""
    folders = (FolderTarget(tmp_path / str(n)) for n in count())
    assert interrupt_pruning(lambda: next(folders), step=1) > 20


@pytest.mark.slow
def test_the_same_on_s3(moto: Service) -> None:
    """With a bucket for each interruption."""
    assert interrupt_pruning(lambda: moto.place().open(), step=1) > 20


def test_gc_interrupted_at_any_call_does_no_harm(tmp_path: Path) -> None:
    """Doing it again removes the rest."""
    folders = (FolderTarget(tmp_path / str(n)) for n in count())

    def make_target() -> Target:
        opened = next(folders)
        repository = Repository(opened, "test")
        fill_few(repository)
        for n in range(2):
            make_backup(repository, HOUR, numbers=(50 + n,), number=n, unpublished=True)
        repository.started(backup_id(HOUR), {})
        return opened

    def afterwards(target: Target, _: Exception | None) -> None:
        assert len(listed_backups_are_whole(target)) == 4
        found = collector(Repository(target, "test")).collect(confirm=True)
        assert found.removed == len(found)
        nothing_dangles(target)
        assert not collector(Repository(target, "test")).collect()

    def what(repository: Repository) -> None:
        collector(repository).collect(confirm=True)

    assert interrupted_at_every_call(make_target, what, afterwards) > 10


_KILLED = """
import os, sys
sys.path[:] = sys.argv[3:]
from fix_backup_store import NOW, Aged
from llmspell_dist.backup.pruning import Pruner
from llmspell_dist.backup.names import SegmentName
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.retention import RetentionPolicy
from llmspell_dist.backup.targets.folder import FolderTarget

left = int(sys.argv[2])

class Mortal(FolderTarget):
    def _remove_empty(self, parents):  # between an object and the next
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        super()._remove_empty(parents)

repository = Repository(Aged(Mortal(sys.argv[1])), "test")
pruner = Pruner(repository, now=lambda: NOW)
pruner.apply(pruner.plan(RetentionPolicy.parse("last=2")))
"""


def kill_pruning(folder: Path, removals: int) -> bool:
    """Kill a process that prunes after some removals, and look; False if it ended before."""
    target = FolderTarget(folder)
    fill(Repository(target, "test"))
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), str(removals), *sys.path],
        check=False,
        timeout=60,
    )
    assert done.returncode in {0, -signal.SIGKILL}
    aged = Aged(target)
    listed_backups_are_whole(aged)
    repository = Repository(aged, "test")
    prune(repository)
    collector(repository).collect(confirm=True)
    assert listed_backups_are_whole(aged) == {backup_id(4 * DAY), backup_id(3 * DAY)}
    nothing_dangles(aged)
    return done.returncode != 0


@pytest.mark.parametrize("removals", [1, 6])
def test_killed_while_pruning_nothing_is_half_there(tmp_path: Path, removals: int) -> None:
    """A process that gets SIGKILL between two removals."""
    assert kill_pruning(tmp_path, removals)


@pytest.mark.slow
def test_killed_at_every_removal_nothing_is_half_there(tmp_path: Path) -> None:
    """Until it ends by itself."""
    killed = 0
    while kill_pruning(tmp_path / str(killed), killed):
        killed += 1
    assert killed > 10


# --- gc


def test_gc_shows_before_it_removes(repository: Repository, target: Target) -> None:
    """Without confirm nothing changes."""
    fill(repository)
    make_backup(repository, HOUR, numbers=(8, 9), unpublished=True)
    repository.started(backup_id(HOUR), {})
    before = names_in(target)
    found = collector(repository).collect()
    assert len(found.objects) == 4
    assert [info.name for info in found.notes] == [repository.layout.started(backup_id(HOUR))]
    assert found.size > 0
    assert found.removed == 0
    assert names_in(target) == before
    assert "4 objects" in str(found)
    done = collector(repository).collect(confirm=True)
    assert done.as_data()["removed"] == 5
    nothing_dangles(target)
    assert len(listed_backups_are_whole(target)) == 7


def test_gc_leaves_what_is_young(repository: Repository, target: Target) -> None:
    """A backup whose note was lost may be about to name it."""
    assert isinstance(target, Aged)
    make_backup(repository, HOUR, unpublished=True)
    target.ago = timedelta(hours=23)
    assert not collector(repository).collect()
    assert collector(repository).collect(grace=timedelta(hours=22))
    with pytest.raises(InvalidArgumentError):
        collector(repository).collect(grace=timedelta(0))


def test_gc_leaves_names_that_it_does_not_know(repository: Repository, target: Target) -> None:
    """Of other namespaces, and of other programs."""
    other = Repository(target, "other")
    make_backup(other, DAY)
    make_backup(other, HOUR, unpublished=True)
    layout = repository.layout
    for name in (f"{layout.objects}ab/readme", f"{layout.backups}notes.txt", "test/else/x"):
        target.put(name, b"x")
    before = names_in(target)
    assert not collector(repository).collect(confirm=True)
    assert names_in(target) == before


def test_gc_removes_old_drills_but_never_the_newest(repository: Repository, target: Target) -> None:
    """The age of the last proved restore must stay known."""
    assert isinstance(target, Aged)
    target.ago = 400 * DAY
    layout = repository.layout
    for number in range(3):
        target.put(layout.drill(f"d{number}"), b"{}")
    assert collector(repository).collect().drills == []
    target.young.add(layout.drill("d2"))
    collector(repository).collect(confirm=True)
    assert names_in(target, layout.drills) == [layout.drill("d2")]


@pytest.mark.parametrize("how", ["gc", "prune"])
def test_a_key_stays_while_a_result_that_may_need_it_cannot_be_read(
    target: Target, how: str
) -> None:
    """It would be gone for good, and with it the proof; later it is known that it is needed."""
    keys = EnvironmentKeys("K", environ={"K": KEY})
    repository = Repository(target, "test", keys=keys)
    old = make_backup(repository, 9 * DAY)
    report = replace(DRILL, id=old.backup_id, backup=old.backup_id)
    write_drill(repository, report, old.key)
    make_backup(repository, DAY)
    if how == "gc":
        target.delete([repository.layout.manifest(old.backup_id)])
    wrappings = names_in(target, repository.layout.keys)
    away = Repository(Unread(target, lambda name: "/drills/" in name), "test", keys=keys)
    remove = {
        "gc": lambda: collector(away).collect(confirm=True),
        "prune": lambda: prune(away, RetentionPolicy.parse("last=1")),
    }
    before = names_in(target, "")
    with pytest.raises(TargetError):
        remove[how]()
    assert names_in(target, repository.layout.keys) == wrappings
    if how == "prune":  # nothing was begun
        assert names_in(target, "") == before
    collector(repository).collect(confirm=True)
    assert names_in(target, repository.layout.keys) == wrappings
    again = Repository(target, "test", keys=keys)
    assert list(read_drills(again)) == [report]


def test_gc_ends_uploads_that_nobody_completes(s3_place: Place) -> None:
    """S3 keeps and charges their parts for ever; moto says of each that it is very old."""
    opened = s3_place.open()
    assert s3_place.service is not None
    client = s3_place.service.client()
    client.create_multipart_upload(Bucket=s3_place.bucket, Key="some/prefix/test/objects/ab/x")
    repository = Repository(opened, "test")
    assert Collector(repository).collect().unfinished == ["test/objects/ab/x"]
    assert client.list_multipart_uploads(Bucket=s3_place.bucket).get("Uploads")
    assert Collector(repository).collect(confirm=True).removed == 1
    assert not client.list_multipart_uploads(Bucket=s3_place.bucket).get("Uploads")
    client.close()
    opened.close()


def test_what_goes_on_from_a_backup_is_newer_whatever_its_clock_said(target: Target) -> None:
    """Of a chain over processes whose clocks differ the last one is the newest, and stays."""
    repository = Repository(target, "test")
    full = make_backup(repository, HOUR)
    first = make_backup(repository, 3 * HOUR, parent=full)
    last = make_backup(repository, 2 * HOUR, parent=first)
    plan = Pruner(repository, now=lambda: NOW).plan(RetentionPolicy.parse("last=1"))
    assert [one.id for one in plan.stays] == [one.backup_id for one in (last, first, full)]
    assert not plan.goes
    made = made_at([last, first, full])
    assert full.created_at == made[full.backup_id]
    assert made[full.backup_id] < made[first.backup_id] < made[last.backup_id]


def test_gc_keeps_the_keys_of_the_archive(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """No manifest names them; the segments' headers do."""
    from fix_backup_store import at_ago, entry

    from llmspell_dist.backup.compression import Compression
    from llmspell_dist.backup.container import ObjectKind, seal
    from llmspell_dist.backup.names import SegmentName

    monkeypatch.setenv("TEST_BACKUP_KEYS", f"1:{KEY}")
    repository = Repository(target, "test", keys=EnvironmentKeys("TEST_BACKUP_KEYS"))
    used, unused = repository.keystore.new(), repository.keystore.new()
    assert used is not None
    assert unused is not None
    zstd = Compression.parse("zstd")
    sealed = seal(ObjectKind.SEGMENT, entry(at_ago(DAY), None), compression=zstd, key=used)
    segment = SegmentName("00000001", "0", at_ago(2 * DAY), at_ago(DAY), sealed.name)
    target.put(repository.layout.segment(segment), sealed.data)
    found = collector(repository).collect(confirm=True)
    assert [info.name.split("/")[-2] for info in found.keys] == [unused.id]
    assert [name.split("/")[-2] for name in names_in(target, repository.layout.keys)] == [used.id]
    assert isinstance(target, Aged)
    target.ago = timedelta(days=3)
    repository.keystore.new()
    assert not collector(repository).collect(), "a key of this week may not have been used yet"
