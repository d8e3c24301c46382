"""Backups as one file: for its owner only, and nothing gets in by one that no backup needs."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmspell_dist.backup.errors import BackupDamagedError, BackupError
from llmspell_dist.backup.exporting import export_backup, import_backup
from llmspell_dist.backup.keys import KeyStore
from llmspell_dist.backup.manifest import BackupType, Manifest, ShardCut
from llmspell_dist.backup.names import Layout
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.unit, pytest.mark.backup]
KEYS = EnvironmentKeys("K", environ={"K": bytes(range(32)).hex()})
FIRST, SECOND = "20260131T120000Z-0a1b2c3d", "20260131T130000Z-0a1b2c3d"


def add(repository: Repository, backup_id: str, parent: str = "") -> None:
    """Store a backup."""
    stored = repository.begin()
    content = repository.pack_index({"inexact": [], "id": backup_id})
    manifest = Manifest(
        backup_id=backup_id,
        type=BackupType.INCREMENTAL if parent else BackupType.FULL,
        namespace="app",
        started="2026-01-31T12:00:00+00:00",
        created="2026-01-31T12:00:01+00:00",
        shards=(ShardCut("0", "", "5-6", "00" * 14),),
        objects=(repository.store("index", content, "", stored),),
        parent=parent,
        base=FIRST,
    )
    repository.publish(manifest, stored.key)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """A full backup, and one that goes on from it."""
    target = FolderTarget(tmp_path / "from")
    found = Repository(target, "app", keys=KEYS)
    add(found, FIRST)
    add(found, SECOND, FIRST)
    yield found
    target.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Repository]:
    """Where nothing is yet."""
    target = FolderTarget(tmp_path / "to")
    yield Repository(target, "app", keys=KEYS)
    target.close()


def test_it_comes_back_whole(repository: Repository, other: Repository, tmp_path: Path) -> None:
    """With its parent and the keys, and nobody but its owner may read the file."""
    path = tmp_path / "one.tar"
    path.write_text("an older one, that everybody may read")
    path.chmod(0o644)
    assert export_backup(repository, SECOND, path) == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert import_backup(other, path) == SECOND
    for backup_id in (FIRST, SECOND):
        manifest = other.manifest(backup_id)
        other.authenticate(manifest)
        assert other.index(manifest)["id"] == backup_id
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []


@pytest.mark.parametrize("where", ["", "missing/one.tar", "one.tar/more", "a\0b"])
def test_a_path_that_cannot_be_is_named(
    repository: Repository, other: Repository, tmp_path: Path, where: str
) -> None:
    """To write and to read."""
    (tmp_path / "one.tar").write_bytes(b"")
    for call in (
        lambda: export_backup(repository, FIRST, f"{tmp_path}/{where}"),
        lambda: import_backup(other, f"{tmp_path}/{where}"),
        lambda: export_backup(repository, FIRST, 5),  # type: ignore[arg-type]
        lambda: import_backup(other, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert caught.value.argument == "path"


def changed(path: Path, change: Callable[[str, bytes], Any]) -> None:
    """Write a file anew: each member as `change` returns it, which may be None or several."""
    out = io.BytesIO()
    with tarfile.open(path) as tar, tarfile.open(fileobj=out, mode="w") as new:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            for name, content in change(member.name, data):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    path.write_bytes(out.getvalue())


def foreign_key() -> tuple[str, bytes]:
    """Return a data key of the same provider that no backup uses."""
    kept: dict[str, bytes] = {}

    class Kept:
        label = "memory"

        def put(self, name: str, data: bytes, **_: Any) -> bool:
            kept[name] = data
            return True

    KeyStore(Kept(), Layout("app"), KEYS).new()  # type: ignore[arg-type]
    ((name, data),) = kept.items()
    return name.removeprefix("app/"), data


STRANGE: dict[str, Callable[[str, bytes], Any]] = {
    "junk for a key": lambda name, data: [(name, b"junk" if "keys/" in name else data)],
    "a deep key": lambda name, data: [(name, b"[" * 99_999 if "keys/" in name else data)],
    "a key under another name": lambda name, data: [
        (name.replace("environment", "aaa"), data) if "keys/" in name else (name, data)
    ],
    "a key more": lambda name, data: [
        (name, data),
        *([foreign_key()] if name.endswith("json") and "keys" not in name else []),
    ],
    "an object more": lambda name, data: [(name, data), ("objects/ab/" + "ab" * 32, b"x")],
    "a deep beginning": lambda name, data: [
        (name, b"[" * 99_999 if name.startswith("llmspell") else data)
    ],
    "something else": lambda name, data: [(name, data), ("archive/x", b"")],
    "a way out": lambda name, data: [(name, data), ("../x", b"")],
    "another object": lambda name, data: [(name, data + b"x" if "objects/" in name else data)],
    "no object": lambda name, data: [] if "objects/" in name else [(name, data)],
    "no parent": lambda name, data: [] if FIRST in name else [(name, data)],
    "no beginning": lambda name, data: [] if name.startswith("llmspell") else [(name, data)],
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_does_not_belong_is_refused(
    repository: Repository, other: Repository, tmp_path: Path, what: str
) -> None:
    """And named; the backup does not come to be, and no key is put that it does not need."""
    path = tmp_path / "one.tar"
    export_backup(repository, SECOND, path)
    changed(path, STRANGE[what])
    with pytest.raises(BackupDamagedError):
        import_backup(other, path)
    assert SECOND not in other.backup_ids()
    needed = {
        one.objects[0].key for one in (repository.manifest(FIRST), repository.manifest(SECOND))
    }
    there = [info.name for info in other.target.list(other.layout.keys)]
    assert {name.split("/")[2] for name in there} <= needed


def test_a_file_that_is_cut_off_or_wrong_is_damaged(
    repository: Repository, other: Repository, tmp_path: Path
) -> None:
    """Wherever it ends, and whichever byte is another one: an error of the library, or no harm."""
    path = tmp_path / "one.tar"
    export_backup(repository, SECOND, path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 1024 - 7):
        path.write_bytes(whole[:end])
        with suppress(BackupError):  # at the end there are zeros only
            import_backup(other, path)
    for at in range(0, len(whole), 211):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        with suppress(BackupError):
            import_backup(other, path)
    for manifest in other.manifests():
        other.authenticate(manifest)
        other.index(manifest)


def test_a_backup_that_goes_on_from_itself_is_damaged(
    repository: Repository, tmp_path: Path
) -> None:
    """Nobody goes round in circles."""
    circle = "20260131T140000Z-0a1b2c3d"
    add(repository, circle, circle)
    with pytest.raises(BackupDamagedError, match="from itself"):
        export_backup(repository, circle, tmp_path / "one.tar")
