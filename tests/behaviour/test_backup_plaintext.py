"""Where backups are encrypted nothing is stored in plaintext because somebody forgot the keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmspell_dist import Spell, blocking
from llmspell_dist.backup.errors import BackupKeyError
from llmspell_dist.backup.schedule_model import BackupSchedule
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.security.keyring import FileKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]

REFUSED = "is encrypted, and no keys are given; plaintext=True"


@pytest.fixture
def place(tmp_path: Path) -> str:
    """The URL of a folder for backups."""
    return f"file://{tmp_path}/backups"


@pytest.fixture
def keys(tmp_path: Path) -> FileKeys:
    """What encrypts them."""
    found = FileKeys(tmp_path / "keys")
    found.generate()
    return found


@pytest.fixture
async def forgot(spell: Spell, place: str, keys: FileKeys) -> AsyncIterator[BackupStore]:
    """A place with a plain backup and a newer one that is encrypted, opened without keys."""
    await spell.state.set("agent:a", "k", 1)
    async with (
        spell.backups.to(place) as plain,
        spell.backups.to(place, keys=keys) as encrypted,
    ):
        await plain.create(keep_log=True)
        await encrypted.create(keep_log=True)
    await spell.state.set("agent:a", "k", 2)
    async with spell.backups.to(place) as store:
        yield store


@pytest.mark.parametrize("kind", ["full", "incremental", "differential"])
async def test_a_backup_without_keys_is_refused(forgot: BackupStore, kind: str) -> None:
    """An older plain backup is nothing to go on from, however it was passed over."""
    before = await forgot.list()
    with pytest.raises(BackupKeyError, match=REFUSED) as caught:
        await forgot.create(type=kind)
    assert before[-1].id in str(caught.value)
    assert await forgot.list() == before


async def test_plaintext_is_made_where_it_is_asked_for(
    spell: Spell, forgot: BackupStore, place: str
) -> None:
    """From then on the newest backup is not encrypted, and nobody has to ask again."""
    async with spell.backups.to(place, plaintext=True) as wanted:
        made = await wanted.create()
    assert not made.encrypted
    assert (await forgot.create(type="incremental")).parent == made.id


async def test_the_way_back_of_a_restore_is_no_exception(
    spell: Spell, forgot: BackupStore, place: str
) -> None:
    """What a restore replaces is not stored in plaintext; nothing is changed."""
    plain = (await forgot.list())[0].id
    with pytest.raises(BackupKeyError, match=REFUSED):
        await forgot.restore(plain)
    assert await spell.state.get("agent:a", "k") == 2
    async with spell.backups.to(place, plaintext=True) as wanted:
        assert (await wanted.restore(plain)).rollback is not None
    assert await spell.state.get("agent:a", "k") == 1


async def test_a_schedule_says_so_before_anything_is_due(forgot: BackupStore) -> None:
    """Not with the first backup, which may be hours away."""
    scheduled = forgot.on_schedule(BackupSchedule(name="main", when="0 0 1 1 *"))
    with pytest.raises(BackupKeyError, match=REFUSED):
        await scheduled.once()
    with pytest.raises(BackupKeyError, match=REFUSED):
        await scheduled.run(asyncio.Event())


async def test_the_archive_is_not_shipped_in_plaintext(forgot: BackupStore) -> None:
    """Neither what there is now nor what comes."""
    with pytest.raises(BackupKeyError, match=REFUSED):
        await forgot.archive().once()
    with pytest.raises(BackupKeyError, match=REFUSED):
        await forgot.archive().run(asyncio.Event())
    assert (await forgot.archive_status()).timelines == ()


async def test_an_encrypted_archive_does_not_go_on_in_plaintext(
    spell: Spell, place: str, keys: FileKeys
) -> None:
    """Also where there is no backup that would tell."""
    for value in (1, 2):
        await spell.state.set("agent:a", "k", value)
    async with spell.backups.to(place, keys=keys) as encrypted:
        assert (await encrypted.archive().once()).segments == 1
    await spell.state.set("agent:a", "k", 3)
    async with (
        spell.backups.to(place) as forgot,
        spell.backups.to(place, plaintext=True) as wanted,
    ):
        with pytest.raises(BackupKeyError, match="the archive up to here is encrypted"):
            await forgot.archive().once()
        assert (await wanted.archive().once()).segments == 1


def test_the_blocking_surface_refuses_it_too(
    url: str, namespace: str, place: str, keys: FileKeys
) -> None:
    """As the other one."""
    with blocking.connect(url, namespace=namespace) as spell:
        with spell.backups.to(place, keys=keys) as encrypted:
            encrypted.create()
        with spell.backups.to(place) as forgot, pytest.raises(BackupKeyError, match=REFUSED):
            forgot.create()
        with spell.backups.to(place, plaintext=True) as wanted:
            assert not wanted.create().encrypted
