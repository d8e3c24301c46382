"""Verifying: every kind of damage is found and named, at the level that can see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import DAY, HOUR, NOW, at_ago, backup_id, contents, entry, make_backup
from fix_s3 import Place as Somewhere

from llmspell_dist.backup.archive.header import SegmentHeader
from llmspell_dist.backup.archive.position import Place
from llmspell_dist.backup.archive.timelines import Timeline
from llmspell_dist.backup.compression import Compression
from llmspell_dist.backup.container import ObjectKind, seal
from llmspell_dist.backup.errors import BackupNotFoundError, TargetError
from llmspell_dist.backup.findings import Level, VerifyReport
from llmspell_dist.backup.items import pack_scope
from llmspell_dist.backup.manifest import Manifest
from llmspell_dist.backup.names import SegmentName
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets import Target
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.backup.verifying import Verifier
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]

KEY = "ab" * 32
ZSTD = Compression.parse("zstd")


@pytest.fixture
def target(place: Somewhere) -> Iterator[Target]:
    """An empty target of each row."""
    opened: Target = place.open()
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> FolderTarget:
    """A folder, for what is the same everywhere."""
    return FolderTarget(tmp_path)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> EnvironmentKeys:
    """A provider of keys."""
    monkeypatch.setenv("TEST_BACKUP_KEYS", f"1:{KEY}")
    return EnvironmentKeys("TEST_BACKUP_KEYS")


def verify(target: Target, level: str = "full", **more: Any) -> VerifyReport:
    """Verify everything with a repository that remembers nothing."""
    keys = more.pop("keys", None)
    return Verifier(Repository(target, "test", keys=keys)).verify(level=level, **more)


def found(report: VerifyReport) -> list[tuple[str, str]]:
    """Return object and reason of each finding."""
    return [(one.name, one.reason) for one in report.findings]


def chain(repository: Repository) -> list[Manifest]:
    """Make a full backup, two that go on from it, and another full one that shares objects."""
    full = make_backup(repository, 4 * DAY)
    first = make_backup(repository, 3 * DAY, parent=full)
    second = make_backup(repository, 2 * DAY, parent=first)
    return [full, first, second, make_backup(repository, 1 * DAY, known=full, numbers=(1, 3))]


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("encrypted", [False, True])
def test_what_is_whole_is_found_whole(
    target: Target, provider: EnvironmentKeys, level: Level, *, encrypted: bool
) -> None:
    """At every level; the first two need no key."""
    chain(Repository(target, "test", keys=provider if encrypted else None))
    needed = provider if encrypted and level is Level.FULL else None
    report = verify(target, level, keys=needed)
    assert report.ok, str(report)
    assert len(report.backups) == 4
    assert report.objects == 12
    assert report.read == {Level.STRUCTURE: 0}.get(level, 11)  # one is shared
    assert report.as_data()["ok"] is True
    assert "nothing is wrong" in str(report)


def test_every_byte_that_is_flipped_is_found(folder: FolderTarget) -> None:
    """In every object, by its hash, without a key."""
    repository = Repository(folder, "test")
    manifest = make_backup(repository, DAY)
    for ref in manifest.objects:
        name = repository.layout.object(ref.digest)
        data = folder.get(name)
        for at in range(0, len(data), 7):
            folder.put(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert [one.name for one in verify(folder, "hashes").findings] == [name]
        folder.put(name, data)
    assert verify(folder, "hashes").ok


def test_every_byte_of_a_manifest_that_is_flipped_is_found(folder: FolderTarget) -> None:
    """And of one that is cut off."""
    repository = Repository(folder, "test")
    name = repository.layout.manifest(make_backup(repository, DAY).backup_id)
    data = folder.get(name)
    for at in range(0, len(data), 5):
        folder.put(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        report = verify(folder, "structure")
        # White space between fields may become another kind of it.
        assert report.findings or data[at] in b" \n", at
        assert {one.name for one in report.findings} <= {name}
    folder.put(name, data[:-10])
    assert [one.name for one in verify(folder, "structure").findings] == [name]


def test_what_is_missing_cut_off_or_swapped_is_named(target: Target) -> None:
    """With the backups that need it; and it goes on after the first."""
    repository = Repository(target, "test")
    full, first, _, last = chain(repository)
    layout = repository.layout
    shared = next(one for one in full.objects if one in last.objects)
    target.delete([layout.object(shared.digest)])
    cut = layout.object(first.objects_of("segment")[0].digest)
    target.put(cut, target.get(cut)[:-1])
    one, other = (
        layout.object(manifest.objects_of("index")[0].digest) for manifest in (full, first)
    )
    data = target.get(one), target.get(other)
    target.put(one, data[1])
    target.put(other, data[0])
    report = verify(target, "hashes")
    assert report.bad == {full.backup_id, first.backup_id, last.backup_id}
    reasons = found(report)
    missing = layout.object(shared.digest), "it is not there"
    assert reasons.count(missing) == 2
    assert any(name == cut and "bytes, must have" in reason for name, reason in reasons)
    assert {one, other} <= {name for name, _ in reasons}


def test_a_missing_parent_and_a_missing_full_backup_are_named(folder: FolderTarget) -> None:
    """Whoever needs them."""
    repository = Repository(folder, "test")
    full, first, second, _ = chain(repository)
    folder.delete([repository.layout.manifest(first.backup_id)])
    report = verify(folder, "structure")
    name = repository.layout.manifest(second.backup_id)
    assert found(report) == [(name, f"backup {first.backup_id}, which it needs, is missing")]
    folder.delete([repository.layout.manifest(full.backup_id)])
    assert len(verify(folder, "structure").findings) == 2


def test_a_gap_between_a_backup_and_its_parent_is_named(folder: FolderTarget) -> None:
    """The log in between is nowhere."""
    repository = Repository(folder, "test")
    full = make_backup(repository, 4 * DAY)
    later = make_backup(repository, 3 * DAY, unpublished=True)
    claimed = Manifest(
        **{
            **{name: getattr(later, name) for name in Manifest.__dataclass_fields__},
            "backup_id": backup_id(2 * DAY),
            "parent": full.backup_id,
            "base": full.backup_id,
        }
    )
    repository.publish(claimed, None)
    (finding,) = verify(folder, "structure").findings
    assert f"the log of shard 0 from {at_ago(4 * DAY)} to" in finding.reason


def test_one_backup_is_verified_with_what_it_needs(folder: FolderTarget) -> None:
    """And nothing else; one that does not exist is an error."""
    repository = Repository(folder, "test")
    full, first, second, last = chain(repository)
    only = last.objects_of("records")[-1]
    folder.delete([repository.layout.object(only.digest)])
    report = verify(folder, "full", backup_id=second.backup_id)
    assert report.ok
    assert report.backups == [one.backup_id for one in (full, first, second)]
    assert not verify(folder, "structure", backup_id=last.backup_id).ok
    with pytest.raises(BackupNotFoundError):
        verify(folder, backup_id=backup_id(100 * DAY))


# --- what only a full look sees


def forged(repository: Repository, kind: str, plain: bytes, **stats: int) -> Manifest:
    """Make a backup of which one object holds something else, all hashes being right."""
    stored = repository.begin()
    refs = [repository.store(kind, plain, "0", stored)]
    facts: dict[str, Any] = {"digests": {}, "selection": {}, "inexact": []}
    refs.append(repository.store("index", repository.pack_index(facts), "", stored))
    template = make_backup(repository, HOUR, unpublished=True)
    values = {name: getattr(template, name) for name in Manifest.__dataclass_fields__}
    values["stats"] = type(template.stats)(**stats)
    manifest = Manifest(**{**values, "objects": tuple(refs)})
    repository.publish(manifest, stored.key)
    return manifest


@pytest.mark.parametrize(
    ("kind", "plain", "stats", "reason"),
    [
        ("records", contents(1), {"records": 4}, "it has 3 records, must have 4"),
        ("records", contents(1)[:-1], {"records": 3}, "its items are damaged"),
        ("records", pack_scope(b"user:1") + b"?", {}, "unknown tag"),
        ("records", contents(1)[9:], {"records": 3}, "before any scope"),
        ("records", pack_scope(b"user:1") + b"R\0\x01\0\0\0\x02ab!", {"records": 1}, "user:1"),
        ("segment", entry(at_ago(HOUR), at_ago(HOUR * 2)), {"entries": 2}, "must have 2"),
        ("segment", entry(at_ago(HOUR / 2), None), {"entries": 1}, "later than its end"),
        ("segment", entry(at_ago(HOUR * 3), None), {"entries": 1}, "stands behind"),
        (
            "segment",
            entry(at_ago(HOUR), at_ago(HOUR + HOUR / 100)),
            {"entries": 1},
            f"entry {at_ago(HOUR + HOUR / 100)} of the log is missing (user:1 had it)",
        ),
    ],
)
def test_contents_that_are_not_what_was_promised_are_found(
    folder: FolderTarget, kind: str, plain: bytes, stats: dict[str, int], reason: str
) -> None:
    """Hashes cannot tell that."""
    forged(Repository(folder, "test"), kind, plain, **stats)
    assert verify(folder, "hashes").ok
    report = verify(folder, "full")
    assert any(reason in finding.reason for finding in report.findings), str(report)


def test_an_entry_that_is_missing_in_the_middle_is_named(folder: FolderTarget) -> None:
    """The next change of its scope says which one was before it."""
    moments = [at_ago(HOUR + HOUR * n / 1000) for n in range(5, 0, -1)]
    items = [entry(one, before) for before, one in zip([None, *moments], moments, strict=False)]
    repository = Repository(folder, "test")
    forged(repository, "segment", b"".join(items), entries=5)
    assert verify(folder, "full").ok
    folder.delete([repository.layout.manifest(backup_id(HOUR))])
    forged(repository, "segment", b"".join(items[:2] + items[3:]), entries=4)
    (finding,) = verify(folder, "full").findings
    assert finding.reason == f"entry {moments[2]} of the log is missing (user:1 had it)"


def test_without_the_key_it_is_said_which_one_is_missing(
    folder: FolderTarget, provider: EnvironmentKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong key, no provider, wrapped key gone: a finding each, and it goes on."""
    manifest = make_backup(Repository(folder, "test", keys=provider), DAY)
    none = verify(folder, "full")
    assert none.findings
    assert all(manifest.key in one.reason for one in none.findings)
    monkeypatch.setenv("TEST_BACKUP_KEYS", f"1:{'cd' * 32}")
    wrong = verify(folder, "full", keys=EnvironmentKeys("TEST_BACKUP_KEYS"))
    assert wrong.findings
    assert "cd" * 32 not in str(wrong)
    repository = Repository(folder, "test")
    folder.delete([info.name for info in folder.list(repository.layout.keys)])
    gone = verify(folder, "structure")
    assert found(gone) == [
        (repository.layout.manifest(manifest.backup_id), f"data key {manifest.key} is not there")
    ]


def test_a_manifest_that_somebody_without_the_key_wrote_is_found(
    folder: FolderTarget, provider: EnvironmentKeys
) -> None:
    """Its digest is right, as anyone can compute that."""
    repository = Repository(folder, "test", keys=provider)
    manifest = make_backup(repository, DAY)
    name = repository.layout.manifest(manifest.backup_id)
    folder.put(name, manifest.packed(b"another key"))
    assert verify(folder, "hashes").ok
    report = verify(folder, "full", keys=provider)
    assert [one.name for one in report.findings] == [name]


# --- sampling


def test_a_sample_reads_a_part_and_the_same_one_for_the_same_seed(folder: FolderTarget) -> None:
    """Indexes are always read; structure is always looked at whole."""
    repository = Repository(folder, "test")
    manifest = make_backup(repository, DAY, numbers=range(40))
    bad = [repository.layout.object(one.digest) for one in manifest.objects_of("records")]
    for name in bad:
        data = folder.get(name)
        folder.put(name, data[:-1] + bytes([data[-1] ^ 1]))

    def names(seed: int) -> list[str]:
        report = verify(folder, "hashes", sample=0.3, seed=seed)
        assert 1 <= report.read < 30
        return [one.name for one in report.findings]

    assert names(1) == names(1) != names(2)
    assert len({name for seed in range(25) for name in names(seed)}) == len(bad)
    for wrong in (0, 1.1, -1, "1", True):
        with pytest.raises(InvalidArgumentError):
            verify(folder, sample=wrong)
    with pytest.raises(InvalidArgumentError, match="structure, hashes, full"):
        verify(folder, "everything")


def test_a_sample_finds_no_gaps_that_are_not_there(folder: FolderTarget) -> None:
    """What was not read is not missing."""
    repository = Repository(folder, "test")
    for number in range(6):
        make_backup(repository, DAY, number=number)
    for seed in range(10):
        assert verify(folder, "full", sample=0.5, seed=seed).ok


# --- the archive


def archived(
    target: Target, *edges: int, broken: int | None = None, parts: tuple[str, ...] = ()
) -> list[str]:
    """Put segments between hours ago, each with one entry; of the broken one a byte is flipped."""
    repository = Repository(target, "test")
    names = []
    for number, (since, until) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        # Each entry says that the scope was changed at the end of the segment before.
        first, last = at_ago(since * HOUR), at_ago(until * HOUR)
        header = SegmentHeader("0000000a", "0", first, Place(last, b""), "", None, 0, parts, 0, 1)
        plain = header.packed() + entry(last, first)
        sealed = seal(ObjectKind.SEGMENT, plain, compression=ZSTD, key=None)
        name = repository.layout.segment(SegmentName("0000000a", "0", first, last, sealed.name))
        data = sealed.data
        if number == broken:
            data = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        target.put(name, data)
        names.append(name)
    note = Timeline(id="0000000a", opened=NOW.isoformat(), reason="first")
    target.put(repository.layout.timeline("0000000a"), note.packed())
    return names


def test_an_archive_without_gaps_is_whole(target: Target) -> None:
    """Overlapping segments are no gap: two shippers may have sent them."""
    archived(target, 9, 8, 8, 7, 8, 6, 6, 5)
    report = verify(target, "full")
    assert report.ok, str(report)
    assert report.segments == report.read == 4


def test_a_gap_in_the_archive_is_named(target: Target) -> None:
    """By the names already; the entries tell it too."""
    names = archived(target, 9, 8, 7, 6)
    (finding,) = verify(target, "structure").findings
    assert finding.name == names[1]
    assert finding.backup_id == ""
    gap = f"the log from {at_ago(8 * HOUR)} to {at_ago(7 * HOUR)} is missing"
    assert finding.reason == f"{gap} in timeline 0000000a, shard 0"
    report = verify(target, "full")
    assert any("of the log is missing (user:1 had it)" in one.reason for one in report.findings)


def test_a_segment_that_says_something_else_about_itself_is_named(folder: FolderTarget) -> None:
    """Under another name, or with a part that is gone."""
    (name,) = archived(folder, 9, 8, parts=("ab" * 32,))
    (finding,) = verify(folder, "full").findings
    assert finding.reason == f"{'ab' * 32}, which holds more of it, is missing"
    folder.put(name.replace("0000000a", "0000000b"), folder.get(name))
    reasons = {one.reason for one in verify(folder, "full").findings}
    assert "its name is not the one that it was stored under" in reasons


def test_a_damaged_segment_and_note_of_the_archive_are_named(folder: FolderTarget) -> None:
    """And one damaged segment makes no gap of it."""
    names = archived(folder, 9, 8, 8, 7, 7, 6, broken=1)
    repository = Repository(folder, "test")
    folder.put(repository.layout.timeline("0000000a"), b"{")
    report = verify(folder, "full")
    assert [one.name for one in report.findings] == [
        repository.layout.timeline("0000000a"),
        names[1],
    ]


# --- the place


def test_an_object_that_cannot_be_read_is_a_finding_and_it_goes_on(
    folder: FolderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call is denied."""
    repository = Repository(folder, "test")
    manifest = make_backup(repository, DAY)
    name = repository.layout.object(manifest.objects[0].digest)
    get: Callable[[str], bytes] = folder.get

    def denied(asked: str) -> bytes:
        if asked == name:
            raise TargetError("the folder", name, "get", "denied")
        return get(asked)

    monkeypatch.setattr(folder, "get", denied)
    report = verify(folder, "hashes")
    assert [one.name for one in report.findings] == [name]
    assert "denied" in report.findings[0].reason
    assert report.read == len(manifest.objects) - 1
