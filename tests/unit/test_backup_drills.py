"""Results of drills: what somebody wrote who has no key proves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import DRILL as REPORT
from fix_backup_store import AwayKeys

from llmspell_dist.backup.claims import keys_in_use
from llmspell_dist.backup.drills import read_drills, write_drill
from llmspell_dist.backup.errors import (
    BackupKeyUnavailableError,
    ObjectMissingError,
    TargetError,
    TargetPermissionError,
)
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.unit, pytest.mark.backup]
KEYS = EnvironmentKeys("K", environ={"K": bytes(range(32)).hex()})


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FolderTarget]:
    """Where the backups are."""
    found = FolderTarget(tmp_path)
    yield found
    found.close()


def change(repository: Repository, drill_id: str = REPORT.id, **changes: Any) -> None:
    """Write a result anew, as somebody does who may write to the place."""
    facts = json.loads(repository.target.get(repository.layout.drill(REPORT.id))) | changes
    raw = json.dumps({name: value for name, value in facts.items() if value is not ...})
    repository.target.put(repository.layout.drill(drill_id), raw.encode())


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_result_is_read_as_it_was_written(target: FolderTarget, encrypted: bool) -> None:
    """With the key of the backup, and without one."""
    repository = Repository(target, "app", keys=KEYS if encrypted else None)
    key = repository.begin().key
    write_drill(repository, REPORT, "" if key is None else key.id)
    again = Repository(target, "app", keys=KEYS if encrypted else None)
    assert list(read_drills(again)) == [REPORT]


@pytest.mark.parametrize(
    "changes",
    [
        {"mismatches": 0},
        {"at": "2026-03-01T12:00:00+00:00"},
        {"mac": ...},
        {"mac": "00" * 32},
        {"mac": "ü"},
        {"mac": 5},
        {"key": "", "mac": ...},
        {"key": ..., "mac": ..., "mismatches": 0},
        {"key": "../x"},
        {"key": "ab" * 16},
        {"more": 1},
        {"format": 2},
        {"format": "1"},
        {"records": "many"},
        {"at": "yesterday"},
        {"drill_id": "20260301T120000Z-0a1b2c3d", "id": "20260301T120000Z-0a1b2c3d"},
    ],
    ids=repr,
)
def test_a_forged_result_proves_nothing(
    target: FolderTarget, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out, and the log names it."""
    repository = Repository(target, "app", keys=KEYS)
    key = repository.begin().key
    assert key is not None
    write_drill(repository, REPORT, key.id)
    wanted = [REPORT] if "drill_id" in changes else []
    change(repository, **changes)
    assert list(read_drills(repository)) == wanted
    assert "drills/" in caplog.text


def test_a_copied_result_is_not_another_one(target: FolderTarget) -> None:
    """An old proof under a new name."""
    repository = Repository(target, "app", keys=KEYS)
    key = repository.begin().key
    assert key is not None
    write_drill(repository, REPORT, key.id)
    change(repository, "20260301T120000Z-0a1b2c3d")
    assert list(read_drills(repository)) == [REPORT]


def test_the_key_of_a_result_is_in_use(target: FolderTarget) -> None:
    """Though its backup is pruned; what is no result keeps none, and harms nothing."""
    repository = Repository(target, "app", keys=KEYS)
    key = repository.begin().key
    assert key is not None
    write_drill(repository, REPORT, key.id)
    for number, raw in enumerate((b"{}", b"[" * 99_999, b'{"key": 5}')):
        target.put(repository.layout.drill(f"d{number}"), raw)
    assert keys_in_use(repository, {key.id, "ab" * 16}, []) == {key.id}


class Unreadable:
    """A target of which results of drills cannot be read."""

    def __init__(self, inner: FolderTarget, error: type[TargetError]) -> None:
        self.inner = inner
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get(self, name: str) -> bytes:
        if "/drills/" in name:
            raise self.error("test", name, "get", "500 InternalError", 4)
        return self.inner.get(name)


@pytest.mark.parametrize("error", [TargetError, TargetPermissionError])
def test_a_result_that_cannot_be_read_just_now_is_not_taken_for_none(
    target: FolderTarget, error: type[TargetError]
) -> None:
    """Neither by who asks what was proved, nor by who looks for keys without use."""
    repository = Repository(target, "app", keys=KEYS)
    key = repository.begin().key
    assert key is not None
    write_drill(repository, REPORT, key.id)
    repository = Repository(Unreadable(target, error), "app", keys=KEYS)
    with pytest.raises(error):
        list(read_drills(repository))
    with pytest.raises(error):
        keys_in_use(repository, {key.id}, [])


def test_a_result_that_is_removed_meanwhile_is_left_out(target: FolderTarget) -> None:
    """By gc in another process, between the list and the look."""
    target.put(Repository(target, "app").layout.drill(REPORT.id), b"{}")
    repository = Repository(Unreadable(target, ObjectMissingError), "app", keys=KEYS)
    assert list(read_drills(repository)) == []
    assert keys_in_use(repository, {"ab" * 16}, []) == set()


def test_a_key_that_cannot_be_had_just_now_is_not_taken_for_a_forged_result(
    target: FolderTarget,
) -> None:
    """Whether it proves anything is known when the provider of the key is there again."""
    repository = Repository(target, "app", keys=KEYS)
    key = repository.begin().key
    assert key is not None
    write_drill(repository, REPORT, key.id)
    keys = AwayKeys(KEYS)
    again = Repository(target, "app", keys=keys)
    with pytest.raises(BackupKeyUnavailableError):
        list(read_drills(again))
    keys.away = False
    assert list(read_drills(again)) == [REPORT]
